"""A video with the masks of its objects, as the files of a data set hold them."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from selfpatch.core.atomic_io import clear_error
from selfpatch.core.folders import stems_in
from selfpatch.core.orientation import upright_size
from selfpatch.data.decode.pillow import read_image, stored_image
from selfpatch.evaluation.label_maps import LabelMap, read_label_map, refuse_jpeg
from selfpatch.evaluation.result import Cell
from selfpatch.evaluation.video_segmentation.config import Year

VOID = MAX_VALUE = 255
MAX_SHADES = 32
"""Largest number of objects whose values have gaps; more are no objects, but shades of smoothed outlines."""


class ObjectValues(NamedTuple):
    """Values of the objects in the files; `binary` if every value but 0 is the one object."""

    values: tuple[int, ...]
    binary: bool


@dataclass(frozen=True)
class Clip:
    """One sequence; masks are read as uint8 [H, W] object numbers 1 to N, 0 being the background.

    The first mask says which objects there are, and which values they have in the files. In 2016, every non-black pixel
    is the one object (some masks are RGB files), and so it is in 2017 if the first mask is grey with 0 and 255 alone.
    Otherwise, pixels are palette indices or grey values, and void (255) is background. The values may have gaps, as 38
    and 75 that a conversion of DAVIS' colours to grey leaves: objects are those that exist. Objects that appear later
    are not scored.
    """

    name: str
    frames_dir: Path
    masks_dir: Path
    year: Year

    @cached_property
    def frames(self) -> tuple[str, ...]:
        """Stems of all images and masks, in the order of their numbers: `00000`, `00001`, ..., or `9`, `10`, ..."""
        stems = {*stems_in(self.frames_dir, ".jpg"), *stems_in(self.masks_dir, ".png")}
        return tuple(sorted(stems, key=lambda stem: (_by_numbers(stem), stem)))

    def image(self, frame: int) -> Image.Image:
        """Return the frame of this index as an RGB image."""
        return read_image(self.image_file(frame))

    def image_file(self, frame: int) -> Path:
        """Return the path of the image of the frame of this index."""
        return self.frames_dir / f"{self.frames[frame]}.jpg"

    def mask(self, frame: int) -> np.ndarray:
        """Return the true mask of the frame of this index."""
        return self._numbered(self._values(self._mask_file(frame)).values)

    def given(self, frame: int) -> np.ndarray | None:
        """Return the mask of the objects that are given in a frame, 0 elsewhere, or None if none is."""
        return self.mask(0) if frame == 0 else None

    def layout(self) -> dict[str, int | str]:
        """Return what a result records of the layout."""
        return {"year": self.year}

    @cached_property
    def has_truth(self) -> bool:
        """True if there are masks to score with; False if there is the first one alone, as in DAVIS' test sets."""
        return len(self.frames) < 3 or tuple(stems_in(self.masks_dir, ".png")) != self.frames[:1]

    @property
    def num_missing(self) -> int:
        """Number of objects that a list names and no mask holds."""
        return 0

    @property
    def starts(self) -> tuple[int, ...]:
        """Index of the frame in which each object is given."""
        return (0,) * self.num_objects

    def scored_objects(self, frame: int) -> tuple[int, ...]:
        """Return the numbers of the objects that are scored in a frame: all, but none in the first and last frame."""
        is_scored = self.has_truth and 0 < frame < len(self.frames) - 1
        return tuple(range(1, self.num_objects + 1)) if is_scored else ()

    def is_written(self, frame: int) -> bool:
        """Return whether the mask of a frame belongs to the results."""
        return True

    def columns(self, number: int) -> dict[str, Cell]:
        """Return what the row of an object says in addition to its value and scores."""
        return {}

    def read_result(self, folder: Path, frame: int) -> np.ndarray:
        """Return the mask of a frame from a folder of results; raise ValueError if it has an object of its own."""
        values, grey = self._values(folder / f"{self.frames[frame]}.png")
        binary = self._found.binary or (self.num_objects == 1 and is_black_and_white(values, grey))
        if binary:
            return (values > 0).astype(np.uint8)
        background = (0,) if is_black_and_white(values, grey) else (0, VOID)
        foreign = np.setdiff1d(values, (*background, *self._known_values))
        if len(foreign):
            where, known = f"frame {self.frames[frame]} of {self.name}", ", ".join(map(str, self._known_values))
            raise ValueError(f"the mask of {where} has object {foreign[0]}; the clip has {known}")
        return self._numbered(values)

    def stored(self, mask: np.ndarray) -> np.ndarray:
        """Return object numbers, uint8 [H, W], as the values that the objects have in the files."""
        return np.array((0, *self.objects), np.uint8)[mask]

    @property
    def objects(self) -> tuple[int, ...]:
        """Value of each object in the files, ascending; object n of a mask is the n-th."""
        return self._found.values

    @property
    def _known_values(self) -> tuple[int, ...]:
        """Values that masks of results may have."""
        return self.objects

    @property
    def num_objects(self) -> int:
        """Number of the objects that are followed."""
        return len(self.objects)

    @property
    def has_gaps(self) -> bool:
        """True if the objects have other values than 1, 2, ..., N."""
        return self.objects != tuple(range(1, len(self.objects) + 1))

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the masks, those of the first one that is given."""
        height, width = self.mask(min(self.starts, default=0)).shape
        return height, width

    @cached_property
    def _found(self) -> ObjectValues:
        """Objects of the first mask."""
        values, grey = self._values(self._mask_file(0))
        if self.year == 2016 or is_black_and_white(values, grey):
            return ObjectValues((1,) if values.any() else (), binary=True)
        return ObjectValues(tuple(np.setdiff1d(values, (0, VOID)).tolist()), binary=False)

    def _mask_file(self, frame: int) -> Path:
        return self.masks_dir / f"{self.frames[frame]}.png"

    def _numbered(self, values: np.ndarray) -> np.ndarray:
        if self._found.binary:
            return (values > 0).astype(np.uint8)
        numbers = np.zeros(MAX_VALUE + 1, np.uint8)
        numbers[list(self.objects)] = np.arange(1, len(self.objects) + 1)
        return numbers[values]

    def _values(self, path: Path) -> LabelMap:
        if not path.exists():
            raise ValueError(f"no mask {path}; every scored frame needs one")
        if self.year == 2016:
            with stored_image(path, "the mask") as image:
                refuse_jpeg(image)
                grey = image.mode != "P"
                return LabelMap(np.asarray(image.convert("L") if grey else image).astype(np.int64), grey)
        found = read_label_map(path, "the mask")
        if (largest := found.values.max(initial=0)) > MAX_VALUE:
            raise ValueError(f"{path} has the value {largest}; objects have numbers up to {VOID - 1}")
        return found

    def require_files(self, *, frames: bool) -> None:
        """Raise ValueError if a mask that is needed is missing, or, with `frames`, the image of a frame.

        The first mask is needed, and all masks if the clip has frames besides the first and the last, which are scored,
        unless the first mask is the only one.
        """
        if not self.frames:
            raise ValueError(f"{self.name} has no frames: no .jpg in {self.frames_dir} and no .png in {self.masks_dir}")
        for frame in self.frames if len(self.frames) > 2 and self.has_truth else self.frames[:1]:
            if not (path := self.masks_dir / f"{frame}.png").is_file():
                raise ValueError(f"{self.name} has no mask {path}; every frame of a clip that is scored needs one")
        for frame in self.frames if frames else ():
            if not (path := self.frames_dir / f"{frame}.jpg").is_file():
                raise ValueError(f"{self.name} has no image {path}; every frame of a clip needs one")

    def require_masks(self) -> None:
        """Raise ValueError if the first mask is empty, or holds shades rather than objects, or a later one is unusable.

        All are read, because a propagation takes minutes, and would be for nothing if one of them cannot be scored.
        """
        if self.num_objects == 0:
            raise ValueError(f"the first mask of {self.name} holds no object; there is nothing to propagate")
        if self.has_gaps and self.num_objects > MAX_SHADES:
            raise ValueError(
                f"{self._mask_file(0)} has {self.num_objects} values with gaps between them, e.g. {self.objects[-1]}; "
                "these look like shades (of smoothed outlines, or of a photograph), not like objects"
            )
        for frame in range(1, len(self.frames) if len(self.frames) > 2 and self.has_truth else 1):
            self.require_size(frame)

    def require_size(self, frame: int) -> None:
        """Raise ValueError if the mask of a frame cannot be read, or has another size than the first one."""
        height, width = self.size
        if (shape := self.mask(frame).shape) != (height, width):
            raise ValueError(
                f"the mask {self._mask_file(frame)} is {shape[1]} x {shape[0]} and the first one of {self.name} "
                f"{width} x {height}; use masks of one size"
            )

    def require_frames(self) -> None:
        """Raise ValueError if an image has another size than the first mask."""
        height, width = self.size
        for frame in self.frames:
            with stored_image(self.frames_dir / f"{frame}.jpg") as image:
                size = upright_size(image)
            if size != (width, height):
                raise ValueError(
                    f"frame {frame} of {self.name} is {size[0]} x {size[1]} and its first mask {width} x {height}; "
                    "use frames and masks of one resolution"
                )


def _by_numbers(stem: str) -> list[str | int]:
    """Return the parts of a name, of which every second one is a number, so that `frame9` comes before `frame10`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", stem)]


def is_black_and_white(values: np.ndarray, grey: bool) -> bool:
    """Return whether a mask holds nothing but 0 and 255 as shades of grey, so that white is its object."""
    return grey and bool(np.isin(values, (0, VOID)).all())


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write uint8 [H, W] object numbers as a palette PNG in DAVIS' colours."""
    image = Image.fromarray(mask)
    image.putpalette(PALETTE.flatten().tolist())
    with clear_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def _palette() -> np.ndarray:
    """Return PASCAL VOC's colour map, which DAVIS uses: bits of the index go to R, G, B in turn, highest bits first."""
    number = np.arange(256)
    bits = [sum(((number >> (3 * i + c)) & 1) << (7 - i) for i in range(8)) for c in range(3)]
    return np.stack(bits, axis=1).astype(np.uint8)


PALETTE = _palette()
"""RGB colours by object number, uint8 [256, 3]."""
