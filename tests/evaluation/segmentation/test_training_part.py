"""Shares and lists of training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfpatch.evaluation.segmentation.dataset import SegmentationSet, open_dataset
from selfpatch.evaluation.segmentation.training_part import training_part
from tests.helpers.block_images import write_blocks


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> SegmentationSet:
    return open_dataset(write_blocks(tmp_path_factory.mktemp("blocks"), train=9, val=1), "train")


def test_shares_are_nested_and_drawn_by_the_seed(images: SegmentationSet) -> None:
    third, whole = training_part(images, "1/3", 4), training_part(images, "100%", 4)
    assert len(third) == 3
    assert whole.names == training_part(images, None, 4).names == images.names
    assert set(third.names) < set(training_part(images, "50%", 4).names)
    assert len(training_part(images, "50%", 4)) == 4
    assert len(training_part(images, "1/128", 4)) == 1
    assert len({tuple(training_part(images, "1/3", seed).names) for seed in range(6)}) > 1


@pytest.mark.parametrize(("part", "count"), [("29%", 29), ("57%", 57), ("58%", 58), ("0.58%", 1), ("15/22", 68)])
def test_a_share_is_not_rounded_before_images_are_counted(part: str, count: int) -> None:
    """In floats, 0.29 * 100 is less than 29, of which 28 images were drawn."""
    names = [f"{i}" for i in range(100)]
    paths = [Path(name) for name in names]
    images = SegmentationSet(("a",), names, paths, paths, np.zeros(256, np.int64))
    assert len(training_part(images, part, 0)) == count


def test_a_list_names_images_with_or_without_suffix(images: SegmentationSet, tmp_path: Path) -> None:
    names = tmp_path / "trainaug_128_42.txt"
    names.write_text("7\n\n2.png\n")
    assert training_part(images, str(names), 0).names == ["2", "7"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("2\n17\n", "line 2 of .* is '17', which is no training image; write one name per line, e.g. 0"),
        ("2\n2\n", "line 2 of .* is '2', which an earlier line names too"),
        ("\n", "names no image; write one name per line"),
    ],
)
def test_wrong_lists_are_refused(images: SegmentationSet, tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        training_part(images, str(tmp_path / "list.txt"), 0)


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("0%", "train_part is '0%'; use a share above 0 and at most 1, such as 1/8 or 5%"),
        ("9/8", "train_part is '9/8'; use a share"),
        ("1/0", "train_part is '1/0', neither a share such as 1/8 or 5% nor a text file"),
        ("0.1", "train_part is '0.1', neither a share"),
    ],
)
def test_what_is_no_share_is_refused(images: SegmentationSet, part: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        training_part(images, part, 0)
