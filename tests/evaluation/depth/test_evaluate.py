"""Depth that colours tell is learned; resume, presets, degenerate data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.api.evaluate import evaluate as api_evaluate
from selfpatch.api.evaluate import measure
from selfpatch.evaluation.degenerate import PATCHES_EQUAL
from selfpatch.evaluation.depth.config import DepthConfig
from selfpatch.evaluation.depth.evaluate import FLAT_PREDICTION, NO_DEPTHS, evaluate, predict_image
from selfpatch.evaluation.depth.features import DepthFeatures
from selfpatch.evaluation.depth.head import DepthHead
from selfpatch.evaluation.encoders import FunctionEncoder, MeanColour
from selfpatch.evaluation.result import Result
from tests.evaluation.depth.conftest import write_depth, write_nyu
from tests.helpers.labelled_images import tiny_encoder

TINY: dict[str, Any] = {
    "region": "whole", "crop": (32, 48), "rotation": 0.0, "colour": False, "bins": 16, "batch_size": 4, "steps": 200,
    "lr": 0.1, "workers": 0,
}  # fmt: skip


@pytest.mark.slow
def test_depth_that_colours_tell_is_learned(tmp_path: Path) -> None:
    data, out = write_depth(tmp_path / "data"), tmp_path / "out"
    result = measure("depth", MeanColour(8), None, data, **TINY, out=out, max_pictures=2)
    untrained = measure("depth", MeanColour(8), None, data, **{**TINY, "steps": 1, "lr": 1e-9})
    assert result.metrics["rmse"] < 0.5 * untrained.metrics["rmse"]
    assert result.metrics["a1"] > untrained.metrics["a1"] + 0.2
    assert Result.load(out / "result.json") == result
    assert len(result.pictures) == 2
    assert all((out / picture).is_file() for picture in result.pictures)
    assert list(result.per_image) == ["test/rgb/0.png", "test/rgb/1.png", "test/rgb/2.png"]
    means = np.mean([scores["rmse"] for scores in result.per_image.values()])
    assert result.metrics["rmse"] == pytest.approx(means)


def test_no_more_images_are_encoded_at_once_than_a_batch_has(tmp_path: Path) -> None:
    """Memory does not grow with the number of images."""
    encoded: list[int] = []

    class Recorder(MeanColour):
        def patches(self, images: torch.Tensor) -> torch.Tensor:
            encoded.append(len(images))
            return super().patches(images)

    measure("depth", Recorder(8), None, write_depth(tmp_path, train=9, test=5), **{**TINY, "steps": 3})
    assert encoded == [4] * 3 + [1] * 10


def test_a_batch_has_no_more_images_than_there_are(tmp_path: Path) -> None:
    settings = {**TINY, "steps": 2, "batch_size": 9}
    assert measure("depth", MeanColour(8), None, write_depth(tmp_path, train=3), **settings).settings["batch_size"] == 3


def test_wrong_depths_are_noticed(tmp_path: Path) -> None:
    """Depths of a test image are turned upside down: its error grows, the others' stay."""
    data, out = write_depth(tmp_path / "data"), _made(tmp_path / "out")
    before = measure("depth", MeanColour(8), None, data, **TINY, out=out)
    file = data / "test" / "depth" / "1.png"
    values = np.array(Image.open(file))[::-1].copy()
    Image.fromarray(values).save(file)
    after = measure("depth", MeanColour(8), None, data, **TINY, out=out)
    first, second = (result.per_image for result in (before, after))
    assert second["test/rgb/1.png"]["rmse"] > first["test/rgb/1.png"]["rmse"] + 0.5
    assert second["test/rgb/0.png"] == first["test/rgb/0.png"]


def test_a_finished_training_is_continued_and_another_one_refused(tmp_path: Path) -> None:
    data, out = write_depth(tmp_path / "data"), tmp_path / "out"
    settings = {**TINY, "steps": 3}
    first = measure("depth", MeanColour(8), None, data, **settings, out=_made(out))
    assert measure("depth", MeanColour(8), None, data, **settings, out=out).metrics == first.metrics
    unflipped = measure("depth", MeanColour(8), None, data, **settings, flip_test=False, out=out)
    assert unflipped.settings["flip_test"] is False
    with pytest.raises(ValueError, match="holds a training with other settings"):
        measure("depth", MeanColour(8), None, data, **{**settings, "lr": 0.2}, out=out)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_the_mirrored_prediction_is_averaged() -> None:
    torch.manual_seed(0)
    head = DepthHead(16, 4, (1.0, 9.0), batch_norm=False, upsample=1, seed=0)
    torch.nn.init.normal_(head.to_bins.weight)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    features = DepthFeatures(tiny_encoder("vit"), DepthConfig())
    alone, other = (predict_image(head, features, x, x.size, flip_test=False) for x in (image, mirrored))
    both = predict_image(head, features, image, image.size, flip_test=True)
    assert not torch.allclose(alone, other.flip(-1))
    torch.testing.assert_close(both, (alone + other.flip(-1)) / 2)


def test_nyu_is_scored_in_its_window(tmp_path: Path) -> None:
    data = write_nyu(tmp_path / "data")
    settings = {"crop": (64, 64), "batch_size": 2, "steps": 1, "bins": 4, "workers": 0}
    result = measure("depth", MeanColour(16), None, data, **settings)
    file = data / "kitchen" / "test_depth_0.png"
    values = np.array(Image.open(file))
    values[:45], values[471:], values[:, :41], values[:, 601:] = 9000, 9000, 9000, 9000
    Image.fromarray(values).save(file)
    assert measure("depth", MeanColour(16), None, data, **settings).metrics == result.metrics
    values[45] = 9000
    Image.fromarray(values).save(file)
    assert measure("depth", MeanColour(16), None, data, **settings).metrics != result.metrics


@pytest.mark.parametrize(
    "settings",
    [{"blocks": 3, "cls_token": True, "batch_norm": False, "upsample": 4}, {"gradient_weight": 0.5}],
    ids=str,
)
def test_other_heads_and_losses_train(tmp_path: Path, settings: dict[str, Any]) -> None:
    data = write_depth(tmp_path / "data")
    more = {**TINY, "steps": 40, "lr": 0.01, **settings}
    result = measure("depth", tiny_encoder("vit"), None, data, **more)
    start = measure("depth", tiny_encoder("vit"), None, data, **{**more, "steps": 1, "lr": 1e-9})
    assert result.metrics["rmse"] < start.metrics["rmse"]


def test_test_images_without_a_depth_are_left_out(tmp_path: Path) -> None:
    data = write_depth(tmp_path / "data")
    settings = {**TINY, "steps": 1}
    nothing = Image.fromarray(np.zeros((48, 64), np.uint16))
    nothing.save(data / "test" / "depth" / "1.png")
    result = measure("depth", MeanColour(8), None, data, **settings)
    assert list(result.per_image) == ["test/rgb/0.png", "test/rgb/2.png"]
    assert result.notes == ["Left out: 1 test image without a valid depth, e.g. test/rgb/1.png."]
    for i in (0, 2):
        nothing.save(data / "test" / "depth" / f"{i}.png")
    with pytest.raises(ValueError, match=r"no test image of .* has a depth between 0.001 and 10 m"):
        measure("depth", MeanColour(8), None, data, **settings)


def test_training_without_any_depth_changes_nothing_and_is_finite(tmp_path: Path) -> None:
    """The result names it; a single crop with a depth is enough to learn from."""
    data = write_depth(tmp_path / "data")
    files = list((data / "train" / "depth").iterdir())
    for file in files:
        Image.fromarray(np.zeros((48, 64), np.uint16)).save(file)
    result = measure("depth", MeanColour(8), None, data, **{**TINY, "steps": 2})
    assert all(np.isfinite(value) for value in result.metrics.values())
    assert [str(one) for one in result.degenerate] == [NO_DEPTHS]
    Image.fromarray(np.full((48, 64), 3000, np.uint16)).save(files[0])
    assert measure("depth", MeanColour(8), None, data, **{**TINY, "steps": 2}).degenerate == []


@pytest.mark.parametrize("constant", ["features", "one image"])
def test_images_without_any_difference_are_named(tmp_path: Path, constant: str) -> None:
    data = write_depth(tmp_path / "data")
    encoder: Any = MeanColour(8)
    if constant == "features":
        encoder = FunctionEncoder(lambda x: torch.ones(len(x), 4, x.shape[2] // 8, x.shape[3] // 8), 8)
    else:
        Image.new("RGB", (64, 48), (90, 90, 90)).save(data / "test" / "rgb" / "1.png")
    names = [f"test/rgb/{i}.png" for i in range(3)] if constant == "features" else ["test/rgb/1.png"]
    result = measure("depth", encoder, None, data, **{**TINY, "steps": 2})
    assert [(one.what, list(one.items)) for one in result.degenerate] == [
        (PATCHES_EQUAL, names),
        (FLAT_PREDICTION, names),
    ]
    assert [one.total for one in result.degenerate] == [3, 3]


def test_presets_hold_what_is_known() -> None:
    v3, v2 = (DepthConfig.from_settings({"preset": name}) for name in ("dinov3", "dinov2"))
    assert (v3.bins, v3.min_depth, v3.max_depth, v3.steps, v3.batch_size, v3.lr) == (256, 0.001, 10, 38_400, 16, 3e-4)
    assert (v3.crop, v3.rotation, v3.batch_norm, v3.blocks, v3.flip_test) == ((416, 544), 2.5, True, None, True)
    assert (v2.blocks, v2.cls_token, v2.batch_norm, v2.upsample, v2.gradient_weight) == (4, True, False, 4, 0)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_depth is 3 and max_depth 2; use a smaller minimum"):
        DepthConfig(min_depth=3, max_depth=2)
    with pytest.raises(ValueError, match="cls_token needs the tokens of blocks"):
        DepthConfig(cls_token=True)
    with pytest.raises(ValueError, match="takes images of 1 channel;"):
        evaluate(MeanColour(8, channels=1), write_depth(tmp_path), DepthConfig())


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_strip_is_refused_by_name_before_it_is_enlarged(tmp_path: Path, split: str) -> None:
    data = write_depth(tmp_path / "data", train=1, test=1)
    Image.new("RGB", (4_000, 1)).save(data / split / "rgb" / "0.png")
    Image.fromarray(np.full((1, 4_000), 1_000, np.uint16)).save(data / split / "depth" / "0.png")
    message = rf"cannot read .*{split}/rgb/0\.png: an image of 4000 x 1 pixels, resized to 1200000 x 300, would have"
    with pytest.raises(ValueError, match=message):
        measure("depth", MeanColour(8), None, data, **{**TINY, "steps": 1, "batch_size": 1, "resolution": 300})


def test_a_dry_run_estimates_the_training(tmp_path: Path) -> None:
    data = write_depth(tmp_path / "data")
    for image in (data / "train" / "rgb").iterdir():
        image.write_bytes(b"no image")
    report = api_evaluate("depth", "timm:vit_tiny_patch16_224", data, dry_run=True, device="cpu", **TINY)
    assert report.flops
    assert report.data == {"training images": 6, "test images": 3}
    assert report.settings["steps"] == 200
    baseline = api_evaluate("depth", "baseline:mean-colour:16", data, dry_run=True, device="cpu", **TINY)
    assert baseline.data == report.data
    with pytest.raises(ValueError, match="cannot read"):
        api_evaluate("depth", tiny_encoder("vit"), data, device="cpu", **TINY)
