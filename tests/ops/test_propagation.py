"""Label propagation: the blocked version against the plain one, both against released code and hand-computed cases."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate, normalize, one_hot

from selfpatch.ops.propagation import Window, propagate_labels, propagate_labels_reference
from tests.helpers.largest_tensor import LargestTensor

BOTH = pytest.mark.parametrize("propagate", [propagate_labels, propagate_labels_reference])


@settings(max_examples=40)
@given(
    h=st.integers(1, 21),
    w=st.integers(1, 21),
    frames=st.integers(1, 3),
    channels=st.integers(1, 4),
    radius=st.integers(0, 13),
    topk=st.integers(1, 7),
    max_cosines=st.sampled_from([1, 1000, 2**26]),
    window=st.sampled_from(["square", "circle"]),
)
def test_blocked_equals_reference(
    h: int, w: int, frames: int, channels: int, radius: int, topk: int, max_cosines: int, window: Window
) -> None:
    generator = torch.Generator().manual_seed(h * 31 + w)
    query = torch.randn(h, w, 6, generator=generator, dtype=torch.float64)
    features = torch.randn(frames, h, w, 6, generator=generator, dtype=torch.float64)
    labels = torch.rand(frames, channels, h, w, generator=generator, dtype=torch.float64)
    protocol = {"radius": radius, "topk": topk, "temperature": 0.1, "window": window}
    fast = propagate_labels(query, features, labels, max_cosines=max_cosines, **protocol)
    plain = propagate_labels_reference(query, features, labels, **protocol)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)


@BOTH
def test_a_circle_leaves_out_the_corners_of_the_square(propagate) -> None:
    """The centre of 5 x 5 patches sees all of them, or the 13 within a distance of 2."""
    features, places = torch.ones(5, 5, 1), torch.eye(25).view(1, 25, 5, 5)
    index = torch.arange(-2, 3)
    near = index[:, None] ** 2 + index**2 <= 4
    for window, count in (("square", 25), ("circle", 13)):
        seen = propagate(features, features[None], places, radius=2, topk=25, temperature=1.0, window=window)[:, 2, 2]
        assert int((seen > 0).sum()) == count
    assert torch.equal(seen.view(5, 5) > 0, near)


def drawn(frames: int, h: int, w: int, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Features of a frame, and features and soft labels of its context."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1 + frames, h, w, dim, generator=generator)
    return features[0], features[1:], torch.rand(frames, 3, h, w, generator=generator)


@BOTH
def test_frames_of_length_one_one_after_the_other(propagate) -> None:
    """As a clip remembers them: not stacked, and normalised once."""
    query, features, labels = drawn(3, 10, 19)
    settings = {"radius": 4, "topk": 5, "temperature": 0.1}
    expected = propagate_labels_reference(query, features, labels, **settings)
    frames = [normalize(frame, dim=-1) for frame in features]
    found = propagate(normalize(query, dim=-1), frames, list(labels), normalised=True, **settings)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("max_cosines", [1, 3000, 20_000, 2**26])
def test_cosines_held_at_once_are_bounded(max_cosines: int) -> None:
    """A window of radius 3 in 4 frames has 4 * 7 * 7 patches; 600 x 3 labels are mixed. All pairs of a 20 x 30 grid
    never exist."""
    with LargestTensor(torch.ops.aten.mm.default, torch.ops.aten.bmm.default) as cosines, LargestTensor() as largest:
        propagate_labels(*drawn(4, 20, 30), radius=3, topk=5, temperature=0.1, max_cosines=max_cosines)
    assert 0 < cosines.elements <= max(max_cosines, 4 * 7 * 7, 600 * 3)
    assert largest.elements < 600 * 4 * 600 / 10


@BOTH
def test_released_label_propagation(propagate, golden_dir: Path) -> None:
    """golden pieces `vos.*`: 9 frames, each fed with the soft labels of frame 0 and of up to 7 frames before it."""
    tensors = load_file(golden_dir / "pieces" / "tensors.safetensors")
    expected = json.loads((golden_dir / "pieces" / "expected.json").read_text())["vos"]
    features, soft = tensors["vos.features"], tensors["vos.soft_labels"]
    labels = [one_hot(tensors["vos.first_labels"], soft.shape[1]).movedim(-1, 0).float()]
    for t in range(1, len(features)):
        context = [0, *range(max(1, t - expected["n_last_frames"]), t)]
        labels.append(
            propagate(
                features[t],
                features[context],
                torch.stack([labels[i] for i in context]),
                radius=expected["size_mask_neighborhood"],
                topk=expected["topk"],
                temperature=expected["temperature"],
            )
        )
        torch.testing.assert_close(labels[t], soft[t - 1], rtol=1e-5, atol=1e-6)
        assert torch.equal(_mask_x16(labels[t]), tensors["vos.masks_x16"][t - 1])


def _mask_x16(soft: Tensor) -> Tensor:
    up = interpolate(soft[None], scale_factor=16, mode="bilinear")[0]
    low, high = up.amin((1, 2), keepdim=True), up.amax((1, 2), keepdim=True)
    return ((up - low) / (high - low)).argmax(0).to(torch.uint8)


@BOTH
def test_labels_equal_those_computed_by_hand(propagate) -> None:
    """One row of three patches, radius 1: patch 0 sees two context patches, with cosines 1 and 0.6."""
    query = torch.tensor([[[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]])
    features = torch.tensor([[[[5.0, 0.0], [3.0, 4.0], [7.0, 0.0]]]])
    labels = torch.tensor([[[[1.0, 0.0, 0.25]]]])
    out = propagate(query, features, labels, radius=1, topk=2, temperature=0.5)
    share = math.exp(1 / 0.5) / (math.exp(1 / 0.5) + math.exp(0.6 / 0.5))
    expected = [share, (1 + 0.25) / 2, share * 0.25]  # the middle patch keeps both outer ones, of cosine 1
    torch.testing.assert_close(out, torch.tensor([[expected]]))


@BOTH
def test_patches_beyond_the_radius_do_not_count(propagate) -> None:
    """A patch that moved three columns is found with radius 3 and not with radius 2."""
    features = torch.eye(8).reshape(1, 1, 8, 8)
    labels = torch.zeros(1, 1, 1, 8)
    labels[..., 5] = 1
    query = features[0].roll(-3, dims=1)
    found = {r: propagate(query, features, labels, radius=r, topk=1, temperature=0.1)[0, 0, 2].item() for r in (2, 3)}
    assert found == {2: 0.0, 3: 1.0}


@BOTH
def test_of_equal_patches_no_more_than_topk_are_kept(propagate) -> None:
    """The released script keeps all of them, here four."""
    features, places = torch.ones(2, 2, 1), torch.eye(4).view(1, 4, 2, 2)
    out = propagate(features, features[None], places, radius=2, topk=3, temperature=0.1)
    assert sorted(out[:, 0, 0].tolist()) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


def test_low_temperatures_stay_finite() -> None:
    """The released script takes exp(cosine / temperature), which float32 cannot hold below a temperature of 0.012."""
    query, features, labels = drawn(2, 4, 5)
    out = propagate_labels(query, features, labels, radius=4, topk=1, temperature=0.005)
    expected = propagate_labels(query, features, labels, radius=4, topk=1, temperature=0.1)
    torch.testing.assert_close(out, expected)  # a single patch has all of the weight at any temperature
    assert (
        not propagate_labels_reference(query, query[None], labels[:1], radius=4, topk=1, temperature=0.005)
        .isfinite()
        .all()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(4, 5, 3)}, "do not fit"),
        ({"context_labels": torch.zeros(2, 1, 4, 5)}, "context_labels"),
        ({"context_features": torch.zeros(0, 4, 4, 3), "context_labels": torch.zeros(0, 1, 4, 4)}, "context_features"),
        (
            {"context_features": [torch.zeros(4, 4, 3), torch.zeros(4, 5, 3)]},
            r"of \(4, 4, 3\) and \(4, 5, 3\) do not fit",
        ),
        ({"context_labels": torch.zeros(3, 1, 4, 4)}, "context_labels, 3 maps"),
        ({"radius": -1}, "radius -1"),
        ({"topk": 0}, "topk 0"),
        ({"temperature": 0.0}, "temperature 0"),
    ],
)
def test_invalid_input_is_refused(change: dict, message: str) -> None:
    good = {
        "query": torch.zeros(4, 4, 3),
        "context_features": torch.zeros(2, 4, 4, 3),
        "context_labels": torch.zeros(2, 1, 4, 4),
        "radius": 1,
        "topk": 1,
        "temperature": 0.1,
    }
    with pytest.raises(ValueError, match=message):
        propagate_labels(**{**good, **change})


def test_no_room_for_a_single_cosine() -> None:
    with pytest.raises(ValueError, match="max_cosines is 0; use 1 or more"):
        propagate_labels(
            torch.zeros(2, 2, 1), torch.zeros(1, 2, 2, 1), torch.zeros(1, 1, 2, 2), radius=1, topk=1, temperature=1.0,
            max_cosines=0,
        )  # fmt: skip
