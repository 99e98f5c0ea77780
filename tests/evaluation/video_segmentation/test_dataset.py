"""Layouts of DAVIS: image sets, masks and colours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.result import Output
from selfpatch.evaluation.video_segmentation.clip import PALETTE, Clip, write_mask
from selfpatch.evaluation.video_segmentation.config import DAVISConfig, Year
from selfpatch.evaluation.video_segmentation.dataset import open_clips
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
        shades = Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8))
        (shades.convert("RGB") if i == 1 else shades).save(path)
    (clip,) = open_clips(root, DAVISConfig())
    assert (clip.name, clip.year, clip.num_objects) == ("toy", 2016, 1)
    assert np.array_equal(clip.mask(1), two)
    assert len(evaluate(None, root, DAVISConfig()).rows) == 1


def clip_of(folder: Path, *masks: Image.Image, year: Year = 2017) -> Clip:
    """Return a clip of the given masks."""
    folder.mkdir(parents=True)
    for number, mask in enumerate(masks):
        mask.save(folder / f"{number:05d}.png")
    return Clip("toy", folder, folder, year)


def grey(*values: int, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def palette(*values: int) -> Image.Image:
    image = grey(*values)
    image.putpalette(PALETTE.flatten().tolist())
    return image


@pytest.mark.parametrize(
    ("masks", "year", "objects", "read"),
    [
        ((palette(0, 1, 255, 2), palette(2, 2, 0, 255)), 2017, (1, 2), ([0, 1, 0, 2], [2, 2, 0, 0])),
        ((grey(0, 1, 255, 2), grey(0, 255, 0, 0)), 2017, (1, 2), ([0, 1, 0, 2], [0, 0, 0, 0])),  # void, not the object
        ((grey(0, 255), palette(0, 255)), 2017, (1,), ([0, 1], [0, 1])),
        ((grey(0, 38, 75), grey(75, 0, 38)), 2017, (38, 75), ([0, 1, 2], [2, 0, 1])),  # DAVIS' colours made grey
        ((palette(0, 1, 3), palette(2, 3, 1)), 2017, (1, 3), ([0, 1, 2], [0, 2, 1])),
        ((palette(0, 1, 1), palette(2, 3, 1)), 2017, (1,), ([0, 1, 1], [0, 0, 1])),  # later objects are not scored
        ((grey(0, 2, dtype=np.uint16), grey(2, 0)), 2017, (2,), ([0, 1], [1, 0])),
        ((grey(0, 1).convert("RGB"), grey(0, 1).convert("LA"), grey(0, 1).convert("RGBA")), 2017, (1,), ([0, 1],) * 3),
        ((grey(0, 1).point([0, 255] + [0] * 254, "1"), grey(0, 255)), 2017, (1,), ([0, 1], [0, 0])),
        ((palette(0, 3, 255), grey(0, 9, 255), grey(0, 9, 9).convert("RGB")), 2016, (1,), ([0, 1, 1],) * 3),
    ],
)
def test_objects_are_those_of_the_first_mask(
    tmp_path: Path, masks: tuple[Image.Image, ...], year: Year, objects: tuple[int, ...], read: tuple[list[int], ...]
) -> None:
    clip = clip_of(tmp_path / "toy", *masks, year=year)
    assert (clip.objects, clip.num_objects) == (objects, len(objects))
    assert [clip.mask(frame)[0].tolist() for frame in range(len(masks))] == list(read)
    assert clip.has_gaps == (objects not in ((1,), (1, 2)))


def test_results_have_the_values_of_the_first_mask(tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "toy", grey(0, 38, 75))
    results = tmp_path / "results"
    write_mask(results / "00000.png", clip.stored(np.array([[2, 0, 1]], np.uint8)))
    assert np.asarray(Image.open(results / "00000.png")).tolist() == [[75, 0, 38]]
    assert clip.read_result(results, 0).tolist() == [[2, 0, 1]]
    for wrong in (grey(0, 1, 2), grey(0, 255, 255)):
        wrong.save(results / "00000.png")
        with pytest.raises(ValueError, match=r"frame 00000 of toy has object (1|255); the clip has 38, 75"):
            clip.read_result(results, 0)
    one = clip_of(tmp_path / "one", palette(0, 1, 1))
    grey(255, 0, 255).save(results / "00000.png")
    assert one.read_result(results, 0).tolist() == [[1, 0, 1]]


def jpeg_called_png(folder: Path) -> None:
    grey(0, 1).save(folder / "00000.png", "JPEG")


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (Image.new("RGB", (4, 4), (128, 0, 0)), r"00000.png: it is a picture of mode RGB; give a palette or grey PNG"),
        (Image.new("RGBA", (4, 4), (1, 1, 1, 9)), r"00000.png: .* mode RGBA with transparent pixels"),
        (grey(0, 300, dtype=np.uint16), r"00000.png has the value 300; objects have numbers up to 254"),
        (grey(*range(0, 200, 2)), r"00000.png has 99 values with gaps between them, e.g. 198; these look like shades"),
        (palette(0, 255), r"the first mask of toy holds no object"),
        (jpeg_called_png, r"00000.png: it is a JPEG file, which blurs numbers"),
        (
            lambda folder: (folder / "00000.png").write_bytes(b"\x89PNG\r\n\x1a\nno more"),
            r"cannot read the mask .*00000.png",
        ),
    ],
)
def test_masks_that_hold_no_object_numbers(tmp_path: Path, mask: Any, complaint: str) -> None:
    clip = clip_of(tmp_path / "toy", mask if isinstance(mask, Image.Image) else grey(0, 1))
    if not isinstance(mask, Image.Image):
        mask(tmp_path / "toy")
    with pytest.raises(ValueError, match=complaint):
        clip.require_masks()


def test_masks_of_2016_are_no_jpeg_either(tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "toy", grey(0, 255), year=2016)
    jpeg_called_png(tmp_path / "toy")
    with pytest.raises(ValueError, match=r"00000.png: it is a JPEG file, which blurs numbers"):
        clip.require_masks()


def test_grey_values_with_gaps_are_scored_as_the_objects_that_exist(tree: Tree, tmp_path: Path) -> None:
    """Two objects in DAVIS' colours, made grey: the scores of the two, and the result says which they are."""
    root = tree()
    expected = evaluate(None, root, DAVISConfig())
    for path in (root / "Annotations" / "480p" / "toy").iterdir():
        Image.fromarray(np.array([0, 38, 75], np.uint8)[np.asarray(Image.open(path))]).save(path)
    found = evaluate(None, root, DAVISConfig(), Output(tmp_path / "out"))
    assert found.metrics == expected.metrics
    assert [row["object"] for row in found.rows] == [38, 75]
    assert list(found.notes) == ["toy has 2 objects: 38, 75"]
    again = evaluate(None, root, DAVISConfig(results=str(tmp_path / "out" / "results")))
    assert (again.metrics, list(again.notes)) == (expected.metrics, list(found.notes))


@pytest.mark.parametrize("name", ["/victim", "../toy", "a/toy", "toy/../toy", "C:\\toy", ".."])
def test_sequences_outside_the_tree_are_refused_before_anything_is_written(
    tree: Tree, tmp_path: Path, name: str
) -> None:
    root = tree(frames=3)
    name = name.replace("/victim", str(root / "Annotations" / "480p" / "toy"))
    before = sorted(tmp_path.rglob("*"))
    (root / "ImageSets" / "2017" / "val.txt").write_text(f"toy\n{name}\n")
    with pytest.raises(ValueError, match=r"^line 2 of .*val.txt names .*, which (is an absolute|leads out|has a sep)"):
        evaluate(None, root, DAVISConfig(), Output(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"^the setting `sequences` names"):
        evaluate(None, root, DAVISConfig(sequences=(name,)), Output(tmp_path / "out"))
    assert sorted(tmp_path.rglob("*")) == before


def test_sequences_with_spaces_marks_and_hidden_files(tree: Tree) -> None:
    root = tree(frames=3)
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p" / "toy").rename(root / kind / "480p" / "my toy")
        for litter in ("._00000.jpg", "._00000.png", "Thumbs.db"):
            (root / kind / "480p" / "my toy" / litter).write_bytes(b"\0")
    (root / "ImageSets" / "2017" / "val.txt").write_bytes(b"\xef\xbb\xbfmy toy\r\n")
    (clip,) = open_clips(root, DAVISConfig())
    assert (clip.name, clip.frames) == ("my toy", ("00000", "00001", "00002"))
    assert len(evaluate(None, root, DAVISConfig()).rows) == 2


def test_palette() -> None:
    """The first colours of PASCAL VOC, and two whose numbers need more bits."""
    assert PALETTE[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert PALETTE[[8, 20, 255]].tolist() == [[64, 0, 0], [0, 64, 128], [224, 224, 192]]


@pytest.mark.parametrize("prefix", ["", "frame_"])
def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path, prefix: str) -> None:
    numbers = [8, 9, 10, 100]
    for number in numbers:
        write_mask(tmp_path / f"{prefix}{number}.png", np.ones((4, 4), np.uint8))
    assert Clip("toy", tmp_path, tmp_path, 2017).frames == tuple(f"{prefix}{number}" for number in numbers)
