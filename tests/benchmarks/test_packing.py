"""Benchmark of packed crops: both ways take the same step, and each is what it says."""

from __future__ import annotations

import pytest
import torch

from benchmarks.packing import WAYS, small_step, timings
from benchmarks.step import StepBench
from selfpatch.models.backbones.vit import ViT
from tests.helpers.tiny import tiny_config


def test_both_ways_are_timed_in_each_precision() -> None:
    measured = list(timings(tiny_config(), torch.device("cpu"), seconds=0.01, memory=False))
    assert [timing.name.partition(" step")[0] for timing in measured] in (
        ["fast float32", "fast bfloat16"],
        ["fast float32"],  # where the CPU emulates bfloat16
    )
    assert all(list(timing.seconds) == ["separate", "packed"] for timing in measured)
    assert all(seconds > 0 for timing in measured for times in timing.seconds.values() for seconds in times)


@pytest.mark.parametrize(("way", "passes"), [("separate", 2), ("packed", 1)])
def test_each_way_is_what_it_says(way: str, passes: int) -> None:
    bench, calls = StepBench(tiny_config(packing=WAYS[way]), torch.device("cpu")), []
    backbone = bench.student_teacher.student.backbone
    assert isinstance(backbone, ViT)
    backbone.trunk.blocks[0].register_forward_hook(lambda *_: calls.append(way))
    bench.step("fast float32")
    assert len(calls) == passes


def test_the_small_step_is_that_of_the_recipe() -> None:
    config = small_step(64)
    assert (config.crops.global_size, config.crops.local_size, config.patch_size, config.batch_size) == (64, 32, 8, 64)
