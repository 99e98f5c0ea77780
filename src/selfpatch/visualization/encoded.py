"""Pictures as a network sees them: resized to whole patches, with the features of these patches."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.data.augment.pillow import resize_picture, to_tensor
from selfpatch.data.decode.pillow import Picture, read_picture
from selfpatch.visualization.colours import unit_patch_features


@dataclass(frozen=True)
class EncodedPicture:
    """Pixels that a network was given, and its patch features."""

    pixels: Tensor
    """Pixels [C, H, W]; both sides are multiples of the patch size."""
    features: Tensor
    """Features [h, w, D], float32 on the CPU, each of length 1."""


def check_resolution(encoder: Encoder, resolution: int) -> None:
    """Raise ValueError if a resolution is below one patch."""
    if resolution < (side := encoder.patch_size):
        raise ValueError(f"resolution {resolution} is below one patch of {side} pixels; use a larger one")


def read_file(encoder: Encoder, path: str | Path) -> Picture:
    """Read an image file with as many channels as the network takes.

    Raises:
        ValueError: the file is a folder or cannot be read.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; name image files, e.g. {Path(path) / '*.jpg'}")
    return read_picture(Path(path), channels=len(encoder.mean))


def encode_picture(encoder: Encoder, picture: Picture, resolution: int, name: object) -> EncodedPicture:
    """Resize a picture to a short side near `resolution` and encode it; `name` stands in errors.

    Raises:
        ValueError: features are not finite.
    """
    return encode_pixels(encoder, to_tensor(resized(picture, resolution, encoder.patch_size)), name)


def encode_pixels(encoder: Encoder, pixels: Tensor, name: object) -> EncodedPicture:
    """Encode an image [C, H, W]; `name` stands in errors.

    Raises:
        ValueError: the patch size does not divide its sides, or features are not finite.
    """
    features = unit_patch_features(encoder, pixels[None])[0]
    if not features.isfinite().all():
        raise ValueError(f"the encoder gives features of {name} that are not finite; use an earlier checkpoint")
    return EncodedPicture(pixels, features)


def resized(picture: Picture, resolution: int, patch_size: int) -> Picture:
    """Resize a picture to a short side near `resolution`, both sides rounded to multiples of the patch size."""
    scale = resolution / min(picture.size)
    width, height = (max(1, round(side * scale / patch_size)) * patch_size for side in picture.size)
    return resize_picture(picture, width, height)
