"""Training stream: equal for any number of workers and processes, from any step, and past unreadable images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from selfpatch.config.sections import CropConfig, LoaderConfig, MaskConfig
from selfpatch.core.types import Views
from selfpatch.data import loader as loader_module
from selfpatch.data.augment.backends import Name, RenderBackend
from selfpatch.data.augment.gpu import DecodedBatch
from selfpatch.data.augment.masks import batch_ratios, draw_mask
from selfpatch.data.augment.multicrop import ViewParameters, ViewRecipe, draw_view, generator
from selfpatch.data.augment.opencv import fast_rendering_available
from selfpatch.data.augment.pillow import render
from selfpatch.data.decode.pillow import Picture, read_image, read_picture
from selfpatch.data.loader import CropLoader, default_workers
from selfpatch.data.sources.index import ImageIndex

GLOBAL = ViewRecipe(16, (0.25, 1.0), flip=0.5, blur=0.5, solarize=0.2, colour=CropConfig())
LOCAL = replace(GLOBAL, size=8, scale=(0.05, 0.25))
RECIPES = (GLOBAL, GLOBAL, LOCAL, LOCAL, LOCAL)
NUM_IMAGES = 40
RENDERERS = [
    "plain",
    pytest.param("fast", marks=pytest.mark.skipif(not fast_rendering_available(), reason="OpenCV is not installed")),
    "device",
]
every_renderer = pytest.mark.parametrize("renderer", RENDERERS)


@pytest.fixture
def index(tmp_path: Path) -> ImageIndex:
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        size = rng.integers(20, 40, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return ImageIndex(tmp_path, [b"%d.png" % i for i in range(NUM_IMAGES)])


def make(index: ImageIndex, **changes: Any) -> CropLoader:
    """Return a loader of small batches; `changes` are arguments of it or settings of `LoaderConfig`."""
    names = {field.name for field in fields(LoaderConfig)}
    settings = {"workers": 0, "render": "plain"} | {k: v for k, v in changes.items() if k in names}
    arguments = {"recipes": RECIPES, "batch_size": 8, "seed": 1} | {k: v for k, v in changes.items() if k not in names}
    return CropLoader(index, np.arange(len(index)), config=LoaderConfig(**settings), **arguments)


def rendered(steps: Iterable[list[Any]]) -> list[Views]:
    """Return the micro-batches of all steps, one after the other."""
    return [batch.to("cpu") for batches in steps for batch in batches]


def spoil(index: ImageIndex, indices: Iterable[int]) -> None:
    for i in indices:
        index.path(i).write_bytes(b"no image")


def assert_same(ours: Views, theirs: Views) -> None:
    for name in ("global_crops", "local_crops", "boxes", "samples"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)


def join(views: list[Views]) -> Views:
    def cat(name: str, dim: int) -> Tensor:
        return torch.cat([getattr(v, name) for v in views], dim)

    return Views(cat("global_crops", 1), cat("local_crops", 1), cat("boxes", 1), cat("samples", 0))


def test_views_have_the_documented_shapes_and_types(index: ImageIndex) -> None:
    ((views,),) = make(index).steps(0, 1)
    assert views.global_crops.shape == (2, 8, 3, 16, 16)
    assert views.local_crops is not None
    assert views.local_crops.shape == (3, 8, 3, 8, 8)
    assert views.boxes.shape == (5, 8, 5)
    assert (views.global_crops.dtype, views.local_crops.dtype) == (torch.uint8, torch.uint8)
    assert (views.boxes.dtype, views.samples.dtype) == (torch.float32, torch.int64)
    ((views,),) = make(index, recipes=RECIPES[:2]).steps(0, 1)
    assert views.local_crops is None


def test_every_view_is_what_was_drawn_for_it(index: ImageIndex) -> None:
    loader = make(index)
    step = loader.steps_per_epoch + 2  # in the second epoch
    ((views,),) = loader.steps(step, step + 1)
    assert views.local_crops is not None
    crops = [*views.global_crops, *views.local_crops]
    for position, sample in enumerate(views.samples.tolist()):
        image = read_image(index.path(sample))
        for view, recipe in enumerate(RECIPES):
            p = draw_view(recipe, image.size, generator(1, 1, sample, view))
            assert views.boxes[view, position].tolist() == list(p.box)
            torch.testing.assert_close(crops[view][position], render(image, recipe.size, p), rtol=0, atol=0)


def test_an_epoch_sees_each_image_once_in_an_order_of_its_own(index: ImageIndex) -> None:
    loader = make(index)
    assert loader.steps_per_epoch == 5
    epochs = [np.concatenate([loader.samples(step).ravel() for step in range(5 * e, 5 * e + 5)]) for e in range(3)]
    assert all(sorted(order) == list(range(NUM_IMAGES)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3
    assert [s.tolist() for (v,) in loader.steps(3, 7) for s in [v.samples]] == [
        loader.samples(step)[0].tolist() for step in range(3, 7)
    ]
    other_seed = make(index, seed=2)
    assert other_seed.samples(0).tolist() != loader.samples(0).tolist()


def test_the_tail_that_fills_no_batch_is_dropped(index: ImageIndex) -> None:
    loader = make(index, batch_size=16)
    assert loader.steps_per_epoch == 2
    seen = np.concatenate([loader.samples(step).ravel() for step in range(2)])
    assert len(set(seen)) == 32


def test_only_the_given_indices_are_used(index: ImageIndex) -> None:
    indices = np.array([3, 5, 7, 11, 13, 17, 19, 23])
    loader = CropLoader(index, indices, RECIPES, LoaderConfig(workers=0), batch_size=4, seed=0)
    assert {s for (v,) in loader.steps(0, 2) for s in v.samples.tolist()} == set(indices.tolist())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_the_stream_does_not_depend_on_workers(
    index: ImageIndex, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(index, [4, 9])
    reference = make(index, accumulate=2, max_bad=1.0)
    expected = list(reference.steps(2, 8))
    monkeypatch.setattr(loader_module, "PART_SIZE", 3)  # parts that do not divide the micro-batch
    loader = make(index, accumulate=2, max_bad=1.0, workers=workers)
    given = list(loader.steps(2, 8))
    assert len(given) == len(expected) == 6
    for ours, theirs in zip(given, expected, strict=True):
        assert len(ours) == 2
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    assert loader.bad == reference.bad != {}


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 2)])
def test_processes_and_micro_batches_share_one_batch(index: ImageIndex, world_size: int, accumulate: int) -> None:
    whole = list(make(index).steps(3, 7))
    loaders = [make(index, world_size=world_size, rank=r, accumulate=accumulate) for r in range(world_size)]
    by_rank = [list(loader.steps(3, 7)) for loader in loaders]
    for step, (expected,) in enumerate(whole):
        pieces = [by_rank[rank][step][m] for m in range(accumulate) for rank in range(world_size)]
        assert_same(join(pieces), expected)


def test_the_stream_starts_anywhere(index: ImageIndex) -> None:
    through = list(make(index).steps(0, 12))
    for first in (1, 5, 7):
        for (ours,), (theirs,) in zip(make(index).steps(first, 12), through[first:], strict=True):
            assert_same(ours, theirs)
    assert list(make(index).steps(4, 4)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_the_random_state_of_the_training_is_left_alone(index: ImageIndex, workers: int) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    next(make(index, workers=workers).steps(0, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_replacement_is_drawn_and_cropped_deterministically(index: ImageIndex) -> None:
    loader = make(index, max_bad=1.0)
    asked = loader.samples(0)[0].tolist()
    ((intact,),) = make(index).steps(0, 1)
    spoil(index, [asked[2]])
    ((views,),) = loader.steps(0, 1)
    ((again,),) = make(index, max_bad=1.0).steps(0, 1)
    assert_same(views, again)
    used = views.samples.tolist()
    assert used[2] != asked[2]
    image = read_image(index.path(used[2]))
    p = draw_view(GLOBAL, image.size, generator(1, 0, asked[2], 0))  # the random numbers of the sample it stands in for
    assert views.boxes[0, 2].tolist() == list(p.box)
    torch.testing.assert_close(views.global_crops[0, 2], render(image, 16, p), rtol=0, atol=0)
    others = [0, 1, 3, 4, 5, 6, 7]
    assert [used[i] for i in others] == [asked[i] for i in others]
    torch.testing.assert_close(views.global_crops[:, others], intact.global_crops[:, others], rtol=0, atol=0)


def test_a_bad_file_is_counted_once(index: ImageIndex) -> None:
    spoil(index, [7])
    index.path(21).unlink()
    loader = make(index, max_bad=0.05)
    list(loader.steps(0, 15))  # three epochs; 2 of 40 is no more than 5 %
    assert set(loader.bad) == {str(index.path(7)), str(index.path(21))}
    assert "No such file" in loader.bad[str(index.path(21))]


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_become_pipes_or_devices_are_not_waited_for(index: ImageIndex, workers: int) -> None:
    for i, make_special in {7: os.mkfifo, 21: lambda path: path.symlink_to("/dev/zero")}.items():
        index.path(i).unlink()
        make_special(index.path(i))
    loader = make(index, max_bad=0.05, workers=workers)
    list(loader.steps(0, 5))
    assert set(loader.bad) == {str(index.path(7)), str(index.path(21))}
    assert all(reason.startswith("it is no regular file") for reason in loader.bad.values())


def test_too_many_bad_images_stop_the_run_at_the_end_of_the_first_epoch(index: ImageIndex) -> None:
    spoil(index, range(0, 12, 4))
    loader = make(index, max_bad=0.05)
    stream = loader.steps(0, 15)
    for _ in range(4):
        next(stream)
    with pytest.raises(ValueError, match=r"cannot read 3 of 40 images so far.*\.png.*--loader\.max-bad"):
        next(stream)


def test_too_many_bad_images_stop_the_run_once_enough_were_read(
    index: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "CHECKED_FROM", 16)
    loader = make(index)
    spoil(index, loader.samples(0)[0][:1])
    stream = loader.steps(0, 5)
    next(stream)  # 1 bad of 8 or 9: too few to judge
    with pytest.raises(ValueError, match=r"cannot read 1 of 1[67] images so far"):
        next(stream)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_without_readable_images_says_so(index: ImageIndex, workers: int) -> None:
    spoil(index, range(NUM_IMAGES))
    message = r"^21 images drawn one after the other are unreadable, e\.g\. .*\.png: it is empty, damaged, or no image"
    with pytest.raises(ValueError, match=message):
        next(make(index, max_bad=1.0, workers=workers).steps(0, 1))


def render_red(image: Picture, size: int, parameters: ViewParameters) -> Tensor:
    return torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, size, size)


def test_the_renderer_can_be_swapped(index: ImageIndex) -> None:
    ((views,),) = make(index, backend=RenderBackend(read_picture, render_red)).steps(0, 1)
    ((plain,),) = make(index).steps(0, 1)
    assert views.global_crops.amax((0, 1, 3, 4)).tolist() == [255, 0, 0]
    torch.testing.assert_close(views.boxes, plain.boxes)


@pytest.mark.parametrize("renderer", RENDERERS[1:])
def test_draws_do_not_depend_on_the_renderer(index: ImageIndex, renderer: Name) -> None:
    spoil(index, [4, 9])
    settings: dict[str, Any] = {"max_bad": 1.0, "accumulate": 2, "draw_mask": partial(draw_mask, MaskConfig(), (4, 4))}
    settings |= {"max_pixels": 600}  # of 400 to 1600
    reference, loader = make(index, **settings), make(index, **(settings | {"render": renderer}))
    for ours, theirs in zip(rendered(loader.steps(2, 8)), rendered(reference.steps(2, 8)), strict=True):
        for name in ("boxes", "samples", "masks"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert ours.global_crops.shape == theirs.global_crops.shape
        assert ours.local_crops is not None
        assert ours.local_crops.dtype == torch.uint8
    assert loader.bad == reference.bad != {}


def test_masks_of_a_batch_are_those_of_its_parts_on_other_processes(
    index: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = MaskConfig(schedule="batch")
    draws = {"draw_mask": partial(draw_mask, masks, (4, 4)), "draw_ratios": partial(batch_ratios, masks)}
    alone = [views.masks for (views,) in make(index, **draws).steps(0, 3)]
    monkeypatch.setattr(loader_module, "PART_SIZE", 3)
    shares = [[v.masks for (v,) in make(index, rank=r, world_size=2, **draws).steps(1, 3)] for r in range(2)]
    for step, parts in enumerate(zip(*shares, strict=True), start=1):
        assert torch.equal(torch.cat(parts, 1), alone[step])
    for of_batch in alone:
        assert of_batch.flatten(0, 1).flatten(1).any(1).sum() == of_batch[:, :, 0, 0].numel() // 2
    assert not torch.equal(alone[0].flatten(2).any(2), alone[1].flatten(2).any(2))


@every_renderer
def test_views_are_of_the_images_that_were_drawn(index: ImageIndex, renderer: Name) -> None:
    """Colours are left out: on noise they would exaggerate differences."""
    recipes = (ViewRecipe(16, (0.25, 1.0), flip=0.5),) * 2
    for ours, theirs in zip(
        rendered(make(index, recipes=recipes, render=renderer).steps(0, 3)),
        rendered(make(index, recipes=recipes).steps(0, 3)),
        strict=True,
    ):
        assert (ours.global_crops.float() - theirs.global_crops.float()).abs().mean() < 0.5


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@every_renderer
def test_a_resumed_stream_is_the_same_to_the_last_bit(
    index: ImageIndex, renderer: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It resumes in mid-epoch, with other workers, past unreadable images, and with images that are shrunk."""
    spoil(index, [4, 9])
    settings: dict[str, Any] = {"max_bad": 1.0, "accumulate": 2, "max_pixels": 600, "render": renderer}
    through = rendered(make(index, **settings).steps(0, 8))
    monkeypatch.setattr(loader_module, "PART_SIZE", 3)
    for workers, first in [(0, 3), (2, 6)]:
        resumed = rendered(make(index, workers=workers, **settings).steps(first, 8))
        for ours, theirs in zip(resumed, through[2 * first :], strict=True):
            assert_same(ours, theirs)


def test_workers_that_leave_rendering_to_the_device_hand_over_images(index: ImageIndex) -> None:
    ((batch,),) = make(index, render="device").steps(0, 1)
    assert isinstance(batch, DecodedBatch)
    assert batch.samples.tolist() == make(index).samples(0)[0].tolist()
    first = read_image(index.path(int(batch.samples[0])))
    assert batch.sizes[0].tolist() == list(first.size)
    width, height = first.size
    assert torch.equal(batch.pixels[: width * height], torch.from_numpy(np.array(first)).flatten(0, 1))


def test_impossible_batches_are_refused(index: ImageIndex) -> None:
    with pytest.raises(ValueError, match=r"batch of 64 images is larger than the data, 40 images; use --batch-size 40"):
        make(index, batch_size=64)
    with pytest.raises(ValueError, match=r"use --batch-size 36 or less"):
        make(index, batch_size=48, world_size=3, accumulate=4)
    with pytest.raises(ValueError, match=r"2 processes x 3 micro-batches; use a multiple of 6"):
        make(index, batch_size=8, world_size=2, accumulate=3)
    with pytest.raises(ValueError, match="global views of sizes"):
        make(index, recipes=(GLOBAL, LOCAL))
    with pytest.raises(ValueError, match="num_global is 2; use 1 or more, at most the number of recipes, 1"):
        make(index, recipes=(GLOBAL,))


def test_default_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, processes, expected in [(1, 1, 0), (2, 1, 1), (8, 2, 3), (8, 8, 0), (4, 8, 0), (128, 1, 16)]:
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert default_workers() == expected


@pytest.mark.parametrize(("workers", "used"), [(None, 1), (5, 5), (1, 1)])
def test_no_more_processes_than_shared_memory(
    index: ImageIndex, workers: int | None, used: int, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    loader = make(index, workers=workers)
    part = 8 * 3 * (2 * 16**2 + 3 * 8**2)  # bytes of the views of a batch
    monkeypatch.setattr(loader_module, "default_workers", lambda: 4)
    monkeypatch.setattr(loader_module, "free_shared_memory", lambda: 2 * loader_module.AHEAD * part - 1)
    assert loader._num_workers() == used
    said = [str(warning.message) for warning in recwarn if "/dev/shm" in str(warning.message)]
    assert len(said) == (workers != 1)
    assert all(f"{used} of {workers or 4} are used" in sentence for sentence in said)
    monkeypatch.setattr(loader_module, "free_shared_memory", lambda: None)
    assert loader._num_workers() == (4 if workers is None else workers)


def test_real_photographs(data_dir: Path, tmp_path: Path) -> None:
    index = ImageIndex.open(data_dir / "imagenet_sample_256", tmp_path)
    recipes = (replace(GLOBAL, size=64), replace(GLOBAL, size=64), *[replace(LOCAL, size=32)] * 2)
    train, _ = index.split(32, seed=0)
    streams = [
        list(
            CropLoader(index, train, recipes, LoaderConfig(workers=w), batch_size=16, seed=0, accumulate=2).steps(
                59, 62
            )
        )
        for w in (0, 2)
    ]
    for ours, theirs in zip(*streams, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
