"""Fine-tuning: layers, augmentation, and a training that ends the same however it is stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfpatch.data.augment.multicrop import ViewRecipe, generator
from selfpatch.evaluation.baselines import MeanColour
from selfpatch.evaluation.classification.dataset import open_splits
from selfpatch.evaluation.classification.finetune import evaluate as finetune
from selfpatch.evaluation.classification.finetune import evaluate as protocol
from selfpatch.evaluation.classification.finetune.augmentation import AugmentedImages, Mixing, rand_augment
from selfpatch.evaluation.classification.finetune.config import PRESETS
from selfpatch.evaluation.classification.finetune.network import Classifier
from selfpatch.evaluation.finetuning import layer_groups
from selfpatch.evaluation.probe_training import CHECKPOINT
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.pooling import ClassAttentionPool
from tests.helpers.labelled_images import NETWORKS, coloured_folder, tiny_encoder

SMALL: dict[str, Any] = {"resize": 16, "crop": 16, "epochs": 2, "batch_size": 6, "warmup_epochs": 0.5, "workers": 0}
RECIPE = ViewRecipe(16, scale=(0.3, 1.0), flip=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data"))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def classifier(kind: str, token: Any = "image", drop_path: float = 0.0) -> Classifier:
    return Classifier(tiny_encoder(kind), 3, token=token, drop_path=drop_path, head_std=0.02, seed=0)


@pytest.mark.parametrize("token", ["image", "mean"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_is_tuned_and_the_encoder_stays(folder: Path, kind: str, token: Any) -> None:
    encoder = tiny_encoder(kind)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    result = finetune.evaluate(encoder, folder, token=token, **SMALL)
    assert same(before, encoder.state_dict())
    assert set(result.metrics) == {"top-1", "top-5", "train top-1"}
    assert len(result.per_image) == 12


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_copy_computes_what_the_encoder_does(kind: str) -> None:
    """And holds drop path, which training alone sees."""
    encoder, images = tiny_encoder(kind), torch.randn(2, 3, 16, 16)
    tuned = classifier(kind, drop_path=0.5).eval()
    torch.testing.assert_close(tuned(images), tuned.head(encoder.image(images)))
    if kind == "vit":
        first, second = tuned.train()(images), tuned(images)
        assert not torch.equal(first, second)


def test_a_mask_token_is_left_behind() -> None:
    encoder = tiny_encoder("vit")
    encoder.backbone.add_mask_token()
    tuned = Classifier(encoder, 3, token="image", drop_path=0.0, head_std=0.02, seed=0)
    assert tuned.backbone.mask_token is None


def test_learning_rates_fall_from_layer_to_layer() -> None:
    """Three blocks: the embedding is 4 layers below the head."""
    tuned = classifier("vit+pool")
    rates = {}
    for group in layer_groups(tuned, tuned.backbone, lr=2.0, layer_decay=0.5, weight_decay=0.1):
        for parameter in group["params"]:
            rates[parameter] = (group["lr"], group["weight_decay"])
    found = {name: rates.pop(parameter) for name, parameter in tuned.named_parameters()}
    assert not rates, "each parameter is in one group"
    assert found["backbone.trunk.patch_embed.proj.weight"] == (2.0 * 0.5**4, 0.1)
    assert found["backbone.trunk.pos_embed"] == (2.0 * 0.5**4, 0.0)
    assert found["backbone.trunk.blocks.0.mlp.fc1.weight"] == (2.0 * 0.5**3, 0.1)
    assert found["backbone.trunk.blocks.0.mlp.fc1.bias"] == (2.0 * 0.5**3, 0.0)
    assert found["backbone.trunk.blocks.2.norm1.weight"] == (2.0 * 0.5, 0.0)
    assert found["pool.blocks.0.attn.q.weight"] == (2.0, 0.1)
    assert found["pool.query"] == (2.0, 0.0)
    assert found["head.weight"] == (2.0, 0.1)


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_every_family_has_layers(kind: str) -> None:
    tuned = classifier(kind, token="mean")
    groups = layer_groups(tuned, tuned.backbone, lr=1.0, layer_decay=0.5, weight_decay=0.1)
    assert {group["lr"] for group in groups} == {1.0, 0.5, 0.25, 0.125}, "embedding, two layers, head"
    assert sum(len(group["params"]) for group in groups) == len(list(tuned.parameters()))


def test_running_statistics_of_a_resnet_follow_the_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Classifier] = []
    monkeypatch.setattr(protocol, "Classifier", lambda *a, **k: kept.append(Classifier(*a, **k)) or kept[-1])
    finetune.evaluate(tiny_encoder("resnet"), folder, **SMALL)
    assert int(kept[0].state_dict()["backbone.trunk.bn1.num_batches_tracked"]) == 8
    assert not kept[0].training, "it was tested in evaluation mode"


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.0, 0.0)])
def test_mixed_targets_sum_to_one_and_say_what_is_in_the_image(mixup: float, cutmix: float) -> None:
    """Images whose pixels are the number of their class: the mean pixel is the mean class of the target."""
    mixing = Mixing(4, mixup=mixup, cutmix=cutmix)
    torch.manual_seed(0)
    shares = set()
    for _ in range(8):
        labels = torch.randperm(4)
        images = labels.view(4, 1, 1, 1).expand(4, 3, 8, 8).float()
        mixed, targets = mixing(images, labels)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(4.0))
        shares.add(round(float(targets.amax()), 4))
    assert (len(shares) > 3) == bool(mixup or cutmix)


def test_augmentation_belongs_to_the_sample_and_leaves_torch_alone(folder: Path) -> None:
    train, _ = open_splits(folder)
    load = AugmentedImages(train, RECIPE, (0.5,) * 3, (0.2,) * 3, magnitude=9, erasing=0.5)

    def view(number: int, epoch: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        image, label = load(number, generator(0, epoch, number, 0))
        assert torch.equal(before, torch.get_rng_state())
        assert label == train.labels[number]
        return image

    views = [view(3, epoch, seed=epoch) for epoch in range(6)]
    assert all(torch.equal(v, view(3, epoch, seed=100)) for epoch, v in enumerate(views))
    assert len({v.sum().item() for v in views}) == 6


def test_half_of_the_operations_are_applied_and_stronger_ones_change_more() -> None:
    image = (torch.arange(3 * 16 * 16).view(3, 16, 16) % 251).to(torch.uint8)

    def change(magnitude: float) -> list[float]:
        torch.manual_seed(0)
        rngs = (np.random.default_rng(i) for i in range(60))
        return [float((rand_augment(image, magnitude, r, fill=[0] * 3) - image.float()).abs().mean()) for r in rngs]

    weak, strong = change(1.0), change(9.0)
    assert 8 <= sum(c == 0 for c in strong) <= 30, "a quarter is left alone, and some operations change nothing"
    assert sum(weak) < sum(strong)


def test_erasing_puts_noise_into_a_rectangle(folder: Path) -> None:
    train, _ = open_splits(folder)
    plain = AugmentedImages(train, RECIPE, (0.5,) * 3, (0.2,) * 3, magnitude=0, erasing=0.0)
    erased = replace(plain, erasing=1.0)
    before, after = (load(0, generator(0, 0, 0, 0))[0] for load in (plain, erased))
    changed = (before != after).all(0)
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    assert changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all(), "a full rectangle"
    assert 0.01 < changed.float().mean() < 0.4


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def progress(what: str, done: int, total: int) -> None:
        if what == "training" and done == step:
            raise Stop

    return progress


real_fit = protocol.Fit


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_stopped_training_ends_as_one_that_was_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With all that is random: crops, RandAugment, erasing, mixup, cutmix, drop path."""
    monkeypatch.setattr(protocol, "Fit", lambda *args, **more: real_fit(*args, **more, save_every=0.0))
    settings = {**SMALL, "drop_path": 0.3, "erasing": 0.5}
    finetune.evaluate(tiny_encoder(kind), folder, out=tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        finetune.evaluate(tiny_encoder(kind), folder, out=tmp_path / "stopped", progress=stop_at(6), **settings)
    assert torch.load(tmp_path / "stopped" / CHECKPOINT)["step"] == 5
    finetune.evaluate(tiny_encoder(kind), folder, out=tmp_path / "stopped", **settings)
    whole, stopped = (torch.load(tmp_path / name / CHECKPOINT)["trained"] for name in ("whole", "stopped"))
    assert same(whole, stopped)
    assert len({(tmp_path / name / "result.json").read_text() for name in ("whole", "stopped")}) == 1
    with pytest.raises(ValueError, match=r"holds a training with other settings \(mixup 0.8 there, 0.0 now\)"):
        finetune.evaluate(tiny_encoder(kind), folder, out=tmp_path / "stopped", **settings, mixup=0.0)
    other = tiny_encoder(kind)
    next(other.parameters()).data.add_(1.0)
    with pytest.raises(ValueError, match=r"holds a training with other settings \(network"):
        finetune.evaluate(other, folder, out=tmp_path / "stopped", **settings)


def test_what_colour_tells_apart_is_learned(folder: Path) -> None:
    settings = {**SMALL, "epochs": 15, "warmup_epochs": 1, "lr": 0.1}
    result = finetune.evaluate(tiny_encoder("vit"), folder, preset="small", labels="50%", per_class=True, **settings)
    assert result.metrics["train top-1"] == 1.0
    assert result.metrics["top-1"] == 1.0
    assert result.settings["train_images"] == 12
    assert [row["class"] for row in result.rows] == ["blue", "green", "red"]


def test_bfloat16(folder: Path) -> None:
    result = finetune.evaluate(tiny_encoder("vit"), folder, precision="bf16", **SMALL)
    assert result.settings["precision"] == "bf16"


def test_published_settings() -> None:
    mae, ibot, cifar = PRESETS["mae"], PRESETS["ibot"], PRESETS["cifar"]
    assert mae.lr * mae.batch_size / 256 == pytest.approx(2e-3)
    assert ibot.lr * ibot.batch_size / 256 == pytest.approx(4e-3)
    assert cifar.lr * cifar.batch_size / 256 == pytest.approx(7.5e-6 * 768 / 512)
    assert (mae.token, ibot.token, ibot.warmup_epochs, PRESETS["inaturalist"].epochs) == ("mean", "image", 20, 360)


def test_bad_settings_are_said(folder: Path) -> None:
    with pytest.raises(ValueError, match="a MeanColour cannot be fine-tuned; give a run directory, a checkpoint"):
        finetune.evaluate(MeanColour(8), folder, **SMALL)
    for settings, why in [
        ({"preset": "imagenet"}, "there is no preset 'imagenet'; use one of: mae, ibot"),
        ({"lr": 0.0}, "lr is 0.0; use more than 0"),
        ({"warmup_epochs": 2}, "warmup_epochs is 2 of 2 epochs; use 0 or more, but fewer"),
        ({"drop_path": 1.5}, "drop_path is 1.5; use 0 to 1"),
        ({"batch_size": 0}, "batch_size is 0; use more than 0"),
        ({"encode_batch": 0}, "encode_batch is 0; use 1 or more"),
        ({"workers": -1}, "workers is -1; use 0 or more"),
        ({"mixup": -0.1}, "mixup is -0.1; use 0 or more"),
        ({"cutmix": -1.0}, "cutmix is -1.0; use 0 or more"),
        ({"weight_decay": -0.05}, "weight_decay is -0.05; use 0 or more"),
        ({"crop": 20, "resize": 20}, "crop is 20, no multiple of the patch size 8; use e.g. 16"),
        ({"precision": "fp8"}, "precision is 'fp8'; use one of: float32, bf16"),
        ({"labels": "some"}, "labels is 'some', neither a share"),
    ]:
        with pytest.raises(ValueError, match=why):
            finetune.evaluate(tiny_encoder("vit"), folder, **{**SMALL, **settings}, progress=never)


def never(what: str, done: int, total: int) -> None:
    raise AssertionError(f"{what} began before the settings were checked")


def test_the_batch_that_was_used_is_recorded(folder: Path) -> None:
    settings = {**SMALL, "batch_size": 1000}
    assert finetune.evaluate(tiny_encoder("vit"), folder, **settings).settings["batch_size"] == 24


def test_unreadable_test_images_are_counted_and_named(tmp_path: Path) -> None:
    root = coloured_folder(tmp_path, train=2, test=2)
    (root / "val" / "red" / "red_1.png").write_bytes(b"no image")
    result = finetune.evaluate(tiny_encoder("vit"), root, **SMALL)
    assert (result.settings["unreadable"], result.settings["test_images"]) == (1, 5)
    assert result.notes == ["1 image could not be read, left out: val/red/red_1.png"]


def test_other_channels_go_without_rand_augment(folder: Path) -> None:
    three = tiny_encoder("vit+pool")
    shape = replace(three.backbone.config, in_channels=4, mean=(0.5,) * 4, std=(0.2,) * 4)
    encoder = BranchEncoder(build_backbone(shape), ClassAttentionPool(16, 2))
    with pytest.raises(ValueError, match="RandAugment is for 3 channels, not 4; set rand_augment to 0"):
        finetune.evaluate(encoder, folder, **SMALL)


@pytest.mark.slow
def test_real_images_are_learned(data_dir: Path) -> None:
    """10 classes, 300 photographs of 32 x 32 pixels: a tiny network comes to know them better than by chance."""
    settings = {"resize": 32, "crop": 32, "lr": 0.05, "batch_size": 32, "epochs": 12, "workers": 0}
    result = finetune.evaluate(tiny_encoder("vit"), data_dir / "cifar10_mini", preset="small", **settings)
    assert result.metrics["train top-1"] > 0.2
    assert result.metrics["top-1"] > 0.12
