"""Benchmark of DAVIS: label propagation alone, a whole frame from its pixels to its mask, and a whole evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.photographs import write_photographs
from benchmarks.timing import Case, against_reference
from selfpatch.core.types import Encoder
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.video_segmentation.clip import write_mask
from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from selfpatch.evaluation.video_segmentation.evaluate import evaluate
from selfpatch.evaluation.video_segmentation.propagation import ContextFrame, frame_mask, network_size, propagate_frame
from selfpatch.models.backbones.build import build_backbone, named_backbone_config
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.propagation import propagate_labels

HEIGHT, WIDTH = 480, 854
"""Pixels of a frame of DAVIS at 480p."""
OBJECTS = 3
FRAMES = 10
"""Frames of the clip that is evaluated; its last 2 have a full context."""


def cases(device: torch.device, model: str = "vit_small") -> Iterator[Case]:
    """Yield the cases of this benchmark."""
    yield propagation(30, 53, device)
    yield whole_frame(device, model=model)
    torch.manual_seed(0)
    backbone = build_backbone(named_backbone_config(model, patch_size=14))
    yield whole_evaluation(BranchEncoder(backbone, pool=None).to(device).eval(), resolution=240)


def propagation(h: int, w: int, device: torch.device, *, dim: int = 384) -> Case:
    """Return the case of labels for a frame of h x w patches, from those of its context frames."""
    config = DAVISConfig()
    context = noise_frames(h, w, dim, device, config)
    (query, _), *_ = noise_frames(h, w, dim, device, config, seed=1)

    def propagate() -> Tensor:
        return propagate_labels(
            query,
            [features for features, _ in context],
            [labels for _, labels in context],
            radius=config.radius,
            topk=config.topk,
            temperature=config.temperature,
            normalised=True,
        )

    name = f"label propagation, {h} x {w} patches, {len(context)} context frames"
    return against_reference(name, propagate, unit="frames", with_flops=True)


def whole_frame(
    device: torch.device, *, model: str = "vit_small", patch_size: int = 16, config: DAVISConfig | None = None
) -> Case:
    """Return the case of a frame of noise: an untrained network, the frame's labels, and its mask."""
    config = config or DAVISConfig()
    torch.manual_seed(0)
    backbone = build_backbone(named_backbone_config(model, patch_size=patch_size))
    encoder = BranchEncoder(backbone, pool=None).to(device).eval()
    noise = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    height, width = network_size(HEIGHT, WIDTH, config.resolution, patch_size)
    context = noise_frames(height // patch_size, width // patch_size, encoder.dim, device, config)

    def frame() -> np.ndarray:
        _, labels = propagate_frame(encoder, image, context, config)
        return frame_mask(labels, patch_size, (HEIGHT, WIDTH), config)

    name = f"DAVIS frame, {model}/{patch_size} at {width} x {height}"
    return against_reference(name, frame, unit="frames", with_flops=True)


def whole_evaluation(encoder: Encoder, *, resolution: int, frames: int = FRAMES) -> Case:
    """Return the case of the evaluation of a clip, against the forward passes of its frames alone.

    The evaluation reads files, resizes frames, propagates labels and scores masks besides. The clip is a photograph
    that moves under its mask.
    """
    folder = TemporaryDirectory()
    tree = write_clip(Path(folder.name), frames)
    config = DAVISConfig(resolution=resolution)
    height, width = network_size(HEIGHT, WIDTH, resolution, encoder.patch_size)
    pixels = torch.zeros(1, 3, height, width, device=encoder.device)

    @torch.no_grad()
    def forward_alone() -> None:
        for _ in range(frames):
            encoder.patches(pixels)

    def evaluation() -> Result:
        assert Path(folder.name).is_dir()  # the folder lasts as long as this function
        return evaluate(encoder, tree, config)

    name = f"evaluation of {frames} frames at {width} x {height}, patches of {encoder.patch_size}"
    return Case(name, {"forward passes alone": forward_alone, "evaluation": evaluation}, frames, "frames")


def write_clip(root: Path, frames: int) -> Path:
    """Write a tree of DAVIS with one clip of photographs, and return it."""
    source = Image.open(next(write_photographs(root / "photographs", 1).iterdir()))
    photograph = source.resize((WIDTH + frames, HEIGHT))
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("clip\n")
    (root / "JPEGImages" / "480p" / "clip").mkdir(parents=True)
    for i in range(frames):
        photograph.crop((i, 0, i + WIDTH, HEIGHT)).save(root / f"JPEGImages/480p/clip/{i:05d}.jpg", quality=90)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[100:300, 300 - i : 600 - i] = 1
        write_mask(root / f"Annotations/480p/clip/{i:05d}.png", mask)
    return root


def noise_frames(
    h: int, w: int, dim: int, device: torch.device, config: DAVISConfig, *, seed: int = 0
) -> list[ContextFrame]:
    """Return noise for all context frames of a frame: the first frame and `config.context_frames` others."""
    count = 1 + config.context_frames
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(count, h, w, dim, generator=generator), dim=-1).to(device)
    labels = torch.rand(count, 1 + OBJECTS, h, w, generator=generator).to(device)
    return list(zip(features, labels, strict=True))
