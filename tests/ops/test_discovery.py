"""LOST, TokenCut, MaskCut and attention boxes: released numbers, SciPy, loops, objects that can be seen."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from selfpatch.ops import discovery
from selfpatch.ops.discovery import (
    DiscoveredObject,
    attended,
    lost,
    lost_reference,
    maskcut,
    normalised_cut,
    normalised_cut_reference,
    pixel_box,
    tau_of_quantile,
    tokencut,
)
from tests.helpers.largest_tensor import LargestTensor


def smooth_features(seed: int, grid: tuple[int, int] = (9, 11), dim: int = 6) -> Tensor:
    """Random, but alike in neighbouring patches."""
    coarse = torch.randn(1, dim, 4, 4, generator=torch.manual_seed(seed))
    return F.interpolate(coarse, grid, mode="bilinear")[0].movedim(0, -1)


def object_on_ground(grid: tuple[int, int] = (12, 16), noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Features [h, w, D] with a block that differs from the rest, and its mask."""
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[3:8, 5:11] = True
    thing, ground = torch.eye(8)[0], -0.3 * torch.eye(8)[0] + torch.eye(8)[1]
    features = torch.where(mask[..., None], thing, ground)
    return features + noise * torch.randn(features.shape, generator=torch.manual_seed(0)), mask


def component_by_walking(mask: np.ndarray, start: tuple[int, int]) -> set[tuple[int, int]]:
    seen, todo = {start}, deque([start])
    while todo:
        y, x = todo.popleft()
        for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            inside = 0 <= near[0] < mask.shape[0] and 0 <= near[1] < mask.shape[1]
            if inside and mask[near] and near not in seen:
                seen.add(near)
                todo.append(near)
    return seen


class WithoutFloat64(Tensor):
    """A tensor that cannot be converted to float64 before it is moved to the CPU, as on MPS."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function is Tensor.cpu:
            return result.as_subclass(Tensor)
        assert not (isinstance(result, Tensor) and result.dtype == torch.float64), "MPS has no float64"
        return result


def test_a_device_without_float64_finds_the_same_objects() -> None:
    features, attention = smooth_features(0), smooth_features(1)[..., 0].abs()
    assert_same_object(lost(features.as_subclass(WithoutFloat64)), lost(features))
    assert_same_object(attended(attention.as_subclass(WithoutFloat64)), attended(attention))


def assert_same_object(found: DiscoveredObject, expected: DiscoveredObject) -> None:
    assert (found.seed, found.flaw) == (expected.seed, expected.flaw)
    assert torch.equal(found.mask, expected.mask)


def test_released_boxes_of_lost(golden_dir: Path) -> None:
    expected = json.loads((golden_dir / "pieces" / "expected.json").read_text())["lost"]
    tensors = load_file(golden_dir / "pieces" / "tensors.safetensors")
    for number, (*box, seed) in enumerate(expected["boxes_xyxy_and_seed"]):
        features = tensors[f"lost.features{number}"].unflatten(0, expected["grid"])
        for method in (lost, lost_reference):
            found = method(features, num_patches=expected["k_patches"])
            assert found.seed == seed
            assert list(pixel_box(found.mask, (16, 16), expected["image_size"])) == box


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_patches", [1, 20, 1000])
def test_lost_in_parts_equals_all_products_at_once(
    monkeypatch: pytest.MonkeyPatch, seed: int, num_patches: int
) -> None:
    features = smooth_features(seed)
    reference = lost_reference(features, num_patches=num_patches)
    monkeypatch.setattr(discovery, "MAX_PRODUCTS", 500)  # 5 rows at a time
    found = lost(features, num_patches=num_patches)
    assert found.seed == reference.seed
    assert torch.equal(found.mask, reference.mask)


@pytest.mark.parametrize("seed", range(4))
def test_the_object_is_the_seeds_four_connected_part(seed: int) -> None:
    features = smooth_features(seed)
    found = lost(features, num_patches=15)
    flat = features.flatten(0, 1)
    products = (flat @ flat.T).numpy()
    lowest = np.argsort((products > 0).sum(1), kind="stable")[:15]
    similar = [i for i in lowest if products[lowest[0], i] > 0]
    positive = products[similar].sum(0).reshape(9, 11) > 0
    walked = component_by_walking(positive, divmod(int(lowest[0]), 11))
    assert {tuple(place) for place in found.mask.nonzero().tolist()} == walked


def test_both_methods_find_an_object_that_can_be_seen() -> None:
    features, mask = object_on_ground()
    for found in (lost(features), tokencut(features)):
        assert mask.flatten()[found.seed]
        assert torch.equal(found.mask, mask)
        assert pixel_box(found.mask, (8, 8), (96, 128)) == (40, 24, 88, 64)


@pytest.mark.parametrize("seed", range(8))
def test_normalised_cut_equals_the_generalised_eigenvector_of_scipy(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Numbers above MAX_PRODUCTS go through the products part by part."""
    monkeypatch.setattr(discovery, "MAX_PRODUCTS", 500 if seed % 2 else 2**25)
    features = smooth_features(seed).flatten(0, 1)
    unit = (features / features.norm(dim=1, keepdim=True)).numpy()
    weights = np.where(unit @ unit.T > 0.2, 1.0, 1e-5)
    degree = np.diag(weights.sum(1))
    values, vectors = scipy.linalg.eigh(degree - weights, degree, subset_by_index=[1, 2])
    assert values[1] - values[0] > 1e-3, "two cuts are as good as each other; take another seed"
    expected = vectors[:, 0] / np.linalg.norm(vectors[:, 0])
    for method in (normalised_cut, normalised_cut_reference):
        own = method(torch.from_numpy(features.numpy()), tau=0.2).numpy()
        own = own / np.linalg.norm(own)
        own = own * np.sign(own @ expected)
        np.testing.assert_allclose(own, expected, atol=1e-6)
        assert ((own > own.mean()) == (expected > expected.mean())).all()


def test_lanczos_alone_finds_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ever falling back on the whole decomposition; and that is what decides where it does not settle."""
    features = smooth_features(3).flatten(0, 1)
    reference = normalised_cut_reference(features)
    monkeypatch.setattr(discovery, "_cut_reference", lambda *_: torch.zeros(1))
    cut = normalised_cut(features)
    assert cut.shape == reference.shape
    monkeypatch.setattr(discovery, "LANCZOS_STEPS", 2)
    assert normalised_cut(features).shape == (1,)


def test_products_held_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 99 patches: LOST never holds more than the features, TokenCut its pairs as bytes and no matrix of float64, not
    even where its iterations do not settle."""
    monkeypatch.setattr(discovery, "MAX_PRODUCTS", 500)
    features = smooth_features(0)
    with LargestTensor() as largest:
        lost(features, num_patches=1000)
    assert largest.elements == features.numel()
    with LargestTensor() as largest:
        tau_of_quantile(features.flatten(0, 1), 0.5)
    assert largest.elements == features.numel()
    for steps in (400, 2):
        monkeypatch.setattr(discovery, "LANCZOS_STEPS", steps)
        with LargestTensor() as largest:
            cut = normalised_cut(features.flatten(0, 1))
        assert 99 * 99 <= largest.bytes < 99 * 99 * 8
        assert torch.isfinite(cut).all()


def test_tokencut_takes_the_side_of_the_largest_entry() -> None:
    for seed in range(6):
        features = smooth_features(seed)
        vector = normalised_cut_reference(features.flatten(0, 1))
        strongest = int(vector.abs().argmax())
        side = (vector > vector.mean()) == (vector[strongest] > vector.mean())
        walked = component_by_walking(side.view(9, 11).numpy(), divmod(strongest, 11))
        found = tokencut(features)
        assert found.seed == strongest
        assert {tuple(place) for place in found.mask.nonzero().tolist()} == walked


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (1, 40)])
def test_the_smallest_grids_give_an_object(grid: tuple[int, int]) -> None:
    features = torch.randn(*grid, 4, generator=torch.manual_seed(0))
    for found in (lost(features), tokencut(features), attended(features[..., 0].abs())):
        assert found.mask.shape == grid
        assert found.mask.flatten()[found.seed]


def test_patches_of_zeros_give_the_seed_alone() -> None:
    """A patch of zeros has no positive product, not even with itself: it stands alone."""
    found = lost(torch.zeros(3, 4, 5))
    assert found.mask.sum() == 1
    assert torch.isfinite(normalised_cut(torch.zeros(12, 5))).all()


def test_attention_keeps_its_mass_and_the_largest_part() -> None:
    attention = torch.tensor(
        [
            [8.0, 0.1, 0.1, 0.1],
            [0.1, 0.1, 3.0, 3.0],
            [0.1, 0.1, 3.0, 0.2],
        ]
    )
    found = attended(attention, mass=0.9)
    assert found.mask.int().tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]]
    assert found.seed == 6
    assert attended(attention, mass=0.3).mask.nonzero().tolist() == [[0, 0]]
    assert attended(attention, mass=1.0).mask.all()


def test_attention_keeps_the_patch_that_crosses_the_mass() -> None:
    """0.1 + 0.2 < 0.4 < 0.1 + 0.2 + 0.3: the third goes over the line and stays."""
    found = attended(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), mass=0.6)
    assert found.mask.tolist() == [[False, False, True, True]]


def test_boxes_are_cut_at_the_image_before_padding() -> None:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1:, 2:] = True
    assert pixel_box(mask, (16, 16), (45, 50)) == (32, 16, 50, 45)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="num_patches is 0; use 1 or more"):
        lost(torch.randn(2, 2, 3), num_patches=0)
    with pytest.raises(ValueError, match=r"mass is 0.0; use more than 0"):
        attended(torch.rand(2, 2), mass=0.0)


def biased(offset: float) -> Tensor:
    """The object on ground with a constant in a direction of its own added to all features, as DINOv2's keys have."""
    return object_on_ground()[0] + offset * torch.eye(8)[7]


def test_graphs_without_contrast_are_told_from_others() -> None:
    """A constant makes all pairs similar and hides the object from both methods, until it is subtracted."""
    features, shifted, (_, mask) = object_on_ground()[0], biased(5.0), object_on_ground()
    assert (lost(features).flaw, tokencut(features).flaw) == (None, None)
    for method in (lost, lost_reference, tokencut):
        assert method(shifted).flaw == "complete"
    assert lost(shifted).mask.all()
    assert not torch.equal(tokencut(shifted).mask, mask)
    centred = shifted - shifted.mean((0, 1))
    for found in (lost(centred), tokencut(centred)):
        assert found.flaw is None
        assert torch.equal(found.mask, mask)
    orthogonal = torch.eye(12).view(3, 4, 12)
    assert (lost(orthogonal).flaw, tokencut(orthogonal).flaw) == ("sparse", "sparse")
    assert tokencut(features, tau=1.0).flaw == "sparse"


def test_constant_and_single_patches() -> None:
    for constant in (torch.ones(3, 4, 5), torch.zeros(3, 4, 5)):
        flaw = "complete" if constant.any() else "sparse"
        assert (lost(constant).flaw, tokencut(constant).flaw) == (flaw, flaw)
    assert lost(torch.ones(1, 1, 5)).flaw is None, "nothing to compare"
    assert tokencut(torch.ones(1, 1, 5)).flaw is None


def test_attention_to_all_patches_alike_or_to_one() -> None:
    assert attended(torch.full((4, 5), 0.05)).flaw == "uniform"
    one = torch.full((4, 5), 0.01)
    one[2, 3] = 1
    assert attended(one).flaw == "single"
    one[2, 4] = 1
    assert attended(one).flaw is None
    assert attended(torch.ones(1, 1)).flaw is None


@pytest.mark.parametrize("parts", [False, True])
def test_a_quantile_is_that_of_all_pairs_and_ignores_a_constant(monkeypatch: pytest.MonkeyPatch, parts: bool) -> None:
    """In parts, five of 99 patches stand for all."""
    features = smooth_features(0).flatten(0, 1)
    unit = F.normalize(features, dim=1).numpy()
    cosines = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
    if parts:
        monkeypatch.setattr(discovery, "MAX_PRODUCTS", 500)
    for quantile in (0.1, 0.5, 0.9):
        tau = tau_of_quantile(features, quantile)
        assert (cosines > tau).mean() == pytest.approx(1 - quantile, abs=0.15 if parts else 3e-4)
    assert tau_of_quantile(features[:1], 0.5) == np.inf, "one patch has no pair"
    shifted, mask = biased(5.0), object_on_ground()[1]
    assert torch.equal(tokencut(shifted, tau=tau_of_quantile(shifted.flatten(0, 1), 0.5)).mask, mask)


def objects_on_ground(
    *boxes: tuple[int, int, int, int], grid: tuple[int, int] = (14, 18)
) -> tuple[Tensor, list[Tensor]]:
    """Features with a block for each (top, left, bottom, right), each in a direction of its own, and their masks."""
    features, masks = torch.eye(8)[0].expand(*grid, 8).clone(), []
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        masks.append(torch.zeros(grid, dtype=torch.bool))
        masks[-1][top:bottom, left:right] = True
        features[masks[-1]] = torch.eye(8)[number]
    return features + 0.03 * torch.randn(features.shape, generator=torch.manual_seed(0)), masks


def maskcut_of_scipy(features: Tensor, tau: float, num: int, *, hides_objects: bool = True) -> list[np.ndarray]:
    """Return the masks of MaskCut from all pairs, by SciPy's eigenvectors and a walk for each component."""
    height, width, dim = features.shape
    left, masks = features.double().numpy().copy(), []
    for _ in range(num):
        flat = left.reshape(-1, dim)
        unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        weights = np.where(unit @ unit.T > tau, 1.0, 1e-5)
        degree = np.diag(weights.sum(1))
        vector = scipy.linalg.eigh(degree - weights, degree, subset_by_index=[1, 1])[1][:, 0]
        side = vector > vector.mean()
        side = side if side[np.abs(vector).argmax()] else ~side
        corners = side.reshape(height, width)[[0, 0, -1, -1], [0, -1, 0, -1]].sum()
        side = side if corners < 3 else ~side
        seed = int(np.where(side, np.abs(vector - vector.mean()), -1).argmax())
        walked = component_by_walking(side.reshape(height, width), divmod(seed, width))
        mask = np.zeros((height, width), bool)
        mask[tuple(np.array([*walked]).T)] = True
        overlap = max([(mask & one).sum() / (mask | one).sum() for one in masks], default=0)
        if masks and (mask.mean() <= 0.01 or overlap > 0.5):
            break
        masks.append(mask & ~np.any(masks, axis=0) if masks else mask)
        if hides_objects:
            left[masks[-1]] = 0
    return masks


def test_maskcut_finds_every_object_that_can_be_seen() -> None:
    """Two squares give two masks, though a third is asked for; the larger one, a cheaper cut, need not be first."""
    features, masks = objects_on_ground((2, 2, 6, 7), (8, 10, 12, 16))
    found = maskcut(features, tau=0.5)
    assert len(found) == 2
    for one in found:
        mask = next(mask for mask in masks if mask.flatten()[one.seed])
        assert torch.equal(one.mask, mask)
        assert one.flaw is None
    assert not (found[0].mask & found[1].mask).any()
    assert len(maskcut(features, tau=0.5, max_objects=1)) == 1
    three, masks = objects_on_ground((1, 1, 5, 5), (8, 2, 12, 8), (3, 11, 9, 16))
    assert {one.mask.sum().item() for one in maskcut(three, tau=0.5)} == {mask.sum().item() for mask in masks}


def test_what_is_too_small_for_a_further_object_ends_maskcut() -> None:
    """Of 252 patches, two are less than 1 % and three are more."""
    squares = (2, 2, 6, 7), (8, 10, 12, 16)
    assert len(maskcut(objects_on_ground(*squares, (12, 1, 13, 3))[0], tau=0.5, max_objects=4)) == 2
    assert len(maskcut(objects_on_ground(*squares, (12, 1, 13, 4))[0], tau=0.5, max_objects=4)) == 3


@pytest.mark.parametrize("seed", range(6))
def test_maskcut_is_the_plain_program(seed: int) -> None:
    features = smooth_features(seed, grid=(10, 12), dim=4)
    expected = maskcut_of_scipy(features, 0.15, 3)
    found = maskcut(features, tau=0.15)
    assert [one.mask.tolist() for one in found] == [mask.tolist() for mask in expected]


@pytest.mark.slow
def test_maskcut_that_does_not_hide_objects_is_noticed() -> None:
    """The plain program finds the same object again, and ends."""
    features, _ = objects_on_ground((2, 2, 6, 7), (8, 10, 12, 16))
    assert len(maskcut_of_scipy(features, 0.5, 3)) == 2 == len(maskcut(features, tau=0.5))
    assert len(maskcut_of_scipy(features, 0.5, 3, hides_objects=False)) == 1


def test_a_side_with_three_corners_is_no_object_of_maskcut() -> None:
    """A frame of another kind around a block: TokenCut may take the frame, MaskCut takes what it surrounds."""
    features, (mask,) = objects_on_ground((1, 1, 13, 17))
    (found,) = maskcut(features, tau=0.5, max_objects=1)
    assert torch.equal(found.mask, mask)


def test_degenerate_input_of_maskcut() -> None:
    assert maskcut(torch.ones(3, 4, 5))[0].flaw == "complete"
    assert maskcut(torch.zeros(3, 4, 5))[0].flaw == "sparse"
    (one,) = maskcut(torch.ones(1, 1, 5))
    assert one.mask.all()
    assert one.flaw is None
    for grid in ((1, 2), (1, 40)):
        found = maskcut(torch.randn(*grid, 4, generator=torch.manual_seed(0)))
        assert all(one.mask.any() for one in found)
        assert torch.stack([one.mask for one in found]).sum(0).max() == 1, "no patch belongs to two objects"
    with pytest.raises(ValueError, match="max_objects is 0; use 1 or more"):
        maskcut(torch.ones(2, 2, 3), max_objects=0)
