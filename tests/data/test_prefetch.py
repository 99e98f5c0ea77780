"""Prefetching: the same batches in the same order, and no thread is left over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from selfpatch.config.sections import LoaderConfig
from selfpatch.core.types import Views
from selfpatch.data.augment.multicrop import ViewRecipe
from selfpatch.data.collate import Batch
from selfpatch.data.loader import CropLoader
from selfpatch.data.prefetch import in_background, prefetched
from selfpatch.data.sources.index import ImageIndex
from tests.helpers.command_line import write_photos
from tests.helpers.devices import DEVICES
from tests.helpers.tiny import tiny_views


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetching"]


def test_all_items_come_in_order() -> None:
    assert list(in_background(iter(range(100)))) == list(range(100))
    assert list(in_background(iter(()))) == []
    assert alive() == []


def test_the_next_item_is_made_while_the_last_is_in_use() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    stream = in_background(items())
    assert next(stream) == 0
    limit = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < limit:
        time.sleep(0.001)
    time.sleep(0.05)
    assert made == [0, 1, 2], "one waits in the queue and one to get into it"
    stream.close()


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("too many unreadable images")

    stream = in_background(items())
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(ValueError, match="too many unreadable images"):
        next(stream)
    assert alive() == []


def test_closing_ends_the_thread_and_the_iterator() -> None:
    closed_by: list[threading.Thread] = []

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed_by.append(threading.current_thread())

    stream = in_background(items())
    next(stream)
    (thread,) = alive()
    stream.close()
    assert alive() == []
    assert closed_by == [thread]


def test_loader_processes_start_from_the_thread(tmp_path: Path) -> None:
    index = ImageIndex.open(write_photos(tmp_path / "photos", 8), tmp_path / "cache")
    recipes = [ViewRecipe(16, (0.25, 1.0))] * 2

    def steps(workers: int) -> Iterator[list[Batch]]:
        loader = CropLoader(
            index, np.arange(8), recipes, LoaderConfig(workers=workers, render="device"), batch_size=4, seed=0
        )
        return loader.steps(0, 6)

    expected = [views for (views,) in prefetched(steps(0), torch.device("cpu"))]
    given = [batch.to("cpu") for (batch,) in in_background(steps(1))]
    for ours, theirs in zip(given, expected, strict=True):
        assert torch.equal(ours.global_crops, theirs.global_crops)
    stream = in_background(steps(1))
    next(stream)
    stream.close()
    assert alive() == []


@pytest.mark.parametrize("device", DEVICES)
def test_steps_are_on_the_device(device: str) -> None:
    steps = [[tiny_views(2, seed=2 * step + i) for i in range(2)] for step in range(6)]
    given = prefetched(iter(steps), torch.device(device))
    for ours, theirs in zip(given, steps, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert isinstance(a, Views)
            assert a.global_crops.device.type == device
            assert torch.equal(a.global_crops.cpu(), b.global_crops)
            assert torch.equal(a.boxes.cpu(), b.boxes)
    assert alive() == []
