"""Replay of iBOT's masks as statistics: shares, shapes and positions of what is hidden."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from scipy.ndimage import label

from selfpatch.config.sections import MaskConfig
from selfpatch.data.augment import masks
from selfpatch.data.augment.multicrop import generator
from tests.parity.check import Check
from tests.parity.sampling import compare_draws, compare_mean, compare_share

KINDS = {"block": "block", "rand": "random"}
PLACED = "placed blocks"


def replay_masks(bundle: Path) -> Iterator[Check]:
    """Draw as many masks as were recorded under each of the settings."""
    for name, expected in json.loads((bundle / "ibot_masks.json").read_text()).items():
        if name.startswith(PLACED):
            yield from _drawn_blocks(name, expected)
        else:
            grid, config = _settings(name)
            yield from _statistics(name, _draw(config, grid, expected["draws"]), expected)


def _settings(name: str) -> tuple[int, MaskConfig]:
    """Return the grid and our settings of `grid 14, pred_ratio [0, 0.3], pred_ratio_var [0, 0.2], pred_shape block`.

    A ratio is drawn from the list, then from ratio - var to ratio + var; 0 leaves the image unmasked.
    """
    found = re.fullmatch(r"grid (\d+), pred_ratio (.+), pred_ratio_var (.+), pred_shape (\w+)", name)
    assert found is not None
    ratios, variations = (np.atleast_1d(json.loads(found[part])) for part in (2, 3))
    masked = ratios > 0
    assert masked.sum() == 1, "one ratio above 0"
    ratio, variation = float(ratios[masked][0]), float(variations[masked][0])
    config = MaskConfig(
        kind=KINDS[found[4]],
        ratio=(round(ratio - variation, 9), round(ratio + variation, 9)),
        share_unmasked=float((~masked).mean()),
    )
    return int(found[1]), config


def _draw(config: MaskConfig, grid: int, count: int) -> np.ndarray:
    return np.stack([masks.draw_mask(config, (grid, grid), generator(0, 0, i, 0)) for i in range(count)])


def _statistics(name: str, drawn: np.ndarray, expected: dict[str, Any]) -> Iterator[Check]:
    share, grid = drawn.mean((1, 2)), drawn.shape[1]
    masked = drawn[share > 0]
    yield compare_share(f"{name}: unmasked", share == 0, expected["share_unmasked"], expected["draws"])
    across, down = masked[:, :, 1:] != masked[:, :, :-1], masked[:, 1:] != masked[:, :-1]
    quantities = {
        "masked_share_of_all": share,
        "masked_share_of_masked_images": share[share > 0],
        "boundary_length_of_masked_images": across.sum((1, 2)) + down.sum((1, 2)),
        "masked_rows_of_masked_images": masked.any(2).sum(1),
        "masked_columns_of_masked_images": masked.any(1).sum(1),
    }
    for quantity, values in quantities.items():
        yield from compare_draws(f"{name}: {quantity}", values, expected[quantity])
    components, recorded = expected["connected_components"], expected["draws"]
    counts = np.array([label(mask)[1] for mask in masked[: components["n"]]])
    yield compare_mean(f"{name}: connected components", counts, components["mean"], components["n"])
    for number, count in components["counts"].items():
        share_of = count / components["n"]
        yield compare_share(f"{name}: {number} components", counts == int(number), share_of, components["n"])
    ends, middle = [0, -1], grid // 2
    positions = {
        "corner": drawn[:, ends][:, :, ends].reshape(len(drawn), -1),
        "edge_middle": np.concatenate([drawn[:, ends, middle], drawn[:, middle, ends]], axis=1),
        "centre": drawn[:, middle - 1 : middle + 1, middle - 1 : middle + 1].reshape(len(drawn), -1),
    }
    for position, values in positions.items():
        wanted = expected["share_masked_at"][position]
        yield compare_mean(f"{name}: masked at {position}", values.mean(1), wanted, recorded)


def _drawn_blocks(name: str, expected: dict[str, Any]) -> Iterator[Check]:
    """Compare the sizes of all blocks that fit the grid, whether kept or not."""
    found = re.search(r"of (\d+) images at grid (\d+)", name)
    assert found is not None
    images, grid = int(found[1]), int(found[2])
    blocks: list[list[tuple[int, int]]] = []  # height and width of the blocks of each image
    draw = masks._draw_block

    def recorded(*arguments: Any) -> Any:
        if block := draw(*arguments):
            blocks[-1].append(tuple(side.stop - side.start for side in block))
        return block

    with patch.object(masks, "_draw_block", recorded):
        for image in range(images):
            blocks.append([])
            masks.draw_mask(MaskConfig(), (grid, grid), generator(0, 0, image, 0))
    heights, widths = np.array([size for sizes in blocks for size in sizes]).T
    for quantity, values in (("height", heights), ("width", widths), ("area", heights * widths)):
        yield from compare_draws(f"{name}: {quantity}", values, expected[quantity])
    counts = np.array([len(sizes) for sizes in blocks])
    yield compare_mean(f"{name}: per image", counts, expected["per_image"], images)
