"""Image retrieval on revisited Oxford and Paris (arXiv 1803.11285), as in DINO's released code."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.distributed import gather, gather_rows
from selfpatch.core.types import Encoder
from selfpatch.data.augment.pillow import to_tensor
from selfpatch.data.decode.pillow import read_image
from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.degenerate import check_images
from selfpatch.evaluation.encoders import in_precision, require_rgb
from selfpatch.evaluation.feature_cache import cached
from selfpatch.evaluation.pictures import numbered, save_picture
from selfpatch.evaluation.result import NO_OUTPUT, Cell, Output, Result
from selfpatch.evaluation.retrieval.config import RetrievalConfig
from selfpatch.evaluation.retrieval.dataset import Box, Query, RetrievalSet, open_retrieval
from selfpatch.evaluation.retrieval.metrics import mean_scores, rank_database, ranked_marks, score_levels
from selfpatch.evaluation.retrieval.visualize import draw_ranking
from selfpatch.evaluation.sharding import share_of
from selfpatch.evaluation.workload import Workload
from selfpatch.models.finite_features import checked_features
from selfpatch.ops.images import normalise

SCALES = (1.0, 2**-0.5, 0.5)
"""Scales of `multiscale`."""
DRAWN = 5
"""Number of ranked images in a picture."""


def evaluate(encoder: Encoder, data: str | Path, config: RetrievalConfig, output: Output = NO_OUTPUT) -> Result:
    """Measure mAP and mP@k of database images ranked by the cosine of image features.

    ::

        feature(image) = image feature of the resized image
        for each query, for each level:
            AP of the database ranked by cosine(feature(query), feature(image))

    Queries without positives at a level are left out of its means. `registry.Evaluate` explains the arguments.

    Returns:
        The result, with a row for each level.

    Raises:
        ValueError: the encoder is not one of RGB images, or the data cannot be used.
    """
    require_rgb(encoder, "retrieval")
    images = open_retrieval(data).limited(config.limit)
    if config.crop_queries and any(query.box is None for query in images.queries):
        raise ValueError(f"{data} has queries without bbx; give --no-crop-queries, or add their boxes to gnd")
    settings = config.recorded() | {"data": str(data), "images": len(images.database), "queries": len(images.queries)}
    encoder = in_precision(encoder, config.precision)
    output.announce(_workload(encoder, images, config, settings))
    database = _features(encoder, images.database, [None] * len(images.database), config, "database", output)
    boxes = [query.box if config.crop_queries else None for query in images.queries]
    queries = _features(encoder, [query.image for query in images.queries], boxes, config, "queries", output)
    check_images(database)
    rankings = rank_database(queries, database)
    scores = score_levels(rankings, images.queries, config.ks)
    metrics: dict[str, float] = {}
    rows: list[dict[str, Cell]] = []
    notes: list[str] = []
    for level, of_queries in scores.items():
        mean = mean_scores(of_queries)
        if mean is None:
            notes.append(f"No query has a positive at level {level}.")
            continue
        values = {"mAP": mean.average_precision} | dict(
            zip((f"mP@{k}" for k in config.ks), mean.precisions, strict=True)
        )
        rows.append({"level": level, "queries": sum(score is not None for score in of_queries), **values})
        metrics |= {f"{name} {level}": value for name, value in values.items()}
    if not rows:
        raise ValueError(f"no query of {data} has an easy or a hard image; check gnd")
    per_image = {
        query.name: {f"AP {level}": score.average_precision for level in scores if (score := scores[level][i])}
        for i, query in enumerate(images.queries)
    }
    pictures = _pictures(images, rankings, config, output)
    return Result("retrieval", metrics, rows, settings, pictures=pictures, per_image=per_image, notes=notes)


def _workload(encoder: Encoder, images: RetrievalSet, config: RetrievalConfig, settings: dict[str, object]) -> Workload:
    """Return the workload of encoding each image once; images are taken as 4:3."""
    patch = encoder.patch_size
    height, width = (max(1, side // patch) * patch for side in (config.resolution * 3 // 4, config.resolution))
    note = f"Images are taken as {width} x {height} pixels" + (", at one of three scales." * config.multiscale or ".")
    sizes = {"database images": len(images.database), "queries": len(images.queries)}
    return Workload(settings, sizes, encoder.image, (1, 3, height, width), encoded=sum(sizes.values()), notes=(note,))


def _features(
    encoder: Encoder,
    files: Sequence[Path],
    boxes: Sequence[Box | None],
    config: RetrievalConfig,
    what: str,
    output: Output,
) -> Tensor:
    """Return the image features [n, D] of files, each cropped to its box if there is one; processes share them."""
    share = share_of(len(files))
    features = []
    for done, i in enumerate(share, start=1):
        features.append(image_feature(encoder, _open(files[i], boxes[i]), config).cpu()[None])
        output.progress(what, done, len(share))
    return gather_rows(features)


def _open(path: Path, box: Box | None) -> Image.Image:
    """Read an image, cropped to a box; the box is rounded as Pillow does."""
    image = read_image(path)
    return image if box is None else image.crop(box)


@torch.no_grad()
def image_feature(encoder: Encoder, image: Image.Image, config: RetrievalConfig) -> Tensor:
    """Return the feature [D] of an RGB image: resized to the long side, normalised, trimmed to whole patches.

    With `multiscale`, it is the mean over `SCALES`, to which the pixels are resized bilinearly without antialiasing.
    """
    image = image.copy()
    image.thumbnail((config.resolution, config.resolution), Image.Resampling[config.resampling.upper()])
    pixels = normalise(to_tensor(image)[None].to(encoder.device), encoder.mean, encoder.std)
    features = []
    for scale in SCALES if config.multiscale else SCALES[:1]:
        scaled = pixels if scale == 1 else F.interpolate(pixels, scale_factor=scale, mode="bilinear")
        whole = trimmed(scaled, encoder.patch_size, centre=config.trim == "centre")
        features.append(cached(encoder, whole, "image feature", partial(_encoded, encoder, whole)))
    return torch.stack(features).mean(0)


def _encoded(encoder: Encoder, image: Tensor) -> Tensor:
    return checked_features(encoder.image(image), image)[0].float()


def trimmed(pixels: Tensor, patch: int, *, centre: bool) -> Tensor:
    """Return the largest part [B, C, H', W'] of whole patches of images [B, C, H, W].

    A side shorter than a patch is enlarged to one patch (bilinear).
    """
    height, width = pixels.shape[-2:]
    if min(height, width) < patch:
        pixels = F.interpolate(pixels, (max(height, patch), max(width, patch)), mode="bilinear")
        height, width = pixels.shape[-2:]
    rows, columns = height // patch * patch, width // patch * patch
    top, left = ((height - rows) // 2, (width - columns) // 2) if centre else (0, 0)
    return pixels[..., top : top + rows, left : left + columns]


def _pictures(images: RetrievalSet, rankings: Tensor, config: RetrievalConfig, output: Output) -> list[str]:
    """Draw some queries with the images ranked first, and return the pictures' paths; processes share them."""
    folder = output.folder
    if folder is None:
        return []
    drawn = evenly_spread(np.arange(len(images.queries)), config.max_pictures)
    paths = []
    for number in share_of(len(drawn)):
        i = int(drawn[number])
        query: Query = images.queries[i]
        marks = ranked_marks(rankings[i].cpu(), query, DRAWN)
        ranked = [(read_image(images.database[image]), positive) for image, positive in marks]
        shown = _open(query.image, query.box if config.crop_queries else None)
        paths.append(save_picture(folder, numbered(i, query.name), draw_ranking(shown, ranked)))
    return gather(paths)
