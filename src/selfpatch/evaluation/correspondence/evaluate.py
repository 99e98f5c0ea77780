"""Keypoints carried by the nearest patch features, and how many of them arrive (SPair-71k, arXiv 1908.10543)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.data.decode.pillow import Picture, read_picture
from selfpatch.evaluation.correspondence.config import PRESETS, Facet, Matching
from selfpatch.evaluation.correspondence.dataset import Layout, Pair, open_pairs
from selfpatch.evaluation.correspondence.feature_maps import DenseEncoder, FeatureMap
from selfpatch.evaluation.correspondence.metrics import (
    Scored,
    Threshold,
    box_size,
    by_position,
    category_rows,
    correct,
    means_over_categories,
    pair_shares,
    table_rows,
)
from selfpatch.evaluation.correspondence.visualize import draw_matches
from selfpatch.evaluation.presets import resolve_preset
from selfpatch.evaluation.result import Progress, Provenance, Result

FLOOR = "baseline:position"
MAX_FEATURE_VALUES = 2**29
"""Of the images whose features are kept: 2 GB."""


def carry(
    source: FeatureMap,
    target: FeatureMap,
    points: Tensor,
    sampling: Literal["bilinear", "nearest"],
    places: Literal["patches", "pixels"] = "patches",
) -> Tensor:
    """Keypoints of the source in the target::

        for each keypoint:
            f = the source's feature there
            the centre of the target's patch, or its pixel, whose feature has the largest cosine with f

    Args:
        source, target: of one encoder.
        points: [K, 2] (x, y) in pixels of the source.
        sampling: see `FeatureMap.at`.
        places: see `presets.Matching`.

    Returns:
        [K, 2] float64 in pixels of the target, on the CPU.
    """
    features = source.at(points, sampling)  # [K, D]
    cosines = target.pixel_cosines(features) if places == "pixels" else target.cosines(features)
    best, width = cosines.flatten(1).argmax(1).cpu(), cosines.shape[2]
    found = torch.stack([best % width, best // width], dim=1).double()
    return found if places == "pixels" else target.points(found)


class _FeatureStore:
    """Images and their features, of which those not asked for longest go first. Pairs of a category come side by side,
    so that each image is encoded once, or few times where its features are large."""

    def __init__(self, encode: DenseEncoder, channels: int) -> None:
        self._encode = encode
        self._channels = channels
        self._kept: OrderedDict[Path, FeatureMap] = OrderedDict()

    def picture(self, path: Path) -> Picture:
        return read_picture(path, self._channels)

    def __getitem__(self, path: Path) -> FeatureMap:
        if path not in self._kept:
            self._kept[path] = self._encode(self.picture(path))
        self._kept.move_to_end(path)
        while len(self._kept) > 2 and sum(m.features.numel() for m in self._kept.values()) > MAX_FEATURE_VALUES:
            self._kept.popitem(last=False)
        return self._kept[path]


def evaluate(
    encoder: Encoder,
    data: str | Path,
    *,
    out: str | Path | None = None,
    preset: str = "patch",
    facet: Facet | None = None,
    block: int | None = None,
    stride: int | None = None,
    resolution: int | None = None,
    shape: Literal["square", "keep"] | None = None,
    sampling: Literal["bilinear", "nearest"] | None = None,
    places: Literal["patches", "pixels"] | None = None,
    alphas: Sequence[float] = (0.05, 0.1, 0.15),
    threshold: Threshold = "box",
    split: str = "test",
    layout: Layout | None = None,
    categories: Sequence[str] | None = None,
    max_pictures: int = 8,
    weights: Provenance | None = None,
    progress: Progress | None = None,
) -> Result:
    """PCK of keypoints that are carried to the nearest patch feature, averaged over categories.

    Per image, the mean over pairs of the pair's share of right keypoints, and per point, the share of all keypoints,
    are stated apart: papers quote either. The floor `baseline:position` carries a keypoint to the same place within the
    box.

    Args:
        encoder: the network.
        data: folder as SPair-71k's, see `layout`.
        out: folder for pictures/ and result.json; None writes nothing.
        preset: a name of `presets.PRESETS`, which gives the settings that are None.
        facet, block, stride, resolution, shape, sampling, places: see `presets.Matching`.
        alphas: shares of the longer side within which a keypoint is right; 0.1 is quoted.
        threshold: the longer side of the target's `box` or of its `image`.
        split, layout, categories: see `open_pairs`.
        max_pictures: pairs that are drawn, evenly spread; green at the middle one of the alphas.
        weights: what the encoder was made of, for the record.
        progress: called with the category and the pairs done, of all pairs.

    Returns:
        A row for each category and alpha; `position, per point` is the floor's.

    Raises:
        ValueError: an unknown preset or word, a block or stride that the encoder has not, or data that are not as they
            should be.
    """
    matching = resolve_preset(
        PRESETS, preset, facet=facet, block=block, stride=stride, resolution=resolution, shape=shape,
        sampling=sampling, places=places,
    )  # fmt: skip
    _check_scores(alphas, threshold)
    encode = DenseEncoder(encoder, matching)
    pairs = open_pairs(data, split=split, layout=layout, categories=categories)
    store = _FeatureStore(encode, len(encoder.mean))
    drawn = set(np.linspace(0, len(pairs) - 1, min(max_pictures, len(pairs))).round().astype(int).tolist())
    scored, floor, pictures = list[Scored](), list[Scored](), list[str]()
    for number, pair in enumerate(pairs):
        source, target = store[pair.source], store[pair.target]
        points = torch.from_numpy(pair.source_points)
        found = carry(source, target, points, matching.sampling, matching.places).numpy()
        size = box_size(pair.target_box) if threshold == "box" else target.original
        scored.append(Scored(pair, correct(found, pair.target_points, size, alphas)))
        floor.append(Scored(pair, correct(by_position(pair), pair.target_points, size, alphas)))
        if out is not None and number in drawn:
            pictures.append(_draw(Path(out), store, scored[-1], found))
        if progress is not None:
            progress(pair.category, number + 1, len(pairs))
    rows = category_rows(scored, alphas)
    floors = category_rows(floor, alphas)
    metrics = means_over_categories(rows)
    metrics |= {f"{FLOOR} {name}": value for name, value in means_over_categories(floors).items()}
    table = table_rows(rows, floors, alphas)
    per_image = {one.pair.name: pair_shares(one, alphas) for one in scored}
    settings = {
        "preset": preset, **_resolved(matching, encode), "alphas": list(alphas), "threshold": threshold,
        "split": split, "layout": layout, "patch_size": encoder.patch_size, "data": str(data), "pairs": len(pairs),
        "categories": [row["category"] for row in rows],
    }  # fmt: skip
    result = Result("correspond", metrics, table, settings, weights, pictures=pictures, per_image=per_image)
    if out is not None:
        result.save(Path(out) / "result.json")
    return result


def _check_scores(alphas: Sequence[float], threshold: str) -> None:
    if not alphas or any(not alpha > 0 for alpha in alphas) or len(set(alphas)) < len(alphas):
        raise ValueError(f"alphas are {list(alphas)}; use shares above 0, each once, e.g. 0.05 0.1 0.15")
    if threshold not in ("box", "image"):
        raise ValueError(f"threshold is {threshold!r}; use box or image")


def _resolved(matching: Matching, encode: DenseEncoder) -> dict[str, object]:
    """The settings of the features as they were used, without `depth`, which stands for a block."""
    values = asdict(matching) | {"block": encode.block, "stride": matching.stride or encode.encoder.patch_size}
    del values["depth"]
    return values


def _draw(out: Path, store: _FeatureStore, scored: Scored, found: np.ndarray) -> str:
    """Its path, relative to `out`."""
    pair: Pair = scored.pair
    relative = f"pictures/{pair.name.replace(':', '_')}.jpg"
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    images = store.picture(pair.source), store.picture(pair.target)
    draw_matches(*images, pair, found, scored.right[len(scored.right) // 2]).save(out / relative, quality=90)
    return relative
