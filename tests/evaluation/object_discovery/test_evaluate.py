"""Object discovery from a folder to CorLoc: layouts, boxes counted by hand, networks of every kind, bad data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from selfpatch.cli.options.discover import Discover
from selfpatch.evaluation.baselines import MeanColour
from selfpatch.evaluation.object_discovery.dataset import open_images
from selfpatch.evaluation.object_discovery.evaluate import evaluate
from selfpatch.evaluation.object_discovery.features import PatchView
from selfpatch.evaluation.object_discovery.metrics import best_iou, centre_box
from selfpatch.evaluation.result import Result
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.encoder import BranchEncoder


class ColourAgainstGround(MeanColour):
    """Mean colour about grey, whose sign tells the object from the ground."""

    def patches(self, images: Tensor) -> Tensor:
        return super().patches(images - 0.5)


def tiny_vit(*, class_token: bool = True, registers: int = 0) -> BranchEncoder:
    torch.manual_seed(0)
    shape = ViTConfig(
        embed_dim=16, depth=3, num_heads=2, patch_size=8, grid=4, class_token=class_token, num_registers=registers
    )
    return BranchEncoder(build_backbone(shape), None).eval()


Objects = list[tuple[tuple[int, int, int, int], str]]


def write_voc(root: Path, images: dict[str, tuple[np.ndarray, Objects]], split: str = "trainval") -> Path:
    """Objects are ((xmin, ymin, xmax, ymax) as VOC counts, "" or "difficult" or "truncated")."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, (pixels, objects) in images.items():
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", quality=100, subsampling=0)
        parts = ["<annotation>"]
        for box, mark in objects:
            sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            marks = "".join(f"<{m}>{int(mark == m)}</{m}>" for m in ("difficult", "truncated"))
            parts.append(f"<object><name>cat</name>{marks}<bndbox>{sides}</bndbox></object>")
        (root / "Annotations" / f"{name}.xml").write_text("".join([*parts, "</annotation>"]))
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images))
    return root


def square(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (80, 101)) -> np.ndarray:
    """A bright block on dark ground."""
    pixels = np.full((*size, 3), (20, 30, 60), np.uint8)
    pixels[top:bottom, left:right] = (250, 220, 200)
    return pixels


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """One object that is met, one box elsewhere, one image without a box, and one where only a second box is met."""
    pixels = square(24, 16, 64, 48)
    return write_voc(
        tmp_path / "VOC2007",
        {
            "met": (pixels, [((25, 17, 64, 48), "")]),
            "missed": (pixels, [((1, 1, 20, 20), "difficult")]),
            "none": (pixels, []),
            "second": (pixels, [((1, 1, 101, 80), ""), ((25, 17, 64, 48), "truncated")]),
        },
    )


def test_corloc_counted_by_hand(voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluate(ColourAgainstGround(8), voc, out=out)
    for method in ("lost", "tokencut"):
        assert result.metrics[f"CorLoc {method}"] == pytest.approx(2 / 3)
        assert [values[f"CorLoc {method}"] for values in result.per_image.values()] == [1, 0, 1]
    assert list(result.per_image) == ["met", "missed", "second"]
    # The whole image holds the object at 1280 / 8080, and is the first box of `second` itself.
    assert result.metrics["CorLoc baseline:whole-image"] == pytest.approx(1 / 3)
    whole = next(row for row in result.rows if row["method"] == "baseline:whole-image")
    assert whole["mean IoU"] == pytest.approx((1280 / 8080 + 400 / 8080 + 1) / 3)
    assert (result.settings["images"], result.settings["images_without_boxes"]) == (3, 1)
    assert Result.load(out / "result.json") == result
    assert all((out / picture).is_file() for picture in result.pictures)
    assert len(result.pictures) == 3


def test_hard_boxes_can_be_left_out(voc: Path) -> None:
    result = evaluate(ColourAgainstGround(8), voc, hard=False, methods=["lost"])
    assert list(result.per_image) == ["met", "second"]
    assert result.metrics["CorLoc lost"] == 0.5


def test_iou_in_pixels() -> None:
    """VOC's box 1 .. 10 is ten pixels wide; nothing is added to sides."""
    assert best_iou((0, 0, 10, 10), [(0, 0, 10, 20), (5, 0, 15, 10)]) == pytest.approx(0.5)
    assert best_iou((0, 0, 2, 2), [(1, 1, 3, 3)]) == pytest.approx(1 / 7)
    left, top, right, bottom = centre_box(100, 200)
    assert (right - left) * (bottom - top) == pytest.approx(100 * 200 / 2)
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((100, 50))


def test_voc_boxes_begin_at_zero(voc: Path) -> None:
    images = {image.name: image for image in open_images(voc)}
    assert images["met"].boxes == ((24, 16, 64, 48),)
    assert images["second"].boxes[0] == (0, 0, 101, 80)
    assert open_images(voc.parent)[0].path == images["met"].path, "the folder above serves too"


def write_coco(root: Path, names: list[str], split: str = "train2014") -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir()
    for name in names:
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
    images = open_images(coco)
    assert [image.boxes for image in images] == [((24, 16, 64, 48),)] * 2, "rounded as LOST does, without crowds"
    listed = tmp_path / "coco_20k_filenames.txt"
    listed.write_text("train2014/COCO_train2014_000000000025.jpg\n")
    assert [image.name for image in open_images(coco, image_list=listed)] == ["COCO_train2014_000000000025"]
    assert evaluate(ColourAgainstGround(8), coco, image_list=str(listed)).metrics["CorLoc lost"] == 1
    listed.write_text("COCO_train2014_000000000026.jpg\n")
    with pytest.raises(ValueError, match=r"names 1 images that the data set has not, e\.g\. COCO_train2014_0+26"):
        open_images(coco, image_list=listed)
    write_coco(coco, ["a.jpg"], split="val2014")
    assert len(open_images(coco)) == 2, "train2014 where there are several"
    assert len(open_images(coco, split="val2014")) == 1
    with pytest.raises(ValueError, match="has: train2014, val2014; name one"):
        open_images(coco, split="test")


def test_keys_of_a_vit_at_full_resolution() -> None:
    """Zeros are laid around what is normalised, not around the image."""
    encoder = tiny_vit()
    image = torch.randint(256, (3, 45, 50), generator=torch.manual_seed(1), dtype=torch.uint8)
    view = PatchView(encoder)
    padded = view.padded(image)
    assert padded.shape == (1, 3, 48, 56)
    assert (padded[..., 45:, :] == 0).all()
    assert (padded[..., 50:] == 0).all()
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
    torch.testing.assert_close(padded[0, :, :45, :50], (image / 255 - mean) / std)
    assert torch.equal(view.features(padded), encoder.backbone.facet(padded, "key")[0])
    assert torch.equal(PatchView(encoder, "query", 2).features(padded), encoder.backbone.facet(padded, "query", 1)[0])


@pytest.mark.parametrize("registers", [0, 2])
def test_class_attention_equals_the_loop(registers: int) -> None:
    encoder = tiny_vit(registers=registers)
    padded = torch.randn(1, 3, 32, 40, generator=torch.manual_seed(2))
    attention = PatchView(encoder).class_attention(padded)
    trunk = encoder.backbone.trunk
    with torch.no_grad():
        tokens = trunk._pos_embed(trunk.patch_embed(padded))
        for block in trunk.blocks[:-1]:
            tokens = block(tokens)
        last = trunk.blocks[-1]
        qkv = last.attn.qkv(last.norm1(tokens))[0]  # [n, 3 * 16]
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        query, keys = qkv[0, :16][part], qkv[:, 16:32][:, part]
        weights = torch.stack([query @ key / 8**0.5 for key in keys]).softmax(0)
        torch.testing.assert_close(attention[head].flatten(), weights[1 + registers :])


def test_attention_boxes_and_their_heads(voc: Path) -> None:
    encoder = tiny_vit()
    for head in (None, 0, 1):
        result = evaluate(encoder, voc, methods=("attention",), head=head)
        assert set(result.per_image["met"]) == {"CorLoc attention"}
        assert result.settings["head"] == ("mean" if head is None else head)
    with pytest.raises(ValueError, match="head 2 is asked for, but the network has 0 to 1"):
        evaluate(encoder, voc, methods=("attention",), head=2)


def test_features_of_what_is_no_vit(voc: Path) -> None:
    encoder = ColourAgainstGround(8)
    padded = torch.rand(1, 3, 16, 24)
    features = PatchView(encoder).features(padded)
    tokens = encoder.patches(padded)[0].movedim(0, -1)
    torch.testing.assert_close(features, (tokens - tokens.mean()) / (tokens.var(correction=0) + 1e-5).sqrt())
    settings = evaluate(encoder, voc, methods=("lost",)).settings
    assert settings["features"] == "token, standardised over the map"
    tokens_of_a_vit = PatchView(tiny_vit(), "token").features(padded)
    torch.testing.assert_close(tokens_of_a_vit, tiny_vit().patches(padded)[0].movedim(0, -1))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 300), (9, 8)])
def test_any_size_of_image_and_grey(tmp_path: Path, height: int, width: int) -> None:
    grey = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    voc = write_voc(tmp_path, {"odd": (grey, [((1, 1, width, height), "")])})
    result = evaluate(tiny_vit(), voc, out=tmp_path / "out", methods=("lost", "tokencut", "attention"))
    assert result.metrics["CorLoc baseline:whole-image"] == 1
    if (height, width) == (1, 1):
        assert result.metrics["CorLoc lost"] == 1, "the only patch, cut at the image's border"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"methods": ("lots",)}, "methods are .*use one or more of lost, tokencut, attention"),
        ({"methods": ()}, "methods are"),
        ({"methods": ("attention",)}, "attention boxes need a ViT with a class token"),
        ({"facet": "key"}, "facet 'key' is asked for, but only a ViT"),
        ({"block": 2}, "block 2 is asked for, but only a ViT"),
        ({"facet": "keys"}, "facet is 'keys'; use key, query, value or token"),
        ({"split": "test"}, "the splits of .* are: trainval"),
        ({"image_list": "nowhere.txt"}, "there is no list of images"),
    ],
)
def test_words_for_wrong_settings(voc: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate(ColourAgainstGround(8), voc, **settings)


def test_words_for_a_vit_without_what_is_asked(voc: Path) -> None:
    with pytest.raises(ValueError, match="this ViT has 1 to 3"):
        evaluate(tiny_vit(), voc, block=4)
    with pytest.raises(ValueError, match="tokens are the encoder's own"):
        evaluate(tiny_vit(), voc, facet="token", block=1)
    with pytest.raises(ValueError, match="this network has none; use lost or tokencut"):
        evaluate(tiny_vit(class_token=False), voc, methods=("lost", "attention"))


def test_words_for_data_that_are_not_as_they_should_be(voc: Path, tmp_path: Path) -> None:
    encoder = ColourAgainstGround(8)
    with pytest.raises(ValueError, match="is neither VOC nor COCO"):
        evaluate(encoder, tmp_path / "nowhere")
    (voc / "Annotations" / "met.xml").write_text("<annotation><object><bndbox/></object></annotation>")
    with pytest.raises(ValueError, match=r"met\.xml cannot be read as VOC's boxes"):
        evaluate(encoder, voc)
    (voc / "Annotations" / "met.xml").unlink()
    with pytest.raises(ValueError, match=r"there is no .*met\.xml"):
        evaluate(encoder, voc)
    (voc / "ImageSets" / "Main" / "trainval.txt").write_text("none\n")
    with pytest.raises(ValueError, match=r"none of the 1 images .* has a box"):
        evaluate(encoder, voc)
    (voc / "JPEGImages" / "none.jpg").unlink()
    with pytest.raises(ValueError, match=r"there is no image .*none\.jpg"):
        evaluate(encoder, voc)
    (voc / "ImageSets" / "Main" / "trainval.txt").write_text("")
    with pytest.raises(ValueError, match="names no image"):
        evaluate(encoder, voc)


def test_the_options_are_the_keyword_arguments(voc: Path) -> None:
    settings = Discover(data=str(voc)).settings()
    result = evaluate(ColourAgainstGround(8), voc, **settings)
    assert result.metrics == evaluate(ColourAgainstGround(8), voc).metrics


def test_real_images(data_dir: Path) -> None:
    """Boxes of the 40 images are as their origin's; colour against grey is no object finder, but the floor is known."""
    result = evaluate(MeanColour(32), data_dir / "voc_style", methods=("lost",))
    assert result.settings["images"] == 40
    assert result.metrics["CorLoc baseline:whole-image"] == pytest.approx(0.25)
    coco = open_images(data_dir / "coco_mini", split="val2017")
    assert len(coco) == 30
    assert sum(len(image.boxes) for image in coco) == 414 - 7, "all but the crowds"
