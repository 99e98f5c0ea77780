"""Detections of a split in the format of COCO's results files."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.distributed import gather
from selfpatch.evaluation.detection.dataset import AnnotatedImage, Split
from selfpatch.evaluation.detection.masks import Rle
from selfpatch.evaluation.result import Progress, silent
from selfpatch.evaluation.sharding import share_of

BOXES, MASKS = "predictions_bbox.json", "predictions_segm.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Detections:
    """Detections in one image."""

    boxes: Tensor
    """Boxes [n, 4] (left, top, right, bottom) in pixels of the image."""
    labels: Tensor
    """Labels [n], counted from 1."""
    scores: Tensor
    masks: Sequence[Rle]
    """Masks of the image's size, one for each box."""


Detector = Callable[[AnnotatedImage], Detections]


def detect_all(detector: Detector, split: Split, progress: Progress = silent) -> tuple[list[Row], list[Row]]:
    """Return the results rows of boxes and of masks of all images; each process detects in its share of them."""
    boxes: list[Row] = []
    masks: list[Row] = []
    share = share_of(len(split.images))
    for done, image in enumerate(split.images[share.start : share.stop], start=1):
        found = detector(image)
        for box, label, score, mask in zip(
            found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), found.masks, strict=True
        ):
            row = {"image_id": image.id, "category_id": split.category_ids[label - 1], "score": score}
            left, top, right, bottom = box
            boxes.append({**row, "bbox": [left, top, right - left, bottom - top]})
            masks.append({**row, "segmentation": mask})
        progress("detecting", done, len(share))
    return gather(boxes), gather(masks)


def rows_by_image(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Return the rows of each image, by its id."""
    grouped: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["image_id"]].append(row)
    return grouped


def save(out: Path, boxes: Sequence[Row], masks: Sequence[Row]) -> None:
    """Write both results files, in the format of the benchmark's server."""
    for name, rows in ((BOXES, boxes), (MASKS, masks)):
        write_atomically(out / name, json.dumps(list(rows)))
