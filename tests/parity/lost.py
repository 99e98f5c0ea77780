"""Replay of LOST: seed and box from recorded features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from selfpatch.ops.discovery import lost, pixel_box
from tests.parity.check import Check, compare_exactly


def replay_lost(expected: dict[str, Any], t: dict[str, Tensor]) -> Iterator[Check]:
    cell = (expected["scale"],) * 2
    for number, (*box, seed) in enumerate(expected["boxes_xyxy_and_seed"]):
        features = t[f"lost.features{number}"].unflatten(0, expected["grid"])
        found = lost(features, num_patches=expected["k_patches"])
        found_box = pixel_box(found.mask, cell, expected["image_size"])
        yield compare_exactly(
            f"lost box and seed {number}", torch.tensor([*found_box, found.seed]), torch.tensor([*box, seed])
        )
