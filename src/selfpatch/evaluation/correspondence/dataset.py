"""Folders and files of SPair-71k (Min et al., arXiv 1908.10543).

::

    Layout/<large or small>/<split>.txt      one pair per line: 000001-2007_000032-2007_001373:aeroplane
    PairAnnotation/<split>/<pair>.json       its images, keypoints and boxes
    JPEGImages/<category>/<image>.jpg
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfpatch.config.json_schema import MAX_COORDINATE
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text_files import numbered_lines, read_json
from selfpatch.data.images import limited
from selfpatch.evaluation.correspondence.config import CorrespondenceConfig


@dataclass(frozen=True)
class Pair:
    """Two images of one category, and the K >= 1 keypoints that both show."""

    name: str
    """Name of its annotation."""
    category: str
    source: Path
    target: Path
    source_points: np.ndarray
    """Keypoints, float64 [K, 2] (x, y); the centre of the first pixel is (0, 0)."""
    target_points: np.ndarray
    source_box: np.ndarray
    """Box of the object, float64 [4] (left, top, right, bottom), including its outermost pixels."""
    target_box: np.ndarray
    viewpoint: int | None = None
    """Difference of viewpoints as SPair-71k counts it: 0, 1 or 2; None if it is not given."""


def open_pairs(data: str | Path, config: CorrespondenceConfig) -> list[Pair]:
    """Return the pairs of the split, layout and categories in `config`, sorted by category.

    Raises:
        ValueError: a file is missing or invalid, a pair has no keypoints, or a category has no pair.
    """
    root = Path(data).expanduser()
    folder = root / "PairAnnotation" / config.split
    pairs = [
        _read_pair(root, path_below(folder, f"{name}.json", where, nested=False))
        for where, name in _names(root, config)
    ]
    if config.categories is not None:
        missing = sorted(set(config.categories) - {pair.category for pair in pairs})
        if missing:
            known = ", ".join(sorted({pair.category for pair in pairs}))
            raise ValueError(f"no pair is of category {', '.join(missing)}; the categories are: {known}")
        pairs = [pair for pair in pairs if pair.category in config.categories]
    for path in {path for pair in pairs for path in (pair.source, pair.target)}:
        if not path.is_file():
            raise ValueError(f"there is no image {path}, which a pair names; add it or check the download")
    pairs.sort(key=lambda pair: (pair.category, pair.name))
    drawn = pairs if config.pairs_per_category is None else _drawn(pairs, config.pairs_per_category)
    return list(limited(drawn, config.limit))


def _drawn(pairs: list[Pair], count: int) -> list[Pair]:
    """Return at most `count` pairs of each category, drawn at random but the same in each run, in their order."""
    ranks, seen = np.random.default_rng(0).permutation(len(pairs)), Counter[str]()
    chosen = []
    for i in np.argsort(ranks):
        seen[pairs[i].category] += 1
        if seen[pairs[i].category] <= count:
            chosen.append(int(i))
    return [pairs[i] for i in sorted(chosen)]


def _names(root: Path, config: CorrespondenceConfig) -> list[tuple[str, str]]:
    """Return the names of the pairs, each behind the line that it stands in."""
    sizes = [config.layout] if config.layout else ["large", "small"]
    candidates = [root / "Layout" / size / f"{config.split}.txt" for size in sizes]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        missing = " or ".join(str(path.relative_to(root)) for path in candidates)
        raise ValueError(f"no SPair-71k at {root}: it has no {missing}; give the folder that holds Layout/")
    lines = {line: f"line {number} of {path}" for number, line in reversed(numbered_lines(path))}
    if not lines:
        raise ValueError(f"{path} is empty; it should name one pair per line")
    return [(where, name) for name, where in reversed(lines.items())]


def _read_pair(root: Path, path: Path) -> Pair:
    values = read_json(path, "the layout names it; check the download")
    try:
        category, *names = (values[name] for name in ("category", "src_imname", "trg_imname"))
        points = [np.array(values[name], np.float64).reshape(-1, 2) for name in ("src_kps", "trg_kps")]
        boxes = [np.array(values[name], np.float64).reshape(4) for name in ("src_bndbox", "trg_bndbox")]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{path} cannot be read as a pair of SPair-71k; download it again") from None
    images = path_below(root / "JPEGImages", category, path, nested=False)
    source, target = (path_below(images, name, path, nested=False) for name in names)
    viewpoint = values.get("viewpoint_variation")
    if viewpoint is not None and viewpoint not in (0, 1, 2):
        raise ValueError(f"{path} has the viewpoint_variation {viewpoint!r}; SPair-71k has 0, 1 and 2")
    pair = Pair(path.stem, category, source, target, points[0], points[1], boxes[0], boxes[1], viewpoint)
    counts = len(pair.source_points), len(pair.target_points)
    if counts[0] != counts[1]:
        raise ValueError(f"{path} has {counts[0]} keypoints in the source and {counts[1]} in the target; pair them")
    if not counts[0]:
        raise ValueError(f"{path} has no keypoints; leave the pair out of the layout")
    if not (np.abs(np.concatenate([pair.source_points, pair.target_points])) <= MAX_COORDINATE).all():
        raise ValueError(f"{path} has a keypoint that is not a number; leave it out on both sides")
    if not (np.abs(np.concatenate(boxes)) <= MAX_COORDINATE).all():
        raise ValueError(f"{path} has a box that is not of numbers; download it again")
    if not (pair.target_box[2:] - pair.target_box[:2]).max() > 0:
        raise ValueError(f"the target box of {path} is empty; PCK is measured by its longer side")
    return pair
