"""Folders and files of DAVIS: image sets, frames and masks.

::

    ImageSets/2017/val.txt               or ImageSets/2016/val.txt, or ImageSets/480p/val.txt of the 2016 download
    JPEGImages/480p/<sequence>/00000.jpg
    Annotations/480p/<sequence>/00000.png
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from selfpatch.core.atomic_io import clear_error
from selfpatch.core.folders import stems_in
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text_files import numbered_lines
from selfpatch.data.decode.orientation import upright_size
from selfpatch.data.decode.pillow import read_image, stored_image
from selfpatch.evaluation.label_maps import LabelMap, read_label_map, refuse_jpeg
from selfpatch.evaluation.video_segmentation.config import DAVISConfig, Year

IMAGE_SETS: dict[Year, tuple[str, ...]] = {2017: ("2017/val.txt",), 2016: ("2016/val.txt", "480p/val.txt")}
VOID = MAX_VALUE = 255
MAX_SHADES = 32
"""Largest number of objects whose values have gaps; more are no objects, but shades of smoothed outlines."""


class _Objects(NamedTuple):
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
        """Stems of all images and masks, in order: `00000`, `00001`, ..."""
        return tuple(sorted({*stems_in(self.frames_dir, ".jpg"), *stems_in(self.masks_dir, ".png")}))

    def image(self, frame: int) -> Image.Image:
        """Return the frame of this index as an RGB image."""
        return read_image(self.image_file(frame))

    def image_file(self, frame: int) -> Path:
        """Return the path of the image of the frame of this index."""
        return self.frames_dir / f"{self.frames[frame]}.jpg"

    def mask(self, frame: int) -> np.ndarray:
        """Return the true mask of the frame of this index."""
        return self._numbered(self._values(self._mask_file(frame)).values)

    def read_result(self, folder: Path, frame: int) -> np.ndarray:
        """Return the mask of a frame from a folder of results; raise ValueError if it has an object of its own."""
        values, grey = self._values(folder / f"{self.frames[frame]}.png")
        binary = self._found.binary or (self.num_objects == 1 and _is_black_and_white(values, grey))
        if binary:
            return (values > 0).astype(np.uint8)
        foreign = np.setdiff1d(values, (0, *self.objects, *(() if _is_black_and_white(values, grey) else (VOID,))))
        if len(foreign):
            where, known = f"frame {self.frames[frame]} of {self.name}", ", ".join(map(str, self.objects))
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
    def num_objects(self) -> int:
        """Number of the objects in the first mask."""
        return len(self.objects)

    @property
    def has_gaps(self) -> bool:
        """True if the objects have other values than 1, 2, ..., N."""
        return self.objects != tuple(range(1, len(self.objects) + 1))

    @cached_property
    def _found(self) -> "_Objects":
        """Objects of the first mask."""
        values, grey = self._values(self._mask_file(0))
        if self.year == 2016 or _is_black_and_white(values, grey):
            return _Objects((1,) if values.any() else (), binary=True)
        return _Objects(tuple(np.setdiff1d(values, (0, VOID)).tolist()), binary=False)

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

        The first mask is needed, and all masks if the clip has frames besides the first and the last, which are scored.
        """
        if not self.frames:
            raise ValueError(f"{self.name} has no frames: no .jpg in {self.frames_dir} and no .png in {self.masks_dir}")
        for frame in self.frames if len(self.frames) > 2 else self.frames[:1]:
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
        height, width = self.mask(0).shape
        for frame in range(1, len(self.frames) if len(self.frames) > 2 else 1):
            if (shape := self.mask(frame).shape) != (height, width):
                raise ValueError(
                    f"the mask {self._mask_file(frame)} is {shape[1]} x {shape[0]} and the first one of {self.name} "
                    f"{width} x {height}; use masks of one size"
                )

    def require_frames(self) -> None:
        """Raise ValueError if an image has another size than the first mask."""
        height, width = self.mask(0).shape
        for frame in self.frames:
            with stored_image(self.frames_dir / f"{frame}.jpg") as image:
                size = upright_size(image)
            if size != (width, height):
                raise ValueError(
                    f"frame {frame} of {self.name} is {size[0]} x {size[1]} and its first mask {width} x {height}; "
                    "use frames and masks of one resolution"
                )


def open_clips(data: str | Path, config: DAVISConfig) -> list[Clip]:
    """Return the clips of a DAVIS tree: those that `config` names, or the validation set.

    Raises:
        ValueError: the tree or its image set is missing, or a sequence has no folder of masks.
    """
    root, sequences = Path(data).expanduser(), config.sequences
    if not (root / "Annotations" / "480p").is_dir():
        raise ValueError(f"no DAVIS at {root}: it has no folder Annotations/480p; give the folder that holds it")
    years: tuple[Year, ...] = (2017, 2016) if config.year is None else (config.year,)
    candidates = [(y, root / "ImageSets" / name) for y in years for name in IMAGE_SETS[y]]
    year, image_set = next(((y, path) for y, path in candidates if path.is_file()), (years[0], None))
    if sequences is None:
        if image_set is None:
            looked_for = " or ".join(str(path.relative_to(root)) for _, path in candidates)
            raise ValueError(f"the DAVIS at {root} has no {looked_for}; add it, or name the sequences")
        named = _read_image_set(image_set)
    else:
        named = [("the setting `sequences`", name) for name in sequences]
    frames, masks = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
    clips: dict[str, Clip] = {}
    for named_by, name in named:
        # The name is that of a folder of results too.
        clip = Clip(name, frames / name, path_below(masks, name, named_by, nested=False), year)
        if not clip.masks_dir.is_dir():
            raise ValueError(f"sequence {name!r} has no folder {clip.masks_dir}; check {named_by}, or the download")
        clips[name] = clip
    if not clips:
        raise ValueError(f"no sequences to evaluate in {root}; the image set is empty")
    return list(clips.values())


def _read_image_set(path: Path) -> list[tuple[str, str]]:
    """Return the names of an image set, each behind the line that it stands in.

    A line is a name or, in the 2016 download, a frame: `/JPEGImages/480p/<name>/00000.jpg /Annotations/...`.
    """
    found = []
    for number, line in numbered_lines(path):
        frame = PurePosixPath(line.split()[0])
        found.append((f"line {number} of {path}", frame.parent.name if frame.suffix == ".jpg" else line))
    return found


def _is_black_and_white(values: np.ndarray, grey: bool) -> bool:
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
