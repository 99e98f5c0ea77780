"""Segmentation sets as they lie on disk: labels become class numbers, and what is wrong is said in one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from selfpatch.evaluation.segmentation.base_config import Kind
from selfpatch.evaluation.segmentation.dataset import IGNORE, UNKNOWN, open_dataset, published_classes

VALUES = np.arange(12, dtype=np.uint8).reshape(3, 4)


def write(root: Path, image: str, label: str, values: np.ndarray = VALUES, size: tuple[int, int] | None = None) -> None:
    for path, picture in (
        (root / image, Image.new("RGB", size or (values.shape[1], values.shape[0]), (9, 8, 7))),
        (root / label, Image.fromarray(values)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def test_class_names_are_complete() -> None:
    sizes: dict[Kind, int] = {"ade20k": 150, "voc": 21, "coco_stuff171": 171, "coco_stuff27": 27, "coco_stuff10k": 171}
    sizes |= {"cityscapes": 19, "camvid": 11}
    for kind, number in sizes.items():
        names, table = published_classes(kind)
        assert len(names) == len(set(names)) == number
        assert set(table.tolist()) - {UNKNOWN, IGNORE} == set(range(number))
    coarse = published_classes("coco_stuff27")[1]
    assert np.isin(coarse, [UNKNOWN, IGNORE], invert=True).sum() == 182


def test_ade20k_label_0_is_void_and_the_rest_move_down(tmp_path: Path) -> None:
    write(tmp_path, "images/validation/a.jpg", "annotations/validation/a.png", np.array([[0, 1, 150]], np.uint8))
    found = open_dataset(tmp_path, "val")
    image, label = found.read(0)
    assert (found.names, len(found), image.mode) == (["a"], 1, "RGB")
    assert label.dtype == np.int64
    assert label.tolist() == [[IGNORE, 0, 149]]


def test_voc_reads_the_list_and_the_augmented_labels(tmp_path: Path) -> None:
    year = tmp_path / "VOCdevkit" / "VOC2012"
    write(year, "JPEGImages/a.jpg", "SegmentationClass/a.png", np.array([[0, 20, 255]], np.uint8))
    write(year, "JPEGImages/b.jpg", "SegmentationClassAug/b.png", np.array([[1, 2, 255]], np.uint8))
    lists = year / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("a\n")
    (lists / "trainaug.txt").write_text("/JPEGImages/b.jpg /SegmentationClassAug/b.png\n")
    for root in (tmp_path, tmp_path / "VOCdevkit", year):
        assert open_dataset(root, "val").read(0)[1].tolist() == [[0, 20, IGNORE]]
    assert open_dataset(tmp_path, "trainaug").read(0)[1].tolist() == [[1, 2, IGNORE]]
    with pytest.raises(ValueError, match="use one of the splits: trainaug, val"):
        open_dataset(tmp_path, "test")
    (lists / "test.txt").write_text("")
    with pytest.raises(ValueError, match=r"the split 'test' of .* has no image"):
        open_dataset(tmp_path, "test")


def test_coco_pixels_are_ids_less_one_of_171_classes_or_27_groups(tmp_path: Path) -> None:
    # person, traffic light, stop sign (12 is an id without a class), brick wall, wood
    values = np.array([[0, 9, 12, 170, 181, 255]], np.uint8)
    write(tmp_path, "val2017/a.jpg", "stuffthingmaps/val2017/a.png", values)
    fine, coarse = open_dataset(tmp_path, "val"), open_dataset(tmp_path, "val", "coco_stuff27")
    names = ["person", "traffic light", "stop sign", "wall-brick", "wood"]
    assert [fine.classes[c] for c in fine.read(0)[1][0, :5]] == names
    assert fine.read(0)[1][0].tolist() == [0, 9, 11, 159, 170, IGNORE]
    assert coarse.read(0)[1][0].tolist() == [9, 8, 8, 18, 24, IGNORE]


def test_coarse_classes_are_those_of_the_released_code() -> None:
    """The class of each pixel value 0 to 181 in the released tables of IIC, PiCIE and STEGO, as letters a, b, ..."""
    runs = (
        "j1 l8 i6 h10 g8 k10 f8 c10 d10 a6 b6 e8 r2 w1 u2 w1 p1 z1 q1 n1 m2 r2 x1 p2 r1 p1 v1 p1 z1 n5 w1 {1 o2 p1 w1"
    )
    runs += " v2 y1 u1 w1 p1 r1 q1 p1 w1 y1 v1 r1 z1 q1 v1 r1 w1 q1 v2 z1 v1 {1 v1 y1 u1 r1 o1 v1 {1 p1 x1 u1 v1 y1 p1"
    runs += " y1 w1 z1 p1 u1 r2 w1 o1 s7 {2 t2 y1"
    released = [ord(run[0]) - ord("a") for run in runs.split() for _ in range(int(run[1:]))]
    assert published_classes("coco_stuff27")[1][:182].tolist() == released


def test_coco_stuff_10k_is_read_from_matrices(tmp_path: Path) -> None:
    """Pixels are COCO's ids, 0 is void; the classes are those of the later release."""
    write(tmp_path, "images/a.jpg", "unused/a.png", VALUES)
    write(tmp_path, "images/b.jpg", "unused/b.png", VALUES)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "imageLists").mkdir()
    savemat(tmp_path / "annotations" / "a.mat", {"S": VALUES + 92, "names": "other"})
    savemat(tmp_path / "annotations" / "b.mat", {"S": np.where(VALUES == 0, 0, 182).astype(np.uint8)})
    for split, name in (("train", "a"), ("test", "b")):
        (tmp_path / "imageLists" / f"{split}.txt").write_text(f"{name}\n")
    train, test = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert (train.kind, train.names, test.names) == ("coco_stuff10k", ["a"], ["b"])
    assert train.classes == test.classes == published_classes("coco_stuff171")[0]
    assert train.read(0)[1].ravel().tolist() == list(range(80, 92))
    assert test.read(0)[1].ravel().tolist() == [IGNORE, *[170] * 11]
    assert test.size(0) == (3, 4)
    for wrong in (VALUES + 0.5, VALUES.astype(np.int16) - 1, np.stack([VALUES, VALUES])):
        savemat(tmp_path / "annotations" / "b.mat", {"S": wrong})
        with pytest.raises(ValueError, match=r"labels .*b\.mat: its matrix S is no map of whole numbers"):
            test.read(0)
    (tmp_path / "annotations" / "b.mat").write_bytes(b"no matrix")
    with pytest.raises(ValueError, match=r"cannot read the labels .*b\.mat"):
        test.read(0)
    with pytest.raises(ValueError, match="use one of the splits: test, train"):
        open_dataset(tmp_path, "trainval")


def test_coarse_coco_takes_the_curated_images_where_they_are_listed(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path, f"images/val2017/{name}.jpg", f"annotations/val2017/{name}.png")
    curated = tmp_path / "curated" / "val2017" / "Coco164kFull_Stuff_Coarse_7.txt"
    curated.parent.mkdir(parents=True)
    curated.write_text("b\n")
    assert open_dataset(tmp_path, "val", "coco_stuff27").names == ["b"]
    assert open_dataset(tmp_path, "val").names == ["a", "b"]


def test_cityscapes_ids_become_train_ids(tmp_path: Path) -> None:
    write(
        tmp_path,
        "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png",
        "gtFine/val/ulm/ulm_0_gtFine_labelIds.png",
        np.array([[7, 8, 33, 0, 6, 29]], np.uint8),
    )
    assert open_dataset(tmp_path, "val").read(0)[1].tolist() == [[0, 1, 18, IGNORE, IGNORE, IGNORE]]


def test_camvid_in_both_layouts_has_11_classes_and_void(tmp_path: Path) -> None:
    write(tmp_path / "a", "val/x.png", "valannot/x.png")
    write(tmp_path / "b", "images/val/x.jpg", "labels/val/x.png")
    for folder, kind in (("a", None), ("b", "camvid")):
        found = open_dataset(tmp_path / folder, "val", kind)
        assert len(found.classes) == 11
        assert found.read(0)[1].ravel().tolist() == [*range(11), IGNORE]


def test_imagenet_s_is_read_from_colours_and_leaves_255_free(tmp_path: Path) -> None:
    wnids = [f"n{i:03}" for i in range(300)]
    for wnid in wnids:
        (tmp_path / "validation" / wnid).mkdir(parents=True)
    ids = np.array([[0, 1, 254, 255, 300, 1000]])
    colours = np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)
    write(tmp_path, "validation/n000/x.jpg", "validation-segmentation/n000/x.png", colours)
    found = open_dataset(tmp_path, "val")
    label = found.read(0)[1]
    assert label.tolist() == [[0, 1, 254, 256, 301, IGNORE]]
    assert [found.classes[c] for c in (1, 254, 256, 301)] == ["n000", "n253", "n254", "n299"]


def test_a_folder_with_sub_folders_lists_or_neither(tmp_path: Path) -> None:
    for root, image, label in (
        ("splits", "images/val/x.jpg", "labels/val/x.png"),
        ("lists", "images/x.jpg", "labels/x.png"),
        ("plain", "images/x.jpg", "labels/x.png"),
    ):
        write(tmp_path / root, image, label, np.array([[0, 7, 9]], np.uint8))
        (tmp_path / root / "classes.txt").write_text("0 sky\n7 dirt road\n9 Void\n")
    (tmp_path / "lists" / "val.txt").write_text("x\n")
    for root in ("splits", "lists", "plain"):
        found = open_dataset(tmp_path / root, "val")
        assert found.classes == ("sky", "dirt road")
        assert found.read(0)[1].tolist() == [[0, 1, IGNORE]]
    for root in ("splits", "lists"):
        with pytest.raises(ValueError, match="no split 'train'"):
            open_dataset(tmp_path / root, "train")


def test_classes_without_numbers_count_from_zero(tmp_path: Path) -> None:
    write(tmp_path, "images/x.jpg", "labels/x.png", np.array([[0, 1, 2]], np.uint8))
    (tmp_path / "classes.txt").write_text("sky\nroad\nvoid\n")
    assert open_dataset(tmp_path, "val").read(0)[1].tolist() == [[0, 1, IGNORE]]


def test_lines_of_a_list_are_whole_names(tmp_path: Path) -> None:
    names = ["img (1)", "img 2", "deep er/img.3", "img 4"]
    for name in names:
        write(tmp_path, f"images/{name}.jpg", f"labels/{name}.png")
    (tmp_path / "classes.txt").write_text("\n".join(f"c{i}" for i in range(12)))
    (tmp_path / "val.txt").write_bytes(b"\xef\xbb\xbfimg (1)\r\n./img 2.jpg \r\ndeep er/img.3\r\n\r\nimg (1).jpg\r\n")
    assert open_dataset(tmp_path, "val").names == names[:3]
    for line in ("name", "img", "img 4 labels", "../images/img 4", "/img 4"):
        (tmp_path / "val.txt").write_text(f"img 2\n{line}\n")
        with pytest.raises(ValueError, match=rf"line 2 of .*val.txt is '{re.escape(line)}', and .*images has no image"):
            open_dataset(tmp_path, "val")


def test_litter_is_neither_image_nor_label_nor_split(tmp_path: Path) -> None:
    root = a_folder(tmp_path)
    for litter in ("._x.jpg", ".ipynb_checkpoints/x-checkpoint.jpg", "__MACOSX/x.jpg", "Thumbs.db", "desktop.ini"):
        for folder in ("images", "images/val", "labels/val"):
            (root / folder / litter).parent.mkdir(exist_ok=True)
            (root / folder / litter).write_bytes(b"\0\5\x16\7")
    assert open_dataset(root, "val").names == ["x"]
    with pytest.raises(ValueError, match=r"no split 'test'; use one of: val$"):
        open_dataset(root, "test")


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    root = a_folder(tmp_path)
    write(root, "images/val/x.png", "labels/val/x.png")
    with pytest.raises(ValueError, match=r"x\.jpg and x\.png have one name"):
        open_dataset(root, "val")


def a_folder(root: Path) -> Path:
    write(root, "images/val/x.jpg", "labels/val/x.png")
    (root / "classes.txt").write_text("\n".join(f"c{i}" for i in range(12)))
    return root


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    root = a_folder(tmp_path / "set")
    assert len(open_dataset(root, "val")) == 1
    with pytest.raises(ValueError, match="is no folder; give one of labelled images"):
        open_dataset(tmp_path / "nowhere", "val")
    with pytest.raises(ValueError, match="use one of: ade20k, voc"):
        open_dataset(root, "val", "ade")
    with pytest.raises(ValueError, match="has the layout of no known"):
        open_dataset(root / "images", "val")
    (root / "images" / "empty").mkdir()
    (root / "labels" / "empty").mkdir()
    with pytest.raises(ValueError, match="has no image"):
        open_dataset(root, "empty")
    write(root, "images/val/y.jpg", "elsewhere/y.png")
    with pytest.raises(ValueError, match=r"y\.jpg has no labels .*y\.png"):
        open_dataset(root, "val")
    (root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"no classes\.txt"):
        open_dataset(root, "val")


def test_labels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    root = a_folder(tmp_path)
    write(root, "images/val/x.jpg", "labels/val/x.png", size=(5, 3))
    with pytest.raises(ValueError, match=r"is 5 x 3 pixels and its labels .* 4 x 3"):
        open_dataset(root, "val").read(0)
    for bad in (np.full((3, 4), 12, np.uint8), np.full((3, 4), 70, np.uint8), np.full((3, 4), 3000, np.uint16)):
        write(root, "images/val/x.jpg", "labels/val/x.png", bad, size=(4, 3))
        with pytest.raises(ValueError, match=rf"has the label {bad[0, 0]}, which is none of the 12"):
            open_dataset(root, "val").read(0)
    write(root, "images/val/x.jpg", "labels/val/x.png", np.full((3, 4, 3), (128, 0, 9), np.uint8), size=(4, 3))
    with pytest.raises(ValueError, match=r"cannot read the labels .*x\.png: it is a picture of mode RGB"):
        open_dataset(root, "val").read(0)
    (root / "labels" / "val" / "x.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot read the labels"):
        open_dataset(root, "val").read(0)


def test_grey_and_one_pixel_images_are_read(tmp_path: Path) -> None:
    root = a_folder(tmp_path)
    Image.new("L", (1, 1), 7).save(root / "images" / "val" / "x.jpg")
    Image.new("L", (1, 1), 4).save(root / "labels" / "val" / "x.png")
    image, label = open_dataset(root, "val").read(0)
    assert (image.mode, image.size, label.tolist()) == ("RGB", (1, 1), [[4]])


def test_a_limit_spreads_evenly(tmp_path: Path) -> None:
    root = a_folder(tmp_path)
    for i in range(9):
        write(root, f"images/train/{i}.jpg", f"labels/train/{i}.png")
    found = open_dataset(root, "train")
    assert found.limited(3).names == ["0", "4", "8"]
    assert found.limited(3).read(1)[1].shape == (3, 4)
    assert found.limited(None).names == found.limited(99).names == found.names


def test_the_kind_of_real_sets_is_found(data_dir: Path) -> None:
    expected = {"camvid": (101, 11), "coco_semseg_mini": (40, 129), "voc_real3": (3, 21), "voc_style": (20, 21)}
    for name, (images, classes) in expected.items():
        found = open_dataset(data_dir / name, "val")
        assert (len(found), len(found.classes)) == (images, classes)
        image, label = found.read(len(found) - 1)
        assert label.shape == (image.height, image.width)
        assert set(np.unique(label).tolist()) <= {*range(classes), IGNORE}
