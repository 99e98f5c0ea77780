"""Decoding of images with any number of channels or more than 8 bits, such as the 13 bands of Sentinel-2."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.core.orientation import ORIENTATION_TAG, turn_upright, upright
from selfpatch.data.decode.deep_png import BEGINNING, is_deep_png, read_deep_png
from selfpatch.data.decode.opening import check_size, open_image, open_stream
from selfpatch.data.sources.image_files import ImageFile

if TYPE_CHECKING:
    from tifffile import TiffFile

TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
INSTALL = "run `pip install 'selfpatch[tiff]'`"

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # BadImage reports the error; keep stderr clean


@dataclass(frozen=True)
class Raster:
    """An upright image of any number of channels."""

    pixels: Tensor
    """[C, h, w], uint8, or float32 for anything deeper: 16 bits are divided by 65535, other numbers keep their values.
    """

    @classmethod
    def of(cls, image: Image.Image | Raster) -> Raster:
        """Return an RGB image as a raster in channels-last memory; a raster as it is."""
        return image if isinstance(image, Raster) else cls(torch.from_numpy(np.array(image)).permute(2, 0, 1))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, in Pillow's order."""
        _, height, width = self.pixels.shape
        return width, height

    @cached_property
    def rows(self) -> np.ndarray:
        """The same memory as [h, w, C], made once: the views of an image are many."""
        return self.pixels.permute(1, 2, 0).numpy()

    @cached_property
    def black(self) -> Tensor:
        """Level [C, 1, 1] that counts as black: 0, or the lowest value of a channel that goes below."""
        if self.pixels.dtype == torch.uint8:
            return self.pixels.new_zeros(len(self.pixels), 1, 1)
        return self.pixels.amin((1, 2), keepdim=True).clamp(max=0)

    @cached_property
    def white(self) -> Tensor:
        """Level [C, 1, 1] that counts as white: 255 for 8 bits, else the highest value of each channel.

        Deeper images seldom use their whole range: Sentinel-2 ends near 10000 of 65535.
        """
        if self.pixels.dtype == torch.uint8:
            return torch.full_like(self.black, 255)
        return self.pixels.amax((1, 2), keepdim=True)


def decode_raster(file: ImageFile, channels: int) -> Raster:
    """Read an image file with a given number of channels; alpha counts as a channel.

    - TIFF goes through tifffile, in any layout: [h, w, C], [C, h, w], or one page per channel. Values that its header
      declares as "no data", and floats that are not finite, become 0.
    - All other formats go through Pillow, except PNG with 16 bits per channel, of which Pillow would keep 8.
    - If one channel is expected, three equal channels count as grey.

    ValueError is raised for another number of channels and for a missing package; damaged files raise anything.
    """
    with open_stream(file) as stream:
        beginning = stream.read(BEGINNING)
        stream.seek(0)
        if beginning.startswith(TIFF_BEGINNINGS):
            pixels = _read_tiff(stream, channels)
        elif is_deep_png(beginning):
            pixels = read_deep_png(stream)
        else:
            pixels = _read_with_pillow(stream)
    if channels == 1 and pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    _require_channels(pixels.shape[2], channels)
    return Raster(_to_tensor(pixels))


def _require_channels(got: int, channels: int) -> None:
    if got != channels:
        raise ValueError(
            f"its number of channels is {got}, not {channels}; use images of {channels}, or --channels {got}"
        )


def _to_tensor(pixels: np.ndarray) -> Tensor:
    """Convert [h, w, C] of any type to [C, h, w] uint8 or float32."""
    planes = pixels.transpose(2, 0, 1)
    if planes.dtype == np.bool_:
        planes = planes * np.uint8(255)
    elif planes.dtype.kind == "u" and planes.dtype.itemsize == 2:  # of either byte order
        planes = planes.astype(np.float32, order="C")
        planes /= np.float32(65535)
    elif planes.dtype != np.uint8:
        planes = planes.astype(np.float32, order="C")
        np.nan_to_num(planes, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return torch.from_numpy(np.require(planes, requirements=["C", "W"]))


def _read_with_pillow(stream: BinaryIO) -> np.ndarray:
    """Return upright pixels [h, w, C]."""
    stream.seek(0)
    with open_image(stream) as stored:
        stored.load()
        turn_upright(stored)
        image: Image.Image = stored
        if image.mode in ("P", "PA"):  # indices into a palette
            image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
        elif image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        pixels = np.asarray(image)
    if image.mode == "I":  # Pillow's mode for 16 bits in some formats
        pixels = pixels.clip(0, 65535).astype(np.uint16)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _read_tiff(stream: BinaryIO, channels: int) -> np.ndarray:
    """Return upright pixels [h, w, C]."""
    try:
        from tifffile import PHOTOMETRIC, TiffFile
    except ImportError:
        raise ValueError(f"it is a TIFF file, and tifffile, which reads those, is not installed; {INSTALL}") from None
    with TiffFile(stream) as tiff:
        page = tiff.pages.first
        width, height = page.imagewidth, page.imagelength
        check_size(width, height)
        stored_channels = math.prod(tiff.series[0].shape) // (width * height)
        bytes_per_pixel = stored_channels * (4 if page.bitspersample > 8 else 1)  # as in `_to_tensor`
        check_size(width, height, bytes_per_pixel)
        if page.is_tiled:
            check_size(page.tilewidth, page.tilelength, bytes_per_pixel)
        if page.photometric in (PHOTOMETRIC.PALETTE, PHOTOMETRIC.YCBCR):
            return _read_with_pillow(stream)
        if width != channels and (stored_channels, channels) != (3, 1):  # otherwise its pixels must be seen
            _require_channels(stored_channels, channels)
        try:
            pixels = _channels_last(tiff, channels)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            # Pillow has every codec, but fewer pixel types than tifffile: these it reads in full.
            deepest = 16 if page.samplesperpixel == 1 else 8
            if len(tiff.pages) == 1 and page.sampleformat == 1 and page.bitspersample <= deepest:
                return _read_with_pillow(stream)
            raise ValueError(f"{error}; {INSTALL}") from None
        if page.photometric == PHOTOMETRIC.MINISWHITE and pixels.dtype.kind in "bu":
            pixels = np.invert(pixels)
        if page.nodata:
            pixels = np.where(pixels == page.nodata, pixels.dtype.type(0), pixels)
        tag = page.tags.get(ORIENTATION_TAG)
        return upright(pixels, 1 if tag is None else int(tag.value))


def _channels_last(file: TiffFile, channels: int) -> np.ndarray:
    """Return pixels [h, w, C] from any layout: every axis but height and width counts as channels."""
    series = file.series[0]
    values, axes = series.asarray(maxworkers=1).reshape(series.shape), series.axes
    for side in "YX":
        if side not in axes:  # sides of 1 are squeezed out
            values, axes = values[..., None], axes + side
    sides = axes.index("Y"), axes.index("X")
    height, width = (values.shape[side] for side in sides)
    pages = values.size // (height * width)
    if 1 != pages != channels == width and file.pages.first.samplesperpixel == 1:
        return values.reshape(pages, height, channels)  # [h, w, C] written as h pages of w x C
    return np.moveaxis(values, sides, (0, 1)).reshape(height, width, pages)
