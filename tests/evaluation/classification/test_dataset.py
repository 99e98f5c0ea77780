"""Labelled folders: subsets of labels, held-out images, shared class numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfpatch.evaluation.classification.dataset import hold_out, open_splits, with_labels
from tests.helpers.labelled_images import coloured_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_folder(tmp_path_factory.mktemp("data"))


def test_held_out_images_are_a_share_of_each_class(folder: Path) -> None:
    train, _ = open_splits(folder)
    kept, held = hold_out(train, 0.25, seed=0)
    assert sorted([*kept, *held]) == list(range(24))
    assert np.bincount(train.labels[held]).tolist() == [2, 2, 2]
    assert not np.array_equal(hold_out(train, 0.25, seed=1)[1], held)
    with pytest.raises(ValueError, match="each class has one labelled image, none to hold out"):
        hold_out(train.subset(np.array([0, 8, 16])), 0.1, seed=0)


def test_a_share_of_the_labels_is_balanced_and_reproducible(folder: Path) -> None:
    train, _ = open_splits(folder)
    few, more = (with_labels(train, share, seed=0) for share in ("25%", "50%"))
    assert np.bincount(few.labels).tolist() == [2, 2, 2]
    assert np.bincount(more.labels).tolist() == [4, 4, 4]
    assert set(few.indices) <= set(more.indices)
    assert np.array_equal(few.indices, with_labels(train, "25%", seed=0).indices)
    assert not np.array_equal(few.indices, with_labels(train, "25%", seed=1).indices)
    assert len(with_labels(train, "1%", seed=0)) == 3, "one of each class at least"
    assert few.fingerprint != more.fingerprint


def test_a_share_of_classes_of_unequal_size_is_that_share_of_all_images(folder: Path) -> None:
    """Small classes are used up, and the others fill the share: all images are 100 %."""
    whole, _ = open_splits(folder)
    train = whole.subset(np.r_[0:8, 8:10, 16:20])  # 8, 2 and 4 images
    counts = [np.bincount(with_labels(train, share, seed=0).labels).tolist() for share in ("43%", "57%", "86%", "100%")]
    assert counts == [[2, 2, 2], [3, 2, 3], [6, 2, 4], [8, 2, 4]]


def test_a_replaced_image_changes_the_fingerprint(folder: Path) -> None:
    before = open_splits(folder)[0].fingerprint
    assert open_splits(folder)[0].fingerprint == before
    file = open_splits(folder)[0].index.path(3)
    file.write_bytes(file.read_bytes() + b"more")
    assert open_splits(folder)[0].fingerprint != before


def test_a_limit_is_of_the_images_whose_labels_are_used(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "some.txt"
    listed.write_text("red_3.png\nblue_1.png\ngreen_5.png\n")
    train, test = open_splits(folder, limit=2, labels=str(listed))
    assert [train.name(i) for i in range(len(train))] == ["blue/blue_1.png", "red/red_3.png"]
    assert len(test) == 2
    assert len(open_splits(folder, limit=5, labels="25%")[0]) == 5, "of 2 of each of 3 classes"


def test_labels_may_be_listed(folder: Path, tmp_path: Path) -> None:
    train, _ = open_splits(folder)
    listed = tmp_path / "some.txt"
    listed.write_text("red_3.png\nblue/blue_1.png\n\nred_0.png\n")
    some = with_labels(train, str(listed), seed=0)
    assert [some.name(i) for i in range(len(some))] == ["blue/blue_1.png", "red/red_0.png", "red/red_3.png"]
    listed.write_text("train/red/red_3.png\r\n./blue_1.png\ntrain/red/red_3.png\n")
    assert with_labels(train, str(listed), seed=0).indices.tolist() == some.indices[[0, 2]].tolist()
    listed.write_bytes(b"\xef\xbb\xbf  red_3.png \r\nblue_1.png\r\n")
    assert with_labels(train, str(listed), seed=0).indices.tolist() == some.indices[[0, 2]].tolist(), "as of Windows"
    listed.write_text("\n")
    with pytest.raises(ValueError, match="lists no images; write one name per line"):
        with_labels(train, str(listed), seed=0)
    listed.write_text("red_3.png\nzebra.png\n")
    with pytest.raises(ValueError, match=r"line 2 of .* is 'zebra.png', which no training .* \(1 of 2 names do not"):
        with_labels(train, str(listed), seed=0)
    with pytest.raises(ValueError, match="'1 percent', neither a share such as 1% or 10% nor a text file"):
        with_labels(train, "1 percent", seed=0)
    with pytest.raises(ValueError, match="labels is '0%'; use more than 0%"):
        with_labels(train, "0%", seed=0)


def test_litter_is_neither_class_nor_image(tmp_path: Path) -> None:
    root = coloured_folder(tmp_path, train=2, test=1)
    picture = (root / "train" / "red" / "red_0.png").read_bytes()
    for litter in ("__MACOSX/a.png", ".ipynb_checkpoints/a.png", "@eaDir/a.png", "red/._red_0.png", "red/Thumbs.db"):
        for split in ("train", "val"):
            (root / split / litter).parent.mkdir(exist_ok=True)
            (root / split / litter).write_bytes(picture)
    train, test = open_splits(root)
    assert train.classes == ("blue", "green", "red")
    assert (len(train), len(test)) == (6, 3)


def test_labels_are_those_of_the_training_set(tmp_path: Path) -> None:
    """A test set without the first class."""
    root = coloured_folder(tmp_path, train=2, test=1)
    (root / "val" / "blue" / "blue_0.png").unlink()
    (root / "val" / "blue").rmdir()
    _, test = open_splits(root)
    assert [test.classes[label] for label in test.labels] == ["green", "red"]


def test_a_name_of_two_images_is_refused(tmp_path: Path) -> None:
    root = coloured_folder(tmp_path, train=2, test=1)
    (root / "train" / "red" / "blue_0.png").write_bytes((root / "train" / "blue" / "blue_0.png").read_bytes())
    (tmp_path / "list.txt").write_text("blue_0.png\n")
    with pytest.raises(ValueError, match=r"'blue_0.png', which several training images are called \(1 of 1 names"):
        with_labels(open_splits(root)[0], str(tmp_path / "list.txt"), seed=0)


def test_a_part_of_both_splits(tmp_path: Path) -> None:
    root = coloured_folder(tmp_path)
    whole, part = open_splits(root), open_splits(root, 4)
    assert [len(images) for images in part] == [4, 4] != [len(images) for images in whole]
    assert part[0].classes == whole[0].classes
    assert {*part[0].labels.tolist()} == {*whole[0].labels.tolist()}
