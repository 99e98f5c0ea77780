"""View matching: the share of patches whose nearest neighbour in another view of the image lies where it should."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.config.schema import Size, height_and_width, size_text
from selfpatch.core.distributed import gather
from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.data.images import NoneReadable, evenly_spread
from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.degenerate import check_patches
from selfpatch.evaluation.encoders import dense_encoder
from selfpatch.evaluation.pictures import numbered, save_picture
from selfpatch.evaluation.result import NO_OUTPUT, Cell, Output, Result, unreadable_note
from selfpatch.evaluation.sharding import share_of
from selfpatch.evaluation.view_matching.config import ViewMatchingConfig
from selfpatch.evaluation.view_matching.dataset import ViewPairs, load_pairs, view_recipes
from selfpatch.evaluation.view_matching.metrics import (
    MatchCounts,
    PatchMatches,
    count_matches,
    match_patches,
    total_counts,
)
from selfpatch.evaluation.view_matching.visualize import draw_matches
from selfpatch.evaluation.workload import Workload
from selfpatch.models.features import patch_features

BASELINE = "baseline:chance"


def match_views(encoder: Encoder, pairs: ViewPairs, names: Sequence[str] = ()) -> PatchMatches:
    """Encode both views of each pair at once, and match their patches; `names` of the images stand in warnings."""
    features_a, features_b = (patch_features(encoder, views) for views in (pairs.views_a, pairs.views_b))
    for features, name in zip(features_b, names, strict=False):
        check_patches(features, name)
    return match_patches(features_a, features_b, pairs.boxes_a, pairs.boxes_b)


def view_matching(encoder: Encoder, pairs: ViewPairs, *, batch: int = 32) -> float:
    """Return the share of correct matches among the patches that count; `batch` pairs are encoded at once.

    Raises:
        ValueError: no patch of any first view lies in its second view.
    """
    counts = [count for part in pairs.split(batch) for count in count_matches(match_views(encoder, part))]
    total = total_counts(counts)
    return total.correct / total.inside


def evaluate(encoder: Encoder, data: str | Path, config: ViewMatchingConfig, output: Output = NO_OUTPUT) -> Result:
    """Measure the share of patches that are found in another view of the same image.

    ::

        for each image:
            two views, cropped, flipped and coloured differently
            for each patch of the first view whose true position lies in the second:
                correct = its nearest neighbour in the second view is at most one patch from there

    All patches count the same; `per_image` holds the share of each image. Unreadable images are left out. The baseline
    `baseline:chance` matches at random. `registry.Evaluate` explains the arguments.

    Raises:
        ValueError: the patch size does not divide the resolution, no image can be read, or no two views overlap.
    """
    _check_resolution(config.resolution, encoder.patch_size)
    index = ImageIndex.open(data)
    index.require_files()
    chosen = evenly_spread(np.arange(len(index)), config.limit or len(index))
    channels, encoder = len(encoder.mean), dense_encoder(encoder, config)
    settings = config.recorded() | {"data": str(data), "patch_size": encoder.patch_size}
    shape = (config.encode_batch, channels, *height_and_width(config.resolution))
    note = "Matching is not in the estimate."
    output.announce(
        Workload(settings, {"images": len(chosen)}, encoder.patches, shape, encoded=2 * len(chosen), notes=(note,))
    )
    recipes, drawn = view_recipes(config), {*evenly_spread(np.arange(len(chosen)), config.max_pictures).tolist()}
    batches = np.split(np.arange(len(chosen)), range(config.encode_batch, len(chosen), config.encode_batch))
    mine = [batches[number] for number in share_of(len(batches))]
    counts_of, pictures, errors = list[tuple[int, MatchCounts]](), list[str](), list[str]()
    for batch in mine:
        try:
            read, pairs = load_pairs(
                index, chosen[batch], recipes, seed=config.seed, channels=channels, first=int(batch[0])
            )
        except NoneReadable as error:
            errors.append(str(error.example))
        else:
            names = [index.name(int(i)) for i in chosen[batch[read]]]
            matches = match_views(encoder, pairs, names)
            counts_of += zip(batch[read].tolist(), count_matches(matches), strict=True)
            for i, image in enumerate(batch[read].tolist()):
                if output.folder is not None and image in drawn:
                    picture = draw_matches(pairs, matches, i, encoder.patch_size)
                    pictures.append(save_picture(output.folder, numbered(image, names[i]), picture))
        output.progress("images", int(batch[-1] - mine[0][0]) + 1, int(mine[-1][-1] - mine[0][0]) + 1)
    counts_of, pictures, errors = gather(counts_of), gather(pictures), gather(errors)
    if not counts_of:
        raise NoneReadable(len(chosen), errors[0])
    return _result(index, chosen, dict(counts_of), settings, pictures)


def _result(
    index: ImageIndex, chosen: np.ndarray, counts: dict[int, MatchCounts], settings: dict[str, Any], pictures: list[str]
) -> Result:
    """Return the result, given the counts of each readable image by its position in `chosen`."""
    total = total_counts([*counts.values()])
    names = [index.name(int(i)) for i in chosen]
    missing = [name for i, name in enumerate(names) if i not in counts]
    metrics = {"matched": total.correct / total.inside, BASELINE: total.by_chance / total.inside}
    overlapping = sum(count.inside > 0 for count in counts.values())
    row: dict[str, Cell] = {"images": overlapping, "patches": total.inside, **metrics}
    settings |= {"images": len(counts), "unreadable": len(missing)}
    per_image = {names[i]: {"matched": count.correct / count.inside} for i, count in counts.items() if count.inside}
    notes = unreadable_note(missing)
    if apart := len(counts) - overlapping:
        notes.append(f"not counted: {apart} of {counted(len(counts), 'image')}, whose views share no patch")
    return Result("match", metrics, [row], settings, pictures=pictures, per_image=per_image, notes=notes)


def _check_resolution(resolution: Size, patch_size: int) -> None:
    """Raise ValueError before an image is read if the patch size does not divide the sides of the views."""
    sides = height_and_width(resolution)
    if any(side % patch_size for side in sides):
        height, width = (max(patch_size, round(side / patch_size) * patch_size) for side in sides)
        raise ValueError(
            f"resolution is {size_text(resolution)}, no multiple of the patch size {patch_size}; use e.g. "
            f"{size_text((height, width))}"
        )
