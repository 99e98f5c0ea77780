"""Recall of matches between views of an object by nearest patch features (NAVI as Probe3D, arXiv 2404.08636)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.distributed import gather
from selfpatch.core.types import Encoder
from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.degenerate import check_degenerate, check_patches
from selfpatch.evaluation.encoders import dense_encoder, require_rgb
from selfpatch.evaluation.feature_cache import cached
from selfpatch.evaluation.geometric_correspondence.config import NAVIConfig
from selfpatch.evaluation.geometric_correspondence.dataset import Pair, open_pairs
from selfpatch.evaluation.geometric_correspondence.metrics import (
    Matches,
    ScoredPair,
    angle_rows,
    match_features,
    match_positions,
    matched_points,
    mean_recalls,
    recalls,
)
from selfpatch.evaluation.geometric_correspondence.views import Surface, load_surface
from selfpatch.evaluation.geometric_correspondence.visualize import draw_matches
from selfpatch.evaluation.pictures import numbered, save_picture
from selfpatch.evaluation.result import NO_OUTPUT, Output, Result
from selfpatch.evaluation.sharding import share_of
from selfpatch.evaluation.workload import Workload
from selfpatch.models.layer_encoder import LayerEncoder
from selfpatch.ops.images import normalise

NO_SURFACE = (
    "a view shows no surface, because its depth map is 0 wherever its middle square is, so that the pair is left out; "
    "check the depth maps"
)


class _DensePoints:
    """Encoder of surfaces as features of their points."""

    def __init__(self, encoder: Encoder, config: NAVIConfig) -> None:
        self.layer = LayerEncoder(encoder, **config.layer())
        self.dense = dense_encoder(self.layer, config)

    def patches(self, images: Tensor) -> Tensor:
        """Return patch features of normalised images."""
        return self.dense.patches(images)

    @torch.no_grad()
    def __call__(self, surface: Surface) -> Tensor:
        """Return the features [m, D] of the object's points: patch features interpolated (bicubic) to all points."""
        image = normalise(surface.pixels[None].to(self.layer.device), self.layer.mean, self.layer.std)
        side = len(surface.points)
        patches = cached(self.dense, image, "whole", lambda: self.patches(image)[0].movedim(0, -1).float())  # [h, w, D]
        features = F.interpolate(patches.movedim(-1, 0)[None], (side, side), mode="bicubic")[0].movedim(0, -1)
        return features[surface.mask.to(features.device)]


def evaluate(encoder: Encoder, data: str | Path, config: NAVIConfig, output: Output = NO_OUTPUT) -> Result:
    """Measure the recall of matches between two views of an object within some centimetres.

    ::

        for every n-th view, and another view of the object:
            features of the points of the object in both
            matches = nearest neighbours of the first view's points in the second; the clearest ones are kept
            recall = share of matches whose points lie within 1, 2 or 5 cm of each other in the world

    `recall` is the mean over these distances. `baseline:position` matches points at the same place of both squares.
    `registry.Evaluate` explains the arguments.

    Returns:
        The result, with a row for each range of angles between the views.

    Raises:
        ValueError: the encoder is not one of RGB images or has no such layer, or the data cannot be used.
    """
    require_rgb(encoder, "navi")
    encode = _DensePoints(encoder, config)
    pairs = open_pairs(data, config)
    subjects = len({first.subject for first, _ in pairs})
    settings: dict[str, Any] = config.recorded() | encode.layer.recorded() | {
        "patch_size": encoder.patch_size, "data": str(data), "pairs": len(pairs), "num_objects": subjects,
    }  # fmt: skip
    output.announce(_workload(encode, len(pairs), config, settings))
    drawn = set(evenly_spread(np.arange(len(pairs)), config.max_pictures).tolist())
    scored, pictures = list[ScoredPair](), list[str]()
    share = share_of(len(pairs))
    for done, number in enumerate(share, start=1):
        first, second = pair = pairs[number]
        name = f"{first.subject}/{first.name}-{second.name}"
        loaded = [load_surface(view, config.resolution, encode.layer.patch_size) for view in pair]
        surfaces = [surface for surface in loaded if surface is not None]
        check_degenerate(NO_SURFACE, len(surfaces) < 2, name)
        if len(surfaces) == 2:
            both = surfaces[0], surfaces[1]
            features = [encode(surface) for surface in both]
            check_patches(features[1], name)
            matches = match_features(*features, count=config.num_matches, selection=config.selection)
            by_position = match_positions(*both, count=config.num_matches)
            of_both = (recalls(found, both, pair, config) for found in (matches, by_position))
            scored.append(ScoredPair(name, first.angle_to(second), *of_both))
            if output.folder is not None and number in drawn:
                pictures.append(_draw(output.folder, numbered(number, name), matches, both, pair, config))
        output.progress(first.subject, done, len(share))
    scored, pictures = gather(scored), gather(pictures)
    if not scored:
        raise ValueError(f"no view of {data} shows a surface; check the depth maps")
    per_image = {one.name: one.recalls for one in scored}
    rows = angle_rows(scored, config)
    return Result("navi", mean_recalls(scored), rows, settings, pictures=pictures, per_image=per_image)


def _draw(
    folder: Path, name: str, matches: Matches, surfaces: tuple[Surface, Surface], pair: Pair, config: NAVIConfig
) -> str:
    points = matched_points(matches, surfaces, pair)
    limit = config.centimetres[len(config.centimetres) // 2]
    correct = (100 * (points[2] - points[1]).norm(dim=1) < limit).numpy()
    return save_picture(folder, name, draw_matches(surfaces, points, correct, config.resolution))


def _workload(encode: _DensePoints, num_pairs: int, config: NAVIConfig, settings: dict[str, Any]) -> Workload:
    """Return the workload of encoding both views of each pair."""
    patch = encode.layer.patch_size
    side = max(1, round(config.resolution / patch)) * patch
    note = "Matching is not in the estimate."
    return Workload(settings, {"pairs": num_pairs}, encode.patches, (1, 3, side, side), 2 * num_pairs, notes=(note,))
