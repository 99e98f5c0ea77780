"""Fixtures of all tests: folders of data, of which `tests/golden` travels with the project, and a pool of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from selfpatch.core.machine import num_cores
from tests.helpers.workers import WorkerPool

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"
SLOW_FOLDERS = ("benchmarks", "end_to_end", "fuzz")
"""Folders whose tests time or run whole commands, or run thousands of cases: seconds each, or minutes together."""


def pytest_configure() -> None:
    torch.set_num_threads(1)  # beside other jobs, spinning threads make tiny steps crawl
    settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
    settings.load_profile("untimed")


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores, as the tests that start processes wait for them."""
    return num_cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(HERE).parts[0] in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return HERE / "golden"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of small real data sets; skips where there is none."""
    folder = Path(os.environ.get("SELFPATCH_DATA", SHARED / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no data at {folder}; set SELFPATCH_DATA to the folder that holds davis/, imagenet_sample_256/, ..."
        )
    return folder


@pytest.fixture(scope="session")
def full_golden_dir() -> Path:
    """The larger golden bundles; skips where there are none."""
    data = Path(os.environ.get("SELFPATCH_DATA", SHARED / "data"))
    folder = Path(os.environ.get("SELFPATCH_GOLDEN", data.parent / "golden"))
    if not (folder / "davis_metric").is_dir():
        pytest.skip(f"no golden bundles at {folder}; set SELFPATCH_GOLDEN to their folder")
    return folder


@pytest.fixture(scope="session")
def pool() -> Iterator[WorkerPool]:
    """Two processes that compute together; they take seconds to start, so that all tests share them."""
    pool = WorkerPool(2)
    yield pool
    pool.close()
