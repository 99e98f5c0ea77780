"""Segmentation with a trained decoder: it learns, goes on after a stop, and refuses what does not fit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.core.types import Encoder
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.probe_training import CHECKPOINT
from selfpatch.evaluation.result import Output, Result, silent
from selfpatch.evaluation.segmentation import decoder_training
from selfpatch.evaluation.segmentation.augmentation import TrainCrop, training_batches
from selfpatch.evaluation.segmentation.config import SegmentationConfig
from selfpatch.evaluation.segmentation.dataset import open_dataset
from selfpatch.evaluation.segmentation.decoder_config import FPNConfig, UPerNetConfig
from selfpatch.evaluation.segmentation.decoder_training import (
    build_segmenter,
    resolve,
    train_segmenter,
)
from selfpatch.evaluation.segmentation.evaluate import evaluate
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import AnyBackboneConfig, ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.layers.batch_norm import BatchNorm2d

VIT = ViTConfig(embed_dim=32, depth=4, num_heads=2, patch_size=8, grid=4)


SWIN = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), first_heads=2, window=2)


RESNET = ResNetConfig(depths=(1, 1, 1, 1), width=4)


HEADS = pytest.mark.parametrize("head", ["fpn", "upernet"])


SMALL: dict[str, Any] = {"preset": "small", "crop": 48, "batch_size": 2, "channels": 16, "auxiliary_channels": 8}


SMALL |= {"precision": "float32"}


COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)


def encoder(shape: AnyBackboneConfig = VIT) -> BranchEncoder:
    torch.manual_seed(0)
    return BranchEncoder(build_backbone(shape), None)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images a split: three coloured stripes, upright or lying, and a border of void."""
    root = tmp_path / "photos"
    for split in ("train", "val"):
        for name, turned in (("a", False), ("b", True)):
            label = np.arange(48)[None, :].repeat(48, 0) // 16
            label = label.T.copy() if turned else label
            pixels = COLOURS[label] + np.random.default_rng(0).integers(0, 30, (48, 48, 1), dtype=np.uint8)
            label[0] = 255
            for folder, values in (("images", pixels), ("labels", label.astype(np.uint8))):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(root / folder / split / f"{name}.png")
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    return root


def run(photos: Path, head: Literal["fpn", "upernet"], shape: AnyBackboneConfig = VIT, **settings: Any) -> Result:
    return evaluated(encoder(shape), photos, head, **settings)


def evaluated(
    measured: Encoder,
    photos: Path,
    head: str,
    *,
    out: Path | None = None,
    progress: Any = None,
    **settings: Any,
) -> Result:
    config = SegmentationConfig.from_settings({"method": head, **SMALL, **settings})
    return evaluate(measured, photos, config, Output(out, progress or silent))


@HEADS
def test_it_learns_two_images_by_heart(photos: Path, head: Literal["fpn", "upernet"], tmp_path: Path) -> None:
    result = run(photos, head, steps=45, lr=1e-2, layer_decay=1.0, out=tmp_path / "out")
    assert result.metrics["mIoU"] > 0.9
    assert result.metrics["mIoU baseline"] < 0.2
    assert [row["class"] for row in result.rows] == ["red", "green", "blue"]
    assert set(result.per_image) == {"a", "b"}
    assert result.settings["norm"] == "batch"
    assert result.settings["blocks"] == [1, 2, 3, 4]
    assert [(tmp_path / "out" / picture).is_file() for picture in result.pictures] == [True]


class Stop(Exception):
    pass


@pytest.mark.parametrize("shape", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_stopped_training_ends_as_one_that_was_not(
    photos: Path, shape: AnyBackboneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_training, "TrainingPlan", partial(decoder_training.TrainingPlan, save_every=0.0))
    settings: dict[str, Any] = {"steps": 5, "drop_path": 0.3}

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        run(photos, "upernet", shape, **settings, out=tmp_path / "stopped", progress=stop)
    # The step that told of itself was not saved: it is taken again.
    assert torch.load(tmp_path / "stopped" / CHECKPOINT)["step"] == 1
    resumed = run(photos, "upernet", shape, **settings, out=tmp_path / "stopped")
    whole = run(photos, "upernet", shape, **settings, out=tmp_path / "whole", workers=1)
    assert resumed == whole
    ends = [torch.load(tmp_path / name / CHECKPOINT)["trained"] for name in ("stopped", "whole")]
    assert all(torch.equal(a, b) for a, b in zip(*(end.values() for end in ends), strict=True))


def test_only_what_is_learned_binds_a_checkpoint(photos: Path, tmp_path: Path) -> None:
    run(photos, "fpn", steps=2, out=tmp_path)
    again = run(photos, "fpn", steps=2, test="slide", stride=16, out=tmp_path)
    assert again.settings["test"] == "slide"
    with pytest.raises(ValueError, match=r"other settings \(drop_path 0.0 there, 0.1 now\)"):
        run(photos, "fpn", steps=2, drop_path=0.1, out=tmp_path)
    other = BranchEncoder(build_backbone(VIT), None)
    with pytest.raises(ValueError, match=r"other settings \(network "):
        evaluated(other, photos, "fpn", steps=2, out=tmp_path)


def test_a_trained_decoder_is_scored_elsewhere_and_bound_to_its_training_data(photos: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[str]()
    first = run(photos, "fpn", steps=2, out=out)
    (photos / "images" / "val").rename(photos / "images" / "test")
    (photos / "labels" / "val").rename(photos / "labels" / "test")
    moved = photos.rename(tmp_path / "moved")
    again = run(moved, "fpn", steps=2, test_split="test", out=out, progress=lambda what, *_: seen.append(what))
    assert set(seen) == {"scoring"}
    assert again.metrics == first.metrics
    Image.new("L", (48, 48), 1).save(moved / "labels" / "train" / "a.png")
    with pytest.raises(ValueError, match=r"other settings \(training_data "):
        run(moved, "fpn", steps=2, test_split="test", out=out)


def test_the_result_records_resolved_settings(photos: Path) -> None:
    result = run(photos, "fpn", steps=10, warmup=7)
    assert (result.settings["kind"], result.settings["warmup"]) == ("folder", 1)


def test_a_swin_and_a_single_image_a_step(photos: Path) -> None:
    result = run(photos, "upernet", SWIN, steps=2, batch_size=1, test="slide", precision="bf16")
    assert result.settings["norm"] == "group"
    assert result.settings["stride"] == 32
    assert 0 <= result.metrics["mIoU"] <= 1


def test_the_encoder_is_left_as_it_is_and_the_running_statistics_of_a_resnet_follow(photos: Path) -> None:
    measured = encoder(RESNET)
    before = {name: value.clone() for name, value in measured.state_dict().items()}
    config = resolve(FPNConfig(crop=48, batch_size=2, steps=3, channels=16), measured)
    network = build_segmenter(measured, 3, config)
    batches = training_batches(open_dataset(photos, "train"), TrainCrop(48), config)
    train_segmenter(network, measured, batches, config, settings={})
    assert all(torch.equal(value, before[name]) for name, value in measured.state_dict().items())
    norm = next(part for part in network.modules() if isinstance(part, BatchNorm2d))
    assert int(norm.get_buffer("num_batches_tracked")) == 3


def test_the_first_weights_depend_on_the_seed_alone() -> None:
    def built(seed: int) -> torch.Tensor:
        config = FPNConfig.from_settings({"preset": "small", "seed": seed})
        network = build_segmenter(encoder(), 3, resolve(config, encoder()))
        return torch.cat([parameter.flatten() for parameter in network.decoder.parameters()])

    first = built(1)
    torch.rand(5)
    assert torch.equal(first, built(1))
    assert not torch.equal(first, built(2))


def test_presets_are_the_published_settings() -> None:
    released, pyramid = (FPNConfig.from_settings({"preset": name}) for name in ("selfpatch", "pyramid"))
    assert (released.steps, released.lr, released.weight_decay, released.warmup) == (40_000, 6e-5, 0.01, 1500)
    assert (released.crop, released.batch_size, released.drop_path, released.channels) == (512, 16, 0.1, 256)
    assert (released.rescale, pyramid.rescale, released.test) == (False, True, "whole")
    assert released.weight_decay_on == pyramid.weight_decay_on == "all_but_tokens"
    assert UPerNetConfig().weight_decay_on == "matrices"
    ibot = resolve(UPerNetConfig(), encoder())
    assert (ibot.steps, ibot.lr, ibot.weight_decay, ibot.layer_decay) == (160_000, 8e-5, 0.05, 0.65)
    assert (ibot.test, ibot.stride, ibot.short_side, ibot.channels) == ("slide", 341, 512, 32)
    assert resolve(FPNConfig(steps=100), encoder()).warmup == 10


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"head": "segmenter"}, "method is 'segmenter'; use one of: knn, linear, logistic, kmeans, finetune, fpn"),
        ({"preset": "ibot"}, "preset is 'ibot'; use one of: selfpatch, pyramid, small"),
        ({"steps": 0}, "steps is 0; use a number above 0"),
        ({"drop_path": 1.0}, "drop_path is 1.0; use a number below 1"),
        ({"drop_path": -0.1}, "drop_path is -0.1; use 0 or more"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0; use a number above 0"),
        ({"warmup": -1}, "warmup is -1; use 0 or more"),
        ({"lr": 0.0}, "lr is 0.0; use a number above 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; use 0 or more"),
        ({"limit": 0}, "limit is 0; use a number above 0"),
        ({"workers": -1}, "workers is -1; use 0 or more"),
        ({"channels": 7}, "channels is 7; it must be a multiple of 2"),
        ({"test": "square"}, "test is 'square'; use one of: whole, slide"),
        ({"test": "slide", "crop": 64, "stride": 65}, "windows of 64 pixels, 65 apart, leave gaps"),
        ({"stride": 9}, "stride is 9, but test whole has no windows; leave it out, or use test slide"),
        ({"blocks": (1, 2, 3, 9)}, "blocks are .1, 2, 3, 9.; use four of 1 to 4"),
        ({"test_split": "train"}, "'train' shares 2 images with 'train'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(photos: Path, settings: dict[str, Any], sentence: str) -> None:
    def too_late(what: str, *_: int) -> None:
        raise AssertionError(f"{what} has begun")

    with pytest.raises(ValueError, match=sentence):
        run(photos, **{"head": "fpn", "progress": too_late, **settings})


def test_an_encoder_without_a_network_is_refused(photos: Path) -> None:
    with pytest.raises(
        ValueError, match="a MeanColour cannot be fine-tuned; give weights of a ViT, a Swin, a ResNet or a"
    ):
        evaluated(MeanColour(8), photos, "fpn")
    four = encoder(ViTConfig(embed_dim=8, depth=1, num_heads=1, in_channels=4, mean=(0.5,) * 4, std=(0.2,) * 4))
    with pytest.raises(ValueError, match="takes images of 4 channels; segment needs one of RGB images"):
        evaluated(four, photos, "fpn")
