"""Cached features are the computed ones; whatever decides features decides the entry; disk and processes are safe."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from selfpatch.api.evaluate import measure
from selfpatch.core.types import Encoder
from selfpatch.evaluation.cache_config import CacheConfig
from selfpatch.evaluation.encoders import BFloat16Encoder
from selfpatch.evaluation.feature_cache import FeatureCache, cached, caching_features
from selfpatch.evaluation.lazy_image import LazyImage
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.segmentation.config import LinearSegmentationConfig, SegmentationConfig
from selfpatch.evaluation.segmentation.dataset import open_dataset
from selfpatch.evaluation.segmentation.linear import fit_linear
from selfpatch.experiments.suite import evaluate_suite
from selfpatch.models.debiased import debiased
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.layer_encoder import LayerEncoder
from tests.evaluation.retrieval.conftest import write_retrieval
from tests.helpers.block_images import write_blocks
from tests.helpers.labelled_images import coloured_folder, tiny_encoder
from tests.helpers.workers import WorkerPool

PIXELS = np.random.default_rng(0).integers(256, size=(40, 48, 3), dtype=np.uint8)
LIMIT = 10**6


def get(cache: FeatureCache, encoder: Encoder, pixels: np.ndarray = PIXELS, settings: Any = "whole") -> bool:
    """Return whether the cache has to compute the features, after a check of their values."""
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    calls = []

    def compute() -> Tensor:
        calls.append(encoder.patches(batch))
        return calls[-1]

    with torch.no_grad():
        assert torch.equal(cache.get(encoder, pixels, settings, compute), encoder.patches(batch))
    return bool(calls)


def test_features_are_computed_once(tmp_path: Path) -> None:
    encoder = tiny_encoder("vit")
    assert cached(encoder, PIXELS, "", lambda: torch.ones(2)).tolist() == [1, 1], "without a cache, they are computed"
    for keep, expected in ((True, [True, False]), (False, [False, False])):
        with caching_features(tmp_path / "features", encoder, LIMIT, keep=keep) as cache:
            assert [get(cache, encoder), get(cache, encoder)] == expected
    assert not (tmp_path / "features").exists()


def changed_weight() -> BranchEncoder:
    encoder = tiny_encoder("vit")
    encoder.backbone.trunk.blocks[0].mlp.fc1.weight.data[0, 0] += 1e-3
    return encoder


def other_heads() -> BranchEncoder:
    """A network with the same tensors that computes something else."""
    encoder = tiny_encoder("vit")
    for block in encoder.backbone.trunk.blocks:
        block.attn.num_heads = 4
    return encoder


@pytest.mark.parametrize(
    "changed",
    [
        changed_weight,
        other_heads,
        lambda: BFloat16Encoder(tiny_encoder("vit")),
        lambda: debiased(tiny_encoder("vit"), 2),
        lambda: LayerEncoder(tiny_encoder("vit"), block=2),
    ],
)
def test_another_function_has_its_own_features(tmp_path: Path, changed: Callable[[], Encoder]) -> None:
    cache = FeatureCache(tmp_path, tiny_encoder("vit"), LIMIT)
    assert get(cache, tiny_encoder("vit"))
    assert not get(cache, tiny_encoder("vit")), "another object with the same weights is the same function"
    assert get(cache, changed())
    assert not get(cache, changed())


def test_wrappers_differ_by_their_settings(tmp_path: Path) -> None:
    vit, resnet = tiny_encoder("vit"), tiny_encoder("resnet")
    wrapped = [
        *(debiased(vit, rank) for rank in (1, 2)),
        *(LayerEncoder(vit, block=block) for block in (1, 2)),
        *(LayerEncoder(vit, facet=facet) for facet in ("key", "query", "value")),
        debiased(BFloat16Encoder(vit), 2),
        *(LayerEncoder(resnet, output_stride=8, dilate=dilate) for dilate in (True, False)),
    ]
    cache = FeatureCache(tmp_path, tiny_encoder("vit"), LIMIT)
    identities = [cache._identity(encoder) for encoder in wrapped]
    assert len(set(identities)) == len(wrapped)


def test_other_data_and_settings_have_their_own_features(tmp_path: Path) -> None:
    cache, encoder, other = FeatureCache(tmp_path, tiny_encoder("vit"), LIMIT), tiny_encoder("vit"), PIXELS.copy()
    other[0, 0, 0] ^= 1
    assert [get(cache, encoder), get(cache, encoder, other), get(cache, encoder, settings=(2, 3))] == [True] * 3
    assert get(cache, encoder, np.ascontiguousarray(PIXELS.transpose(1, 0, 2)))


def test_the_disk_is_bounded(tmp_path: Path) -> None:
    encoder, images = tiny_encoder("vit"), [PIXELS ^ np.uint8(i) for i in range(6)]
    one = 5 * 6 * 16 * 4 + 128
    cache = FeatureCache(tmp_path, encoder, 2 * one)
    assert all(get(cache, encoder, image) for image in images)
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) == 2 * one
    cache = FeatureCache(tmp_path, encoder, 3 * one)  # files of an earlier call count
    assert [get(cache, encoder, image) for image in images] == [False, False, True, True, True, True]
    assert len([*cache.folder.iterdir()]) == 3


def test_damaged_files_and_full_disks_only_cost_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, encoder = FeatureCache(tmp_path, tiny_encoder("vit"), LIMIT), tiny_encoder("vit")
    assert get(cache, encoder)
    (file,) = cache.folder.iterdir()
    for length in (0, 10, 200):
        file.write_bytes(file.read_bytes()[:length])
        assert get(cache, encoder)
        assert not get(cache, encoder)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert [get(cache, encoder, settings=0), get(cache, encoder, settings=0)] == [True, True]
    assert [*cache.folder.iterdir()] == [file], "no incomplete file is left"


def test_features_of_other_networks_are_removed(tmp_path: Path) -> None:
    for encoder in (tiny_encoder("vit"), changed_weight()):
        with caching_features(tmp_path, encoder, LIMIT, keep=True) as cache:
            assert get(cache, encoder)
    assert len([*tmp_path.iterdir()]) == 1


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    names = ["photos.npz", "0123456789abcdef/mine.npy", f"cats/{'0' * 64}.npy"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with caching_features(tmp_path, tiny_encoder("vit"), LIMIT) as cache:
        assert get(cache, tiny_encoder("vit"))
    assert all((tmp_path / name).exists() for name in names)
    assert not cache.folder.exists()


def test_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, tiny_encoder("vit"), LIMIT)
    assert get(cache, tiny_encoder("vit"))
    (complete,) = cache.folder.iterdir()
    complete.with_suffix(".77.tmp").write_bytes(bytes(1000))
    FeatureCache(tmp_path, tiny_encoder("vit"), LIMIT)
    assert [*cache.folder.iterdir()] == [complete]


def _fill(rank: int, folder: Path) -> tuple[list[bool], int]:
    encoder = tiny_encoder("vit")
    with caching_features(folder, encoder, LIMIT, keep=True) as cache:
        return [get(cache, encoder, PIXELS ^ np.uint8(i)) for i in range(4)], len([*cache.folder.iterdir()])


@pytest.mark.slow
def test_two_processes_share_a_folder(pool: WorkerPool, tmp_path: Path) -> None:
    pool.run(_fill, tmp_path)
    assert pool.run(_fill, tmp_path) == [([False] * 4, 4)] * 2


class Counted(BranchEncoder):
    """A network that counts the images that it encodes."""

    def __init__(self) -> None:
        vit = tiny_encoder("vit")
        super().__init__(vit.backbone, vit.pool)
        self.eval().num_images = 0

    def patches(self, images: Tensor) -> Tensor:
        self.num_images += len(images)
        return super().patches(images)

    def image(self, images: Tensor) -> Tensor:
        self.num_images += len(images)
        return super().image(images)


SEGMENT = """
- segment: {data: %s, method: knn, resolution: 48, k: 3, max_pictures: 0}
- segment: {data: %s, method: logistic, resolution: 48, max_pictures: 0}
- segment: {data: %s, method: kmeans, resolution: 48, max_pictures: 0}
- segment: {data: %s, method: kmeans, num_clusters: 6, matching: precision, resolution: 48, max_pictures: 0}
"""
CLASSIFY = """
- knn: {data: %s, resize: 24, crop: 24, ks: [3]}
- knn: {data: %s, resize: 24, crop: 24, ks: [5]}
"""


RETRIEVE = """
- retrieval: {data: %s, resolution: 48, ks: [1], max_pictures: 0}
- retrieval: {data: %s, resolution: 48, ks: [2], max_pictures: 0}
"""


@pytest.mark.slow
@pytest.mark.parametrize("suite", [SEGMENT, CLASSIFY, RETRIEVE])
def test_a_suite_encodes_each_image_once(tmp_path: Path, suite: str) -> None:
    data = tmp_path / "data"
    if suite == RETRIEVE:
        num_images = len([*(write_retrieval(data) / "jpg").iterdir()])
    elif suite == SEGMENT:
        write_blocks(data)
        num_images = len([*(data / "images").rglob("*.png")])
    else:
        coloured_folder(data)
        num_images = len([*data.rglob("*.png")])
    (tmp_path / "suite.yaml").write_text(suite.replace("%s", str(data)))
    results = {}
    for gigabytes in (1.0, 0.0):
        encoder, out = Counted(), tmp_path / f"{gigabytes}"
        outcomes = evaluate_suite(
            tmp_path / "suite.yaml", encoder, out, device="cpu", cache=CacheConfig(cache_gb=gigabytes)
        )
        results[gigabytes] = [replace(outcome.result, weights=None) for outcome in outcomes if outcome.result]
        if gigabytes:
            probes = 2  # a small image of noise for patches and image feature, which identify the network
            assert encoder.num_images == num_images + probes
        else:
            assert encoder.num_images >= 2 * num_images
        assert not (out / "features").exists()
    assert len(results[1.0]) == suite.count("data:")
    assert results[1.0] == results[0.0], "the numbers are the same"


@pytest.mark.parametrize("test", ["square", "whole"])
def test_views_of_a_linear_head_are_encoded_once(tmp_path: Path, test: str) -> None:
    settings = {"preset": "small", "crop": 16, "steps": 1, "batch_size": 2, "test": test}
    config, data = SegmentationConfig.from_settings(settings), open_dataset(write_blocks(tmp_path / "data"), "train")
    assert isinstance(config, LinearSegmentationConfig)
    encoder = Counted()
    fitted = fit_linear(encoder, data, config, Output())
    with caching_features(tmp_path / "features", encoder, LIMIT):
        first, before = fitted.predict(data.image(0)), encoder.num_images
        assert torch.equal(fitted.predict(data.image(0)), first)
    assert encoder.num_images == before


def test_measuring_alone_needs_no_cache(tmp_path: Path) -> None:
    encoder = Counted()
    measure("knn", encoder, None, coloured_folder(tmp_path), resize=24, crop=24, ks=(3,))
    assert encoder.num_images == 36


def test_random_crops_are_not_cached(tmp_path: Path) -> None:
    """A linear layer learns from random crops; only whole images stay, so that more steps add nothing."""
    data, encoder = write_blocks(tmp_path / "data"), tiny_encoder("vit")
    settings = {"method": "linear", "preset": "small", "crop": 32, "batch_size": 2, "max_pictures": 0}
    with caching_features(tmp_path / "features", encoder, LIMIT) as cache:
        measure("segment", encoder, None, data, steps=1, **settings)
        stored = {*cache.folder.iterdir()}
        assert len(stored) <= 9, "six training images and three test images"
        measure("segment", encoder, None, data, steps=6, **settings)
        assert {*cache.folder.iterdir()} == stored


def test_a_file_is_decoded_once_unless_it_changes(tmp_path: Path) -> None:
    encoder, path, events = tiny_encoder("vit"), tmp_path / "photo.bmp", list[str]()
    cache = FeatureCache(tmp_path / "features", encoder, LIMIT)

    def decode() -> Image.Image:
        events.append("decoded")
        return Image.open(path)

    def compute() -> Tensor:
        events.append("computed")
        return torch.ones(2)

    for changed in (PIXELS, None, PIXELS ^ np.uint8(1), None):
        if changed is not None:
            path.unlink(missing_ok=True)
            Image.fromarray(changed).save(path)
            os.utime(path, ns=(0, len(events)))  # the clock of a disk is too coarse for a test
        cache.get(encoder, LazyImage(path, 40, 48, decode), "", compute)
    assert events == ["decoded", "computed"] * 2
