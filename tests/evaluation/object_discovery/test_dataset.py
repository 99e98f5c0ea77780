"""Layouts of VOC and COCO, and lists of images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from selfpatch.evaluation.object_discovery.config import ObjectDiscoveryConfig
from selfpatch.evaluation.object_discovery.dataset import open_images
from selfpatch.evaluation.object_discovery.evaluate import evaluate
from selfpatch.evaluation.result import Output
from tests.evaluation.object_discovery.conftest import ColourAgainstGround, square


def test_voc_boxes_begin_at_zero(voc: Path) -> None:
    images = {image.name: image for image in open_images(voc, ObjectDiscoveryConfig())}
    assert images["met"].boxes == ((24, 16, 64, 48),)
    assert images["second"].boxes[0] == (0, 0, 101, 80)
    assert open_images(voc.parent, ObjectDiscoveryConfig())[0].path == images["met"].path, "the folder above serves too"


def test_progress_counts_the_annotations(voc: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    images = open_images(voc, ObjectDiscoveryConfig(), lambda *report: told.append(report))
    assert told == [("annotations", i + 1, len(images)) for i in range(len(images))]
    coco = write_coco(tmp_path / "coco", ["a.jpg"])
    open_images(coco, ObjectDiscoveryConfig(), lambda *report: told.append(report))
    assert told[-1] == ("annotations", 0, 1), "one file, told before it is read"


def test_names_with_spaces_flags_and_marks(voc: Path) -> None:
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (voc / folder / f"met.{suffix}").rename(voc / folder / f"met 1.{suffix}")
    splits = voc / "ImageSets" / "Main"
    (splits / "mine.txt").write_bytes(b"\xef\xbb\xbfmet 1\r\nsecond  1\r\nmissed -1\r\nsecond\r\n")
    names = [image.name for image in open_images(voc, ObjectDiscoveryConfig(split="mine"))]
    assert names == ["met 1", "second", "missed"]
    (splits / "._mine.txt").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"the splits of .* are: mine, trainval$"):
        open_images(voc, ObjectDiscoveryConfig(split="test"))
    for line in ("../Annotations/second", "/etc/hosts"):
        (splits / "mine.txt").write_text(f"second\n{line}\n")
        with pytest.raises(ValueError, match=r"line 2 of .*mine\.txt names .*, which (leads out|is an absolute)"):
            open_images(voc, ObjectDiscoveryConfig(split="mine"))


@pytest.mark.parametrize("side", ["inf", "nan", "1e999", "", "left"])
def test_sides_of_boxes_that_are_no_numbers(voc: Path, side: str) -> None:
    path = voc / "Annotations" / "second.xml"
    sides = "".join(f"<{name}>{side}</{name}>" for name in ("xmin", "ymin", "xmax", "ymax"))
    path.write_text(f"<annotation><object><bndbox>{sides}</bndbox></object></annotation>")
    with pytest.raises(ValueError, match=r"second\.xml cannot be read as VOC's boxes"):
        open_images(voc, ObjectDiscoveryConfig())


def write_coco(root: Path, names: list[str], split: str = "train2014") -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir()
    for name in names:
        (root / split / name).parent.mkdir(exist_ok=True)
        Image.fromarray(square(24, 16, 64, 48)).save(root / split / name, quality=100)
    boxes = [[24.4, 15.6, 39.7, 32.3], [0, 0, 4, 4]]
    table = {
        "images": [{"id": 7 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": 7 + i, "bbox": boxes[crowd], "iscrowd": crowd} for i in range(len(names)) for crowd in (0, 1)
        ],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(table))
    return root


def test_coco_and_a_list_of_its_images(tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco", ["COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"])
    images = open_images(coco, ObjectDiscoveryConfig())
    assert [image.boxes for image in images] == [((24, 16, 64, 48),)] * 2, "rounded as LOST does, without crowds"
    listed = tmp_path / "coco_20k_filenames.txt"
    listed.write_text("train2014/COCO_train2014_000000000025.jpg\n")
    assert [image.name for image in open_images(coco, ObjectDiscoveryConfig(image_list=str(listed)))] == [
        "COCO_train2014_000000000025"
    ]
    result = evaluate(ColourAgainstGround(8), coco, ObjectDiscoveryConfig(image_list=str(listed)))
    assert result.metrics["CorLoc lost"] == 1
    for lines in ("8\n", "000000000008\r\n", "images/000000000008.jpg\n\n8\n"):
        listed.write_text(lines)
        assert [image.name for image in open_images(coco, ObjectDiscoveryConfig(image_list=str(listed)))] == [
            "COCO_train2014_000000000025"
        ], "the second image has the id 8, and is taken once"
    listed.write_bytes(b"\xef\xbb\xbfCOCO_train2014_000000000025.jpg\r\n")
    assert len(open_images(coco, ObjectDiscoveryConfig(image_list=str(listed)))) == 1, "with a byte order mark"
    listed.write_text("\n")
    with pytest.raises(ValueError, match="is empty; it should name one image per line"):
        open_images(coco, ObjectDiscoveryConfig(image_list=str(listed)))
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is UTF-16 text; save it as UTF-8"):
        open_images(coco, ObjectDiscoveryConfig(image_list=str(listed)))
    listed.write_text("COCO_train2014_000000000026.jpg\n")
    with pytest.raises(
        ValueError, match=r"names 1 image that the data set does not have, e\.g\. line 1 is 'COCO_train2014_0+26"
    ):
        open_images(coco, ObjectDiscoveryConfig(image_list=str(listed)))
    write_coco(coco, ["a.jpg"], split="val2014")
    assert len(open_images(coco, ObjectDiscoveryConfig())) == 2, "train2014 where there are several"
    assert len(open_images(coco, ObjectDiscoveryConfig(split="val2014"))) == 1
    with pytest.raises(ValueError, match="has: train2014, val2014; name one"):
        open_images(coco, ObjectDiscoveryConfig(split="test"))


def test_images_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco", ["a/1.jpg", "b/1.jpg", "b/2.jpg"])
    assert [image.name for image in open_images(coco, ObjectDiscoveryConfig())] == ["a/1", "b/1", "b/2"]
    listed = tmp_path / "list.txt"
    listed.write_text("train2014/b/1.jpg\na/1\n")
    config = ObjectDiscoveryConfig(image_list=str(listed), methods=("lost",))
    (tmp_path / "out").mkdir()
    result = evaluate(ColourAgainstGround(8), coco, config, Output(tmp_path / "out"))
    assert list(result.per_image) == ["b/1", "a/1"]
    assert result.pictures == ["pictures/00000-b_1.jpg", "pictures/00001-a_1.jpg"]
    listed.write_text("1.jpg\n")
    with pytest.raises(ValueError, match="names 1 image that the data set does not have"):
        open_images(coco, config)
    coco = write_coco(tmp_path / "endings", ["1.jpg", "1.png"])
    assert [image.name for image in open_images(coco, ObjectDiscoveryConfig())] == ["1.jpg", "1.png"]


def test_words_for_data_that_are_not_as_they_should_be(voc: Path, tmp_path: Path) -> None:
    encoder = ColourAgainstGround(8)
    with pytest.raises(ValueError, match="is neither VOC nor COCO"):
        evaluate(encoder, tmp_path / "nowhere", ObjectDiscoveryConfig())
    (voc / "Annotations" / "met.xml").write_text("<annotation><object><bndbox/></object></annotation>")
    with pytest.raises(ValueError, match=r"met\.xml cannot be read as VOC's boxes"):
        evaluate(encoder, voc, ObjectDiscoveryConfig())
    (voc / "Annotations" / "met.xml").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*met\.xml; line \d of .*trainval\.txt names it"):
        evaluate(encoder, voc, ObjectDiscoveryConfig())
    (voc / "ImageSets" / "Main" / "trainval.txt").write_text("none\n")
    with pytest.raises(ValueError, match=r"no image of .* has a box \(1 image read\)"):
        evaluate(encoder, voc, ObjectDiscoveryConfig())
    (voc / "JPEGImages" / "none.jpg").unlink()
    with pytest.raises(ValueError, match=r"there is no image .*none\.jpg"):
        evaluate(encoder, voc, ObjectDiscoveryConfig())
    (voc / "ImageSets" / "Main" / "trainval.txt").write_text("")
    with pytest.raises(ValueError, match="names no image"):
        evaluate(encoder, voc, ObjectDiscoveryConfig())


@pytest.mark.parametrize(
    "sides", [(1, 1, 1e300, 20), (30, 1, 20, 20), (1, 1, "inf", 20), (1, 1, "nan", 20), (-5, 1, 20, 20)]
)
def test_boxes_of_voc_that_no_image_holds_are_refused(voc: Path, sides: tuple[object, ...]) -> None:
    values = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True))
    (voc / "Annotations" / "met.xml").write_text(f"<annotation><object><bndbox>{values}</bndbox></object></annotation>")
    with pytest.raises(ValueError, match=r"met\.xml cannot be read as VOC's boxes; download it again"):
        open_images(voc, ObjectDiscoveryConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bbox": [1, 2, 1e300, 4]}, r"annotation number 1 \('a.jpg'\) of .* has the bbox\[2\] 1e\+300; use"),
        ({"bbox": [1, 2, -3, 4]}, r"annotation number 1 \('a.jpg'\) of .* has the bbox \[1.0, 2.0, -3.0, 4.0\]; give"),
        ({"iscrowd": "0"}, r"annotation number 1 \('a.jpg'\) of .* has the iscrowd '0'; use 0 or 1"),
        ({"image_id": 99}, r"annotation number 1 of .* is for image_id 99, which is not listed"),
    ],
)
def test_annotations_of_coco_are_checked(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    file = write_coco(tmp_path, ["a.jpg"]) / "annotations" / "instances_train2014.json"
    table = json.loads(file.read_text())
    table["annotations"][0] |= fields
    file.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path, ObjectDiscoveryConfig())
