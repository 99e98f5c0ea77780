"""Masks of a whole clip from its given masks, by label propagation (DINO, arXiv 2104.14294, section 4.2.2)."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.data.decode.opening import check_resized
from selfpatch.data.decode.pillow import as_bad_image
from selfpatch.evaluation.degenerate import check_degenerate, check_patches
from selfpatch.evaluation.video_segmentation.clip import Clip
from selfpatch.evaluation.video_segmentation.config import DAVISConfig, Rounding
from selfpatch.models.features import patch_features
from selfpatch.ops.propagation import propagate_labels
from selfpatch.ops.resampling import resize_linear

LONG_SIDE_MULTIPLE = 64
RELEASED_STD = {0.229: 0.228}
"""Standard deviation of the red channel: the released script has 0.228 where ImageNet's is 0.229."""
BYTES_PER_COSINE = 8
"""Bytes per cosine: four for the value, four for masks and intermediate results."""

NO_PATCH = (
    "a given object is too small or thin for any patch to have its label, so that it is lost whatever the features "
    "are; use a larger --resolution"
)
NO_BACKGROUND = "the given mask fills the whole frame, so that any features keep it; leave the sequence out"
NOTHING_FOUND = (
    "no mask but the given ones has an object, so that J and F say nothing of the features; check the weights, or use "
    "a larger --resolution"
)
ContextFrame = tuple[Tensor, Tensor]
"""Features [h, w, D] of a frame, each of unit length, and its soft labels [C, h, w]."""


class Stopwatch:
    """Sum of the seconds spent inside its `with` blocks; the user of the stopwatch counts `frames`."""

    def __init__(self) -> None:
        self.seconds, self.frames = 0.0, 0

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += perf_counter() - self._started


def check_network_size(clip: Clip, config: DAVISConfig, patch_size: int) -> None:
    """Raise ValueError if the frames of a clip, all as large as its first mask, would be too large for the network."""
    height, width = clip.size
    rows, columns = network_size(height, width, config.resolution, patch_size, config.rounding)
    with as_bad_image(clip.image_file(0)):
        check_resized((width, height), columns, rows)


@torch.no_grad()
def propagate_masks(encoder: Encoder, clip: Clip, config: DAVISConfig, clock: Stopwatch) -> Iterator[np.ndarray]:
    """Yield the mask of each frame, uint8 [H, W] in the clip's resolution, from those that are given.

    ::

        for each frame:
            context = the frames with a given mask before this one, and the other `context_frames` frames before it
            labels  = propagate_labels(features of this frame, features and soft labels of the context)
            mask    = argmax over objects of the upsampled labels
            where objects are given in this frame, they replace mask and labels

    In DAVIS, a mask is given in the first frame alone. No paper says how objects that start late take part; here all
    of them share one context. Frames before the first object have empty masks, and are not encoded. Only the context is
    kept in memory, however long the clip is. `clock` runs from picture to mask.
    """
    first = min(clip.starts)
    for _ in range(first):
        yield np.zeros(clip.size, np.uint8)
    given = clip.given(first)
    assert given is not None
    yield given
    if len(clip.frames) == first + 1:
        return
    image = clip.image(first)
    with clock:
        features = _frame_features(encoder, image, config)
        fixed: list[ContextFrame] = [(features, _given_labels(clip, first, given, features))]
    check_patches(features, f"{clip.name}/{clip.frames[first]}")
    check_degenerate(NO_BACKGROUND, bool(given.all()), clip.name)
    del features
    found = False
    recent: deque[ContextFrame] = deque(maxlen=config.context_frames)
    for frame in range(first + 1, len(clip.frames)):
        image, given = clip.image(frame), clip.given(frame)
        with clock:
            current = propagate_frame(encoder, image, [*fixed, *recent], config)
            mask = frame_mask(current[1], encoder.patch_size, clip.size, config)  # waits for the device
        check_patches(current[0], f"{clip.name}/{clip.frames[frame]}")
        found = found or bool(mask.any())
        if given is None:
            recent.append(current)  # soft labels, so that errors are not hardened
        else:
            mask = np.where(given > 0, given, mask)
            fixed.append(_with_given(current, _given_labels(clip, frame, given, current[0])))
        del current  # otherwise it would stay in memory next to the context while the next frame is processed
        clock.frames += 1
        yield mask
    check_degenerate(NOTHING_FOUND, not found, clip.name)


def repeat_given_masks(clip: Clip) -> Iterator[np.ndarray]:
    """Yield for each frame the masks that have been given so far, uint8 [H, W]: the baseline without features."""
    mask = np.zeros(clip.size, np.uint8)
    for frame in range(len(clip.frames)):
        given = clip.given(frame)
        if given is not None:
            mask = np.where(given > 0, given, mask)
        yield mask


def _given_labels(clip: Clip, frame: int, given: np.ndarray, features: Tensor) -> Tensor:
    """Return the one-hot labels [C, h, w] of a given mask, on the grid and the device of features [h, w, D]."""
    labels = _one_hot(given, features.shape[:2], clip.num_objects + 1)
    for number in np.flatnonzero(np.array(clip.starts) == frame) + 1:
        object_name = f"object {clip.objects[number - 1]} of {clip.name}"
        check_degenerate(NO_PATCH, not labels[number].any(), object_name)
    return labels.to(features.device)


def _with_given(current: ContextFrame, given: Tensor) -> ContextFrame:
    """Return a frame whose patches on new objects have the given labels [C, h, w] instead."""
    features, labels = current
    return features, torch.where(given[1:].sum(0) > 0, given, labels)


@torch.no_grad()
def propagate_frame(
    encoder: Encoder, image: Image.Image, context: Sequence[ContextFrame], config: DAVISConfig
) -> ContextFrame:
    """Return the features and soft labels of a frame, given its context frames."""
    features = _frame_features(encoder, image, config)
    labels = propagate_labels(
        features,
        [features for features, _ in context],
        [labels for _, labels in context],
        radius=config.radius,
        topk=config.topk,
        temperature=config.temperature,
        window=config.window,
        normalised=True,
        max_cosines=config.max_memory * 2**20 // BYTES_PER_COSINE,
    )
    return features, labels


def _frame_features(encoder: Encoder, image: Image.Image, config: DAVISConfig) -> Tensor:
    """Return patch features [h, w, D] of unit length."""
    std = encoder.std if config.std == "encoder" else [RELEASED_STD.get(s, s) for s in encoder.std]
    height, width = network_size(image.height, image.width, config.resolution, encoder.patch_size, config.rounding)
    if config.resampling == "bicubic":
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).to(encoder.device).movedim(-1, 0)[None]
    if config.resampling == "opencv":
        pixels = resize_linear(pixels, height, width)
    return F.normalize(patch_features(encoder, pixels, std=std)[0], dim=-1).contiguous()


def network_size(
    height: int, width: int, resolution: int, patch_size: int, rounding: Rounding = "released"
) -> tuple[int, int]:
    """Return the (height, width) that frames are resized to; see `DAVISConfig.rounding`.

    As released, a long side below 64 is floored to a multiple of the patch size.

    Raises:
        ValueError: the resized frame would have no patch.
    """
    exact = resolution * max(height, width) / min(height, width)
    if rounding == "released":
        multiple = LONG_SIDE_MULTIPLE if LONG_SIDE_MULTIPLE % patch_size == 0 else patch_size
        short = resolution // patch_size * patch_size
        long = int(exact) // multiple * multiple or int(exact) // patch_size * patch_size
    elif rounding == "nearest":
        short, long = (round(side / patch_size) * patch_size for side in (resolution, exact))
    else:
        short = math.ceil(resolution / patch_size) * patch_size
        long = math.ceil(max(height, width) * short / min(height, width) / patch_size) * patch_size
    if short == 0 or long == 0:
        raise ValueError(f"resolution {resolution} is too small for patches of {patch_size}; use e.g. 480")
    return (short, long) if height <= width else (long, short)


def _one_hot(mask: np.ndarray, grid: Sequence[int], channels: int) -> Tensor:
    """Return float32 [C, h, w] of a mask, uint8 [H, W]: the label of the nearest pixel of each patch."""
    small = np.asarray(Image.fromarray(mask).resize((grid[1], grid[0]), Image.Resampling.NEAREST))
    return F.one_hot(torch.from_numpy(small.astype(np.int64)), channels).movedim(-1, 0).float()


def frame_mask(labels: Tensor, patch_size: int, size: tuple[int, ...], config: DAVISConfig) -> np.ndarray:
    """Return object numbers, uint8 [H, W] of `size`, from soft labels [C, h, w]."""
    height, width = size if config.upsample_to == "frame" else (patch_size * side for side in labels.shape[1:])
    mask = to_mask(labels, (height, width), config.upsampling)
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def to_mask(labels: Tensor, size: tuple[int, int], upsampling: str = "bilinear") -> np.ndarray:
    """Return object numbers, uint8 [H, W] of `size`, where soft labels [C, h, w] are largest.

    Labels are interpolated, and those of each object scaled to [0, 1].
    """
    soft = F.interpolate(labels[None], size, mode=upsampling)[0]
    low, high = soft.amin((1, 2), keepdim=True), soft.amax((1, 2), keepdim=True)
    # A channel that is constant up to rounding has no range; it stays as it is, so that an object that fills the frame
    # is kept.
    rounding = 4 * torch.finfo(soft.dtype).eps * high
    soft = torch.where(high - low > rounding, (soft - low) / (high - low), soft)
    return soft.max(0).indices.to(torch.uint8).cpu().numpy()  # argmax is five times as slow on the CPU
