"""Replay of iBOT's head for few labels: the kept layers of a released projection head below a fresh classifier."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.load import load_encoder
from selfpatch.evaluation.classification.finetune.network import ProjectionClassifier
from tests.parity.check import TIGHT, Check, compare, compare_exactly

CHECKPOINT = Path("..", "ibot_separate", "final.pth")
"""Released checkpoint whose teacher the head is filled from, from the bundle's folder."""
FRESH = {"cls_head.weight": "classify.weight", "cls_head.bias": "classify.bias"}
NUM_HEADS = 3


def replay_semi_supervised_head(bundle: Path) -> Iterator[Check]:
    """Compare names of kept and fresh tensors, and the logits, for every number of kept layers."""
    expected = json.loads((bundle / "expected.json").read_text())
    tensors = load_file(bundle / "tensors.safetensors")
    encoder, _ = load_encoder(str(bundle / CHECKPOINT), LoadConfig(num_heads=NUM_HEADS))
    for setting, facts in expected.items():
        layers = int(setting.removeprefix("finetune_head_layer "))
        classes = len(tensors[f"layer{layers}.cls_head.bias"])
        head = ProjectionClassifier(encoder.projection, layers, classes)
        wanted = {*facts["kept_from_pretraining"], *(FRESH[name] for name in facts["fresh"])}
        names = sorted(wanted ^ head.state_dict().keys())
        yield Check(f"names of {layers} kept layers", float(len(names)), 0.0)
        for name in facts["kept_from_pretraining"]:
            yield compare_exactly(f"{layers} layers: {name}", head.state_dict()[name], encoder.projection[name])
        head.load_state_dict({ours: tensors[f"layer{layers}.{theirs}"] for theirs, ours in FRESH.items()}, strict=False)
        with torch.no_grad():
            logits = head(tensors["inputs"])
        yield compare(f"logits of {layers} kept layers", logits, tensors[f"layer{layers}.logits"], TIGHT)
