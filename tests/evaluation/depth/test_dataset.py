"""Lists of NYU, folders of pairs, and the sentence for everything that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.depth.dataset import open_depth_splits
from tests.evaluation.depth.conftest import METRES, write_depth, write_nyu


def test_lists_of_nyu_are_read(tmp_path: Path) -> None:
    train, test = open_depth_splits(write_nyu(tmp_path), 1000.0)
    assert train.names == ["kitchen/train_rgb_0.png", "kitchen/train_rgb_1.png"]
    assert len(test) == 1
    image, depth = test.read(0)
    assert image.size == (640, 480)
    assert depth.shape == (480, 640)
    assert set(np.unique(depth)) == {0.0, *METRES.astype(np.float32)}


def test_folders_of_pairs_are_read(tmp_path: Path) -> None:
    data = write_depth(tmp_path)
    train, test = open_depth_splits(data, 500.0)
    assert (len(train), len(test)) == (6, 3)
    assert test.names[0] == "test/rgb/0.png"
    assert test.read(0)[1].max() == 14.0
    assert train.limited(2).names == ["train/rgb/0.png", "train/rgb/5.png"]
    (data / "test").rename(data / "val")
    assert open_depth_splits(data, 500.0)[1].names[0] == "val/rgb/0.png"


def test_the_fingerprint_depends_on_the_files(tmp_path: Path) -> None:
    data = write_depth(tmp_path)
    before = open_depth_splits(data, 1000.0)[0].fingerprint()
    assert open_depth_splits(data, 1000.0)[0].fingerprint() == before
    assert open_depth_splits(data, 999.0)[0].fingerprint() != before
    (data / "train" / "depth" / "0.png").write_bytes(b"other")
    assert open_depth_splits(data, 1000.0)[0].fingerprint() != before


def test_lists_with_marks_and_tabs_and_folders_with_litter(tmp_path: Path) -> None:
    nyu = write_nyu(tmp_path / "nyu")
    (nyu / "kitchen").rename(nyu / "my kitchen")
    for name in ("nyu_train.txt", "nyu_test.txt"):
        text = (nyu / name).read_text().replace(" ", "\t").replace("kitchen", "my kitchen").replace("\n", "\r\n")
        (nyu / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert open_depth_splits(nyu, 1000.0)[0].names[0] == "my kitchen/train_rgb_0.png"
    pairs = write_depth(tmp_path / "pairs")
    for litter in ("._0.png", ".ipynb_checkpoints/0-checkpoint.png", "Thumbs.db"):
        (pairs / "train" / "rgb" / litter).parent.mkdir(exist_ok=True)
        (pairs / "train" / "rgb" / litter).write_bytes(b"\0")
    assert len(open_depth_splits(pairs, 1000.0)[0]) == 6


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("kitchen/lost.png kitchen/train_depth_0.png 5", "there is no file .*lost.png, which line 1 of"),
        ("../a.png kitchen/b.png 5", "line 1 of .* names '../a.png', which leads out of its folder"),
        ("one two three four", "line 1 of .* is 'one two three four'; write `rgb depth focal`"),
        ("kitchen/lost.png None 5", "names no pair"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, line: str, words: str) -> None:
    data = write_nyu(tmp_path)
    (data / "nyu_train.txt").write_text(line)
    with pytest.raises(ValueError, match=words):
        open_depth_splits(data, 1000.0)


def test_bad_folders_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has neither nyu_train.txt and nyu_test.txt, nor train/"):
        open_depth_splits(tmp_path / "nothing", 1000.0)
    data = write_depth(tmp_path / "data")
    test = open_depth_splits(data, 1000.0)[1]
    Image.new("I;16", (3, 3)).save(data / "test" / "depth" / "0.png")
    with pytest.raises(ValueError, match="use images and grey depth maps of one size"):
        test.read(0)
    for mode, file_format in (("P", "PNG"), ("L", "JPEG")):
        Image.new(mode, (64, 64)).save(data / "test" / "depth" / "0.png", file_format)
        with pytest.raises(ValueError, match=f"the depths .*0.png: it is a {file_format} file of mode {mode}; depths"):
            test.read(0)
    (data / "test" / "depth" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot read the depths"):
        test.read(0)
    (data / "test" / "depth" / "0.png").unlink()
    with pytest.raises(ValueError, match="has no depth map"):
        open_depth_splits(data, 1000.0)
    for image in (data / "train" / "rgb").iterdir():
        image.unlink()
    with pytest.raises(ValueError, match="has no images"):
        open_depth_splits(data, 1000.0)
