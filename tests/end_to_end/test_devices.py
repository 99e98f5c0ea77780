"""Whole runs on each device: training, resuming and loading give there what they give on a CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import selfpatch
from selfpatch.training.loggers.metrics import read_metrics
from tests.helpers.command_line import write_photos
from tests.helpers.devices import DEVICES
from tests.helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 22)  # 20 to train on: 5 steps of 4 an epoch


def trained(photos: Path, out: Path, device: str, *, render: str = "auto", **settings: Any) -> Path:
    watch = {"log_every": 1, "picture_images": 1}
    loader = {"held_out": 2, "workers": 1, "render": render}
    config = tiny_config(method="ibot", objective="selfpatch+sere", epochs=1.2, precision="fp32", **settings)
    return selfpatch.pretrain(config, data=str(photos), out=str(out), device=device, watch=watch, loader=loader)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_run_is_resumed_to_the_losses_of_a_whole_one(photos: Path, tmp_path: Path, device: str) -> None:
    checkpoint = {"every_steps": 2, "keep": 10}
    run = trained(photos, tmp_path / "run", device, checkpoint=checkpoint)
    whole = [row for row in read_metrics(run) if "loss" in row]
    assert [row["step"] for row in whole] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(row["loss"]) for row in whole)
    for later in ("00000004", "00000006"):
        (run / "checkpoints" / f"step-{later}.pt").unlink()
    selfpatch.resume(run, device=device)
    resumed = [row for row in read_metrics(run) if "loss" in row]
    assert [row["step"] for row in resumed] == [1, 2, 3, 4, 5, 6]
    for before, after in zip(whole, resumed, strict=True):
        assert after["loss"] == (before["loss"] if device == "cpu" else pytest.approx(before["loss"], rel=1e-3))


@pytest.mark.parametrize("device", DEVICES[1:])
def test_losses_and_features_are_those_of_a_cpu(photos: Path, tmp_path: Path, device: str) -> None:
    """Where a device renders by itself, pixels differ by less than a level; here the CPU renders for both."""
    runs = {name: trained(photos, tmp_path / name, name, render="plain") for name in (device, "cpu")}
    rows = {name: [row for row in read_metrics(run) if "loss" in row] for name, run in runs.items()}
    for found, expected in zip(rows[device], rows["cpu"], strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-2)
    images = torch.randn(2, 3, 32, 48, generator=torch.manual_seed(0))
    found, expected = (selfpatch.load(runs[device], device=name) for name in (device, "cpu"))
    for feature in ("patches", "image"):
        ours = getattr(found, feature)(images.to(device)).cpu()
        torch.testing.assert_close(ours, getattr(expected, feature)(images), rtol=1e-3, atol=1e-4)
