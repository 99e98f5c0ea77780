"""Crops for an anchor: the boxes and flips of the global crops, rendered again, which changes nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfpatch.config.schema import Size
from selfpatch.config.sections import AnchorConfig, CropConfig
from selfpatch.data.augment.backends import Name
from selfpatch.data.augment.multicrop import ViewParameters, anchor_views, dino_views
from selfpatch.data.augment.pillow import render
from selfpatch.data.decode.pillow import read_image
from selfpatch.data.sources.index import ImageIndex
from tests.data.test_loader import every_renderer, index, make, rendered
from tests.data.test_loader_pairs import assert_all_equal

__all__ = ["index"]  # the fixture

CROPS = CropConfig(global_size=(16, 24), local_size=8, num_local=1)
LARGE = AnchorConfig(size=1.5, colours="clean")


def recipes(anchor: AnchorConfig, crops: CropConfig = CROPS, patch_size: int = 5) -> dict[str, Any]:
    return {"recipes": dino_views(crops), "anchor_recipes": anchor_views(anchor, crops, patch_size)}


@pytest.mark.parametrize(
    ("anchor", "patch_size", "size"),
    [(AnchorConfig(), 5, (15, 25)), (AnchorConfig(size=2), 4, (32, 48)), (AnchorConfig(colours="clean"), 8, (16, 24))],
)
def test_sides_are_whole_patches_of_the_anchor(anchor: AnchorConfig, patch_size: int, size: Size) -> None:
    assert [view.size for view in anchor_views(anchor, CROPS, patch_size)] == [size, size]


def test_nothing_is_rendered_again_where_the_anchor_sees_the_global_crops(index: ImageIndex) -> None:
    assert anchor_views(AnchorConfig(), CROPS, 4) == ()
    (views,) = rendered(make(index, **recipes(AnchorConfig(), patch_size=4)).steps(0, 1))
    assert views.anchor_crops is None


@every_renderer
def test_all_other_views_stay_as_they_are(index: ImageIndex, renderer: Name) -> None:
    (views,) = rendered(make(index, render=renderer, **recipes(LARGE)).steps(1, 2))
    (without,) = rendered(make(index, render=renderer, recipes=dino_views(CROPS)).steps(1, 2))
    assert views.anchor_crops is not None
    assert views.anchor_crops.shape == (2, 8, 3, 25, 35)
    assert set(views.tensors()) - set(without.tensors()) == {"anchor_crops"}
    for name, tensor in without.tensors().items():
        # A device renders views in one product with others, which may round a pixel the other way.
        tolerance = 1.0 if renderer == "device" else 0.0
        assert (views.tensors()[name].float() - tensor.float()).abs().max() <= tolerance


def test_clean_crops_show_the_boxes_of_the_global_ones(index: ImageIndex) -> None:
    (views,) = rendered(make(index, **recipes(LARGE)).steps(6, 7))
    assert views.anchor_crops is not None
    for b, sample in enumerate(views.samples.tolist()):
        image = read_image(index.path(sample))
        for crop, box in zip(views.anchor_crops, views.boxes[:2, b].tolist(), strict=True):
            left, top, width, height, flip = map(int, box)
            parameters = ViewParameters(left, top, width, height, bool(flip), None, False, 0.0, False)
            assert torch.equal(crop[b], render(image, (25, 35), parameters))


def test_the_same_colours_are_the_same_draws(index: ImageIndex) -> None:
    """At (almost) the size of the global crops, the pixels are (almost) theirs."""
    crops = CropConfig(global_size=64, num_local=0)
    (views,) = rendered(make(index, **recipes(AnchorConfig(), crops, 5)).steps(0, 1))
    assert views.anchor_crops is not None
    resized = torch.nn.functional.interpolate(views.global_crops.flatten(0, 1).float(), (65, 65), mode="bilinear")
    assert (resized - views.anchor_crops.flatten(0, 1).float()).abs().mean() < 4  # measured: 2.6; of other draws 60


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@every_renderer
def test_a_resumed_stream_is_the_same_to_the_last_bit(index: ImageIndex, renderer: Name) -> None:
    settings: dict[str, Any] = {"render": renderer, "accumulate": 2, **recipes(LARGE)}
    through = rendered(make(index, **settings).steps(0, 3))
    resumed = rendered(make(index, workers=1, **settings).steps(2, 3))
    for ours, theirs in zip(resumed, through[4:], strict=True):
        assert_all_equal(ours, theirs)
