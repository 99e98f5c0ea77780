"""DAVIS label propagation (DINO, arXiv 2104.14294, section 4.2.2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.evaluation.result import Cell, Progress, Provenance, Result
from selfpatch.evaluation.video_segmentation.dataset import Clip, Year, open_clips, write_mask
from selfpatch.evaluation.video_segmentation.metrics import frame_scores, object_rows, scored, scored_frames
from selfpatch.evaluation.video_segmentation.visualize import OverlayStrip
from selfpatch.models.features import patch_features
from selfpatch.ops.propagation import propagate_labels

LONG_SIDE_MULTIPLE = 64
RELEASED_STD = {0.229: 0.228}
"""The released script normalises red with 0.228 where ImageNet's standard deviation is 0.229."""
BYTES_OF_A_COSINE = 8
"""Four of its own, and as many for masks and for what is made of it."""

Remembered = tuple[Tensor, Tensor]
"""What is kept of a frame: its features [h, w, D], each of length one, and its soft labels [C, h, w]."""


class Stopwatch:
    """Adds up the seconds spent inside `with` blocks; `frames` is counted by whom it is lent to."""

    def __init__(self) -> None:
        self.seconds, self.frames = 0.0, 0

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += perf_counter() - self._started


@dataclass(frozen=True)
class LabelPropagation:
    """How the first mask of a clip becomes the masks of all its frames.

    Attributes:
        resolution: the short side of the frames in pixels, floored to a multiple of the patch size. The long side is
            floored to a multiple of 64, as released; where the patch size does not divide 64, to one of the patch size.
        radius: of the window, in patches.
        topk: context patches a patch takes its label from.
        context_frames: frames just before the present one that are looked at beside the first.
        temperature: of the softmax over cosines.
        std: `released` normalises with the released script's (0.228, 0.224, 0.225) where the encoder's own standard
            deviation is ImageNet's; `encoder` with the encoder's own.
        max_memory: MB that the similarities of patches may take at once; speed and memory only. Beside them there are
            the features of the frames looked at and at most one more copy of them, the encoder's own memory and one
            mask an object at the size of the resized frame, and none of these grows with the clip.
    """

    resolution: int = 480
    radius: int = 12
    topk: int = 5
    context_frames: int = 7
    temperature: float = 0.1
    std: Literal["released", "encoder"] = "released"
    max_memory: int = 512

    def __post_init__(self) -> None:
        if self.context_frames < 0:
            raise ValueError(f"context_frames is {self.context_frames}; use 0 for the first frame alone")
        if self.std not in ("released", "encoder"):
            raise ValueError(f"std is {self.std!r}; use released or encoder")
        if self.max_memory < 1:
            raise ValueError(f"max_memory is {self.max_memory}; use 1 MB or more")

    def settings(self) -> dict[str, Any]:
        """What decides the numbers."""
        return {name: value for name, value in asdict(self).items() if name != "max_memory"}

    @torch.no_grad()
    def masks(self, encoder: Encoder, clip: Clip, clock: Stopwatch | None = None) -> Iterator[np.ndarray]:
        """The mask of each frame, uint8 [H, W] at the clip's own size, the given first one included.

            context = the first frame, then up to `context_frames` frames before this one
            labels  = propagate_labels(features of this frame, features and soft labels of the context)
            mask    = argmax over objects of the labels, upsampled

        Of the frames already seen only the context is held, however long the clip is.

        Args:
            clock: runs from a picture that is read to the mask of its frame; reading does not count.
        """
        clock = clock or Stopwatch()
        first_mask = clip.mask(0)
        yield first_mask
        if len(clip.frames) == 1:
            return
        image = clip.image(0)
        with clock:
            features = self._features(encoder, image)
            labels = _one_hot(first_mask, features.shape[:2], clip.num_objects + 1).to(features.device)
        first = features, labels
        recent: deque[Remembered] = deque(maxlen=self.context_frames)
        for frame in range(1, len(clip.frames)):
            image = clip.image(frame)
            with clock:
                seen = self.propagate(encoder, image, [first, *recent])
                mask = to_mask(seen[1], encoder.patch_size, first_mask.shape)  # waits for the device
            recent.append(seen)  # soft: errors are not hardened
            del seen  # else it would be held beside the context while the next frame is worked on
            clock.frames += 1
            yield mask

    @torch.no_grad()
    def propagate(self, encoder: Encoder, image: Image.Image, context: Sequence[Remembered]) -> Remembered:
        """Features and soft labels of a frame, from those of the frames in its context."""
        features = self._features(encoder, image)
        labels = propagate_labels(
            features,
            [features for features, _ in context],
            [labels for _, labels in context],
            radius=self.radius,
            topk=self.topk,
            temperature=self.temperature,
            normalised=True,
            max_cosines=self.max_memory * 2**20 // BYTES_OF_A_COSINE,
        )
        return features, labels

    def _features(self, encoder: Encoder, image: Image.Image) -> Tensor:
        """[h, w, D], each of length one."""
        std = encoder.std if self.std == "encoder" else [RELEASED_STD.get(s, s) for s in encoder.std]
        size = network_size(image.height, image.width, self.resolution, encoder.patch_size)
        pixels = torch.from_numpy(np.array(image)).to(encoder.device).movedim(-1, 0)[None].float()
        # Neither antialiased nor fractional: as OpenCV's linear interpolation, which the released script uses.
        pixels = F.interpolate(pixels, size, mode="bilinear").round().to(torch.uint8)
        return F.normalize(patch_features(encoder, pixels, std=std)[0], dim=-1).contiguous()


def network_size(height: int, width: int, resolution: int, patch_size: int) -> tuple[int, int]:
    """The (height, width) that frames are resized to; see `LabelPropagation.resolution`. A long side below 64 is
    floored to a multiple of the patch size.

    Raises:
        ValueError: the frames would have no patch.
    """
    multiple = LONG_SIDE_MULTIPLE if LONG_SIDE_MULTIPLE % patch_size == 0 else patch_size
    short = resolution // patch_size * patch_size
    exact = int(resolution * max(height, width) / min(height, width))
    long = exact // multiple * multiple or exact // patch_size * patch_size
    if short == 0 or long == 0:
        raise ValueError(f"resolution {resolution} is too small for patches of {patch_size}; use e.g. 480")
    return (short, long) if height <= width else (long, short)


def _one_hot(mask: np.ndarray, grid: Sequence[int], channels: int) -> Tensor:
    """uint8 [H, W] -> float32 [C, h, w]: the mask at the nearest pixel of each patch, as Pillow resizes."""
    small = np.asarray(Image.fromarray(mask).resize((grid[1], grid[0]), Image.Resampling.NEAREST))
    return F.one_hot(torch.from_numpy(small.astype(np.int64)), channels).movedim(-1, 0).float()


def to_mask(labels: Tensor, patch_size: int, size: tuple[int, ...]) -> np.ndarray:
    """Soft labels [C, h, w] -> uint8 object numbers at the clip's own size."""
    soft = F.interpolate(labels[None], scale_factor=patch_size, mode="bilinear")[0]
    low, high = soft.amin((1, 2), keepdim=True), soft.amax((1, 2), keepdim=True)
    # A channel that is the same everywhere has no range: it stays, so that an object that fills the frame is kept.
    soft = torch.where(high > low, (soft - low) / (high - low), soft)
    mask = soft.max(0).indices.to(torch.uint8).cpu().numpy()  # argmax, which is five times as slow on the CPU
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def evaluate(
    encoder: Encoder,
    data: str | Path,
    *,
    out: str | Path | None = None,
    resolution: int = 480,
    radius: int = 12,
    topk: int = 5,
    context_frames: int = 7,
    temperature: float = 0.1,
    std: Literal["released", "encoder"] = "released",
    max_memory: int = 512,
    year: Year | None = None,
    sequences: Sequence[str] | None = None,
    weights: Provenance | None = None,
    progress: Progress | None = None,
) -> Result:
    """Propagates the first mask of each clip through the encoder's patch features, and scores the masks.

    Clips of any length, frames of any size: the first and the last frame are not scored, so that a clip of one or two
    frames has masks but no scores. `per_image` holds the means over the objects of each sequence, and `costs` the
    `frames/s` that were propagated: from the picture that is read to the mask of the frame, without reading pictures,
    writing and scoring masks.

    Args:
        encoder: the network.
        data: DAVIS tree, see `layout`.
        out: folder for results/<sequence>/00000.png, pictures/<sequence>.jpg and result.json; None writes nothing.
        resolution, radius, topk, context_frames, temperature, std, max_memory: see `LabelPropagation`.
        year, sequences: see `open_clips`.
        weights: what the encoder was made of, for the record.
        progress: called with the sequence and the frames done, of all sequences.

    Raises:
        ValueError: the tree or one of its clips is not as it should be; found before the first frame is worked on.
    """
    propagation = LabelPropagation(resolution, radius, topk, context_frames, temperature, std, max_memory)
    clips = open_clips(data, year=year, sequences=sequences)
    settings = {**propagation.settings(), "patch_size": encoder.patch_size, "data": str(data)}
    clock = Stopwatch()
    return _run(clips, lambda clip: propagation.masks(encoder, clip, clock), settings, out, weights, progress, clock)


def repeat_first_mask(
    data: str | Path,
    out: str | Path | None = None,
    *,
    year: Year | None = None,
    sequences: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Result:
    """The floor: the first mask, unmoved, in every frame. Arguments and errors as in `evaluate`."""
    clips = open_clips(data, year=year, sequences=sequences)
    settings = {"baseline": "repeat first mask", "data": str(data)}
    return _run(clips, lambda clip: repeat(clip.mask(0), len(clip.frames)), settings, out, None, progress)


def _run(
    clips: list[Clip],
    predict: Callable[[Clip], Iterator[np.ndarray]],
    settings: dict[str, Any],
    out: str | Path | None,
    weights: Provenance | None,
    progress: Progress | None,
    clock: Stopwatch | None = None,
) -> Result:
    for clip in clips:
        clip.require_masks()
        clip.require_frames()
    rows: dict[str, list[dict[str, Cell]]] = {}
    pictures: list[str] = []
    total, done = sum(len(clip.frames) for clip in clips), 0
    for clip in clips:
        scores, strip = [], OverlayStrip(len(clip.frames))
        for frame, mask in enumerate(predict(clip)):
            if frame in scored_frames(clip):
                scores.append(frame_scores(clip, frame, mask))
            if out is not None:
                write_mask(Path(out) / "results" / clip.name / f"{clip.frames[frame]}.png", mask)
                if strip.wants(frame):
                    strip.add(clip.image(frame), mask)
            done += 1
            if progress is not None:
                progress(clip.name, done, total)
        rows[clip.name] = object_rows(clip, scores)
        if out is not None:
            pictures.append(f"pictures/{clip.name}.jpg")
            (Path(out) / "pictures").mkdir(exist_ok=True)
            strip.picture().save(Path(out) / pictures[-1], quality=90)
    settings = settings | {"year": clips[0].year, "sequences": [clip.name for clip in clips]}
    costs = {"frames/s": clock.frames / clock.seconds} if clock is not None and clock.frames else {}
    result = scored(rows, settings, weights, pictures=pictures, costs=costs)
    if out is not None:
        result.save(Path(out) / "result.json")
    return result
