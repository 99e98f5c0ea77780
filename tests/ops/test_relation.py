"""Self-relations: what they are, where two crops show the same, and the fast losses against the plain ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from selfpatch.data.augment.geometry import crop_to_image
from selfpatch.ops.relation import (
    channel_relation,
    channel_relation_loss,
    channel_relation_loss_reference,
    overlap_grids,
    relation_target,
    sample_patches,
    sample_patches_reference,
    sample_relation_reference,
    spatial_relation,
    spatial_relation_loss,
    spatial_relation_loss_reference,
)

box = st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(1, 400), st.integers(1, 400), st.booleans()).map(
    lambda row: torch.tensor(row, dtype=torch.float64)
)

BOXES = torch.tensor(
    [
        [[0, 0, 100, 80, 0], [20, 10, 60, 60, 1], [0, 0, 40, 40, 0]],
        [[30, 20, 90, 70, 1], [20, 10, 60, 60, 0], [50, 60, 40, 40, 1]],
    ]
).double()  # [views, B, 5]; the last image's crops do not overlap


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.manual_seed(seed), dtype=torch.float64)


def with_gradient(f, x: Tensor, *args) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = f(x, *args)
    (3 * value).sum().backward()
    assert x.grad is not None
    return value.detach(), x.grad


def test_spatial_relation_is_the_scaled_product_of_patches_within_a_head() -> None:
    tokens, heads = random(2, 5, 12), 3
    relation = spatial_relation(tokens, heads)
    assert relation.shape == (2, 3, 5, 5)
    for h in range(heads):
        z = tokens[1, :, 4 * h : 4 * h + 4]
        torch.testing.assert_close(relation[1, h], z @ z.T / 2)


def test_channel_relation_is_the_product_of_channels_over_the_patches() -> None:
    tokens = random(2, 5, 4)
    relation = channel_relation(tokens, 6.0)
    assert relation.shape == (2, 4, 4)
    torch.testing.assert_close(relation[1, 2, 3], (tokens[1, :, 2] * tokens[1, :, 3]).sum() / 36)


@given(box, box, st.tuples(st.integers(2, 6), st.integers(2, 6)))
def test_a_point_of_both_grids_is_one_point_of_the_image(a: Tensor, b: Tensor, size: tuple[int, int]) -> None:
    begin = torch.maximum(a[:2], b[:2])
    end = torch.minimum(a[:2] + a[2:4], b[:2] + b[2:4])
    assume(bool((begin < end).all()))
    grids = overlap_grids(a, b, size)
    in_image = [
        crop_to_image((grid.flatten(0, 1) + 1) / 2, view).view(*size, 2)
        for grid, view in zip(grids, (a, b), strict=True)
    ]
    torch.testing.assert_close(*in_image)
    torch.testing.assert_close(in_image[0][0, 0], begin)
    torch.testing.assert_close(in_image[0][-1, -1], end)
    assert all(grid.abs().max() <= 1 + 1e-9 for grid in grids)


@given(box, st.integers(2, 6), st.integers(2, 6), st.booleans())
def test_grids_of_one_box_are_alike_but_for_a_flip(a: Tensor, rows: int, columns: int, flipped: bool) -> None:
    b = torch.cat([a[:4], a[4:].logical_xor(torch.tensor([flipped])).double()])
    grid_a, grid_b = overlap_grids(a, b, (rows, columns))
    torch.testing.assert_close(grid_b, grid_a * torch.tensor([-1.0 if flipped else 1.0, 1.0]))
    if rows == columns:
        assert torch.equal(overlap_grids(a, b, rows)[0], grid_a)


@given(box, box, st.integers(1, 20), st.integers(1, 20))
def test_without_overlap_every_sample_is_exactly_0(a: Tensor, b: Tensor, h: int, w: int) -> None:
    begin = torch.maximum(a[:2], b[:2])
    end = torch.minimum(a[:2] + a[2:4], b[:2] + b[2:4])
    assume(bool((begin >= end).any()))
    for grid in overlap_grids(a, b, 3):
        for sample in (sample_patches, sample_patches_reference):
            assert not sample(torch.ones(h, w, 1, dtype=torch.float64), grid).any()


def test_crops_that_only_touch_do_not_overlap() -> None:
    left, right = torch.tensor([[0, 0, 10, 10, 0], [10, 0, 10, 10, 0]]).double()
    assert not sample_patches(torch.ones(5, 5, 1).double(), overlap_grids(left, right, 4)[0]).any()


def test_grids_of_many_crops_at_once() -> None:
    crops = random(3, 4, 5).abs() * 50 + 1  # [L, B, 5]
    one = random(4, 5, seed=1).abs() * 50 + 1
    a, b = overlap_grids(crops, one, 6)
    assert a.shape == b.shape == (3, 4, 6, 6, 2)
    torch.testing.assert_close((a[2, 3], b[2, 3]), overlap_grids(crops[2, 3], one[3], 6))


@pytest.mark.parametrize("flipped", [False, True])
def test_samples_are_of_the_place_in_the_image_that_both_show(flipped: bool) -> None:
    """Features that are their own places in the image: away from a crop's border, both crops agree on them."""
    a, b = torch.tensor([[0, 0, 200, 100, 0], [40, 20, 120, 60, flipped]]).double()
    grids = overlap_grids(a, b, 5)
    samples = []
    for view, grid, (h, w) in zip((a, b), grids, ((7, 9), (4, 6)), strict=True):
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        places = torch.stack([x / w, y / h], -1).double().flatten(0, 1)
        samples.append(sample_patches(crop_to_image(places, view).view(h, w, 2), grid).view(5, 5, 2))
    inner = slice(1, -1)  # b's own border is where zeros come in
    torch.testing.assert_close(samples[0][inner, inner], samples[1][inner, inner])
    torch.testing.assert_close(samples[1][2, 2], torch.tensor([100.0, 50.0]).double())


def test_a_flipped_crop_gives_the_same_samples() -> None:
    patches = random(5, 6, 3)
    crop, other = torch.tensor([[10, 10, 60, 50, 0], [30, 5, 60, 50, 0]]).double()
    mirrored = crop.clone()
    mirrored[4] = 1
    plain = sample_patches(patches, overlap_grids(crop, other, 4)[0])
    torch.testing.assert_close(sample_patches(patches.flip(1), overlap_grids(mirrored, other, 4)[0]), plain)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 5), (14, 14)])
def test_sampling_is_that_of_grid_sample(h: int, w: int) -> None:
    patches, grid = random(2, h, w, 3), random(2, 4, 4, 2, seed=1)  # some points lie outside
    fast = with_gradient(sample_patches, patches, grid)
    torch.testing.assert_close(fast, with_gradient(sample_patches_reference, patches, grid))


def test_sampling_one_map_on_many_grids() -> None:
    patches, grids = random(2, 3, 5, 3), random(4, 2, 6, 6, 2, seed=1)
    fast = with_gradient(sample_patches, patches, grids)
    assert fast[0].shape == (4, 2, 36, 3)
    torch.testing.assert_close(fast, with_gradient(sample_patches_reference, patches, grids))


def test_sampling_a_relation_is_relating_the_samples() -> None:
    tokens, grid = random(2, 3, 5, 8), random(2, 4, 4, 2, seed=1)
    related_first = sample_relation_reference(spatial_relation(tokens.flatten(1, 2), 2), grid, 3, 5)
    assert related_first.shape == (2, 2, 16, 16)
    torch.testing.assert_close(spatial_relation(sample_patches(tokens, grid), 2), related_first)


@pytest.mark.parametrize("student_size", [(6, 6), (3, 5)])
def test_the_spatial_loss_is_the_plain_one(student_size: tuple[int, int]) -> None:
    student, teacher = random(3, *student_size, 8), random(3, 6, 4, 8, seed=1)
    arguments = (teacher, *overlap_grids(BOXES[0], BOXES[1], 4), 2, 0.5)
    fast = with_gradient(spatial_relation_loss, student, *arguments)
    torch.testing.assert_close(fast, with_gradient(spatial_relation_loss_reference, student, *arguments))
    assert fast[1][:2].any()
    assert not fast[1][2].any(), "an image without overlap teaches nothing"


def test_the_spatial_loss_of_many_crops_against_one_is_their_mean() -> None:
    locals_, teacher = random(2, 3, 4, 4, 8), random(3, 6, 6, 8, seed=1)
    boxes = torch.stack([BOXES[0], BOXES[1].roll(1, 0)])
    grids = overlap_grids(boxes, BOXES[1], 4)
    together = with_gradient(spatial_relation_loss, locals_, teacher, *grids, 2, 0.5)
    torch.testing.assert_close(
        together, with_gradient(spatial_relation_loss_reference, locals_, teacher, *grids, 2, 0.5)
    )
    each = [spatial_relation_loss(locals_[i], teacher, grids[0][i], grids[1][i], 2, 0.5) for i in range(2)]
    torch.testing.assert_close(together[0], torch.stack(each).mean())


def test_images_without_overlap_count_with_a_uniform_distribution() -> None:
    grids = overlap_grids(BOXES[0, 2:], BOXES[1, 2:], 4)
    loss = spatial_relation_loss(random(1, 6, 6, 8), random(1, 6, 6, 8, seed=1), *grids, 2, 0.5)
    assert float(loss) == pytest.approx(math.log(16))


def test_the_channel_loss_is_the_plain_one() -> None:
    student, teacher = random(3, 7, 6), random(3, 9, 6, seed=1)
    target = relation_target(channel_relation(teacher, 3.0), 0.1)
    torch.testing.assert_close(target.sum(-1), torch.ones(3, 6).double())
    fast = with_gradient(channel_relation_loss, student, target, 2.0)
    torch.testing.assert_close(fast, with_gradient(channel_relation_loss_reference, student, target, 2.0))


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = random(3, 6, 6, 8).requires_grad_(), random(3, 6, 6, 8, seed=1).requires_grad_()
    spatial_relation_loss(student, teacher, *overlap_grids(BOXES[0], BOXES[1], 4), 2, 0.5).backward()
    target = relation_target(channel_relation(teacher.flatten(1, 2), 3.0), 0.1)
    channel_relation_loss(student.flatten(1, 2), target, 2.0).backward()
    assert teacher.grad is None


def test_no_relation_is_kept_for_the_backward_pass() -> None:
    def largest_kept(loss, *arguments) -> int:
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()), lambda x: x):
            loss(*arguments)
        return max(kept)

    student, teacher = random(3, 6, 6, 4).requires_grad_(), random(3, 6, 6, 4, seed=1)
    arguments = (student, teacher, *overlap_grids(BOXES[0], BOXES[1], 8), 2, 0.5)
    relation = 3 * 2 * 64 * 64
    assert (
        largest_kept(spatial_relation_loss, *arguments)
        < relation
        <= largest_kept(spatial_relation_loss_reference, *arguments)
    )
    tokens = random(3, 2, 40).requires_grad_()
    target = relation_target(channel_relation(random(3, 2, 40), 3.0), 0.1)
    relation = 3 * 40 * 40
    assert largest_kept(channel_relation_loss, tokens, target, 2.0) < relation
    assert largest_kept(channel_relation_loss_reference, tokens, target, 2.0) >= relation


def test_autocast_changes_nothing() -> None:
    student, teacher = random(3, 6, 6, 8).float(), random(3, 6, 6, 8, seed=1).float()
    grids = overlap_grids(BOXES[0].float(), BOXES[1].float(), 4)

    def losses_and_gradient(autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
        own = student.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            spatial = spatial_relation_loss(own, teacher, *grids, 2, 0.5)
            target = relation_target(channel_relation(teacher.flatten(1, 2), 3.0), 0.1)
            channel = channel_relation_loss(own.flatten(1, 2), target, 2.0)
        (spatial + channel).backward()
        assert own.grad is not None
        return spatial.detach(), channel.detach(), own.grad

    for with_it, without in zip(losses_and_gradient(True), losses_and_gradient(False), strict=True):
        assert torch.equal(with_it, without)
