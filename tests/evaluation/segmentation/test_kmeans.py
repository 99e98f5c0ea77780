"""Overclustering against a plain program of its steps with SciPy's k-means."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import functional as F

from selfpatch.data.augment.multicrop import generator
from selfpatch.evaluation.encoders import FunctionEncoder, RawPatch
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.segmentation.config import KMeansSegmentationConfig, SegmentationConfig
from selfpatch.evaluation.segmentation.evaluate import evaluate
from selfpatch.evaluation.segmentation.kmeans import _KMEANS_STREAM, _SUBSET_STREAM, count_clusters
from tests.helpers.largest_tensor import LargestTensor

SIDE, PATCH, CLASSES, MASK, K = 24, 4, 4, 10, 7


def statistics(images: Tensor) -> Tensor:
    mean = F.avg_pool2d(images, PATCH)
    return torch.cat([mean, 5 * (F.avg_pool2d(images.square(), PATCH) - mean.square())], 1)  # [B, 6, h, w]


ENCODER = FunctionEncoder(statistics, PATCH)
SMALL: dict[str, Any] = {
    "method": "kmeans", "preset": "overclustering", "resolution": SIDE, "num_clusters": K, "components": 4,
    "mask_side": MASK, "points_per_cluster": 9, "restarts": 1, "seeds": 2,
}  # fmt: skip


@pytest.fixture
def four_classes(noise: Path, tmp_path: Path) -> Path:
    """The set with a class that occurs nowhere."""
    copy = shutil.copytree(noise, tmp_path / "four")
    (copy / "classes.txt").write_text("background\na\nb\nnowhere\n")
    return copy


def overclustering_reference(data: Path) -> list[float]:
    """Return the mIoU of each seed."""
    images, truths = [], []
    for i in range(3):
        image = Image.open(data / "images" / "val" / f"{i}.png").convert("RGB").resize((SIDE, SIDE), 2)
        images.append(torch.from_numpy(np.array(image)).movedim(-1, 0) / 255)
        label = torch.from_numpy(np.array(Image.open(data / "labels" / "val" / f"{i}.png")))[None, None].float()
        square = F.interpolate(label, (SIDE, SIDE), mode="nearest")
        truths.append(F.interpolate(square, (MASK, MASK), mode="nearest")[0, 0].numpy())
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    tokens = statistics((torch.stack(images) - mean) / std).movedim(1, -1).flatten(0, 2).double().numpy()
    standard = (tokens - tokens.mean(0)) / tokens.std(0)
    _, _, directions = np.linalg.svd(standard, full_matrices=False)
    reduced, truth = standard @ directions[:4].T, np.stack(truths)
    mious = []
    for seed in (0, 1):
        subset = reduced[generator(seed, 0, 0, _SUBSET_STREAM).permutation(len(reduced))[: 9 * K]]
        first = subset[generator(seed, 0, 0, _KMEANS_STREAM).permutation(len(subset))[:K]]
        centres, _ = kmeans2(subset, first, iter=100, minit="matrix")
        cluster = ((reduced[:, None] - centres) ** 2).sum(-1).argmin(1).reshape(3, SIDE // PATCH, SIDE // PATCH)
        cluster = F.interpolate(torch.from_numpy(cluster)[None].float(), (MASK, MASK), mode="nearest")[0].numpy()
        prediction = np.full_like(truth, -1)
        for k in range(K):
            precisions = [(truth[cluster == k] == c).sum() for c in range(CLASSES)]
            prediction[cluster == k] = int(np.argmax(precisions))
        ious = []
        for c in range(CLASSES):
            predicted, true = (prediction == c) & (truth != 255), truth == c
            ious.append((predicted & true).sum() / max((predicted | true).sum(), 1))
        mious.append(float(np.mean(ious)))
    return mious


def run(data: Path, **settings: Any) -> Result:
    return evaluate(ENCODER, data, SegmentationConfig.from_settings({**SMALL, **settings}))


def test_overclustering_equals_a_plain_program(four_classes: Path) -> None:
    expected, metrics = overclustering_reference(four_classes), run(four_classes).metrics
    assert metrics["mIoU"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert metrics["mIoU std"] == pytest.approx(np.std(expected), abs=1e-6)
    assert expected[0] != expected[1]


@pytest.mark.parametrize(
    "mistake",
    [
        {"features": "unit"},
        {"components": 2},
        {"mask_side": 11},
        {"absent_as_zero": False},
        {"points_per_cluster": None},
        {"init": "plus_plus"},
    ],
    ids=str,
)
def test_a_planted_mistake_is_noticed(four_classes: Path, mistake: dict[str, Any]) -> None:
    expected = np.mean(overclustering_reference(four_classes))
    assert run(four_classes, **mistake).metrics["mIoU"] != pytest.approx(expected, abs=1e-6)


def test_the_presets_are_those_of_neco_and_leopart() -> None:
    def preset(name: str) -> KMeansSegmentationConfig:
        config = SegmentationConfig.from_settings({"method": "kmeans", "preset": name})
        assert isinstance(config, KMeansSegmentationConfig)
        return config

    many, few = preset("overclustering"), preset("clustering")
    for config in (many, few):
        assert (config.resolution, config.shape, config.mask_side, config.memory_patches) == (448, "square", 100, None)
        assert (config.features, config.components, config.absent_as_zero) == ("standardised", 50, True)
        assert (config.iterations, config.restarts, config.seeds) == (100, 5, 5)
    assert (many.num_clusters, many.matching) == (500, "precision")
    assert (few.num_clusters, few.matching) == (None, "one_to_one_iou")


def test_void_among_the_classes_has_no_cluster() -> None:
    assert count_clusters(KMeansSegmentationConfig(), 302) == 301  # ImageNet-S300, whose number 255 is void
    assert count_clusters(KMeansSegmentationConfig(), 255) == 255


def test_features_that_are_narrower_than_the_components_are_kept_whole(noise: Path) -> None:
    result = run(noise, components=50)
    assert result.notes == ["components is 50, but features have 6 dimensions: all are kept"]
    assert result.metrics["mIoU"] == run(noise, components=6).metrics["mIoU"]


def test_features_are_clustered_alike_if_they_are_kept_or_computed_again(noise: Path) -> None:
    kept, again = (run(noise, components=components) for components in (6, None))
    assert again.metrics["mIoU"] == pytest.approx(kept.metrics["mIoU"], abs=1e-6)  # a rotation changes no distance


def test_no_more_than_the_reduced_features_of_all_images_is_kept(noise: Path) -> None:
    encoder, side = RawPatch(8), 128
    settings = {**SMALL, "resolution": side, "num_clusters": 3, "seeds": 1, "max_pictures": 0}
    patches = 3 * (side // 8) ** 2
    with LargestTensor() as largest:
        result = evaluate(encoder, noise, SegmentationConfig.from_settings(settings))
    assert result.settings["clusters"] == 3
    of_one_image, covariance = patches // 3 * encoder.dim * 8, encoder.dim**2 * 8  # in float64
    assert largest.bytes <= max(of_one_image, covariance) < patches * encoder.dim * 4
