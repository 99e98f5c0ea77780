"""Replay of label propagation in windows of two shapes, with masks upsampled in two ways (DINOv3)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from selfpatch.evaluation.video_segmentation.propagation import to_mask
from selfpatch.ops.propagation import propagate_labels
from tests.parity.check import TIGHT, Check, compare, compare_exactly

CONTEXT_FRAMES, PATCH_SIZE, SHOWN = 7, 16, 4
"""Frames before the current one in its context; pixels of a patch; step between recorded pixels."""


def replay_vos_windows(bundle: Path) -> Iterator[Check]:
    """Propagate the first labels through all frames in a circle and in a square."""
    settings, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    features = t["features"]
    for window in ("circle", "square"):
        recorded = t[f"{window}.soft_labels"].movedim(-1, 1)  # [T - 1, C, h, w]
        labels = [F.one_hot(t["first_labels"].long(), recorded.shape[1]).movedim(-1, 0).float()]
        for frame in range(1, len(features)):
            context = [0, *range(max(1, frame - CONTEXT_FRAMES), frame)]
            soft = propagate_labels(
                features[frame],
                features[context],
                [labels[i] for i in context],
                radius=settings[f"{window}.size"],
                topk=settings["topk"],
                temperature=settings["temperature"],
                window=window,
            )
            yield compare(f"{window}: soft labels of frame {frame}", soft, recorded[frame - 1], TIGHT)
            size = PATCH_SIZE * soft.shape[1], PATCH_SIZE * soft.shape[2]
            for upsampling in ("nearest", "bilinear"):
                mask = torch.from_numpy(to_mask(soft, size, upsampling))[::SHOWN, ::SHOWN]
                expected = t[f"{window}.masks_{upsampling}"][frame - 1]
                yield compare_exactly(f"{window}: {upsampling} mask of frame {frame}", mask, expected)
            labels.append(soft)
