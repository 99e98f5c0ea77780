"""A small COCO data set of painted shapes, and the smallest networks that detect something in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

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
