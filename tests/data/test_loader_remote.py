"""Training stream from a server that is slow and fails now and then: bit for bit that of local files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from selfpatch.config.sections import CropConfig, LoaderConfig
from selfpatch.core.types import Views
from selfpatch.data.augment.multicrop import ViewRecipe
from selfpatch.data.loader import CropLoader
from selfpatch.data.sources import remote
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.sources.remote import PATIENCE_VARIABLE, RemoteError
from selfpatch.data.workers import LoaderError
from tests.helpers.range_server import RangeServer, serving
from tests.helpers.shard_files import photo, write_shard

pytest.importorskip("aiohttp")

RECIPES = (ViewRecipe(16, (0.25, 1.0), flip=0.5, blur=0.5, solarize=0.2, colour=CropConfig()),) * 2
FAULTS = ("500", None, "truncated", None, "cut", None, "503", None)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images in two shards and one that is damaged."""
    root = tmp_path_factory.mktemp("served")
    for number in range(2):
        images = {f"{i}.jpg": photo(i, size=(30, 24)) for i in range(number, 16, 2)}
        write_shard(root / "shards" / f"{number}.tar", images | {f"bad{number}.jpg": b"damaged"} if number else images)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[RangeServer]:
    with serving(root, latency=0.002) as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    server.fault = None


def stream(source: str | Path, first: int = 0, last: int = 6, workers: int = 0) -> list[Views]:
    index = ImageIndex.open(source)
    config = LoaderConfig(workers=workers, render="plain", max_bad=1.0)
    loader = CropLoader(index, np.arange(len(index)), RECIPES, config, batch_size=5, seed=3)
    return [batch.to("cpu") for (batch,) in loader.steps(first, last)]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_and_its_resumption_are_those_of_local_files(root: Path, server: RangeServer, workers: int) -> None:
    local = stream(root / "shards")
    server.fault = lambda path, number: FAULTS[number % len(FAULTS)]
    for first in (0, 4):
        there = stream(f"{server.url}/shards", first, workers=workers)
        for ours, theirs in zip(local[first:], there, strict=True):
            assert ours.samples.tolist() == theirs.samples.tolist()
            assert torch.equal(ours.global_crops, theirs.global_crops)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_that_goes_away_ends_the_stream_by_one_sentence(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Other images in place of those that cannot be had would change the run unnoticed."""
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.3")
    asked: list[str] = []
    server.fault = lambda path, number: asked.append(path) or ("503" if len(asked) > 12 else None)  # type: ignore[func-returns-value]
    with pytest.raises(LoaderError if workers else RemoteError, match=r"cannot read .*\.tar: .*503.* tries in"):
        stream(f"{server.url}/shards", workers=workers)
