"""Reading COCO annotations, and augmentation that moves image, boxes and masks together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfpatch.evaluation.detection.augmentation import (
    Augmentation,
    Placement,
    draw,
    fitted,
    place_objects,
    render,
    whole,
)
from selfpatch.evaluation.detection.dataset import AnnotatedImage, Instance, open_split
from selfpatch.evaluation.detection.masks import extent, from_pixels, paste, to_pixels
from tests.helpers.detect_data import outline, read_json, write_json, write_split

coco = pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
KINDS = get_args(Augmentation)


def drawn(kind: Augmentation, seed: int, size: tuple[int, int] = (64, 48)) -> Placement:
    return draw(kind, *size, short_sides=(40, 56, 80), long_side=100, rng=np.random.default_rng(seed))


def instance(category: int, box: tuple[float, float, float, float], label: int = 1) -> Instance:
    outlines = (np.array(outline(category, box)).reshape(-1, 2),)
    return Instance(label, box, outlines, crowd=False)


def test_categories_with_gaps_are_counted_through_and_found_again(tmp_path: Path) -> None:
    split = open_split(write_split(tmp_path, "train"), "train")
    assert split.category_ids == (3, 7, 90)
    assert split.category_names == ("disk", "triangle", "square")
    content = read_json(tmp_path, "train")
    for image in split.images:
        of_image = [row for row in content["annotations"] if row["image_id"] == image.id]
        assert [split.category_ids[one.label - 1] for one in image.instances] == [r["category_id"] for r in of_image]


def test_crowds_are_not_learned_and_images_without_objects_are_kept_apart(tmp_path: Path) -> None:
    split = open_split(write_split(tmp_path, "train"), "train")
    assert [len(image.instances) for image in split.images] == [4, 3, 3, 0]
    assert [len(image.objects()) for image in split.images] == [3, 3, 3, 0]
    assert len(split.with_objects().images) == 3
    assert len(split.first(2).images) == 2


def test_masks_are_those_of_pycocotools(data_dir: Path) -> None:
    """All objects of real annotations, as they are: outlines and boxes are read and drawn without loss."""
    api = coco.COCO(str(data_dir / "coco_mini/annotations/instances_val2017.json"))
    for image in open_split(data_dir / "coco_mini", "val2017").images[:10]:
        placement = Placement((0.0, 0.0, float(image.width), float(image.height)), image.width, image.height)
        target = place_objects(image.objects(), image.width, image.height, placement)
        rows = [a for a in api.loadAnns(api.getAnnIds(image.id)) if not a["iscrowd"]]
        masks = np.stack([api.annToMask(row) for row in rows])
        assert np.array_equal(target["masks"].numpy(), masks[masks.any((1, 2))])
        boxes = torch.tensor([row["bbox"] for row in rows])[torch.from_numpy(masks.any((1, 2)))]
        assert torch.allclose(target["boxes"][:, :2], boxes[:, :2], atol=1e-3)
        assert torch.allclose(target["boxes"][:, 2:] - target["boxes"][:, :2], boxes[:, 2:], atol=1e-3)


coordinate = st.floats(0, 1)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    category=st.sampled_from([90, 7, 3]),
    corner=st.tuples(coordinate, coordinate),
    size=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
)
def test_boxes_are_the_extents_of_their_masks_after_any_augmentation(
    seed: int, kind: Augmentation, category: int, corner: tuple[float, float], size: tuple[float, float]
) -> None:
    """Exactly where it is cut, to a pixel where it is whole: there the box keeps the annotator's fractions. Only a
    square reaches its extent with whole pixels; the tips of other shapes may be too narrow for any."""
    width, height = 64 * size[0], 48 * size[1]
    left, top = corner[0] * (64 - width), corner[1] * (48 - height)
    placement = drawn(kind, seed)
    box = (left, top, left + width, top + height)
    target = place_objects([instance(category, box)], 64, 48, placement)
    assert target["masks"].shape[1:] == (placement.height, placement.width)
    placed = torch.tensor(placement.box(box))
    inner = torch.tensor([placement.width, placement.height])
    cut = bool((placed[:2] < -0.01).any() or (placed[2:] > inner + 0.01).any())
    for found, mask in zip(target["boxes"], target["masks"], strict=True):
        around = torch.tensor(extent(mask.numpy()), dtype=torch.float32)
        if cut:
            assert torch.equal(found, around)
        elif category == 90:
            assert (found - around).abs().max() <= 1.01
        assert ((around - found) * torch.tensor([1, 1, -1, -1])).min() >= -1.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_moves_with_its_masks(kind: Augmentation) -> None:
    """A white rectangle on black: the pixels that are white are those of the mask, but for a blurred rim."""
    box = (13.0, 9.0, 41.0, 30.0)
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[9:30, 13:41] = 255
    annotated = AnnotatedImage(1, "none", Path("none"), 64, 48, (instance(90, box),))
    seen = 0
    for seed in range(40):
        image, target = render(Image.fromarray(pixels), annotated, drawn(kind, seed))
        mask = (
            target["masks"].amax(0).bool() if len(target["masks"]) else torch.zeros(image.shape[1:], dtype=torch.bool)
        )
        white = image[0] > 127
        rim = 2 * sum(mask.shape)  # pixels that a rounding to the next one can change
        assert int((white != mask).sum()) <= rim
        seen += int(mask.sum() > 2 * rim)
    assert seen > 10


def test_a_mask_of_run_lengths_moves_like_its_outline() -> None:
    box = (13.0, 9.0, 41.0, 30.0)
    outlined = instance(90, box)
    pixels = np.zeros((48, 64), bool)
    pixels[9:30, 13:41] = True
    as_runs = Instance(1, box, from_pixels(pixels), crowd=False)
    for seed in range(20):
        placement = drawn("multi-scale", seed)
        a, b = (place_objects([one], 64, 48, placement)["masks"].int() for one in (outlined, as_runs))
        assert a.shape == b.shape
        assert int((a - b).abs().sum()) <= 2 * sum(a.shape[1:])


def test_an_object_outside_the_crop_is_gone() -> None:
    placement = Placement((0.0, 0.0, 20.0, 20.0), 40, 40)
    inside, outside = instance(90, (2.0, 2.0, 9.0, 9.0), 1), instance(90, (30.0, 2.0, 40.0, 9.0), 2)
    target = place_objects([inside, outside], 64, 48, placement)
    assert target["labels"].tolist() == [1]
    assert target["boxes"].tolist() == [[4, 4, 18, 18]]
    none = place_objects([outside], 64, 48, placement)
    assert none["boxes"].shape == (0, 4)
    assert none["masks"].shape == (0, 40, 40)


def test_a_mirrored_placement_mirrors_points() -> None:
    placement = Placement((10.0, 0.0, 30.0, 20.0), 40, 40, flip=True)
    assert placement.box((10.0, 0.0, 15.0, 10.0)) == (30, 0, 40, 20)


def test_multi_scale_draws_the_published_sizes() -> None:
    sides = tuple(range(480, 801, 32))
    whole_images, crops = 0, 0
    for seed in range(300):
        p = draw("multi-scale", 640, 480, sides, 1333, np.random.default_rng(seed))
        covered = (p.region[2] - p.region[0], p.region[3] - p.region[1])
        assert (p.width, p.height) == max(
            (fitted(*covered, side, 1333) for side in sides), key=lambda s: s == (p.width, p.height)
        )
        if covered == (640, 480):
            whole_images += 1
            continue
        crops += 1
        ranges = [[side * 480 / short for side in (384, 600)] for short in (400, 500, 600)]
        for side, full in zip(covered, (640, 480), strict=True):
            assert any(min(low, full) - 2 <= side <= min(high, full) + 2 for low, high in ranges)
    assert whole_images > 100
    assert crops > 100


def test_large_scale_jitter_stays_on_its_square() -> None:
    factors = []
    for seed in range(200):
        p = draw("large-scale-jitter", 640, 480, (1024,), 1024, np.random.default_rng(seed))
        assert max(p.width, p.height) <= 1024
        factors.append(p.width / (p.region[2] - p.region[0]) * 640 / 1024)
    assert 0.09 < min(factors) < 0.3
    assert 1.8 < max(factors) < 2.01


@pytest.mark.parametrize("size", [(1, 1), (3000, 40), (40, 3000)])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_size_are_placed(kind: Augmentation, size: tuple[int, int]) -> None:
    annotated = AnnotatedImage(1, "none", Path("none"), *size, (instance(90, (0.0, 0.0, *map(float, size))),))
    for seed in range(10):
        placement = draw(kind, *size, (60, 80), 133, np.random.default_rng(seed))
        image, target = render(Image.new("RGB", size), annotated, placement)
        assert image.shape == (3, placement.height, placement.width)
        assert target["masks"].shape[1:] == image.shape[1:]
    assert max(whole(*size, 80, 133).width, whole(*size, 80, 133).height) <= 133


def test_a_pasted_mask_fills_its_box() -> None:
    boxes = torch.tensor([[10.0, 5.0, 38.0, 33.0], [-4.0, 10.0, 6.0, 20.0], [70.0, 0.0, 80.0, 10.0]])
    (first, second, outside) = paste(torch.ones(3, 28, 28), boxes, 48, 64)
    full = to_pixels([first, second, outside], 48, 64)
    assert extent(full[0]) == (10, 5, 38, 33)
    assert full[0].sum() == 28 * 28
    assert extent(full[1]) == (0, 10, 6, 20)
    assert full[2].sum() == 0


def test_a_pasted_mask_is_aligned_to_pixel_centres() -> None:
    cells = torch.zeros(1, 28, 28)
    cells[0, 3:20, 5:11] = 1
    (pasted,) = paste(cells, torch.tensor([[10.0, 5.0, 38.0, 33.0]]), 48, 64)
    wanted = np.zeros((48, 64), np.uint8)
    wanted[8:25, 15:21] = 1
    assert np.array_equal(to_pixels([pasted], 48, 64)[0], wanted)


def broken(tmp_path: Path, change: Any) -> Path:
    write_split(tmp_path, "train")
    content = read_json(tmp_path, "train")
    change(content)
    write_json(tmp_path, "train", content)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"].clear(), "holds no annotation"),
        (lambda c: c.pop("categories"), "has no 'categories'"),
        (lambda c: c["annotations"][0].pop("segmentation"), "has no 'segmentation'"),
        (lambda c: c["images"][0].pop("width"), "one of the images of .* has no 'width'"),
        (lambda c: c["annotations"][0].update(category_id=5), "category_id 5, which is not listed"),
        (lambda c: c["annotations"][0].update(image_id=5), "image_id 5, which is not listed"),
        (
            lambda c: c["images"][0].update(file_name="gone.png"),
            "1 of the annotated images are missing, e.g. .*gone.png",
        ),
        (lambda c: c.update(annotations=c["annotations"][-1:]), "no object in the images used"),
    ],
)
def test_annotations_that_cannot_be_used_are_told(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_split(broken(tmp_path, change), "train").with_objects()


def test_an_image_of_another_size_than_annotated_is_told(tmp_path: Path) -> None:
    split = open_split(broken(tmp_path, lambda c: c["images"][1].update(width=65)), "train")
    with pytest.raises(ValueError, match="64 x 48 pixels, but its annotations are for 65 x 48"):
        split.images[1].read()


def test_a_missing_split_is_told(tmp_path: Path) -> None:
    write_split(tmp_path, "train")
    with pytest.raises(ValueError, match=r"annotations/instances_val\.json; a COCO data set has"):
        open_split(tmp_path, "val")
    (tmp_path / "annotations" / "instances_val.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        open_split(tmp_path, "val")
    with pytest.raises(ValueError, match="limit is 0"):
        open_split(tmp_path, "train").first(0)
