"""Benchmark of DAVIS: both variants give the same result."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.davis import propagation, whole_evaluation, whole_frame
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.video_segmentation.config import DAVISConfig

CPU = torch.device("cpu")


def test_propagation_is_the_same_with_both_variants() -> None:
    case = propagation(6, 9, CPU, dim=16)
    plain, fast = (variant() for variant in case.variants.values())
    assert list(case.variants) == ["plain", "fast"]
    torch.testing.assert_close(fast, plain)
    frames, patches, labels = 8, 6 * 9, 4
    assert case.flops == 2 * frames * patches**2 * (16 + labels)  # of all pairs


def test_a_frame_is_the_same_with_both_variants() -> None:
    case = whole_frame(CPU, model="vit_tiny", config=DAVISConfig(resolution=64))
    plain, fast = (variant() for variant in case.variants.values())
    assert isinstance(fast, np.ndarray)
    assert fast.shape == (480, 854)
    assert len(np.unique(fast)) > 1
    assert (fast == plain).mean() > 0.999


def test_an_evaluation_encodes_each_frame_as_often_as_the_passes_alone() -> None:
    shapes: list[tuple[int, ...]] = []

    class Recorder(MeanColour):
        def patches(self, images: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(images.shape))
            return super().patches(images)

    case = whole_evaluation(Recorder(16), resolution=48, frames=4)
    _, result = (variant() for variant in case.variants.values())
    assert shapes == 8 * [(1, 3, 48, 64)]
    assert isinstance(result, Result)
    assert 0 < result.metrics["J-Mean"] < 1
