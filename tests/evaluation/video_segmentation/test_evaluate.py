"""DAVIS on real and drawn clips: what is propagated and written, the baseline, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import selfpatch
from selfpatch.api.evaluate import measure
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.result import Output, Provenance, Result
from selfpatch.evaluation.video_segmentation.clip import write_mask
from selfpatch.evaluation.video_segmentation.config import FIRST_MASK, DAVISConfig
from selfpatch.evaluation.video_segmentation.evaluate import evaluate
from selfpatch.models.backbones.build import build_backbone, build_timm, named_backbone_config
from selfpatch.models.backbones.config import ConvNeXtConfig, ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder
from tests.evaluation.video_segmentation.conftest import Tree
from tests.helpers.command_line import write_davis
from tests.helpers.tiny_eva import EVA02

RESNET = ResNetConfig(depths=(1, 1, 1, 1), width=8)
CONVNEXT = ConvNeXtConfig(embed_dim=8, depths=(1, 1, 1, 1))
SWIN = SwinConfig(embed_dim=16, depths=(1, 1, 1, 1), first_heads=1, window=4)
VIT = ViTConfig(embed_dim=32, depth=3, num_heads=2, patch_size=16, grid=8)


@pytest.mark.slow
def test_the_baseline_has_its_known_scores(data_dir: Path) -> None:
    metrics = evaluate(None, data_dir / "davis", DAVISConfig()).metrics
    assert (metrics["J-Mean"], metrics["F-Mean"]) == pytest.approx((0.2325, 0.1961), abs=5e-5)


def test_mean_colour_on_a_real_clip(data_dir: Path, tmp_path: Path) -> None:
    """The first frames of a real clip: colours follow the dog better than a mask that stands still."""
    tree = _copy_frames(data_dir / "davis", tmp_path / "davis", "dog", 8)
    result = measure("davis", MeanColour(16), Provenance("mean colour"), tree, out=tmp_path / "out")
    baseline = evaluate(None, tree, DAVISConfig())
    assert result.metrics["J-Mean"] > baseline.metrics["J-Mean"] + 0.03
    again = evaluate(None, tree, DAVISConfig(results=str(tmp_path / "out" / "results")))
    assert again.metrics == pytest.approx(result.metrics)
    assert Result.load(tmp_path / "out" / "result.json") == result
    mask = Image.open(tmp_path / "out" / "results" / "dog" / "00003.png")
    assert (mask.mode, mask.size, mask.getpalette()[3:9]) == ("P", (854, 480), [128, 0, 0, 0, 128, 0])
    first = Image.open(tmp_path / "out" / "results" / "dog" / "00000.png")
    assert np.array_equal(first, Image.open(tree / "Annotations" / "480p" / "dog" / "00000.png"))
    assert Image.open(tmp_path / "out" / result.pictures[0]).size == (5 * 427, 240 + 24)


def _copy_frames(source: Path, target: Path, name: str, count: int) -> Path:
    for kind, suffix in [("JPEGImages", "jpg"), ("Annotations", "png")]:
        (target / kind / "480p" / name).mkdir(parents=True)
        for i in range(count):
            file = f"{kind}/480p/{name}/{i:05d}.{suffix}"
            shutil.copy(source / file, target / file)
    (target / "ImageSets" / "2017").mkdir(parents=True)
    (target / "ImageSets" / "2017" / "val.txt").write_text(name + "\n")
    return target


def test_the_baseline_and_ready_made_masks_are_measured_by_name(tree: Tree, tmp_path: Path) -> None:
    """Neither needs a network; the masks that the baseline wrote have the baseline's scores."""
    root = tree()
    baseline = selfpatch.evaluate("davis", FIRST_MASK, root, out=tmp_path / "out")
    assert baseline.metrics == evaluate(None, root, DAVISConfig()).metrics
    assert (baseline.weights, baseline.settings["baseline"]) == (None, "repeat first mask")
    scored = selfpatch.evaluate("davis", None, root, results=str(tmp_path / "out" / "results"))
    assert scored.metrics == baseline.metrics
    with pytest.raises(ValueError, match="no weights were named"):
        selfpatch.evaluate("davis", None, root)


def test_two_objects_are_followed(tree: Tree) -> None:
    """Squares of whole patches that move by whole patches: wrong only where upsampling rounds their corners."""
    result = evaluate(MeanColour(16), tree(), DAVISConfig(resolution=128, context_frames=2))
    assert [(row["sequence"], row["object"]) for row in result.rows] == [("toy", 1), ("toy", 2)]
    assert all(row["J-Mean"] > 0.8 for row in result.rows)
    assert result.settings["radius"] == 12
    assert result.settings["sequences"] == ["toy"]


def test_an_object_leaves_the_window(tree: Tree) -> None:
    """With radius 0 a patch asks its own place only, so that nothing moves: the baseline."""
    root = tree()
    still = evaluate(MeanColour(16), root, DAVISConfig(resolution=128, radius=0)).metrics
    assert still["J-Mean"] == pytest.approx(evaluate(None, root, DAVISConfig()).metrics["J-Mean"], abs=0.05)


def test_a_frame_of_one_object(tree: Tree) -> None:
    """An object that covers the whole first frame keeps it, though its channel has no range to normalise."""
    root = tree(frames=4)
    for i in range(4):
        write_mask(root / f"Annotations/480p/toy/{i:05d}.png", np.ones((128, 192), np.uint8))
    assert evaluate(MeanColour(16), root, DAVISConfig(resolution=128)).metrics["J-Mean"] == 1.0


@pytest.mark.parametrize(
    ("config", "settings", "recorded"),
    [
        (RESNET, {}, (3, None, 16, "8 x 12")),
        (RESNET, {"stage": 4}, (4, None, 32, "4 x 6")),
        (RESNET, {"output_stride": 16}, (4, None, 16, "8 x 12")),
        (RESNET, {"stage": 3, "output_stride": 8, "dilate": False}, (3, None, 8, "16 x 24")),
        (SWIN, {}, (3, None, 16, "8 x 12")),
        (CONVNEXT, {}, (3, None, 16, "8 x 12")),
        (SWIN, {"stage": 2}, (2, None, 8, "16 x 24")),
        (VIT, {}, (None, 3, 16, "8 x 12")),
        (replace(VIT, rope=True, num_registers=2), {}, (None, 3, 16, "8 x 12")),
        (build_timm(EVA02).config, {}, (None, 2, 8, "16 x 24")),
        (VIT, {"block": 1}, (None, 1, 16, "8 x 12")),
    ],
)
def test_layers_of_networks(tree: Tree, config: Any, settings: dict[str, Any], recorded: tuple[Any, ...]) -> None:
    """Squares of 16-pixel patches are found in maps of stride 16 and finer, and lost at 32; the result says which."""
    torch.manual_seed(0)
    encoder = BranchEncoder(build_backbone(config), None).eval()
    result = evaluate(encoder, tree(frames=4), DAVISConfig(resolution=128, **settings))
    assert tuple(result.settings[name] for name in ("stage", "block", "stride", "grid")) == recorded
    assert result.settings["patch_size"] == config.patch_size
    stage, _, stride, grid = recorded
    assert (result.metrics["J-Mean"] > 0.5) == (stride <= 16)
    assert list(result.notes) == ([f"features of stage {stage}, stride {stride}: {grid}"] if stage else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "swin_tiny"])
def test_networks_of_published_size_on_a_real_clip(data_dir: Path, tmp_path: Path, name: str) -> None:
    """Random weights at the default stage: the grid of a ViT with patches of 16 pixels at the published resolution."""
    torch.manual_seed(0)
    tree = _copy_frames(data_dir / "davis", tmp_path / "davis", "car-shadow", 3)
    encoder = BranchEncoder(build_backbone(named_backbone_config(name)), None).eval()
    result = evaluate(encoder, tree, DAVISConfig())
    assert [result.settings[key] for key in ("stage", "stride", "grid")] == [3, 16, "30 x 52"]
    baseline = evaluate(None, tree, DAVISConfig()).metrics["J-Mean"]
    assert result.metrics["J-Mean"] > baseline - 0.2, "colours alone follow a car over two frames"


def test_an_encoder_of_other_images_is_refused_before_a_file_is_read() -> None:
    with pytest.raises(ValueError, match="takes images of 4 channels; davis needs one of RGB images"):
        evaluate(MeanColour(16, channels=4), "unused", DAVISConfig())


def test_layers_that_are_not_there(tree: Tree) -> None:
    encoder = BranchEncoder(build_backbone(SWIN), None)
    for settings, words in [
        ({"stage": 5}, "stage is 5, but this swin has 4; use 1 to 4"),
        ({"block": 2}, "block is 2, but a swin has stages"),
        ({"output_stride": 16}, "output_stride is 16, but a swin cannot be dilated"),
    ]:
        with pytest.raises(ValueError, match=words):
            evaluate(encoder, tree(frames=3) if settings == {"stage": 5} else "unused", DAVISConfig(**settings))
    for settings, words in [
        ({"stage": 0}, "stage is 0; use a number above 0"),
        ({"output_stride": 4}, "output_stride is 4; use one of: 8, 16"),
        ({"dilate": False}, "dilate is False, but no stage loses its stride"),
    ]:
        with pytest.raises(ValueError, match=words):
            DAVISConfig(**settings)


def test_progress(tree: Tree) -> None:
    seen: list[tuple[str, int, int]] = []
    evaluate(None, tree(frames=3), DAVISConfig(), Output(progress=lambda *report: seen.append(report)))
    assert seen == [("toy", 1, 3), ("toy", 2, 3), ("toy", 3, 3)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "Annotations"), "no DAVIS at"),
        (lambda root: shutil.rmtree(root / "ImageSets"), r"no ImageSets/2017/val\.txt or ImageSets/2016"),
        (lambda root: (root / "ImageSets/2017/val.txt").write_text("toy\ncow\n"), "sequence 'cow' has no folder"),
        (lambda root: (root / "ImageSets/2017/val.txt").write_text("\n"), "no sequences"),
        (lambda root: (root / "Annotations/480p/toy/00000.png").unlink(), r"no mask .*00000\.png"),
        (lambda root: (root / "Annotations/480p/toy/00004.png").unlink(), r"no mask .*00004\.png"),
        (lambda root: (root / "JPEGImages/480p/toy/00002.jpg").unlink(), r"no image .*00002\.jpg"),
        (
            lambda root: Image.new("RGB", (64, 64)).save(root / "JPEGImages/480p/toy/00000.jpg"),
            "frame 00000 of toy is 64",
        ),
        (
            lambda root: Image.new("RGB", (64, 64)).save(root / "JPEGImages/480p/toy/00002.jpg"),
            "frame 00002 of toy is 64",
        ),
        (
            lambda root: write_mask(root / "Annotations/480p/toy/00000.png", np.zeros((128, 192), np.uint8)),
            "holds no object",
        ),
        (
            lambda root: write_mask(root / "Annotations/480p/toy/00003.png", np.zeros((64, 64), np.uint8)),
            r"the mask .*00003\.png is 64 x 64 and the first one of toy 192 x 128",
        ),
        (
            lambda root: Image.new("RGB", (192, 128), (9, 0, 0)).save(root / "Annotations/480p/toy/00004.png"),
            r"cannot read the mask .*00004\.png: it is a picture of mode RGB",
        ),
    ],
)
def test_trees_that_cannot_be_evaluated(tree: Tree, spoil: Callable[[Path], object], message: str) -> None:
    root = tree()
    spoil(root)
    with pytest.raises(ValueError, match=message):
        evaluate(MeanColour(16), root, DAVISConfig(resolution=128), Output(root / "out"))
    assert not (root / "out").exists(), "before any frame is processed"


def test_frames_that_would_become_too_large_are_refused_by_name(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(frames=3)
    monkeypatch.setenv("SELFPATCH_MAX_PIXELS", "100000")
    message = r"cannot read .*toy/00000\.jpg: an image of 192 x 128 pixels, resized to 768 x 512, would have more than"
    with pytest.raises(ValueError, match=message):
        evaluate(MeanColour(16), root, DAVISConfig(resolution=512), Output(root / "out"))
    assert not (root / "out").exists(), "before any frame is processed"


def test_settings_that_cannot_be(tree: Tree) -> None:
    root = tree(frames=3)
    for settings, message in [
        ({"std": "imagenet"}, "use one of: released, encoder"),
        ({"context_frames": -1}, "context_frames is -1"),
        ({"resolution": 8}, "resolution 8 is too small"),
        ({"topk": 0}, "topk is 0"),
        ({"max_memory": 0}, "max_memory is 0; use 1 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate(MeanColour(16), root, DAVISConfig(**{"resolution": 128, **settings}))


@pytest.mark.parametrize("frames", [1, 2])
def test_a_clip_too_short_to_be_scored(tree: Tree, tmp_path: Path, frames: int) -> None:
    """It has masks, one a frame, and no scores, and needs no mask but the first."""
    root = tree(frames=frames)
    (root / "Annotations/480p/toy/00001.png").unlink(missing_ok=True)
    result = evaluate(MeanColour(16), root, DAVISConfig(resolution=128), Output(tmp_path / "out"))
    assert (result.metrics, result.rows, result.per_image) == ({}, [], {})
    written = sorted(path.stem for path in (tmp_path / "out" / "results" / "toy").iterdir())
    assert written == [f"{i:05d}" for i in range(frames)]
    assert ("frames/s" in result.costs) == (frames == 2)
    with pytest.raises(ValueError, match="no sequence of toy has 3 frames"):
        evaluate(None, root, DAVISConfig(results=str(root / "Annotations" / "480p")))


def test_masks_of_a_test_set_are_written_and_not_scored(tree: Tree, tmp_path: Path) -> None:
    """DAVIS' test-dev has the first mask of each clip alone."""
    root = tree(frames=4)
    for path in (root / "Annotations/480p/toy").glob("0000[1-3].png"):
        path.unlink()
    (tmp_path / "test-dev.txt").write_text("toy\n")
    config = DAVISConfig(resolution=128, sequence_list=str(tmp_path / "test-dev.txt"))
    result = evaluate(MeanColour(16), root, config, Output(tmp_path / "out"))
    assert len(list((tmp_path / "out" / "results" / "toy").iterdir())) == 4
    assert result.metrics == {}
    assert result.notes == ["sequences without masks to score with, which are not in the numbers: 1 (toy)"]
    with pytest.raises(ValueError, match="no masks to score with"):
        evaluate(MeanColour(16), root, config)


def test_a_short_clip_leaves_the_others_their_scores(tmp_path: Path) -> None:
    root = write_davis(tmp_path / "davis", ("first", "second"))
    for i in (1, 2, 3):
        for kind, suffix in [("JPEGImages", "jpg"), ("Annotations", "png")]:
            (root / f"{kind}/480p/second/{i:05d}.{suffix}").unlink()
    both = evaluate(MeanColour(8), root, DAVISConfig(resolution=48))
    alone = evaluate(MeanColour(8), root, DAVISConfig(resolution=48, sequences=["first", "first"]))
    assert both.metrics == alone.metrics
    assert [row["sequence"] for row in both.rows] == ["first", "first"]
    assert list(both.per_image) == ["first"]


@pytest.mark.parametrize(("size", "resolution"), [((47, 101), 37), ((101, 47), 50), ((33, 33), 20), ((120, 500), 16)])
def test_sizes_that_nothing_divides(tmp_path: Path, size: tuple[int, int], resolution: int) -> None:
    root = write_davis(tmp_path / "davis", ("toy",))
    for folder, picture in [("JPEGImages", "jpg"), ("Annotations", "png")]:
        for path in (root / folder / "480p" / "toy").glob(f"*.{picture}"):
            Image.open(path).resize(size[::-1], Image.Resampling.NEAREST).save(path)
    for patch_size in (8, 14):
        result = evaluate(
            MeanColour(patch_size), root, DAVISConfig(resolution=resolution), Output(tmp_path / str(patch_size))
        )
        assert Image.open(tmp_path / str(patch_size) / "results/toy/00003.png").size == size[::-1]
        assert all(0 <= row["J-Mean"] <= 1 for row in result.rows)
