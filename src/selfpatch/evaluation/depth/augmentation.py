"""Random crops of images and their depths, after AdaBins (arXiv 2011.14141) as DINOv2 and DINOv3 train."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tvf

from selfpatch.data.decode.opening import check_resized
from selfpatch.evaluation.depth.dataset import NYU_SIZE

NYU_BOX = (43, 45, 608, 472)
"""Left, top, right and bottom of the part of NYU's images that is inside of their white frame."""
GAMMA, BRIGHTNESS, COLOUR = (0.9, 1.1), (0.9, 1.1), (0.9, 1.1)


def resized(image: Image.Image, short: int | None) -> Image.Image:
    """Resize an image to a short side (bilinear), or return it as it is if `short` is None.

    Raises:
        ValueError: the result would be too large.
    """
    if short is None:
        return image
    size = _scaled(image.size, short / min(image.size))
    check_resized(image.size, *size)
    return image.resize(size, Image.Resampling.BILINEAR)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@dataclass(frozen=True)
class DepthCrop:
    """A random piece of an image and of its depths.

    ::

        the box of NYU, for images of 480 x 640 pixels; the short side to `resolution`
        half of the time: rotation of up to `rotation` degrees; pixels from outside have no depth
        flip left to right, half of the time
        crop
        half of the time: gamma, brightness and the scale of each colour, each by a factor of 0.9 to 1.1
    """

    height: int
    width: int
    nyu_box: bool = True
    resolution: int | None = None
    rotation: float = 2.5
    colour: bool = True

    def __call__(self, image: Image.Image, depth: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Make a crop, uint8 [3, H, W], and its depths in metres, float32 [1, H, W]; 0 where they are not known.

        Raises:
            ValueError: the image is smaller than the crop.
        """
        depths = Image.fromarray(depth)
        if self.nyu_box:
            if (image.height, image.width) != NYU_SIZE:
                raise ValueError(
                    f"an image has {image.width} x {image.height} pixels, but region nyu is for images of 640 x 480; "
                    "use --region whole"
                )
            image, depths = image.crop(NYU_BOX), depths.crop(NYU_BOX)
        image = resized(image, self.resolution)
        depths = depths.resize(image.size, Image.Resampling.NEAREST)
        if image.width < self.width or image.height < self.height:
            raise ValueError(
                f"an image of {image.width} x {image.height} pixels is smaller than the crop of {self.width} x "
                f"{self.height}; use a smaller --crop, or a larger --resolution"
            )
        if self.rotation and rng.random() < 0.5:
            angle = rng.uniform(-self.rotation, self.rotation)
            image = image.rotate(angle, Image.Resampling.BILINEAR)
            depths = depths.rotate(angle, Image.Resampling.NEAREST)
        if rng.random() < 0.5:
            image, depths = tvf.hflip(image), tvf.hflip(depths)
        left, top = (
            int(rng.integers(0, spare + 1)) for spare in (image.width - self.width, image.height - self.height)
        )
        box = (left, top, left + self.width, top + self.height)
        pixels, metres = np.asarray(image.crop(box)), np.array(depths.crop(box), np.float32)
        if self.colour and rng.random() < 0.5:
            pixels = _recoloured(pixels, rng)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous(), torch.from_numpy(metres)[None]


def _recoloured(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 [h, w, 3] with another gamma, brightness and balance of colours."""
    values = (pixels / np.float32(255)) ** np.float32(rng.uniform(*GAMMA)) * np.float32(rng.uniform(*BRIGHTNESS))
    values = values * rng.uniform(*COLOUR, size=3).astype(np.float32)
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)
