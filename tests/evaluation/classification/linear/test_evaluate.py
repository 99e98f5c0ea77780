"""Linear probing: what trains, what chooses, what stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from selfpatch.evaluation.baselines import MeanColour
from selfpatch.evaluation.classification import metrics as accuracy
from selfpatch.evaluation.classification.dataset import LabelledImages, hold_out, open_splits, with_labels
from selfpatch.evaluation.classification.linear import evaluate as linear
from selfpatch.evaluation.classification.linear import evaluate as protocol
from selfpatch.evaluation.classification.linear.features import (
    CachedFeatures,
    CentreCrops,
    FreshCrops,
    FrozenFeatures,
    _CachedBatches,
)
from selfpatch.evaluation.classification.linear.heads import LinearHeads
from selfpatch.evaluation.classification.metrics import top_hits
from selfpatch.evaluation.probe_training import CHECKPOINT
from tests.helpers.labelled_images import NETWORKS, coloured_folder, tiny_encoder

SMALL: dict[str, Any] = {"resize": 16, "crop": 16, "epochs": 3, "batch_size": 6, "workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data"))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_heads_trained_at_once_are_those_trained_one_by_one() -> None:
    """Against torch's SGD with momentum, each rate by itself."""
    rates = (0.01, 0.5, 3.0)
    heads = LinearHeads(6, 4, rates, seed=1)
    alone = [nn.Linear(6, 4) for _ in rates]
    for head in alone:
        head.weight.data.normal_(std=0.01, generator=torch.Generator().manual_seed(1))
        head.bias.data.zero_()
    together = torch.optim.SGD(heads.parameters(), lr=1.0, momentum=0.9)
    optimizers = [torch.optim.SGD(h.parameters(), lr=r, momentum=0.9) for h, r in zip(alone, rates, strict=True)]
    torch.manual_seed(0)
    for _ in range(10):
        features, labels = torch.randn(8, 6), torch.randint(4, (8,))
        together.zero_grad()
        heads.loss(features, labels).backward()
        together.step()
        for head, optimizer in zip(alone, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(features), labels).backward()
            optimizer.step()
    features = torch.randn(5, 6)
    expected = torch.stack([head(features) for head in alone], dim=1)
    torch.testing.assert_close(heads(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("crops", ["random", "cached"])
def test_separable_features_are_told_apart(folder: Path, tmp_path: Path, crops: str) -> None:
    settings = {**SMALL, "epochs": 20, "lrs": (5.0,), "crops": crops}
    result = linear.evaluate(MeanColour(8), folder, out=tmp_path, **settings)
    assert result.metrics == {"top-1": 1.0, "top-5": 1.0, "train top-1": 1.0}
    assert result.per_image["red/red_0.png"] == {"top-1": 1.0, "top-5": 1.0}
    assert len(result.per_image) == 12
    assert (tmp_path / "result.json").is_file()


def test_rows_per_class(folder: Path) -> None:
    result = linear.evaluate(MeanColour(8), folder, lrs=(5.0,), per_class=True, **{**SMALL, "epochs": 20})
    assert [row["class"] for row in result.rows] == ["blue", "green", "red"]
    assert result.rows[0] == {"class": "blue", "images": 4, "top-1": 1.0, "top-5": 1.0}


def test_the_sweep_chooses_by_held_out_training_images_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 0.000001 and 5 the latter is better on them; with test labels shuffled the choice stays, accuracy falls."""
    settings = {**SMALL, "epochs": 20, "lrs": (1e-6, 5.0)}
    result = linear.evaluate(MeanColour(8), folder, preset="sweep", **settings)
    assert result.settings["lr"] == 5.0
    assert [row["lr"] for row in result.rows] == [1e-6, 5.0]
    assert result.metrics["top-1"] == 1.0

    def misled(root: Path) -> tuple[LabelledImages, LabelledImages]:
        train, test = open_splits(root)
        return train, replace(test, labels=(test.labels + 1) % 3)

    monkeypatch.setattr(protocol, "open_splits", misled)
    other = linear.evaluate(MeanColour(8), folder, preset="sweep", **settings)
    assert other.rows == result.rows
    assert other.settings["lr"] == 5.0
    assert other.metrics["top-1"] == 0.0


def test_the_sweep_trains_on_some_chooses_by_the_others_then_trains_on_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, list[int]]] = []

    class SourceStamp(CachedFeatures):
        def batches(self, numbers: np.ndarray, **how: Any) -> Any:
            calls.append(("trained on", numbers.tolist()))
            return super().batches(numbers, **how)

        def plain(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
            calls.append(("tested on", numbers.tolist()))
            return super().plain(numbers)

    monkeypatch.setattr(protocol, "CachedFeatures", SourceStamp)
    linear.evaluate(MeanColour(8), folder, preset="sweep", **SMALL)
    (_, kept), (_, held), (_, everything) = calls[:3]
    assert [what for what, _ in calls] == ["trained on", "tested on", "trained on", "tested on"]
    assert sorted(kept + held) == everything == list(range(24))
    assert len(held) == 3


def test_what_is_held_out_is_not_trained_on(folder: Path) -> None:
    train, _ = open_splits(folder)
    kept, held = hold_out(train, 0.25, seed=0)
    assert sorted([*kept, *held]) == list(range(24))
    assert np.bincount(train.labels[held]).tolist() == [2, 2, 2]
    source = _CachedBatches(torch.arange(24.0).view(24, 1, 1).expand(-1, 2, 1), torch.arange(24), kept, 6, 0)
    seen = {int(label) for _, labels in source.steps(0, 9) for label in labels}
    assert seen == set(kept.tolist())
    assert not np.array_equal(hold_out(train, 0.25, seed=1)[1], held)
    with pytest.raises(ValueError, match="each class has one labelled image, none to hold out"):
        hold_out(train.only(np.array([0, 8, 16])), 0.1, seed=0)


def test_cached_features_are_standardised_by_the_training_images(folder: Path) -> None:
    train, test = open_splits(folder)
    plain = CentreCrops(FrozenFeatures(tiny_encoder("vit"), blocks=1, mean_patch=False), 16, 16, 8, None)
    source = CachedFeatures(train, plain)
    both = torch.stack([f for f, _ in source.batches(np.arange(24), batch_size=1, seed=0).steps(0, 24 * 40)])
    torch.testing.assert_close(both.mean((0, 1)), torch.zeros(16), atol=0.1, rtol=0)
    torch.testing.assert_close(both.std((0, 1)), torch.ones(16), atol=0.15, rtol=0)
    raw = plain.encode(train, "")[0][:, 0]
    torch.testing.assert_close(source.prepared(raw), source.plain(np.arange(24))[0])
    assert not torch.allclose(source.prepared(plain.encode(test, "")[0][:, 0]).mean(0), torch.zeros(16), atol=1e-4)


def test_random_crops_are_flipped_half_of_the_time(tmp_path: Path) -> None:
    """Images that are dark on the left."""
    root = coloured_folder(tmp_path, train=1, test=1)
    for path in (root / "train").rglob("*.png"):
        Image.fromarray(np.tile(np.arange(0, 240, 10, np.uint8)[None, :, None], (20, 1, 3))).save(path)
    plain = CentreCrops(FrozenFeatures(MeanColour(8), blocks=1, mean_patch=False), 16, 16, 8, None)
    source = FreshCrops(open_splits(root)[0], plain, workers=0)
    views = torch.cat([images for images, _ in source.batches(np.arange(3), batch_size=3, seed=0).steps(0, 20)]).float()
    flipped = (views[..., 0] > views[..., -1]).all((1, 2)).float().mean()
    assert 0.3 < flipped < 0.7


def test_cached_batches_do_not_depend_on_where_one_begins() -> None:
    source = _CachedBatches(torch.randn(10, 2, 3), torch.arange(10), np.arange(10), 4, 7)
    whole, parts = list(source.steps(0, 6)), [*source.steps(0, 3), *source.steps(3, 6)]
    for (x, y), (part_x, part_y) in zip(whole, parts, strict=True):
        assert torch.equal(x, part_x)
        assert torch.equal(y, part_y)
    assert not torch.equal(whole[0][1], whole[2][1]), "each epoch has an order of its own"


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_works_and_stays_frozen(folder: Path, kind: str) -> None:
    encoder = tiny_encoder(kind).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    result = linear.evaluate(encoder, folder, **{**SMALL, "epochs": 1})
    assert same(before, encoder.state_dict())
    assert encoder.training, "the mode is put back"
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert result.settings["blocks"] == (3 if kind.startswith("vit") else 1)
    again = linear.evaluate(encoder.eval(), folder, **{**SMALL, "epochs": 1})
    assert again.metrics == result.metrics, "evaluation mode either way"


@pytest.mark.parametrize("kind", ["vit", "vit+pool"])
def test_features_are_image_tokens_of_the_last_blocks_and_the_mean_patch(kind: str) -> None:
    encoder = tiny_encoder(kind)
    images = torch.rand(2, 3, 16, 16)
    features = FrozenFeatures(encoder, blocks=2, mean_patch=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.mean, encoder.std))
    batch = (images - mean) / std
    tokens = encoder.backbone(batch)
    patches = tokens.patches if encoder.pool is None else encoder.pool.norm(tokens.raw_patches)
    expected = torch.cat([encoder.image_tokens(batch, 2).flatten(1), patches.mean((1, 2))], dim=1)
    torch.testing.assert_close(features(images), expected)
    assert features.dim == expected.config[1] == 48


def test_which_features_are_taken_goes_by_the_width() -> None:
    narrow = FrozenFeatures(tiny_encoder("vit"), blocks=None, mean_patch=None)
    assert (narrow.blocks, narrow.mean_patch) == (3, False)
    encoder = tiny_encoder("vit")
    encoder.backbone.dim = 768
    wide = FrozenFeatures(encoder, blocks=None, mean_patch=None)
    assert (wide.blocks, wide.mean_patch) == (1, True)
    with pytest.raises(ValueError, match="image tokens of 4 blocks are asked for; this network has 3 blocks"):
        FrozenFeatures(encoder, blocks=4, mean_patch=None)
    with pytest.raises(ValueError, match="this network has one image feature"):
        FrozenFeatures(tiny_encoder("swin"), blocks=2, mean_patch=None)


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
    monkeypatch.setattr(protocol, "Fit", lambda *args, **more: real_fit(*args, **more, save_every=0.0))
    settings = {**SMALL, "preset": preset, "lrs": (1.0,) if preset == "dino" else (0.1, 1.0)}
    linear.evaluate(tiny_encoder("vit"), folder, out=tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        linear.evaluate(tiny_encoder("vit"), folder, out=tmp_path / "stopped", progress=stopping_at(5), **settings)
    assert torch.load(tmp_path / "stopped" / part / CHECKPOINT)["step"] == 4
    linear.evaluate(tiny_encoder("vit"), folder, out=tmp_path / "stopped", **settings)
    whole, stopped = (torch.load(tmp_path / name / "final" / CHECKPOINT)["trained"] for name in ("whole", "stopped"))
    assert same(whole, stopped)
    results = [(tmp_path / name / "result.json").read_text() for name in ("whole", "stopped")]
    assert results[0] == results[1]


real_fit = protocol.Fit


def test_a_checkpoint_of_another_network_is_refused(folder: Path, tmp_path: Path) -> None:
    linear.evaluate(tiny_encoder("vit"), folder, out=tmp_path, **SMALL)
    other = tiny_encoder("vit")
    next(other.parameters()).data.add_(1.0)
    with pytest.raises(ValueError, match=r"holds a training with other settings \(network"):
        linear.evaluate(other, folder, out=tmp_path, **SMALL)


def test_a_share_of_the_labels_is_balanced_and_reproducible(folder: Path) -> None:
    train, _ = open_splits(folder)
    few, more = (with_labels(train, share, seed=0) for share in ("25%", "50%"))
    assert np.bincount(few.labels).tolist() == [2, 2, 2]
    assert np.bincount(more.labels).tolist() == [4, 4, 4]
    assert set(few.places) <= set(more.places)
    assert np.array_equal(few.places, with_labels(train, "25%", seed=0).places)
    assert not np.array_equal(few.places, with_labels(train, "25%", seed=1).places)
    assert len(with_labels(train, "1%", seed=0)) == 3, "one of each class at least"
    assert few.fingerprint != more.fingerprint


def test_labels_may_be_listed(folder: Path, tmp_path: Path) -> None:
    train, _ = open_splits(folder)
    listed = tmp_path / "some.txt"
    listed.write_text("red_3.png\nblue/blue_1.png\n\nred_0.png\n")
    some = with_labels(train, str(listed), seed=0)
    assert [some.name(i) for i in range(len(some))] == ["blue/blue_1.png", "red/red_0.png", "red/red_3.png"]
    listed.write_text("red_3.png\nzebra.png\n")
    with pytest.raises(ValueError, match=r"lists 'zebra.png', which no training image is called"):
        with_labels(train, str(listed), seed=0)
    with pytest.raises(ValueError, match="'1 percent', neither a share such as 1% or 10% nor a text file"):
        with_labels(train, "1 percent", seed=0)
    with pytest.raises(ValueError, match="labels is '0%'; use more than 0%"):
        with_labels(train, "0%", seed=0)


def test_labels_are_those_of_the_training_set(tmp_path: Path) -> None:
    """A test set without the first class."""
    root = coloured_folder(tmp_path, train=2, test=1)
    (root / "val" / "blue" / "blue_0.png").unlink()
    (root / "val" / "blue").rmdir()
    _, test = open_splits(root)
    assert [test.classes[label] for label in test.labels] == ["green", "red"]


def test_hits_of_equal_scores_go_by_the_number_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "_SCORED_AT_ONCE", 2)
    scores = torch.zeros(3, 7)
    scores[2, 6] = 1.0
    hits = top_hits(scores, torch.tensor([0, 5, 6]))
    assert hits.tolist() == [[True, True], [False, False], [True, True]]


def test_bad_settings_are_said(folder: Path) -> None:
    for settings, why in [
        ({"preset": "imagenet"}, "there is no preset 'imagenet'; use one of: dino, sweep"),
        ({"lrs": (0.0,)}, r"lrs are \[0.0\]; use one or more learning rates above 0"),
        ({"lrs": (0.1, 1.0), "held_out": 1.5}, "held_out is 1.5; use a share between 0 and 1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size 0; use 1 or more"),
        ({"encode_batch": 0}, "encode_batch is 0; use 1 or more"),
        ({"workers": -1}, "workers is -1; use 0 or more"),
        ({"crop": 20, "resize": 20}, "crop is 20, no multiple of the patch size 8; use e.g. 16"),
        ({"crop": 24}, "resize is 16, less than the crop of 24 pixels"),
        ({"precision": "fp8"}, "precision is 'fp8'; use one of: float32, bf16"),
    ]:
        with pytest.raises(ValueError, match=why):
            linear.evaluate(MeanColour(8), folder, **{**SMALL, **settings}, progress=never)


def never(what: str, done: int, total: int) -> None:
    raise AssertionError(f"{what} began before the settings were checked")


def test_the_batch_that_was_used_is_recorded(folder: Path) -> None:
    settings = {**SMALL, "batch_size": 1000, "lrs": (0.1,)}
    assert linear.evaluate(MeanColour(8), folder, **settings).settings["batch_size"] == 24
    assert linear.evaluate(MeanColour(8), folder, labels="25%", **settings).settings["batch_size"] == 6


def test_bfloat16(folder: Path) -> None:
    results = [linear.evaluate(tiny_encoder("vit"), folder, precision=p, **SMALL) for p in ("float32", "bf16")]
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
    result = linear.evaluate(MeanColour(8), root, **SMALL)
    assert (result.settings["unreadable"], result.settings["test_images"]) == (1, 5)
    assert result.notes == ["1 image could not be read, left out: val/red/red_1.png"]


def test_a_batch_of_unreadable_test_images_is_left_out(tmp_path: Path) -> None:
    """Two images a batch: the last one has none that can be read."""
    root = coloured_folder(tmp_path, train=2, test=2)
    for number in range(2):
        (root / "val" / "red" / f"red_{number}.png").write_bytes(b"no image")
    result = linear.evaluate(MeanColour(8), root, **SMALL, encode_batch=2, per_class=True)
    assert (result.settings["unreadable"], result.settings["test_images"]) == (2, 4)
    assert [row["class"] for row in result.rows] == ["blue", "green"]


class Brighter(MeanColour):
    factor = 1.0

    def patches(self, images: Tensor) -> Tensor:
        return super().patches(images) * self.factor


def test_a_head_is_not_used_with_another_function(folder: Path, tmp_path: Path) -> None:
    linear.evaluate(Brighter(8), folder, out=tmp_path, **SMALL)
    other = Brighter(8)
    other.factor = 2.0
    with pytest.raises(ValueError, match=r"holds a training with other settings \(network"):
        linear.evaluate(other, folder, out=tmp_path, **SMALL)


@pytest.mark.parametrize("preset", ["dino", "sweep"])
def test_an_unreadable_training_image_is_named(tmp_path: Path, preset: Any) -> None:
    root = coloured_folder(tmp_path, train=2, test=1)
    (root / "train" / "red" / "red_1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"red_1.png"):
        linear.evaluate(MeanColour(8), root, preset=preset, **SMALL)


@pytest.mark.slow
def test_real_images_are_told_apart_better_than_by_chance(data_dir: Path) -> None:
    """10 classes, 300 + 100 photographs of 32 x 32 pixels, by their mean colours on a grid of 8 x 8."""
    result = linear.evaluate(
        tiny_encoder("vit"), data_dir / "cifar10_mini", preset="sweep", resize=32, crop=32, epochs=20
    )
    assert 0.13 < result.metrics["top-1"] < 0.6
