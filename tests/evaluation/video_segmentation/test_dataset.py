"""Layouts of DAVIS: image sets, masks and colours."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from selfpatch.evaluation.video_segmentation.dataset import PALETTE, open_clips, read_mask, write_mask
from selfpatch.evaluation.video_segmentation.evaluate import evaluate
from tests.evaluation.video_segmentation.conftest import Tree


def test_the_layout_of_2016(tree: Tree) -> None:
    """Lines of file pairs, grey and RGB masks of 0 and 255, one object."""
    root = tree(frames=4)
    shutil.rmtree(root / "ImageSets" / "2017")
    (root / "ImageSets" / "480p").mkdir()
    lines = [f"/JPEGImages/480p/toy/{i:05d}.jpg /Annotations/480p/toy/{i:05d}.png" for i in range(4)]
    (root / "ImageSets" / "480p" / "val.txt").write_text("\n".join(lines) + "\n")
    two = open_clips(root, DAVISConfig())[0].mask(1)
    for i in range(4):
        path = root / f"Annotations/480p/toy/{i:05d}.png"
        grey = Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8))
        (grey.convert("RGB") if i == 1 else grey).save(path)
    (clip,) = open_clips(root, DAVISConfig())
    assert (clip.name, clip.year, clip.num_objects) == ("toy", 2016, 1)
    assert np.array_equal(clip.mask(1), two)
    assert len(evaluate(None, root, DAVISConfig()).rows) == 1


def test_masks(tmp_path: Path) -> None:
    """Void is background in 2017, unless a grey mask holds nothing else but black."""
    void = np.array([[0, 1, 255, 2]], np.uint8)
    write_mask(tmp_path / "void.png", void)
    assert read_mask(tmp_path / "void.png", 2017).tolist() == [[0, 1, 0, 2]]
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "grey.png")
    assert read_mask(tmp_path / "grey.png", 2017).tolist() == [[0, 1]]
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="mode RGB"):
        read_mask(tmp_path / "colour.png", 2017)


def test_palette() -> None:
    """The first colours of PASCAL VOC, and two whose numbers need more bits."""
    assert PALETTE[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert PALETTE[[8, 20, 255]].tolist() == [[64, 0, 0], [0, 64, 128], [224, 224, 192]]
