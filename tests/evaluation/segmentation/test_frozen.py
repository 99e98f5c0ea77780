"""Segmentation with frozen features: retrieval, a linear head, clusters, and the command around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image
from scipy.optimize import linear_sum_assignment, minimize
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from selfpatch.cli.options.segment import Segment
from selfpatch.evaluation.baselines import MeanColour, RawPatch
from selfpatch.evaluation.encoders import FunctionEncoder
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.segmentation.clustering import cluster_means, kmeans, nearest_centre
from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.evaluation.segmentation.evaluate import Method, evaluate
from selfpatch.evaluation.segmentation.kmeans import match_clusters
from selfpatch.evaluation.segmentation.knn import Memory, remembered
from selfpatch.evaluation.segmentation.linear import (
    PRESETS,
    LinearHead,
    resized_crop,
    resolve,
    segmentation_loss,
    step_decay,
)
from selfpatch.evaluation.segmentation.logistic import fit_logistic
from selfpatch.evaluation.segmentation.patches import grid_of, soft_labels, whole_features

COLOURS = np.array([(250, 20, 20), (20, 250, 20), (20, 20, 250)], np.uint8)
SMALL = {"preset": "small", "crop": 16, "steps": 40, "batch_size": 4, "test_split": "val"}


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    """Images of blocks of 8 x 8 pixels, whose colour is the class; the first row of pixels is void."""
    root, rng = tmp_path / "blocks", np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            label = rng.integers(0, 3, (4, 5)).repeat(8, 0).repeat(8, 1)
            noisy = COLOURS[label].astype(int) + rng.integers(-20, 20, (32, 40, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / "images" / split / f"{i}.png")
            label[0] = IGNORE
            Image.fromarray(label.astype(np.uint8)).save(root / "labels" / split / f"{i}.png")
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    return root


def settings_of(method: Method) -> dict[str, object]:
    return {
        "knn": {"resolution": 32, "k": 3, "memory_patches": 200},
        "kmeans": {"resolution": 32, "memory_patches": 200},
        "logistic": {"resolution": 32, "memory_patches": 200},
        "linear": {**SMALL, "crop": 32},
    }[method]


class Callable3:
    """An encoder that is no module: the colour of a patch, by a plain function."""

    dim, patch_size = 3, 4
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    device = torch.device("cpu")

    def patches(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 4)

    def image(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.mark.parametrize("method", ["knn", "kmeans", "linear", "logistic"])
@pytest.mark.parametrize("encoder", [MeanColour(4), RawPatch(8), Callable3()], ids=["colour", "raw", "callable"])
def test_colours_that_are_the_classes_are_found(blocks: Path, method: Method, encoder: MeanColour) -> None:
    result = evaluate(encoder, blocks, method=method, **settings_of(method))
    assert result.metrics["mIoU"] > 0.8
    assert result.metrics["mIoU"] > result.metrics["mIoU floor"] + 0.4
    assert [row["class"] for row in result.rows] == ["red", "green", "blue"]
    assert set(result.per_image) == {"0", "1", "2"}
    assert all(value["miou_image"] > 0.7 for value in result.per_image.values())
    assert result.settings["method"] == method


@pytest.mark.parametrize("method", ["knn", "kmeans", "linear", "logistic"])
def test_a_seed_decides_all(blocks: Path, method: Method) -> None:
    once, again = (evaluate(MeanColour(4), blocks, method=method, seed=5, **settings_of(method)) for _ in range(2))
    assert once == again


@pytest.mark.parametrize("method", ["knn", "kmeans", "linear", "logistic"])
def test_results_and_pictures_are_written(blocks: Path, tmp_path: Path, method: Method) -> None:
    out = tmp_path / "out"
    result = evaluate(MeanColour(4), blocks, method=method, out=out, max_pictures=2, limit=4, **settings_of(method))
    assert Result.load(out / "result.json").metrics == result.metrics
    assert "NaN" not in (out / "result.json").read_text()
    sheet = np.asarray(Image.open(out / result.pictures[0]))
    assert sheet.shape == (2 * 256 + 8, 3 * 320 + 16, 3)
    assert not np.array_equal(sheet[:256, :320], sheet[:256, 328:648])


def test_logistic_regression_is_the_minimum() -> None:
    """Of SciPy too, on the same function of weights and bias, with features of any mean and scale."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 5)) * [1, 10, 0.1, 3, 0] + [0, 50, 0, -2, 7]
    labels = rng.dirichlet([0.3, 0.3, 0.3], size=80)
    labels[:, 0] += (features[:, 1] > 50) * 2
    labels /= labels.sum(1, keepdims=True)
    classify = fit_logistic(torch.tensor(features), torch.tensor(labels), weight_decay=0.01, iterations=500)
    standard = (features - features.mean(0)) / features.std(0).clip(1e-6)

    def loss(parameters: np.ndarray) -> float:
        weight, bias = parameters[:15].reshape(3, 5), parameters[15:]
        logits = standard @ weight.T + bias
        return float(-(labels * log_softmax(logits, 1)).sum(1).mean() + 0.005 * (weight**2).sum())

    ours = np.concatenate([classify.weight.flatten(), classify.bias])
    assert loss(ours) == pytest.approx(minimize(loss, np.zeros(18), tol=1e-10).fun, abs=1e-6)
    logits = classify(torch.tensor(features)).numpy()
    assert_allclose(logits, standard @ ours[:15].reshape(3, 5).T + ours[15:], atol=1e-8)


def test_votes_equal_the_loop() -> None:
    torch.manual_seed(0)
    features, labels, queries = F.normalize(torch.randn(40, 6)), torch.rand(40, 4), torch.randn(11, 6)
    for max_cosines in (5, 12, 45, 100, 10**6):  # blocks of the memory, of the queries, neither
        memory = Memory(features, labels, k=5, temperature=0.1, max_cosines=max_cosines)
        votes = memory.votes(queries)
        for query, found in zip(queries, votes, strict=True):
            cosine = torch.cosine_similarity(query[None], features)
            nearest = cosine.argsort(descending=True)[:5]
            expected = ((cosine[nearest] / 0.1).softmax(0)[:, None] * labels[nearest]).sum(0)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_votes_never_hold_more_cosines_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    multiply = Tensor.__matmul__

    def spy(a: Tensor, b: Tensor) -> Tensor:
        product = multiply(a, b)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(Tensor, "__matmul__", spy)
    for allowed in (40, 600, 10_000):
        sizes.clear()
        memory = Memory(torch.randn(500, 8), torch.rand(500, 3), k=4, temperature=0.02, max_cosines=allowed)
        memory.votes(torch.randn(300, 8))
        assert 0 < max(sizes) <= allowed
        assert sum(sizes) == 500 * 300


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
        result = evaluate(encoder, blocks, method="knn", resolution=32, k=3, max_pictures=0)
    assert result.settings["remembered"] == count
    assert len(storages.found) == 1


def test_knn_takes_no_more_memory_at_once_than_allowed(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"method": "knn", "resolution": 64, "k": 3}
    plain = evaluate(MeanColour(4), blocks, **settings)
    sizes: list[int] = []
    multiply = Tensor.__matmul__

    def spy(a: Tensor, b: Tensor) -> Tensor:
        product = multiply(a, b)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(Tensor, "__matmul__", spy)
    bounded = evaluate(MeanColour(4), blocks, **settings, max_memory=1)
    assert 2**16 < max(sizes) <= 2**20 // 8
    assert bounded.metrics == pytest.approx(plain.metrics)
    assert bounded.settings == plain.settings
    with pytest.raises(ValueError, match="max_memory is 0; use 1 or more"):
        evaluate(MeanColour(4), blocks, **settings, max_memory=0)


def test_a_memory_that_cannot_vote_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 5 for 4 remembered patches"):
        Memory(torch.randn(4, 2), torch.rand(4, 2), k=5, temperature=0.1)
    with pytest.raises(ValueError, match="temperature is 0"):
        Memory(torch.randn(4, 2), torch.rand(4, 2), k=1, temperature=0)


def test_rare_classes_are_remembered_first_and_void_never() -> None:
    labels = torch.zeros(20, 3)
    labels[:16, 0] = 1  # the frequent class
    labels[16:18, 1] = 1  # the rare one
    draws = torch.full((20,), 0.5)
    assert remembered(labels, 2, draws).tolist() == [16, 17]
    assert remembered(labels, 99, draws).tolist() == [*range(18)]


def test_the_memory_is_bounded_and_deterministic(blocks: Path) -> None:
    small = evaluate(MeanColour(4), blocks, method="knn", resolution=32, k=3, memory_patches=30)
    assert small.settings["remembered"] == 30
    with pytest.raises(ValueError, match="memory_patches is 5 for 6 training images"):
        evaluate(MeanColour(4), blocks, method="knn", resolution=32, k=3, memory_patches=5)


def test_soft_labels_are_shares_of_the_labelled_pixels() -> None:
    label = np.array([[0, 0, 1, IGNORE], [0, 2, IGNORE, IGNORE]])
    expected = torch.tensor([[[3 / 4, 0, 1 / 4], [0, 1, 0]]])
    torch.testing.assert_close(soft_labels(label, (1, 2), 2, 3), expected)
    assert soft_labels(np.full((4, 4), IGNORE), (2, 2), 2, 3).sum() == 0


@pytest.mark.parametrize("size", [(1, 1), (3000, 40), (7, 100)])
def test_images_of_any_shape_become_patches(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (255, 0, 0))
    features = whole_features(MeanColour(8), image, 32)
    assert tuple(features.shape[:2]) == grid_of(image.height, image.width, 32, 8)
    assert max(features.shape[:2]) <= 4 * 32 / 8
    torch.testing.assert_close(features[0, 0], torch.tensor([1.0, 0.0, 0.0]))


def test_clusters_are_found_and_restarts_keep_the_best() -> None:
    torch.manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = middles.repeat_interleave(50, 0) + torch.randn(150, 2)
    found = kmeans(points, 3, iterations=20, restarts=3, rng=np.random.default_rng(0))
    assert torch.cdist(middles, found.centres).min(1).values.max() < 0.5
    cluster, distance = nearest_centre(points, found.centres)
    torch.testing.assert_close(distance, torch.cdist(points, found.centres).min(1).values ** 2, rtol=1e-3, atol=1e-3)
    assert found.inertia == pytest.approx(float(distance.sum()), rel=1e-5)
    assert len(cluster.unique()) == 3
    for i in range(3):  # a fixed point of Lloyd's iteration
        torch.testing.assert_close(found.centres[i], points[cluster == i].mean(0), rtol=1e-4, atol=1e-4)


def test_a_cluster_without_points_gets_the_farthest_one() -> None:
    points, cluster = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([0, 0, 0])
    means = cluster_means(points, cluster, torch.tensor([0.0, 1.0, 100.0]), 2)
    torch.testing.assert_close(means, torch.tensor([[11 / 3], [10.0]]))


def test_points_that_coincide_are_no_harm() -> None:
    found = kmeans(torch.ones(10, 2), 3, iterations=5, restarts=1, rng=np.random.default_rng(0))
    assert found.inertia == 0
    with pytest.raises(ValueError, match="3 clusters cannot be made of 2 patches"):
        kmeans(torch.ones(2, 2), 3, iterations=5, restarts=1, rng=np.random.default_rng(0))


def test_doubles_are_made_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS has none."""
    moved: set[int] = set()
    to_cpu, to_double = Tensor.cpu, Tensor.double

    def cpu(x: Tensor) -> Tensor:
        moved.add(id(x))  # a tensor that is there already is returned as it is
        return to_cpu(x)

    def double(x: Tensor) -> Tensor:
        assert id(x) in moved
        return to_double(x)

    monkeypatch.setattr(Tensor, "cpu", cpu)
    monkeypatch.setattr(Tensor, "double", double)
    kmeans(torch.randn(20, 2), 3, iterations=5, restarts=2, rng=np.random.default_rng(0))
    assert moved


def test_matching_puts_as_many_pixels_right_as_any_other() -> None:
    counts = np.random.default_rng(0).integers(0, 100, (5, 5))
    matched = match_clusters(counts)
    assert sorted(matched) == [*range(5)]
    best = counts[linear_sum_assignment(counts, maximize=True)].sum()
    assert sum(counts[matched[cluster], cluster] for cluster in range(5)) == best


def test_loss_equals_the_plain_one_without_void() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    labels[0, :3] = IGNORE
    enlarged = F.interpolate(logits, (8, 8), mode="bilinear")
    torch.testing.assert_close(
        segmentation_loss(logits, labels, None), F.cross_entropy(enlarged, labels, ignore_index=IGNORE)
    )
    reduced = F.interpolate(labels[:, None].float(), (5, 5), mode="nearest")[:, 0].long()
    enlarged = F.interpolate(logits, (5, 5), mode="bilinear")
    torch.testing.assert_close(
        segmentation_loss(logits, labels, 5), F.cross_entropy(enlarged, reduced, ignore_index=IGNORE)
    )
    assert segmentation_loss(logits, torch.full_like(labels, IGNORE), None) == 0


def test_a_head_before_the_enlargement_equals_one_after_it() -> None:
    """Leopart's code enlarges the features; a linear map commutes with that."""
    head = LinearHead(6, 4, batch_norm=False, seed=0)
    features = torch.randn(1, 5, 5, 6)
    large = F.interpolate(features.movedim(-1, 1), (20, 20), mode="bilinear")
    after = head(large.movedim(1, -1))
    torch.testing.assert_close(F.interpolate(head(features), (20, 20), mode="bilinear"), after, rtol=1e-4, atol=1e-5)


def test_presets_are_the_published_ones() -> None:
    leopart, full = PRESETS["leopart"], PRESETS["full"]
    assert (leopart.crop, leopart.mask_side, leopart.optimizer, leopart.lr, leopart.epochs) == (
        448,
        100,
        "sgd",
        0.01,
        25,
    )
    assert (full.crop, full.steps, full.optimizer, full.lr, full.test) == (512, 40_000, "adamw", 1e-3, "slide")
    assert full.mask_side is None
    factor = step_decay(250)
    assert (factor(0), factor(199), factor(200), factor(249)) == (1, 1, 0.1, 0.1)


def test_changes_to_a_preset_are_checked() -> None:
    assert resolve("full", {"crop": None, "steps": 7}, 14).crop == 504
    assert resolve("full", {"crop": None, "steps": 7}, 14).steps == 7
    with pytest.raises(ValueError, match="no preset 'huge'; use one of: leopart, full, small"):
        resolve("huge", {}, 8)
    with pytest.raises(ValueError, match="crop is 4 pixels for patches of 8"):
        resolve("small", {"crop": 4}, 8)
    with pytest.raises(ValueError, match="steps is 0"):
        resolve("small", {"steps": 0}, 8)
    with pytest.raises(ValueError, match="warmup is 5, and leopart trains without; leave it out"):
        resolve("leopart", {"warmup": 5}, 8)
    with pytest.raises(ValueError, match="warmup is -1; use 0 or more"):
        resolve("full", {"warmup": -1}, 8)
    with pytest.raises(ValueError, match="lr is 0; use a number above 0"):
        resolve("full", {"lr": 0}, 8)
    with pytest.raises(ValueError, match="test is 'half'; use one of: square, whole, slide"):
        resolve("full", {"test": "half"}, 8)


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
        ("linear", "batch_size", 7),
        ("logistic", "iterations", 0),
        ("logistic", "weight_decay", -1),
    ],
)
def test_values_out_of_range_are_said_before_anything_runs(blocks: Path, method: Method, name: str, value: int) -> None:
    def too_late(what: str, *_: int) -> None:
        raise AssertionError(f"{what} has begun")

    said = "a batch of 7 cannot be drawn from 6" if name == "batch_size" else f"{name} is {value}; use"
    with pytest.raises(ValueError, match=said):
        evaluate(MeanColour(4), blocks, **{**settings_of(method), "method": method, name: value}, progress=too_late)


def test_resized_crops_keep_image_and_labels_together() -> None:
    label = (np.arange(60)[None] // 20 + np.zeros((40, 1), np.int64)).astype(np.int64)
    image = Image.fromarray(COLOURS[label])
    flips = set()
    for seed in range(10):
        pixels, classes = resized_crop(image, label, 24, np.random.default_rng(seed))
        assert (pixels.shape, classes.shape) == ((3, 24, 24), (24, 24))
        flips.add(int(classes[0, 0]))
        hard = pixels.argmax(0)
        assert (hard == classes).float().mean() > 0.9
    assert flips == {0, 2}


@pytest.mark.parametrize("test", ["square", "whole", "slide"])
def test_every_way_to_test_works(blocks: Path, test: str) -> None:
    result = evaluate(MeanColour(4), blocks, **{**SMALL, "crop": 32}, test=test)
    assert result.metrics["mIoU"] > 0.75


def test_the_published_presets_run(blocks: Path) -> None:
    for preset in ("leopart", "full"):
        result = evaluate(MeanColour(8), blocks, preset=preset, crop=24, steps=12, batch_size=3, lr=0.1)
        assert 0 <= result.metrics["mIoU"] <= 1
        assert result.settings["steps"] == 12
    epochs = evaluate(MeanColour(8), blocks, preset="leopart", crop=16, batch_size=3)
    assert epochs.settings["steps"] == 25 * 2


def test_a_stopped_training_goes_on_and_ends_alike(blocks: Path, tmp_path: Path) -> None:
    whole = evaluate(MeanColour(4), blocks, **SMALL, out=tmp_path / "whole")

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("scoring", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(MeanColour(4), blocks, **SMALL, out=tmp_path / "stopped", progress=stop)
    seen: list[str] = []
    again = evaluate(
        MeanColour(4), blocks, **SMALL, out=tmp_path / "stopped", progress=lambda what, *_: seen.append(what)
    )
    assert again.metrics == whole.metrics
    assert "training" not in seen
    with pytest.raises(ValueError, match="other settings"):
        evaluate(MeanColour(4), blocks, **{**SMALL, "steps": 41}, out=tmp_path / "stopped")


def test_a_trained_head_is_scored_elsewhere_and_in_other_ways(blocks: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[str]()
    first = evaluate(MeanColour(4), blocks, **SMALL, out=out)
    for folder in ("images", "labels"):
        (blocks / folder / "val").rename(blocks / folder / "other")
    moved = blocks.rename(tmp_path / "moved")
    settings: dict[str, Any] = {**SMALL, "test_split": "other", "out": out}
    again = evaluate(MeanColour(4), moved, **settings, progress=lambda what, *_: seen.append(what))
    assert again.metrics == first.metrics
    for test in ("slide", "square"):
        evaluate(MeanColour(4), moved, **settings, test=test, progress=lambda what, *_: seen.append(what))
    assert set(seen) == {"scoring"}
    Image.new("L", (40, 32), 1).save(moved / "labels" / "train" / "0.png")
    with pytest.raises(ValueError, match=r"other settings \(training_data "):
        evaluate(MeanColour(4), moved, **settings)


def test_a_head_is_not_used_on_another_function(blocks: Path, tmp_path: Path) -> None:
    evaluate(FunctionEncoder(lambda x: F.avg_pool2d(x, 4), 4), blocks, **SMALL, out=tmp_path)
    evaluate(FunctionEncoder(lambda x: F.avg_pool2d(x, 4), 4), blocks, **SMALL, out=tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(network "):
        evaluate(FunctionEncoder(lambda x: -F.avg_pool2d(x, 4), 4), blocks, **SMALL, out=tmp_path)


def test_settings_of_the_result_are_those_that_were_taken(blocks: Path) -> None:
    for method in ("knn", "kmeans", "linear"):
        assert evaluate(MeanColour(4), blocks, method=method, **settings_of(method)).settings["kind"] == "folder"
    assert evaluate(MeanColour(4), blocks, **SMALL, warmup=30).settings["warmup"] == 4


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
    evaluate(network, blocks, **SMALL)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_what_cannot_be_is_refused(blocks: Path) -> None:
    colour = MeanColour(4)
    with pytest.raises(ValueError, match="no method 'svm'"):
        evaluate(colour, blocks, method="svm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="knn does not read crop, steps; it reads train_split"):
        evaluate(colour, blocks, method="knn", crop=32, steps=3)
    with pytest.raises(ValueError, match="images of 1 channels"):
        evaluate(MeanColour(4, channels=1), blocks, method="knn")
    with pytest.raises(ValueError, match="3 images of 'val' are in 'val' too"):
        evaluate(colour, blocks, method="knn", train_split="val")
    for path in (blocks / "labels" / "val").iterdir():
        Image.new("L", (40, 32), IGNORE).save(path)
    with pytest.raises(ValueError, match="are void; there is nothing to score"):
        evaluate(colour, blocks, method="knn", **settings_of("knn"))


def test_options_are_the_settings_that_methods_read(blocks: Path) -> None:
    from selfpatch.evaluation.segmentation.evaluate import READS

    options = Segment(data=str(blocks)).settings()
    common = {"method", "kind", "out", "test_split", "limit", "seed", "max_pictures"}
    assert options.keys() == common | {name for names in READS.values() for name in names}
    result = evaluate(MeanColour(4), blocks, **{**options, **settings_of("knn"), "method": "knn"})
    assert json.dumps(result.settings)


def test_real_images(data_dir: Path) -> None:
    result = evaluate(MeanColour(8), data_dir / "camvid", method="knn", resolution=96, memory_patches=2000, limit=6)
    assert result.metrics["mIoU"] > 2 * result.metrics["mIoU floor"]
