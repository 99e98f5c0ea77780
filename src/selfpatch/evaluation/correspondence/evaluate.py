"""PCK of keypoints transferred by nearest patch features (SPair-71k, arXiv 1908.10543)."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfpatch.core.distributed import gather
from selfpatch.core.types import Encoder
from selfpatch.data.decode.pillow import Picture, read_picture
from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.correspondence.config import CorrespondenceConfig, Places, Sampling
from selfpatch.evaluation.correspondence.dataset import Pair, open_pairs
from selfpatch.evaluation.correspondence.feature_maps import DenseEncoder, FeatureMap, network_size
from selfpatch.evaluation.correspondence.metrics import (
    ScoredPair,
    category_rows,
    means_by_viewpoint,
    means_over_all,
    means_over_categories,
    pair_pck,
    points_by_position,
    table_rows,
    within_threshold,
)
from selfpatch.evaluation.correspondence.visualize import draw_matches
from selfpatch.evaluation.degenerate import check_patches
from selfpatch.evaluation.pictures import numbered, save_picture
from selfpatch.evaluation.result import NO_OUTPUT, Output, Result
from selfpatch.evaluation.sharding import share_of
from selfpatch.evaluation.workload import Workload

BASELINE = "baseline:position"
MAX_FEATURE_VALUES = 2**29
"""Number of feature values that are kept in memory: 2 GB."""


def transfer_keypoints(
    source: FeatureMap, target: FeatureMap, points: Tensor, sampling: Sampling, places: Places
) -> Tensor:
    """Return the keypoints of the source in the target, float64 [K, 2] in its pixels, on the CPU.

    ::

        for each keypoint:
            f = the source's feature at the keypoint
            match = the centre of the target's patch, or the pixel, whose feature has the largest cosine with f

    Keypoints [K, 2] (x, y) are given in pixels of the source; `CorrespondenceConfig` explains `sampling` and `places`.
    """
    features = source.at(points, sampling)  # [K, D]
    cosines = target.pixel_cosines(features) if places == "pixels" else target.cosines(features)
    best, width = cosines.flatten(1).argmax(1).cpu(), cosines.shape[2]
    found = torch.stack([best % width, best // width], dim=1).double()
    return found if places == "pixels" else target.points(found)


class _FeatureCache:
    """Features of the most recently used images.

    Pairs of a category follow one another, so that each image is encoded once, or a few times if features are large.
    """

    def __init__(self, encode: DenseEncoder, channels: int) -> None:
        self._encode, self._channels = encode, channels
        self._maps: OrderedDict[Path, FeatureMap] = OrderedDict()

    def picture(self, path: Path) -> Picture:
        return read_picture(path, self._channels)

    def __getitem__(self, path: Path) -> FeatureMap:
        if path not in self._maps:
            self._maps[path] = self._encode(self.picture(path))
        self._maps.move_to_end(path)
        while len(self._maps) > 2 and sum(m.features.numel() for m in self._maps.values()) > MAX_FEATURE_VALUES:
            self._maps.popitem(last=False)
        return self._maps[path]


def _workload(encode: DenseEncoder, pairs: list[Pair], config: CorrespondenceConfig, facts: dict[str, Any]) -> Workload:
    """Return the workload of encoding each image once; images are taken as 4:3 if they keep their shape."""
    encoder, images = encode.encoder, {path for pair in pairs for path in (pair.source, pair.target)}
    width, height = network_size((4, 3), config, encoder.patch_size)
    note = f"Images are taken as {width} x {height} pixels; matching is not in the estimate."
    settings = config.recorded() | encoder.recorded() | {"stride": config.stride or encoder.patch_size} | facts
    sizes = {"pairs": len(pairs), "images": len(images)}
    shape = (1, len(encoder.mean), height, width)
    return Workload(settings, sizes, encode.features, shape, encoded=len(images), notes=(note,))


def evaluate(encoder: Encoder, data: str | Path, config: CorrespondenceConfig, output: Output = NO_OUTPUT) -> Result:
    """Measure the PCK of keypoints that are transferred to the nearest patch feature, averaged over categories.

    PCK per image is the mean over pairs of the pair's share of correct keypoints; PCK per point is the share of all
    keypoints. Papers quote either. PCK of all pairs and of all points do not average over categories first.
    `baseline:position` keeps the relative position in the box.

    `registry.Evaluate` explains the arguments.

    Returns:
        The result, with a row for each category and alpha; `position, per point` is the baseline's.

    Raises:
        ValueError: the encoder has no such layer or stride, or the data cannot be used.
    """
    encode = DenseEncoder(encoder, config)
    pairs = open_pairs(data, config)
    output.announce(_workload(encode, pairs, config, {"data": str(data), "pairs": len(pairs)}))
    cache = _FeatureCache(encode, len(encoder.mean))
    drawn = set(evenly_spread(np.arange(len(pairs)), config.max_pictures).tolist())
    scored, baseline, pictures = list[ScoredPair](), list[ScoredPair](), list[str]()
    share = share_of(len(pairs))
    for done, number in enumerate(share, start=1):
        pair = pairs[number]
        source, target = cache[pair.source], cache[pair.target]
        check_patches(target.features, pair.name)
        points = torch.from_numpy(pair.source_points)
        found = transfer_keypoints(source, target, points, config.sampling, config.places).numpy()
        box = pair.target_box
        size = box[2:] - box[:2] if config.threshold == "box" else target.original
        correct = within_threshold(found, pair.target_points, size, config.alphas)
        scored.append(ScoredPair(pair, correct))
        by_position = within_threshold(points_by_position(pair), pair.target_points, size, config.alphas)
        baseline.append(ScoredPair(pair, by_position))
        if output.folder is not None and number in drawn:
            images = cache.picture(pair.source), cache.picture(pair.target)
            picture = draw_matches(*images, pair, found, correct[len(correct) // 2])
            pictures.append(save_picture(output.folder, numbered(number, pair.name), picture))
        output.progress(pair.category, done, len(share))
    scored, baseline, pictures = gather(scored), gather(baseline), gather(pictures)
    rows, baseline_rows = (category_rows(some, config.alphas) for some in (scored, baseline))
    metrics = means_over_categories(rows) | means_over_all(scored, config.alphas)
    metrics |= means_by_viewpoint(scored, config.alphas)
    metrics |= {f"{BASELINE} {name}": value for name, value in means_over_categories(baseline_rows).items()}
    table = table_rows(rows, baseline_rows, config.alphas)
    per_image = {one.pair.name: pair_pck(one, config.alphas) for one in scored}
    layer = encode.encoder
    settings = config.recorded() | layer.recorded() | {
        "stride": config.stride or layer.patch_size, "patch_size": encoder.patch_size,
        "data": str(data), "pairs": len(pairs), "categories": [row["category"] for row in rows],
    }  # fmt: skip
    del settings["depth"]  # stands for a block
    return Result("correspond", metrics, table, settings, pictures=pictures, per_image=per_image)
