"""Resizing of images with their labels, and the random crops that trainings learn from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tvf

from selfpatch.config.sections import CropConfig
from selfpatch.data.augment.multicrop import ViewRecipe, draw_view
from selfpatch.data.augment.pillow import render
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.segmentation.base_config import TrainedConfig
from selfpatch.evaluation.segmentation.dataset import IGNORE, SegmentationSet

CROP_TRIES = 10
MEAN_COLOUR = (124, 116, 104)
"""ImageNet's mean, so that padding is near zero after normalisation."""
BRIGHTNESS = 32.0
FACTOR = (0.5, 1.5)
HUE = 18 / 180
"""Largest change of the hue, as a share of a turn, which is 180 in OpenCV's hues of 8 bits."""
LONG_OVER_SHORT = 4
"""Largest ratio of the long to the short side of a resized image, as in mmsegmentation's (2048, 512)."""
SIMCLR_COLOUR = CropConfig(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
"""SimCLR's colours at full strength: jitter with a probability of 0.8, grey with 0.2."""
MEMORY_JITTER = 0.1
"""Largest change of brightness, contrast and saturation as a factor, and of hue in turns, as `MemoryCrop` draws it."""
Crop = Callable[[Image.Image, np.ndarray, np.random.Generator], tuple[Tensor, Tensor]]
"""Function of an image, its labels and a random generator that makes a crop of both, as `TrainCrop` does."""
Window = tuple[slice, slice]
WHOLE: Window = (slice(None), slice(None))


@dataclass(frozen=True)
class TrainCrop:
    """A random piece of an image at a random scale, as in mmsegmentation's recipe for ADE20K.

    the whole is resized so that its short side is size * scale, its long side at most 4 times that
    of 10 crops the first is taken in which no class has 75 % of the labelled pixels, else an 11th
    flip left to right, half of the time
    colours: brightness, contrast, saturation, hue, each half of the time
    a resized image smaller than the crop is padded on the right and below: mean colour, void
    """

    size: int
    """Side of the crop in pixels."""
    scale_range: tuple[float, float] = (0.5, 2.0)
    short_side: int | None = None
    """Short side of the image at scale 1, in pixels; defaults to `size`."""
    max_share: float = 0.75
    """Largest share of one class in a crop; 1 accepts any crop."""
    flip: float = 0.5
    colour: bool = True
    fill: tuple[int, int, int] = MEAN_COLOUR
    antialias: bool = False
    """Resize as torchvision does, antialiased, instead of as OpenCV."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(
                f"a crop of {self.size} pixels at scales {self.scale_range} cannot be made; use a size of 1 or more "
                "and scales (low, high) with 0 < low <= high"
            )

    def __call__(self, image: Image.Image, label: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Make a crop, uint8 [3, size, size], of an RGB image, and int64 [size, size] of its labels int64 [h, w]."""
        scale = rng.uniform(*self.scale_range)
        short = self.size if self.short_side is None else self.short_side
        whole = fitted_size(label.shape[0], label.shape[1], short * scale)
        top, left = self._corner(label, whole, rng)
        window = (slice(top, min(top + self.size, whole[0])), slice(left, min(left + self.size, whole[1])))
        classes = resize_nearest(label, whole, window)
        if self.antialias:
            pixels = resize_antialiased(image, whole)[window]
        else:
            pixels = resize_bilinear(np.asarray(image), whole, window)
        if rng.random() < self.flip:
            pixels, classes = pixels[:, ::-1], classes[:, ::-1]
        if self.colour:
            pixels = distort_colours(pixels, rng)
        height, width = classes.shape
        canvas = np.full((self.size, self.size, 3), self.fill, np.uint8)
        canvas[:height, :width] = pixels
        padded = np.full((self.size, self.size), IGNORE, np.int64)
        padded[:height, :width] = classes
        return torch.from_numpy(canvas).permute(2, 0, 1).contiguous(), torch.from_numpy(padded)

    def _corner(self, label: np.ndarray, whole: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Return (top, left) of a crop that no class fills; the last try is accepted unseen."""
        for tries_left in reversed(range(CROP_TRIES + 1)):
            top, left = (int(rng.integers(0, max(side - self.size, 0) + 1)) for side in whole)
            if self.max_share >= 1 or tries_left == 0:
                break
            window = (slice(top, top + self.size), slice(left, left + self.size))
            counts = np.bincount(resize_nearest(label, whole, window).ravel(), minlength=IGNORE + 1)
            counts[IGNORE] = 0
            if (counts > 0).sum() > 1 and counts.max() < self.max_share * counts.sum():
                break
        return top, left


@dataclass(frozen=True)
class SquareCrop:
    """A box of 80 to 100 % of the area made square (bilinear, antialiased), and a flip, as Leopart trains with."""

    size: int

    def __call__(self, image: Image.Image, label: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Make a crop, as `TrainCrop` does."""
        p = draw_view(ViewRecipe(self.size, scale=(0.8, 1.0), flip=0.5), image.size, rng)
        box = (p.left, p.top, p.left + p.width, p.top + p.height)
        view = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        classes = resize_nearest(label[box[1] : box[3], box[0] : box[2]], (self.size, self.size))
        if p.flip:
            return tvf.pil_to_tensor(tvf.hflip(view)), torch.from_numpy(classes[:, ::-1].copy())
        return tvf.pil_to_tensor(view), torch.from_numpy(classes)


@dataclass(frozen=True)
class SimCLRCrop:
    """A random box made square (bilinear, antialiased), a flip, and SimCLR's colours and blur (arXiv 2002.05709).

    ImageNetSegModel trains with these crops. Labels are resized as Pillow does (nearest).
    """

    size: int
    min_scale: float
    """Smallest area of the box, as a share of the image."""

    def __call__(self, image: Image.Image, label: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Make a crop, as `TrainCrop` does."""
        scale = (self.min_scale, 1.0)
        recipe = ViewRecipe(self.size, scale, flip=0.5, blur=0.5, resampling="bilinear", colour=SIMCLR_COLOUR)
        p = draw_view(recipe, image.size, rng)
        box = label[p.top : p.top + p.height, p.left : p.left + p.width].astype(np.int32)
        classes = np.array(Image.fromarray(box).resize((self.size, self.size), Image.Resampling.NEAREST), np.int64)
        return render(image, self.size, p), torch.from_numpy(classes[:, ::-1].copy() if p.flip else classes)


@dataclass(frozen=True)
class MemoryCrop:
    """A random box made square, from an image of other colours, as open-hummingbird-eval fills its memory.

    ::

        brightness, contrast, saturation, hue of the image, in this order: each half of the time, by up to 0.1
        a box of 0.5 to 2 times the image's area, drawn again until it fits (RandomResizedCrop)
        resized to the size (bilinear, antialiased; labels nearest)

    Its pixels are float32 in [0, 1]: they are not rounded after resizing.
    """

    size: int

    def __call__(self, image: Image.Image, label: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Make a crop, float32 [3, size, size], and int64 [size, size] of its labels, as `TrainCrop` does."""
        applied, strength = rng.random(4) < 0.5, rng.uniform(-MEMORY_JITTER, MEMORY_JITTER, 4)
        adjust = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation)
        for function, chosen, amount in zip(adjust, applied, strength, strict=False):
            image = function(image, 1 + amount) if chosen else image
        image = tvf.adjust_hue(image, strength[3]) if applied[3] else image
        p = draw_view(ViewRecipe(self.size, scale=(0.5, 2.0)), image.size, rng)
        box = (slice(p.top, p.top + p.height), slice(p.left, p.left + p.width))
        pixels = tvf.pil_to_tensor(image)[:, *box] / 255
        view = tvf.resize(pixels, [self.size, self.size], tvf.InterpolationMode.BILINEAR, antialias=True)
        return view, torch.from_numpy(resize_nearest(label[box], (self.size, self.size)))


def training_batches(images: SegmentationSet, crop: Crop, config: TrainedConfig) -> Batches:
    """Return the batches of crops that a training learns from."""
    load = partial(_load_crop, images, crop)
    return Batches(len(images), load, batch_size=config.batch_size, seed=config.seed, workers=config.workers)


def dummy_batch(num_images: int, side: int) -> tuple[Tensor, Tensor]:
    """Return normalised images [B, 3, S, S] and labels [B, S, S] of zeros, for the estimates of a dry run."""
    return torch.zeros(num_images, 3, side, side), torch.zeros(num_images, side, side, dtype=torch.int64)


def _load_crop(images: SegmentationSet, crop: Crop, i: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    return crop(*images.read(i), rng)


def fitted_size(height: int, width: int, short: float) -> tuple[int, int]:
    """Return (height, width) of an image resized to the short side `short`, and at most four times that."""
    scale = min(short / min(height, width), LONG_OVER_SHORT * short / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_nearest(label: np.ndarray, size: tuple[int, int], window: Window = WHOLE) -> np.ndarray:
    """Return the window of [h, w] resized to `size`, without computing the rest."""
    rows, columns = (
        (np.arange(new)[part] * (old / new)).astype(np.int64).clip(max=old - 1)
        for old, new, part in zip(label.shape, size, window, strict=True)
    )
    return label.take(rows, 0).take(columns, 1)  # six times as fast as indexing by both at once


def resize_antialiased(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels, uint8 [h, w, 3], of an RGB image resized to (height, width), as torchvision resizes."""
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_bilinear(pixels: np.ndarray, size: tuple[int, int], window: Window = WHOLE) -> np.ndarray:
    """Return the window of uint8 [h, w, 3] resized to `size`, without computing the rest.

    It is not antialiased, as OpenCV's linear interpolation, which the published recipes use.
    """
    (top, bottom, down), (left, right, across) = (
        _between(old, new, part) for old, new, part in zip(pixels.shape[:2], size, window, strict=True)
    )
    across = across[:, None]
    lowest, highest = (int(top[0]), int(bottom[-1]) + 1) if len(top) else (0, 0)
    strip = pixels[lowest:highest]
    rows = strip[:, left] * (1 - across) + strip[:, right] * across  # [k, W, 3] float32
    down = down[:, None, None]
    values = rows[top - lowest] * (1 - down) + rows[bottom - lowest] * down
    return np.rint(values).astype(np.uint8)


def _between(old: int, new: int, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each new index in the slice, the old ones before and after it, and the share of the latter."""
    position = np.maximum((np.arange(new)[part] + 0.5) * (old / new) - 0.5, 0)
    before = position.astype(np.int64).clip(max=old - 1)
    return before, np.minimum(before + 1, old - 1), (position - before).astype(np.float32)


def distort_colours(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distort brightness, contrast, saturation and hue of uint8 [h, w, 3] (SSD, arXiv 1512.02325).

    Contrast comes second or last with equal probability; each of the four is applied half of the time.
    """
    applied = rng.random(4) < 0.5
    brightness, contrast = rng.uniform(-BRIGHTNESS, BRIGHTNESS), rng.uniform(*FACTOR)
    saturation, hue, contrast_first = rng.uniform(*FACTOR), rng.uniform(-HUE, HUE), rng.random() < 0.5
    if applied[0]:
        pixels = _clipped(pixels + np.float32(brightness))
    if applied[1] and contrast_first:
        pixels = _clipped(pixels * np.float32(contrast))
    if applied[2] or applied[3]:
        hsv = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
        hsv[..., 0] += np.uint8(round((hue if applied[3] else 0.0) * 256) % 256)  # hue 256 equals hue 0
        hsv[..., 1] = _clipped(hsv[..., 1] * np.float32(saturation if applied[2] else 1.0))
        pixels = np.array(Image.fromarray(hsv, "HSV").convert("RGB"))
    if applied[1] and not contrast_first:
        pixels = _clipped(pixels * np.float32(contrast))
    return pixels


def _clipped(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)
