"""A small COCO data set with two splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.detect_data import write_split


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two splits of three images, for tests that change them."""
    write_split(tmp_path / "coco", "train", images=3)
    return write_split(tmp_path / "coco", "val", images=3, seed=1)


@pytest.fixture(scope="module")
def coco_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training images and four test images."""
    root = write_split(tmp_path_factory.mktemp("coco"), "train", images=5)
    return write_split(root, "val", images=4, seed=1)
