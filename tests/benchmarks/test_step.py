"""Benchmark of a training step: every variant trains, and the step is the published one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.step import StepBench, published_step
from tests.helpers.tiny import tiny_config


@pytest.mark.parametrize("variant", ["plain float32", "fast float32", "plain bfloat16", "fast bfloat16"])
@pytest.mark.parametrize("method", ["dino", "ibot", "moby"])
def test_a_step_of_each_variant_trains(method: str, variant: str) -> None:
    bench = StepBench(tiny_config(method=method), torch.device("cpu"))
    before = [p.clone() for p in bench.student_teacher.teacher.parameters()]
    bench.step(variant)
    after = bench.student_teacher.teacher.parameters()
    assert any(not torch.equal(p, b) for p, b in zip(after, before, strict=True))
    assert bench.flops() > 0


def test_the_step_is_the_published_one() -> None:
    config = published_step()
    crops = config.crops
    assert (crops.global_size, crops.num_local, crops.local_size) == (224, 8, 96)
    assert config.components["dino"]["num_prototypes"] == 65536
