"""DAVIS: label propagation alone, and a whole frame from its pixels to its mask, as released against the fast way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Case
from selfpatch.core.reference import use_references
from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from selfpatch.evaluation.video_segmentation.propagation import ContextFrame, network_size, propagate_frame, to_mask
from selfpatch.models.backbones.build import build_backbone, named_backbone_config
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.propagation import propagate_labels

HEIGHT, WIDTH = 480, 854
"""Pixels of a frame of DAVIS at 480p."""
CONTEXT, OBJECTS = 8, 3


def propagation(h: int, w: int, device: torch.device, *, dim: int = 384) -> Case:
    """The labels of a frame of h x w patches, from those of 8 others."""
    context = remembered_frames(h, w, dim, device)
    (query, _), *_ = remembered_frames(h, w, dim, device, seed=1)
    released = DAVISConfig()

    def propagate() -> Tensor:
        return propagate_labels(
            query,
            [features for features, _ in context],
            [labels for _, labels in context],
            radius=released.radius,
            topk=released.topk,
            temperature=released.temperature,
            normalised=True,
        )

    return _beside_plain(f"label propagation, {h} x {w} patches, {CONTEXT} context frames", propagate)


def whole_frame(device: torch.device, *, model: str = "vit_small", patch_size: int = 16, resolution: int = 480) -> Case:
    """A frame of noise through an untrained network, its labels, and the mask of them."""
    torch.manual_seed(0)
    encoder = (
        BranchEncoder(build_backbone(named_backbone_config(model, patch_size=patch_size)), pool=None).to(device).eval()
    )
    noise = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    image, released = Image.fromarray(noise), DAVISConfig(resolution=resolution)
    height, width = network_size(HEIGHT, WIDTH, resolution, patch_size)
    context = remembered_frames(height // patch_size, width // patch_size, encoder.dim, device)

    def frame() -> np.ndarray:
        _, labels = propagate_frame(encoder, image, context, released)
        return to_mask(labels, patch_size, (HEIGHT, WIDTH))

    return _beside_plain(f"DAVIS frame, {model}/{patch_size} at {width} x {height}", frame)


def remembered_frames(h: int, w: int, dim: int, device: torch.device, *, seed: int = 0) -> list[ContextFrame]:
    """Noise: as many frames as a frame of a clip is compared with."""
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(CONTEXT, h, w, dim, generator=generator), dim=-1).to(device)
    labels = torch.rand(CONTEXT, 1 + OBJECTS, h, w, generator=generator).to(device)
    return list(zip(features, labels, strict=True))


def _beside_plain(name: str, fast: Callable[[], object]) -> Case:
    def plain() -> object:
        with use_references():
            return fast()

    with FlopCounterMode(display=False) as counter:
        plain()
    return Case(name, {"plain": plain, "fast": fast}, unit="frames", flops=counter.get_total_flops())


def cases(device: torch.device) -> Iterator[Case]:
    yield propagation(30, 53, device)
    yield whole_frame(device)
