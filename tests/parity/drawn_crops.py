"""Replay of multi-crop as statistics: boxes, flips, colours, blur and solarization of each view."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.config.sections import CropConfig
from selfpatch.data.augment.multicrop import ADJUSTMENTS, ViewParameters, dino_views, draw_view, generator
from tests.parity.check import Check
from tests.parity.sampling import compare_draws, compare_share

DRAWS = 20_000
VIEWS = {"global 1": 0, "global 2": 1, "local": 2}


def replay_crops(bundle: Path) -> Iterator[Check]:
    """Draw the views of each method's multi-crop."""
    for method, record in json.loads((bundle / "crops.json").read_text()).items():
        if "views" not in record:  # the rest says which repositories agree bit for bit
            continue
        scales = {f"{kind}_scale": tuple(record["arguments"][f"{kind}_crops_scale"]) for kind in ("global", "local")}
        recipes = dino_views(CropConfig(**scales))
        for view, expected in record["views"].items():
            number, size = VIEWS[view], tuple(record["image"])
            drawn = [draw_view(recipes[number], size, generator(0, 0, i, number)) for i in range(DRAWS)]
            title = f"{method}, {view}"
            yield Check(f"{title}: size", float(recipes[number].size != expected["crop_size"]), 0)
            yield from _boxes(title, drawn, size, expected)
            yield from _pixels(title, drawn, expected)


def _boxes(title: str, drawn: list[ViewParameters], size: tuple[int, int], expected: dict[str, Any]) -> Iterator[Check]:
    left, top, width, height, _ = np.array([view.box for view in drawn]).T
    free_width, free_height = size[0] - width, size[1] - height
    quantities = {
        "box_area_share": width * height / (size[0] * size[1]),
        "box_width_over_height": width / height,
        "log_box_width_over_height": np.log(width / height),
        "left_over_free_width": left / np.maximum(free_width, 1),
        "top_over_free_height": top / np.maximum(free_height, 1),
    }
    for quantity, values in quantities.items():
        yield from compare_draws(f"{title}: {quantity}", values, expected[quantity])


def _pixels(title: str, drawn: list[ViewParameters], expected: dict[str, Any]) -> Iterator[Check]:
    jitters = [view.jitter for view in drawn if view.jitter is not None]
    blurs = np.array([view.blur_radius for view in drawn])
    shares = {
        "flip": np.array([view.flip for view in drawn]),
        "jitter": np.array([view.jitter is not None for view in drawn]),
        "grey": np.array([view.grey for view in drawn]),
        "blur": blurs > 0,
        "solarize": np.array([view.solarize for view in drawn]),
    }
    for name, values in shares.items():
        yield compare_share(f"{title}: {name}", values, expected["share"][name], expected["draws"])
    yield from compare_draws(f"{title}: blur_radius", blurs[blurs > 0], expected["blur_radius"])
    for name in ADJUSTMENTS:
        factors = np.array([getattr(jitter, name) for jitter in jitters])
        yield from compare_draws(f"{title}: {name}", factors, expected[name])
    first = np.array([jitter.order[0][0] for jitter in jitters])
    for letter, share in expected["share_of_each_first_colour_operation"].items():
        yield compare_share(f"{title}: {letter} first", first == letter, share, expected["brightness"]["n"])
    orders = len({jitter.order for jitter in jitters})
    yield Check(f"{title}: orders", abs(orders - expected["distinct_orders_of_colour_operations"]), 0)
