"""Folders and files of SPair-71k (Min et al., arXiv 1908.10543).

::

    Layout/<large or small>/<split>.txt      one pair per line: 000001-2007_000032-2007_001373:aeroplane
    PairAnnotation/<split>/<pair>.json       its images, keypoints and boxes
    JPEGImages/<category>/<image>.jpg
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.core.text_files import read_lines
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


def open_pairs(data: str | Path, config: CorrespondenceConfig) -> list[Pair]:
    """Return the pairs of the split, layout and categories in `config`, sorted by category.

    Raises:
        ValueError: a file is missing or invalid, a pair has no keypoints, or a category has no pair.
    """
    root = Path(data).expanduser()
    folder = root / "PairAnnotation" / config.split
    pairs = [_read_pair(root, folder / f"{name}.json") for name in _names(root, config)]
    if config.categories is not None:
        missing = sorted(set(config.categories) - {pair.category for pair in pairs})
        if missing:
            known = ", ".join(sorted({pair.category for pair in pairs}))
            raise ValueError(f"no pair is of category {', '.join(missing)}; the categories are: {known}")
        pairs = [pair for pair in pairs if pair.category in config.categories]
    for path in {path for pair in pairs for path in (pair.source, pair.target)}:
        if not path.is_file():
            raise ValueError(f"there is no image {path}, which a pair names; add it or check the download")
    return sorted(pairs, key=lambda pair: (pair.category, pair.name))


def _names(root: Path, config: CorrespondenceConfig) -> list[str]:
    sizes = [config.layout] if config.layout else ["large", "small"]
    candidates = [root / "Layout" / size / f"{config.split}.txt" for size in sizes]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        missing = " or ".join(str(path.relative_to(root)) for path in candidates)
        raise ValueError(f"no SPair-71k at {root}: it has no {missing}; give the folder that holds Layout/")
    names = list(dict.fromkeys(word for line in read_lines(path) for word in line.split()))
    if not names:
        raise ValueError(f"{path} is empty; it should name one pair per line")
    return names


def _read_pair(root: Path, path: Path) -> Pair:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        images = root / "JPEGImages" / values["category"]
        pair = Pair(
            path.stem,
            values["category"],
            images / values["src_imname"],
            images / values["trg_imname"],
            *(np.array(values[name], np.float64).reshape(-1, 2) for name in ("src_kps", "trg_kps")),
            *(np.array(values[name], np.float64).reshape(4) for name in ("src_bndbox", "trg_bndbox")),
        )
    except FileNotFoundError:
        raise ValueError(f"there is no annotation {path}, which the layout names; check the download") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} cannot be read as a pair of SPair-71k; download it again") from None
    counts = len(pair.source_points), len(pair.target_points)
    if counts[0] != counts[1]:
        raise ValueError(f"{path} has {counts[0]} keypoints in the source and {counts[1]} in the target; pair them")
    if not counts[0]:
        raise ValueError(f"{path} has no keypoints; leave the pair out of the layout")
    if not np.isfinite(np.concatenate([pair.source_points, pair.target_points])).all():
        raise ValueError(f"{path} has a keypoint that is not a number; leave it out on both sides")
    if not (pair.target_box[2:] - pair.target_box[:2]).max() > 0:
        raise ValueError(f"the target box of {path} is empty; PCK is measured by its longer side")
    return pair
