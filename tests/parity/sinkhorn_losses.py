"""Replay of DINOv2's losses with Sinkhorn-Knopp in place of centres: CLS tokens and masked patches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from selfpatch.losses.ibot import masked_patch_weights
from selfpatch.ops.cross_entropy import cross_view_loss, soft_cross_entropy
from selfpatch.ops.sinkhorn import sinkhorn
from tests.parity.check import ENTRIES, TIGHT, Check, compare

GLOBAL_CROPS = 2


def replay_sinkhorn(bundle: Path) -> Iterator[Check]:
    """Compare assignments, losses and gradients of both kinds of tokens."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    temp, iterations = expected["student_temp"], expected["iterations"]
    assignments = sinkhorn(t["cls.teacher_logits"], expected["cls.teacher_temp"], iterations)
    yield compare("assignments of CLS tokens", assignments, t["cls.assignments"], TIGHT)
    crops = [t[f"cls.student_{kind}"].requires_grad_() for kind in ("global", "local")]
    by_view = [logits.unflatten(0, (-1, len(assignments) // GLOBAL_CROPS)) / temp for logits in crops]
    targets = assignments.unflatten(0, (GLOBAL_CROPS, -1))
    pairs = GLOBAL_CROPS * (GLOBAL_CROPS - 1 + len(by_view[1]))
    loss = cross_view_loss(targets, torch.cat(by_view))  # the mean over all pairs
    between_globals = cross_view_loss(targets, by_view[0]) * GLOBAL_CROPS * (GLOBAL_CROPS - 1) / pairs
    yield compare("loss of global crops", between_globals, expected["cls.global_loss"], TIGHT)
    yield compare("loss of local crops", loss - between_globals, expected["cls.local_loss"], TIGHT)
    for kind, gradient in zip(("global", "local"), torch.autograd.grad(loss, crops), strict=True):
        yield compare(f"gradient of {kind} crops", gradient, t[f"cls.student_{kind}_grad"], ENTRIES)
    mask, student = t["patch.mask"].bool(), t["patch.student_logits"].requires_grad_()
    assignments = sinkhorn(t["patch.teacher_logits"][mask], expected["patch.teacher_temp"], iterations)
    yield compare("assignments of masked patches", assignments, t["patch.assignments"], TIGHT)
    weights = masked_patch_weights(mask[..., None])[..., 0]
    loss = (weights[mask] * soft_cross_entropy(assignments, student[mask] / temp)).sum()
    yield compare("loss of masked patches", loss, expected["patch.loss"], TIGHT)
    yield compare("gradient of patches", torch.autograd.grad(loss, student)[0], t["patch.grad"], ENTRIES)
