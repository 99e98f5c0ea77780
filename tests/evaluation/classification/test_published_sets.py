"""Sets as published: images in one folder, their classes in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from selfpatch.evaluation.classification.dataset import open_splits, with_labels
from selfpatch.evaluation.classification.knn.config import KNNConfig
from selfpatch.evaluation.classification.knn.evaluate import evaluate
from selfpatch.evaluation.encoders import MeanColour
from tests.helpers.labelled_images import tiny_encoder
from tests.helpers.published_sets import write_cub, write_flowers, write_image

CATEGORIES = {7: "Quercus alba", 2: "Ardea alba", 11: "Morchella"}


def annotations(root: Path, split: str, categories: list[int], year: int = 2019) -> dict[str, Any]:
    """Write images of the given categories; return the annotation file's content, in an order that is not sorted."""
    images = []
    for number, category in enumerate(categories):
        name = f"train_val{year}/Group{category % 2}/{category}/{split}{number}.jpg"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 24), (20 * category, 80, 10 * number)).save(root / name)
        images.append({"id": 100 - number, "file_name": name, "width": 20, "height": 24})
    entries = [
        {"id": number, "image_id": 100 - number, "category_id": category} for number, category in enumerate(categories)
    ]
    named = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    return {"images": images, "annotations": entries[::-1], "categories": named}


def inaturalist(root: Path, year: int = 2019) -> Path:
    for split, categories in (("train", [7, 2, 11, 2, 7]), ("val", [2, 7])):
        content = annotations(root, split, categories, year)
        (root / f"{split}{year}.json").write_text(json.dumps(content))
    return root


def change(file: Path, **parts: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **parts}))


def test_images_and_labels_are_those_of_the_annotations(tmp_path: Path) -> None:
    train, test = open_splits(inaturalist(tmp_path))
    assert train.classes == test.classes == ("Ardea alba", "Quercus alba", "Morchella")
    for images in (train, test):
        content = json.loads((tmp_path / f"{'train' if images is train else 'val'}2019.json").read_text())
        expected = {}
        for image in content["images"]:
            for annotation in content["annotations"]:
                if annotation["image_id"] == image["id"]:
                    expected[image["file_name"]] = CATEGORIES[annotation["category_id"]]
        assert {images.name(i): images.classes[images.labels[i]] for i in range(len(images))} == expected
        assert images.read(0, 3).size == (20, 24)
    few = with_labels(train, "20%", seed=0)
    assert sorted(few.labels.tolist()) == [0, 1, 2]


def test_it_is_evaluated_like_folders(tmp_path: Path) -> None:
    result = evaluate(tiny_encoder("vit"), inaturalist(tmp_path), KNNConfig(ks=(1,), resize=16, crop=16))
    assert result.settings["train_images"] == 5
    assert set(result.per_image) == {"train_val2019/Group0/2/val0.jpg", "train_val2019/Group1/7/val1.jpg"}


def test_the_latest_year_with_both_files_is_taken(tmp_path: Path) -> None:
    inaturalist(tmp_path, 2018)
    inaturalist(tmp_path, 2019)
    assert open_splits(tmp_path)[0].name(0).startswith("train_val2019/")
    (tmp_path / "val2019.json").unlink()
    assert open_splits(tmp_path)[0].name(0).startswith("train_val2018/")


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no train/ and val/ \(or test/\).* or iNaturalist, Oxford Flowers,"):
        open_splits(tmp_path)
    train, test = (inaturalist(tmp_path) / f"{split}2019.json" for split in ("train", "val"))
    change(test, annotations=[{"image_id": 100, "category_id": 5}, {"image_id": 99, "category_id": 7}])
    with pytest.raises(ValueError, match=r"have categories that no training image has, e\.g\. 5"):
        open_splits(tmp_path)
    change(test, annotations=[{"image_id": 100, "category_id": 2}] * 2)
    with pytest.raises(ValueError, match=r"2 annotations of 1 image for its 2 images; each image needs one category"):
        open_splits(tmp_path)
    change(test, annotations=[{"image": 100}])
    with pytest.raises(ValueError, match="is no annotation file of iNaturalist; it needs images with"):
        open_splits(tmp_path)
    test.write_text("[]")
    with pytest.raises(ValueError, match="is no annotation file of iNaturalist"):
        open_splits(tmp_path)
    test.write_text("{")
    with pytest.raises(ValueError, match=r"val2019.json is not valid JSON \(.*: line 1, column 2\)"):
        open_splits(tmp_path)
    test.write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(ValueError, match="has a split without images"):
        open_splits(tmp_path)
    test.write_text(json.dumps(annotations(tmp_path, "val", [2, 7])))
    next((tmp_path / "train_val2019" / "Group0" / "2").glob("train*")).unlink()
    with pytest.raises(ValueError, match=r"lists 'train_val2019/.*', which is not there; complete the download"):
        open_splits(tmp_path)
    assert train.is_file()


def test_a_byte_order_mark_and_hidden_files_do_not_matter(tmp_path: Path) -> None:
    for split in ("train", "val"):
        file = inaturalist(tmp_path) / f"{split}2019.json"
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    for litter in ("._train2020.json", "._val2020.json"):
        (tmp_path / litter).write_bytes(b"\0")
    assert len(open_splits(tmp_path)[1]) == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["../a.jpg", "b.jpg"], r"val2019.json names '\.\./a\.jpg', which leads out of its folder"),
        (["/etc/hosts", "b.jpg"], "names '/etc/hosts', which is an absolute path"),
        ([7, "b.jpg"], r"json has the images\[0\].file_name 7; use text"),
        (["b.jpg", "b.jpg"], "it needs images with .*, each once"),
    ],
)
def test_names_of_images_stay_in_the_folder(tmp_path: Path, names: list[Any], words: str) -> None:
    file = inaturalist(tmp_path) / "val2019.json"
    change(file, images=[{"id": 100 - number, "file_name": name} for number, name in enumerate(names)])
    with pytest.raises(ValueError, match=words):
        open_splits(tmp_path)


def test_flowers_trains_on_both_of_its_first_splits(tmp_path: Path) -> None:
    """Numbers of images and classes count from 1."""
    labels = write_flowers(tmp_path)
    train, test = open_splits(tmp_path)
    assert train.classes == test.classes == ("1", "3")
    for images, numbers in ((train, [1, 2, 6]), (test, [3, 4, 5])):
        assert [images.name(i) for i in range(3)] == [f"jpg/image_{number:05d}.jpg" for number in numbers]
        assert [images.classes[label] for label in images.labels] == [str(labels[number - 1]) for number in numbers]
    savemat(tmp_path / "setid.mat", {"trnid": [[7]], "valid": [[1]], "tstid": [[5]]})
    with pytest.raises(ValueError, match=r"setid.mat numbers images that imagelabels.mat does not have"):
        open_splits(tmp_path)
    savemat(tmp_path / "setid.mat", {"trnid": [[1]], "tstid": [[5]]})
    with pytest.raises(ValueError, match=r"setid.mat has no valid; complete the download"):
        open_splits(tmp_path)
    (tmp_path / "setid.mat").write_bytes(b"no file of Matlab")
    with pytest.raises(ValueError, match=r"cannot read .*setid.mat"):
        open_splits(tmp_path)


def test_cars_have_a_flag_for_the_test_set(tmp_path: Path) -> None:
    rows = [("000003.jpg", 2, 1), ("000001.jpg", 1, 0), ("000002.jpg", 2, 0)]
    fields = [("relative_im_path", object), ("bbox_x1", object), ("class", object), ("test", object)]
    entries = np.array([[(f"car_ims/{name}", 9, number, flag) for name, number, flag in rows]], dtype=fields)
    names = np.array([["Acura RL", "Audi S4"]], dtype=object)
    for name, _, _ in rows:
        write_image(tmp_path / "car_ims" / name)
    savemat(tmp_path / "cars_annos.mat", {"annotations": entries, "class_names": names})
    train, test = open_splits(tmp_path)
    assert train.classes == ("Acura RL", "Audi S4")
    assert [(train.name(i), int(train.labels[i])) for i in range(2)] == [
        ("car_ims/000001.jpg", 0), ("car_ims/000002.jpg", 1),
    ]  # fmt: skip
    assert [(test.name(i), int(test.labels[i])) for i in range(len(test))] == [("car_ims/000003.jpg", 1)]
    savemat(tmp_path / "cars_annos.mat", {"annotations": [1, 2], "class_names": names})
    with pytest.raises(ValueError, match="is no annotation file of Stanford Cars"):
        open_splits(tmp_path)


def test_cub_is_read_as_distributed(tmp_path: Path) -> None:
    write_cub(tmp_path)
    for root in (tmp_path, tmp_path / "CUB_200_2011"):
        train, test = open_splits(root)
        assert train.classes == ("001.Albatross", "002.Laysan")
        assert [train.name(i).rpartition("images/")[2] for i in range(2)] == [
            "001.Albatross/d.jpg",
            "002.Laysan/b 1.jpg",
        ]
        assert train.labels.tolist() == [0, 1]
        assert [test.name(i).rpartition("images/")[2] for i in range(2)] == ["001.Albatross/a.jpg", "002.Laysan/c.jpg"]
        assert test.labels.tolist() == [0, 1]
    result = evaluate(MeanColour(4), tmp_path, KNNConfig(ks=(1,), resize=16, crop=16))
    assert (result.settings["train_images"], result.settings["test_images"], result.settings["classes"]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("train_test_split", "1 1\n2 0\n3 0\n", "of other images, or a split that is neither 0 nor 1"),
        ("train_test_split", "1 1\n2 0\n3 0\n4 2\n", "of other images, or a split that is neither 0 nor 1"),
        ("train_test_split", "1 1\n2 1\n3 1\n4 1\n", "has a split without images"),
        ("train_test_split", "1 1\n2 0\n3 0\n4 0\n", "have categories that no training image has"),
        ("image_class_labels", "1 two\n2 1\n3 2\n4 1\n", "has the class 'two'"),
        ("images", "1 ../a.jpg\n2 b\n3 c\n4 d\n", "names '../a.jpg', which leads out of its folder"),
        ("images", "1 a.jpg\n1 b.jpg\n", r"line 2 of .*images\.txt is '1 b\.jpg'; CUB has `number value`"),
        ("images", "a.jpg\n", r"line 1 of .*images\.txt is 'a\.jpg'"),
        ("images", None, r"there is no file .*images\.txt, which CUB has"),
    ],
)
def test_words_for_files_of_cub(tmp_path: Path, file: str, content: str | None, words: str) -> None:
    path = write_cub(tmp_path)[file]
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=words):
        open_splits(tmp_path)
