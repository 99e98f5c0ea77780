"""Clean and contained crops in the training stream: drawn beside multi-crop or alone, the same from any step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfpatch.config.sections import CropConfig, PairConfig
from selfpatch.core.types import Views
from selfpatch.data.augment.backends import Name
from selfpatch.data.augment.multicrop import ViewParameters, pair_views
from selfpatch.data.augment.pillow import render
from selfpatch.data.decode.pillow import read_image
from selfpatch.data.sources.index import ImageIndex
from tests.data.test_loader import RECIPES, every_renderer, index, make, rendered

__all__ = ["index"]  # the fixture

PAIRS = pair_views(
    PairConfig(num_clean=2, clean_size=16, num_contained=4, contained_size=8, contained_scale=(0.2, 0.6)),
    CropConfig(jitter=0.0, grey=0.0, blur=(0.0, 0.0, 0.0), solarize=(0.0, 0.0, 0.0)),
)
ALONE: dict[str, Any] = {"recipes": (), "pair_recipes": PAIRS}


def assert_all_equal(ours: Views, theirs: Views) -> None:
    a, b = ours.tensors(), theirs.tensors()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@every_renderer
def test_crops_have_the_documented_shapes(index: ImageIndex, renderer: Name) -> None:
    for arguments, num_global in ((ALONE, 0), ({"pair_recipes": PAIRS}, 2)):
        (views,) = rendered(make(index, render=renderer, **arguments).steps(0, 1))
        assert views.clean_crops is not None
        assert views.contained_crops is not None
        assert views.pair_boxes is not None
        assert views.clean_crops.shape == (2, 8, 3, 16, 16)
        assert views.contained_crops.shape == (4, 8, 3, 8, 8)
        assert views.pair_boxes.shape == (6, 8, 5)
        assert (views.num_global, views.batch_size) == (num_global, 8)
        assert views.boxes.shape == (5 if num_global else 0, 8, 5)
        assert (views.local_crops is None) == (num_global == 0)


@every_renderer
def test_multi_crop_and_pairs_leave_one_another_as_they_are(index: ImageIndex, renderer: Name) -> None:
    (both,) = rendered(make(index, render=renderer, pair_recipes=PAIRS).steps(0, 1))
    (crops,) = rendered(make(index, render=renderer).steps(0, 1))
    (pairs,) = rendered(make(index, render=renderer, **ALONE).steps(0, 1))
    for name in ("global_crops", "local_crops", "boxes", "samples"):
        assert torch.equal(getattr(both, name), getattr(crops, name))
    assert both.pair_boxes is not None
    assert pairs.pair_boxes is not None
    assert torch.equal(both.pair_boxes, pairs.pair_boxes)
    for name in ("clean_crops", "contained_crops"):
        # A device renders views in one product with others, which may round a pixel the other way.
        tolerance = 1.0 if renderer == "device" else 0.0
        difference = (getattr(both, name).float() - getattr(pairs, name).float()).abs()
        assert difference.max() <= tolerance


def test_each_crop_shows_its_box(index: ImageIndex) -> None:
    (views,) = rendered(make(index, **ALONE).steps(3, 4))
    assert views.clean_crops is not None
    assert views.contained_crops is not None
    assert views.pair_boxes is not None
    crops = [*views.clean_crops, *views.contained_crops]
    for b, sample in enumerate(views.samples.tolist()):
        image = read_image(index.path(sample))
        for crop, box in zip(crops, views.pair_boxes[:, b].tolist(), strict=True):
            left, top, width, height, flip = map(int, box)
            parameters = ViewParameters(left, top, width, height, bool(flip), None, False, 0.0, False)
            assert torch.equal(crop[b], render(image, crop.shape[-1], parameters))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@every_renderer
def test_a_resumed_stream_is_the_same_to_the_last_bit(index: ImageIndex, renderer: Name) -> None:
    settings: dict[str, Any] = {"render": renderer, "accumulate": 2, "recipes": RECIPES, "pair_recipes": PAIRS}
    through = rendered(make(index, **settings).steps(0, 7))
    for workers, first in ((0, 2), (2, 6)):
        resumed = rendered(make(index, workers=workers, **settings).steps(first, 7))
        for ours, theirs in zip(resumed, through[2 * first :], strict=True):
            assert_all_equal(ours, theirs)
