"""Parity of iBOT's head for few labels; a deviation in any kept or fresh tensor, or in a rule, is noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfpatch.evaluation.classification.finetune import network
from tests.parity.check import all_hold
from tests.parity.replay import replay

BUNDLE, CHECKPOINT = "ibot_semi_supervised_head", "ibot_separate/final.pth"


@pytest.fixture
def bundle(full_golden_dir: Path, tmp_path: Path) -> Path:
    """A copy to change, with the checkpoint next to it."""
    if not (full_golden_dir / "released" / BUNDLE).is_dir():
        pytest.skip(f"no bundle {BUNDLE} in {full_golden_dir}")
    for name in (f"{BUNDLE}/expected.json", f"{BUNDLE}/tensors.safetensors", CHECKPOINT):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(full_golden_dir / "released" / name, tmp_path / name)
    return tmp_path / BUNDLE


def holds(bundle: Path) -> bool:
    try:
        return all_hold(replay(bundle))
    except (ValueError, KeyError):
        return False


def test_every_quantity_holds(bundle: Path) -> None:
    checks = list(replay(bundle))
    assert all_hold(checks), "\n".join(str(check) for check in checks if not check.holds)
    assert sum("logits" in check.name for check in checks) == 3


@pytest.mark.parametrize("name", ["mlp.0.bias", "mlp.4.weight", "last_layer.weight_v", "last_layer.weight_g"])
def test_a_changed_head_is_noticed(bundle: Path, name: str) -> None:
    file = bundle.parent / CHECKPOINT
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["teacher"][f"head.{name}"].view(-1)[0] += 1e-1
    torch.save(checkpoint, file)
    assert not holds(bundle)


@pytest.mark.parametrize("name", ["inputs", "layer1.cls_head.weight", "layer3.cls_head.bias", "layer2.logits"])
def test_a_changed_tensor_is_noticed(bundle: Path, name: str) -> None:
    tensors = load_file(bundle / "tensors.safetensors")
    tensors[name].view(-1)[0] += 1e-2
    save_file(tensors, bundle / "tensors.safetensors")
    assert not holds(bundle)


def test_another_list_of_kept_layers_is_noticed(bundle: Path) -> None:
    facts = json.loads((bundle / "expected.json").read_text())
    facts["finetune_head_layer 1"]["kept_from_pretraining"].append("mlp.2.weight")
    (bundle / "expected.json").write_text(json.dumps(facts))
    assert not holds(bundle)


def test_a_bottleneck_that_is_not_normalised_is_noticed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unchanged(x: Tensor, dim: int) -> Tensor:
        return x

    monkeypatch.setattr(network.F, "normalize", unchanged)
    assert not holds(bundle)
