"""A small run that the tests of the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfpatch.cli.main import main
from tests.helpers.command_line import TINY, write_photos

NUM_EPOCHS = 2


@pytest.fixture(scope="package", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("COLUMNS", "200")
        yield


@pytest.fixture(scope="package")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of two classes."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    for name in ("cat", "dog"):
        write_photos(folder / name, 12)
    return folder


@pytest.fixture(scope="package")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", *TINY, "--data", str(photos), "--out", str(out), "--epochs", str(NUM_EPOCHS)]) == 0
    return out
