"""Linear probing: what trains, what chooses, what stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.evaluation.classification.dataset import LabelledImages, open_splits
from selfpatch.evaluation.classification.linear import evaluate as linear
from selfpatch.evaluation.classification.linear.config import LinearConfig
from selfpatch.evaluation.classification.linear.evaluate import evaluate
from selfpatch.evaluation.classification.linear.features import (
    CachedFeatures,
    FrozenFeatures,
)
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.probe_training import CHECKPOINT
from selfpatch.evaluation.result import Output, Result, silent
from tests.helpers.labelled_images import NETWORKS, coloured_folder, tiny_encoder

SMALL: dict[str, Any] = {"resize": 16, "crop": 16, "epochs": 3, "batch_size": 6, "workers": 0}


def run(encoder: Encoder, data: Path, *, out: Path | None = None, progress: Any = None, **settings: Any) -> Result:
    return evaluate(encoder, data, LinearConfig.from_settings(settings), Output(out, progress or silent))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data"))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("crops", ["random", "cached"])
def test_separable_features_are_told_apart(folder: Path, crops: str) -> None:
    settings = {**SMALL, "epochs": 20, "lrs": (5.0,), "crops": crops}
    result = run(MeanColour(8), folder, **settings)
    assert result.metrics == {"top-1": 1.0, "top-5": 1.0, "train top-1": 1.0}
    assert result.per_image["red/red_0.png"] == {"top-1": 1.0, "top-5": 1.0}
    assert len(result.per_image) == 12


def test_rows_per_class(folder: Path) -> None:
    result = run(MeanColour(8), folder, lrs=(5.0,), per_class=True, **{**SMALL, "epochs": 20})
    assert [row["class"] for row in result.rows] == ["blue", "green", "red"]
    assert result.rows[0] == {"class": "blue", "images": 4, "top-1": 1.0, "top-5": 1.0}


def test_the_sweep_chooses_by_held_out_training_images_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 0.000001 and 5 the latter is better on them; with test labels shuffled the choice stays, accuracy falls."""
    settings = {**SMALL, "epochs": 20, "lrs": (1e-6, 5.0)}
    result = run(MeanColour(8), folder, preset="sweep", **settings)
    assert result.settings["lr"] == 5.0
    assert [row["lr"] for row in result.rows] == [1e-6, 5.0]
    assert result.metrics["top-1"] == 1.0

    def misled(root: Path, *_: Any) -> tuple[LabelledImages, LabelledImages]:
        train, test = open_splits(root)
        return train, replace(test, labels=(test.labels + 1) % 3)

    monkeypatch.setattr(linear, "open_splits", misled)
    other = run(MeanColour(8), folder, preset="sweep", **settings)
    assert other.rows == result.rows
    assert other.settings["lr"] == 5.0
    assert other.metrics["top-1"] == 0.0


def test_the_sweep_trains_on_some_chooses_by_the_others_then_trains_on_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, list[int]]] = []

    class RecordingFeatures(CachedFeatures):
        def batches(self, positions: np.ndarray, **settings: Any) -> Any:
            calls.append(("trained on", positions.tolist()))
            return super().batches(positions, **settings)

        def centre(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
            calls.append(("tested on", positions.tolist()))
            return super().centre(positions)

    monkeypatch.setattr(linear, "CachedFeatures", RecordingFeatures)
    run(MeanColour(8), folder, preset="sweep", **SMALL)
    (_, kept), (_, held), (_, everything) = calls[:3]
    assert [what for what, _ in calls] == ["trained on", "tested on", "trained on", "tested on"]
    assert sorted(kept + held) == everything == list(range(24))
    assert len(held) == 3


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_works_and_stays_frozen(folder: Path, kind: str) -> None:
    encoder = tiny_encoder(kind).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    result = run(encoder, folder, **{**SMALL, "epochs": 1})
    assert same(before, encoder.state_dict())
    assert encoder.training, "the mode is put back"
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert result.settings["blocks"] == (3 if kind.startswith("vit") else 1)
    again = run(encoder.eval(), folder, **{**SMALL, "epochs": 1})
    assert again.metrics == result.metrics, "evaluation mode either way"


real_plan = linear.TrainingPlan


class Stop(Exception):
    pass


def stopping_at(step: int) -> Any:
    seen = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal seen
        seen += what == "training"
        if seen == step:
            raise Stop

    return progress


@pytest.mark.parametrize(("preset", "part"), [("dino", "final"), ("sweep", "choosing")])
def test_a_stopped_training_ends_as_one_that_was_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: Any, part: str
) -> None:
    monkeypatch.setattr(linear, "TrainingPlan", lambda *args, **more: real_plan(*args, **more, save_every=0.0))
    settings = {**SMALL, "preset": preset, "lrs": (1.0,) if preset == "dino" else (0.1, 1.0)}
    expected = run(tiny_encoder("vit"), folder, out=tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        run(tiny_encoder("vit"), folder, out=tmp_path / "stopped", progress=stopping_at(5), **settings)
    assert torch.load(tmp_path / "stopped" / part / CHECKPOINT)["step"] == 4
    assert run(tiny_encoder("vit"), folder, out=tmp_path / "stopped", **settings) == expected
    whole, stopped = (torch.load(tmp_path / name / "final" / CHECKPOINT)["trained"] for name in ("whole", "stopped"))
    assert same(whole, stopped)


def test_a_checkpoint_of_another_network_is_refused(folder: Path, tmp_path: Path) -> None:
    run(tiny_encoder("vit"), folder, out=tmp_path, **SMALL)
    other = tiny_encoder("vit")
    next(other.parameters()).data.add_(1.0)
    with pytest.raises(ValueError, match=r"holds a training with other settings \(network"):
        run(other, folder, out=tmp_path, **SMALL)


def test_bad_settings_are_refused(folder: Path) -> None:
    for settings, why in [
        ({"preset": "imagenet"}, "preset is 'imagenet'; use one of: dino, sweep"),
        ({"lrs": (0.0,)}, r"lrs\[0\] is 0.0; use a number above 0"),
        ({"lrs": (0.1, 1.0), "held_out": 1.5}, "held_out is 1.5; use a number below 1"),
        ({"epochs": 0}, "epochs is 0; use a number above 0"),
        ({"batch_size": 0}, "batch_size is 0; use a number above 0"),
        ({"encode_batch": 0}, "encode_batch is 0; use a number above 0"),
        ({"workers": -1}, "workers is -1; use 0 or more"),
        ({"crop": 20, "resize": 20}, "crop is 20, no multiple of the patch size 8; use e.g. 16"),
        ({"crop": 24}, "resize is 16, less than the crop of 24 pixels"),
        ({"precision": "fp8"}, "precision is 'fp8'; use one of: float32, bf16"),
    ]:
        with pytest.raises(ValueError, match=why):
            run(MeanColour(8), folder, **{**SMALL, **settings}, progress=never)


def never(what: str, done: int, total: int) -> None:
    raise AssertionError(f"{what} began before the settings were checked")


def test_the_capped_batch_size_is_recorded(folder: Path) -> None:
    settings = {**SMALL, "batch_size": 1000, "lrs": (0.1,)}
    assert run(MeanColour(8), folder, **settings).settings["batch_size"] == 24
    assert run(MeanColour(8), folder, labels="25%", **settings).settings["batch_size"] == 6


def test_bfloat16(folder: Path) -> None:
    results = [run(tiny_encoder("vit"), folder, precision=p, **SMALL) for p in ("float32", "bf16")]
    assert [result.settings["precision"] for result in results] == ["float32", "bf16"]
    images = torch.rand(2, 3, 16, 16)
    one, other = (
        FrozenFeatures(tiny_encoder("vit"), blocks=1, mean_patch=False, precision=p)(images)
        for p in ("float32", "bf16")
    )
    assert not torch.equal(one, other)


def test_unreadable_test_images_are_counted_and_named(tmp_path: Path) -> None:
    root = coloured_folder(tmp_path, train=2, test=2)
    (root / "val" / "red" / "red_1.png").write_bytes(b"no image")
    result = run(MeanColour(8), root, **SMALL)
    assert (result.settings["unreadable"], result.settings["test_images"]) == (1, 5)
    assert result.notes == ["1 image could not be read, left out: val/red/red_1.png"]


def test_a_batch_of_unreadable_test_images_is_left_out(tmp_path: Path) -> None:
    """Two images a batch: the last one has none that can be read."""
    root = coloured_folder(tmp_path, train=2, test=2)
    for number in range(2):
        (root / "val" / "red" / f"red_{number}.png").write_bytes(b"no image")
    result = run(MeanColour(8), root, **SMALL, encode_batch=2, per_class=True)
    assert (result.settings["unreadable"], result.settings["test_images"]) == (2, 4)
    assert [row["class"] for row in result.rows] == ["blue", "green"]


class Brighter(MeanColour):
    factor = 1.0

    def patches(self, images: Tensor) -> Tensor:
        return super().patches(images) * self.factor


def test_a_head_is_not_used_with_another_function(folder: Path, tmp_path: Path) -> None:
    run(Brighter(8), folder, out=tmp_path, **SMALL)
    other = Brighter(8)
    other.factor = 2.0
    with pytest.raises(ValueError, match=r"holds a training with other settings \(network"):
        run(other, folder, out=tmp_path, **SMALL)


@pytest.mark.parametrize("preset", ["dino", "sweep"])
def test_an_unreadable_training_image_is_named(tmp_path: Path, preset: Any) -> None:
    root = coloured_folder(tmp_path, train=2, test=1)
    (root / "train" / "red" / "red_1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"red_1.png"):
        run(MeanColour(8), root, preset=preset, **SMALL)


@pytest.mark.slow
def test_real_images_are_told_apart_better_than_by_chance(data_dir: Path) -> None:
    """10 classes, 300 + 100 photographs of 32 x 32 pixels, by their mean colours on a grid of 8 x 8."""
    result = run(tiny_encoder("vit"), data_dir / "cifar10_mini", preset="sweep", resize=32, crop=32, epochs=20)
    assert 0.13 < result.metrics["top-1"] < 0.6
