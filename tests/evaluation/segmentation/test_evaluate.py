"""Segmentation with frozen features: scores, pictures, continued trainings, errors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from selfpatch.core.types import Encoder
from selfpatch.evaluation.encoders import FunctionEncoder, MeanColour, RawPatch
from selfpatch.evaluation.result import Output, Result, silent
from selfpatch.evaluation.segmentation.base_config import Method
from selfpatch.evaluation.segmentation.config import SegmentationConfig
from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.evaluation.segmentation.evaluate import evaluate
from tests.helpers.block_images import write_blocks

SMALL = {"preset": "small", "crop": 16, "steps": 40, "batch_size": 4, "test_split": "val"}


def run(encoder: Encoder, data: Path, *, out: Path | None = None, progress: Any = None, **settings: Any) -> Result:
    return evaluate(encoder, data, SegmentationConfig.from_settings(settings), Output(out, progress or silent))


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    """Images of blocks of 8 x 8 pixels, whose colour is the class; the first row of pixels is void."""
    return write_blocks(tmp_path / "blocks")


def settings_of(method: Method) -> dict[str, object]:
    return {
        "knn": {"resolution": 32, "k": 3, "memory_patches": 200},
        "kmeans": {"resolution": 32, "memory_patches": 200},
        "logistic": {"resolution": 32, "memory_patches": 200},
        "linear": {**SMALL, "crop": 32},
    }[method]


class PlainColourEncoder:
    """An encoder that is no module: the colour of a patch, by a plain function."""

    dim, patch_size = 3, 4
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    device = torch.device("cpu")

    def patches(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 4)

    def image(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.mark.parametrize("method", ["knn", "kmeans", "linear", "logistic"])
@pytest.mark.parametrize(
    "encoder", [MeanColour(4), RawPatch(8), PlainColourEncoder()], ids=["colour", "raw", "callable"]
)
def test_colours_that_are_the_classes_are_found(blocks: Path, method: Method, encoder: MeanColour) -> None:
    result = run(encoder, blocks, method=method, **settings_of(method))
    assert result.metrics["mIoU"] > 0.8
    assert result.metrics["mIoU"] > result.metrics["mIoU baseline"] + 0.4
    assert [row["class"] for row in result.rows] == ["red", "green", "blue"]
    assert set(result.per_image) == {"0", "1", "2"}
    assert all(value["mIoU per image"] > 0.7 for value in result.per_image.values())
    assert result.settings["method"] == method


@pytest.mark.parametrize("matching", ["precision", "iou"])
def test_more_clusters_than_classes_share_the_classes(blocks: Path, matching: str) -> None:
    settings = {**settings_of("kmeans"), "num_clusters": 8, "matching": matching}
    result = run(MeanColour(4), blocks, method="kmeans", **settings)
    assert result.metrics["mIoU"] > 0.8
    assert result.settings["clusters"] == 8


def test_one_to_one_matching_needs_as_many_clusters_as_classes(blocks: Path) -> None:
    with pytest.raises(ValueError, match="num_clusters is 8 for 3 classes, but matching one_to_one needs as many"):
        run(MeanColour(4), blocks, method="kmeans", num_clusters=8, **settings_of("kmeans"))


@pytest.mark.parametrize("method", ["knn", "kmeans", "linear", "logistic"])
def test_a_seed_decides_all(blocks: Path, method: Method) -> None:
    once, again = (run(MeanColour(4), blocks, method=method, seed=5, **settings_of(method)) for _ in range(2))
    assert once == again


@pytest.mark.parametrize("method", ["knn", "kmeans", "linear", "logistic"])
def test_results_are_json_and_pictures_are_written(blocks: Path, tmp_path: Path, method: Method) -> None:
    out = tmp_path / "out"
    result = run(MeanColour(4), blocks, method=method, out=out, max_pictures=2, limit=4, **settings_of(method))
    json.dumps(asdict(result), allow_nan=False)
    sheet = np.asarray(Image.open(out / result.pictures[0]))
    assert sheet.shape == (24 + 256 + 8 + 256 + 8 + 24, 3 * 320 + 16, 3), "captions, two rows, a legend of one line"
    assert not np.array_equal(sheet[24:280, :320], sheet[24:280, 328:648])


class LargeStorages(TorchDispatchMode):
    """Remembers the storages of so many bytes or more that operators make; each is kept, so that none is reused."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.found: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() >= self.size:
                self.found[tensor.untyped_storage().data_ptr()] = tensor
        return made


def test_knn_holds_the_remembered_patches_once(blocks: Path) -> None:
    count, encoder = 6 * 20, RawPatch(8)
    with LargeStorages(count * encoder.dim * 4 // 2) as storages:
        result = run(encoder, blocks, method="knn", resolution=32, k=3, max_pictures=0)
    assert result.settings["remembered"] == count
    assert len(storages.found) == 1


def test_knn_takes_no_more_memory_at_once_than_allowed(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"method": "knn", "resolution": 64, "k": 3}
    plain = run(MeanColour(4), blocks, **settings)
    sizes: list[int] = []
    multiply = Tensor.__matmul__

    def spy(a: Tensor, b: Tensor) -> Tensor:
        product = multiply(a, b)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(Tensor, "__matmul__", spy)
    bounded = run(MeanColour(4), blocks, **settings, max_memory=1)
    assert 2**16 < max(sizes) <= 2**20 // 8
    assert bounded.metrics == pytest.approx(plain.metrics)
    assert bounded.settings == plain.settings
    with pytest.raises(ValueError, match="max_memory is 0; use a number above 0"):
        run(MeanColour(4), blocks, **settings, max_memory=0)


def test_fewer_patches_than_voters_all_vote(blocks: Path) -> None:
    few = run(MeanColour(4), blocks, method="knn", resolution=32, k=40, memory_patches=30)
    all_of_them = run(MeanColour(4), blocks, method="knn", resolution=32, k=30, memory_patches=30)
    assert few.settings["k"] == few.settings["remembered"] == 30
    assert few.notes == ["k is 40, but the memory has 30 patches: all of them vote"]
    assert (few.metrics, all_of_them.notes) == (all_of_them.metrics, [])


def test_files_of_any_editor_and_litter_change_no_score(blocks: Path) -> None:
    """A byte order mark once made void a scored class, and hidden files broke the set."""
    plain = run(MeanColour(4), blocks, method="knn", resolution=32, k=3)
    classes = blocks / "classes.txt"
    classes.write_bytes(b"\xef\xbb\xbf" + classes.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    for folder in ("images/train", "images/val", "labels/val", "images"):
        for litter in ("._0.png", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/0.png", "Thumbs.db"):
            (blocks / folder / litter).parent.mkdir(exist_ok=True)
            (blocks / folder / litter).write_bytes(b"\0")
    assert run(MeanColour(4), blocks, method="knn", resolution=32, k=3) == plain


def test_the_memory_is_bounded_and_deterministic(blocks: Path) -> None:
    small = run(MeanColour(4), blocks, method="knn", resolution=32, k=3, memory_patches=30)
    assert small.settings["remembered"] == 30
    with pytest.raises(ValueError, match="memory_patches is 5 for 6 training images"):
        run(MeanColour(4), blocks, method="knn", resolution=32, k=3, memory_patches=5)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("knn", "resolution", 0),
        ("knn", "limit", 0),
        ("knn", "k", 0),
        ("kmeans", "resolution", 0),
        ("kmeans", "restarts", 0),
        ("kmeans", "iterations", 0),
        ("kmeans", "limit", -1),
        ("linear", "limit", 0),
        ("linear", "workers", -1),
        ("linear", "weight_decay", -1),
        ("linear", "seed", -1),
        ("knn", "temperature", 0),
        ("linear", "batch_size", 0),
        ("logistic", "iterations", 0),
        ("logistic", "weight_decay", -1),
    ],
)
def test_values_out_of_range_are_refused_before_anything_runs(
    blocks: Path, method: Method, name: str, value: int
) -> None:
    def too_late(what: str, *_: int) -> None:
        raise AssertionError(f"{what} has begun")

    with pytest.raises(ValueError, match=f"{name} is {value}"):
        run(MeanColour(4), blocks, **{**settings_of(method), "method": method, name: value}, progress=too_late)


@pytest.mark.parametrize("test", ["square", "whole", "slide"])
def test_every_view_of_test_images_works(blocks: Path, test: str) -> None:
    result = run(MeanColour(4), blocks, **{**SMALL, "crop": 32}, test=test)
    assert result.metrics["mIoU"] > 0.75


def test_the_published_presets_run(blocks: Path) -> None:
    for preset in ("leopart", "neco", "full", "dinov3"):
        result = run(MeanColour(8), blocks, preset=preset, crop=24, steps=12, batch_size=3, lr=0.1)
        assert 0 <= result.metrics["mIoU"] <= 1
        assert result.settings["steps"] == 12
    epochs = run(MeanColour(8), blocks, preset="leopart", crop=16, batch_size=3)
    assert epochs.settings["steps"] == 25 * 2


def test_a_stopped_training_goes_on_and_ends_alike(blocks: Path, tmp_path: Path) -> None:
    whole = run(MeanColour(4), blocks, **SMALL, out=tmp_path / "whole")

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("scoring", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(MeanColour(4), blocks, **SMALL, out=tmp_path / "stopped", progress=stop)
    seen: list[str] = []
    again = run(MeanColour(4), blocks, **SMALL, out=tmp_path / "stopped", progress=lambda what, *_: seen.append(what))
    assert again.metrics == whole.metrics
    assert "training" not in seen
    with pytest.raises(ValueError, match="other settings"):
        run(MeanColour(4), blocks, **{**SMALL, "steps": 41}, out=tmp_path / "stopped")


def test_a_trained_head_is_scored_elsewhere_and_in_other_ways(blocks: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[str]()
    first = run(MeanColour(4), blocks, **SMALL, out=out)
    for folder in ("images", "labels"):
        (blocks / folder / "val").rename(blocks / folder / "other")
    moved = blocks.rename(tmp_path / "moved")
    settings: dict[str, Any] = {**SMALL, "test_split": "other", "out": out}
    again = run(MeanColour(4), moved, **settings, progress=lambda what, *_: seen.append(what))
    assert again.metrics == first.metrics
    for test in ("slide", "square"):
        run(MeanColour(4), moved, **settings, test=test, progress=lambda what, *_: seen.append(what))
    assert set(seen) == {"scoring"}
    Image.new("L", (40, 32), 1).save(moved / "labels" / "train" / "0.png")
    with pytest.raises(ValueError, match=r"other settings \(training_data "):
        run(MeanColour(4), moved, **settings)


def test_a_head_is_not_used_on_another_function(blocks: Path, tmp_path: Path) -> None:
    run(FunctionEncoder(lambda x: F.avg_pool2d(x, 4), 4), blocks, **SMALL, out=tmp_path)
    run(FunctionEncoder(lambda x: F.avg_pool2d(x, 4), 4), blocks, **SMALL, out=tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(network "):
        run(FunctionEncoder(lambda x: -F.avg_pool2d(x, 4), 4), blocks, **SMALL, out=tmp_path)


def test_the_result_records_resolved_settings(blocks: Path) -> None:
    for method in ("knn", "kmeans", "linear"):
        assert run(MeanColour(4), blocks, method=method, **settings_of(method)).settings["kind"] == "folder"
    assert run(MeanColour(4), blocks, **SMALL, warmup=30).settings["warmup"] == 4


def test_the_encoder_stays_as_it_is(blocks: Path) -> None:
    class Network(nn.Module):
        dim, patch_size, mean, std, device = 4, 8, (0.5,) * 3, (0.5,) * 3, torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 8, 8)

        @torch.no_grad()
        def patches(self, images: Tensor) -> Tensor:
            return self.convolution(images)

    network = Network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run(network, blocks, **SMALL)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_data_and_settings_that_do_not_fit_are_refused(blocks: Path) -> None:
    colour = MeanColour(4)
    with pytest.raises(ValueError, match="method is 'svm'; use one of: knn"):
        run(colour, blocks, method="svm")
    with pytest.raises(ValueError, match="crop is not a setting"):
        run(colour, blocks, method="knn", crop=32, steps=3)
    with pytest.raises(ValueError, match="images of 1 channel;"):
        run(MeanColour(4, channels=1), blocks, method="knn")
    with pytest.raises(ValueError, match=r"crop is 4 pixels, one patch, .* use a crop of 8 or more"):
        run(colour, blocks, **{**SMALL, "crop": 4, "batch_size": 1})
    with pytest.raises(ValueError, match="'val' shares 3 images with 'val'"):
        run(colour, blocks, method="knn", train_split="val")
    for path in (blocks / "labels" / "val").iterdir():
        Image.new("L", (40, 32), IGNORE).save(path)
    with pytest.raises(ValueError, match="are void; there is nothing to score"):
        run(colour, blocks, method="knn", **settings_of("knn"))


def test_real_images(data_dir: Path) -> None:
    result = run(MeanColour(8), data_dir / "camvid", method="knn", resolution=96, memory_patches=2000, limit=6)
    assert result.metrics["mIoU"] > 2 * result.metrics["mIoU baseline"]
