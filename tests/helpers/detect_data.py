"""A small COCO data set of painted shapes, and the smallest networks that detect something in it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from selfpatch.evaluation.detection.dataset import AnnotatedImage
from selfpatch.evaluation.detection.masks import from_pixels, packed, to_pixels
from selfpatch.evaluation.detection.metrics import STATISTICS
from selfpatch.evaluation.detection.predictions import BOXES, MASKS, Detections
from selfpatch.models.backbones.build import build_backbone, named_backbone_config
from selfpatch.models.encoder import BranchEncoder

CATEGORIES = {90: "square", 7: "triangle", 3: "disk"}
"""With gaps, and in no order."""
COLOURS = {90: (220, 40, 40), 7: (40, 200, 60), 3: (60, 80, 230)}


def outline(category: int, box: tuple[float, float, float, float]) -> list[float]:
    """A polygon whose extent is the box."""
    left, top, right, bottom = box
    if category == 90:
        return [left, top, right, top, right, bottom, left, bottom]
    if category == 7:
        return [(left + right) / 2, top, right, bottom, left, bottom]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x = (left + right) / 2 + (right - left) / 2 * np.cos(angles)
    y = (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angles)
    return np.stack([x, y], axis=1).ravel().tolist()


def write_split(root: Path, split: str, images: int = 4, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """Some shapes in each image but the last, which is empty; the second one is grey; there is a crowd in the first."""
    rng = np.random.default_rng(seed)
    folder = root / split
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    listed, annotations = [], []
    for number in range(images):
        image = Image.new("RGB", size, (90, 90, 90))
        name = f"{number:012d}.png"
        listed.append({"id": 100 + number, "file_name": name, "width": size[0], "height": size[1]})
        for category in CATEGORIES if number + 1 < images or images == 1 else ():
            width, height = rng.uniform(12, 26, 2)
            left, top = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
            points = outline(category, (left, top, left + width, top + height))
            ImageDraw.Draw(image).polygon(points, fill=COLOURS[category])
            annotations.append(annotation(len(annotations) + 1, 100 + number, category, points))
        (image.convert("L") if number == 1 else image).save(folder / name)
    crowd = {"size": [size[1], size[0]], "counts": [0, 5 * size[1], (size[0] - 5) * size[1]]}
    row = annotation(len(annotations) + 1, 100, 7, [0, 0, 5, 0, 5, size[1], 0, size[1]])
    annotations.append({**row, "segmentation": crowd, "iscrowd": 1})
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    write_json(root, split, {"images": listed, "annotations": annotations, "categories": categories})
    return root


def annotation(number: int, image: int, category: int, points: list[float]) -> dict[str, Any]:
    x, y = points[::2], points[1::2]
    box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    return {
        "id": number, "image_id": image, "category_id": category, "iscrowd": 0, "segmentation": [points],
        "bbox": box, "area": box[2] * box[3],
    }  # fmt: skip


def write_json(root: Path, split: str, content: dict[str, Any]) -> None:
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def read_json(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def tiny_encoder(model: str = "vit_tiny", **settings: Any) -> BranchEncoder:
    sizes: dict[str, dict[str, Any]] = {
        "vit_tiny": {"embed_dim": 32, "depth": 4, "num_heads": 2, "patch_size": 8, "grid": 4},
        "swin_tiny": {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": 1},
        "resnet50": {"embed_dim": 4, "depths": (1, 1, 1, 1)},
    }
    torch.manual_seed(0)
    return BranchEncoder(build_backbone(named_backbone_config(model, **{**sizes[model], **settings})), None).eval()


def by_itself(data: Path, out: Path, file: str, kind: str) -> list[float]:
    coco, cocoeval = (importlib.import_module(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    truth = coco.COCO(str(data / "annotations" / "instances_val.json"))
    scored = cocoeval.COCOeval(truth, truth.loadRes(str(out / file)), kind)
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return [float(value) for value in scored.stats]


def compare_with_pycocotools(metrics: Mapping[str, float], data: Path, out: Path) -> None:
    for name, file, kind in (("box", BOXES, "bbox"), ("mask", MASKS, "segm")):
        stats = by_itself(data, out, file, kind)
        for statistic, value in zip(STATISTICS, stats, strict=False):
            assert metrics.get(f"{name} {statistic}", -1.0) == value


def broken(tmp_path: Path, change: Any) -> Path:
    write_split(tmp_path, "train")
    content = read_json(tmp_path, "train")
    change(content)
    write_json(tmp_path, "train", content)
    return tmp_path


QUICK: dict[str, Any] = {
    "preset": "small", "train_split": "train", "test_split": "val", "width": 8, "proposals": 30, "rois": 16,
    "short_sides": (32,), "long_side": 64, "batch_size": 2, "epochs": 1.0, "anchor_scale": 4.0, "lr": 1e-4,
}  # fmt: skip


def change(data: Path, split: str, **fields: Any) -> None:
    """Sets fields of the first annotation; ...: takes them out of all."""
    content = read_json(data, split)
    for name, value in fields.items():
        if value is ...:
            for annotation in content["annotations"]:
                annotation.pop(name)
        else:
            content["annotations"][0][name] = value
    write_json(data, split, content)


def truth_rows(data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a detector that finds each object would write."""
    boxes, masks = [], []
    for row in read_json(data, "val")["annotations"]:
        if not row.get("iscrowd"):
            found = {"image_id": row["image_id"], "category_id": row["category_id"], "score": 1.0}
            boxes.append({**found, "bbox": row["bbox"]})
            left, top, width, height = row["bbox"]
            points = outline(row["category_id"], (left, top, left + width, top + height))
            masks.append({**found, "segmentation": [points]})
    return boxes, masks


def rle(row: dict[str, Any], split: Any) -> dict[str, Any]:
    image = next(one for one in split.images if one.id == row["image_id"])
    (points,) = row["segmentation"]
    return packed((np.array(points).reshape(-1, 2),), image.height, image.width)


def oracle(image: AnnotatedImage) -> Detections:
    """Finds what is annotated."""
    boxes = torch.tensor([one.box for one in image.objects()]).view(-1, 4)
    labels = torch.tensor([one.label for one in image.objects()], dtype=torch.int64)
    masks = [packed(one.segmentation, image.height, image.width) for one in image.objects()]
    pixels = to_pixels(masks, image.height, image.width)
    return Detections(boxes, labels, torch.ones(len(boxes)), [from_pixels(mask) for mask in pixels])


def noise(image: AnnotatedImage) -> Detections:
    rng = np.random.default_rng(image.id)
    corners = np.sort(rng.uniform(0, 1, (100, 2, 2)), axis=1) * [image.width, image.height]
    masks = [from_pixels(rng.random((image.height, image.width)) < 0.5) for _ in range(100)]
    labels = torch.from_numpy(rng.integers(1, 4, 100))
    return Detections(torch.from_numpy(corners.reshape(100, 4)), labels, torch.from_numpy(rng.random(100)), masks)
