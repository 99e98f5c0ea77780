"""Frames as the encoder sees them, released masks, and the memory and time of propagation."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.evaluation.encoders import MeanColour, RawPatch
from selfpatch.evaluation.video_segmentation import propagation
from selfpatch.evaluation.video_segmentation.config import DAVISConfig, Rounding
from selfpatch.evaluation.video_segmentation.evaluate import evaluate
from selfpatch.evaluation.video_segmentation.propagation import network_size, to_mask
from tests.evaluation.video_segmentation.conftest import Tree
from tests.helpers.largest_tensor import LargestTensor


class Recorder(MeanColour):
    def __init__(self, patch_size: int) -> None:
        super().__init__(patch_size)
        self.mean, self.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.inputs: list[Tensor] = []

    def patches(self, images: Tensor) -> Tensor:
        self.inputs.append(images)
        return super().patches(images)


@pytest.mark.parametrize(("std", "red"), [("released", 0.228), ("encoder", 0.229)])
def test_what_the_encoder_sees(tree: Tree, std: str, red: float) -> None:
    """Frame by frame, at the released script's size, normalised with its own standard deviation."""
    recorder = Recorder(16)
    evaluate(recorder, tree(colours=np.full((3, 3), 255, np.uint8)), DAVISConfig(resolution=96, std=std))
    assert [tuple(images.shape) for images in recorder.inputs] == [(1, 3, 96, 128)] * 6  # 96 * 192 / 128 = 144 -> 128
    white = (1 - torch.tensor(recorder.mean)) / torch.tensor([red, 0.224, 0.225])
    torch.testing.assert_close(recorder.inputs[0][0, :, 5, 5], white)


@pytest.mark.parametrize(
    ("frame", "patch_size", "expected"),
    [
        ((480, 854), 16, (480, 832)),
        ((480, 910), 8, (480, 896)),
        ((854, 480), 16, (832, 480)),
        ((480, 480), 16, (480, 448)),  # as released: the long side is rounded down though it is no longer then
        ((480, 854), 14, (476, 854 // 14 * 14)),
    ],
)
def test_network_size(frame: tuple[int, int], patch_size: int, expected: tuple[int, int]) -> None:
    assert network_size(*frame, 480, patch_size) == expected


@pytest.mark.parametrize(
    ("rounding", "frame", "patch_size", "expected"),
    [
        ("nearest", (480, 854), 16, (960, 1712)),  # footnote 2 of DINOv3's appendix D.5
        ("nearest", (480, 854), 14, (966, 1708)),
        ("nearest", (854, 480), 16, (1712, 960)),
        ("up", (480, 854), 16, (960, 1712)),
        ("up", (480, 854), 14, (966, 1722)),  # 966 * 854 / 480 = 1718.7
        ("up", (481, 854), 16, (960, 1712)),
        ("up", (470, 854), 16, (960, 1760)),
    ],
)
def test_network_size_of_dinov3(
    rounding: Rounding, frame: tuple[int, int], patch_size: int, expected: tuple[int, int]
) -> None:
    assert network_size(*frame, 960, patch_size, rounding) == expected


def test_network_size_below_64_pixels() -> None:
    assert network_size(100, 100, 50, 8) == (48, 48)
    assert network_size(100, 120, 50, 8) == (48, 56)
    assert network_size(100, 130, 50, 8) == (48, 64)


def test_released_masks_from_soft_labels(golden_dir: Path) -> None:
    tensors = load_file(golden_dir / "pieces" / "tensors.safetensors")
    for labels, mask in zip(tensors["vos.soft_labels"], tensors["vos.masks_x16"], strict=True):
        assert np.array_equal(to_mask(labels, tuple(mask.shape)), mask.numpy())


@pytest.mark.parametrize(
    ("values", "released", "here"), [((0.2, 0.5, 0.3), 0, 1), ((0.0, 1.0, 0.0), 1, 1), ((0.0, 0.0, 0.0), 0, 0)]
)
def test_constant_channels_keep_their_values(values: tuple[float, ...], released: int, here: int) -> None:
    """The released script subtracts the smallest value of a channel that is above 0 somewhere, and divides by what is
    then the largest: 0 / 0 where the channel is constant, and not a number counts as the largest of all."""
    labels = torch.tensor(values)[:, None, None].expand(3, 2, 2)
    normed = [(c - c.min()) / (c - c.min()).max() if c.max() > 0 else c for c in labels]
    assert torch.stack(normed).max(0).indices.unique().tolist() == [released]
    assert np.unique(to_mask(labels, (8, 8))).tolist() == [here]


class Witness(RawPatch):
    """Counts the feature maps of frames that are alive whenever it is asked for one more."""

    def __init__(self, patch_size: int) -> None:
        super().__init__(patch_size)
        self.alive: list[int] = []

    def patches(self, images: Tensor) -> Tensor:
        shape = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size, self.dim)
        tensors = [o for o in gc.get_objects() if type(o) is Tensor and o.shape[-3:] == shape]
        self.alive.append(len({t.untyped_storage().data_ptr() for t in tensors}))
        return super().patches(images)


@pytest.mark.parametrize("context_frames", [0, 3])
def test_memory_does_not_grow_with_the_clip(tree: Tree, context_frames: int) -> None:
    """While a frame is encoded, only the first one and the few before it are held."""
    witness = Witness(16)
    evaluate(
        witness, tree(frames=9), DAVISConfig(resolution=96, context_frames=context_frames)
    )  # maps of 6 x 8 patches
    before = witness.alive[0]
    assert [alive - before for alive in witness.alive] == [min(i, 1 + context_frames) for i in range(9)]


def test_max_memory_bounds_the_similarities(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks are the same when fewer similarities are held."""
    root = tree()
    plain = evaluate(MeanColour(4), root, DAVISConfig(resolution=128, radius=50))
    monkeypatch.setattr(propagation, "BYTES_PER_COSINE", 20)
    with LargestTensor(torch.ops.aten.mm.default, torch.ops.aten.bmm.default) as largest:
        bounded = evaluate(MeanColour(4), root, DAVISConfig(resolution=128, radius=50, max_memory=1))
    assert 0 < largest.elements <= 2**20 // 20 < 3 * 1024**2  # 5 frames of 32 x 32 patches ask 5 * 1024 others
    assert bounded.metrics == plain.metrics
    assert bounded == plain, "max_memory is no setting that decides the numbers"


def test_frames_per_second(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Propagated frames by the time between a read picture and its mask: the first frame's features count as time, what
    the caller does with a mask does not."""
    monkeypatch.setattr(propagation, "perf_counter", iter(range(100)).__next__)
    result = evaluate(MeanColour(16), tree(), DAVISConfig(resolution=128))
    assert result.costs == {"frames/s": 5 / 6}
