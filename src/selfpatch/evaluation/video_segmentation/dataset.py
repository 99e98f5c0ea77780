"""Folders and files of DAVIS: image sets, frames and masks.

::

    ImageSets/2017/val.txt               or ImageSets/2016/val.txt, or ImageSets/480p/val.txt of the 2016 download
    JPEGImages/480p/<sequence>/00000.jpg
    Annotations/480p/<sequence>/00000.png
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from selfpatch.core.text_files import read_lines
from selfpatch.data.decode.orientation import upright_size
from selfpatch.data.decode.pillow import read_image, stored_image
from selfpatch.evaluation.video_segmentation.config import DAVISConfig, Year

IMAGE_SETS: dict[Year, tuple[str, ...]] = {2017: ("2017/val.txt",), 2016: ("2016/val.txt", "480p/val.txt")}
VOID = 255


@dataclass(frozen=True)
class Clip:
    """One sequence; masks are read as uint8 [H, W] object numbers, 0 being the background."""

    name: str
    frames_dir: Path
    masks_dir: Path
    year: Year

    @cached_property
    def frames(self) -> tuple[str, ...]:
        """Stems of all images and masks, in order: `00000`, `00001`, ..."""
        return tuple(sorted({path.stem for path in (*self.frames_dir.glob("*.jpg"), *self.masks_dir.glob("*.png"))}))

    def image(self, frame: int) -> Image.Image:
        """Return the frame of this index as an RGB image."""
        return read_image(self.frames_dir / f"{self.frames[frame]}.jpg")

    def mask(self, frame: int) -> np.ndarray:
        """Return the true mask of the frame of this index."""
        return read_mask(self.masks_dir / f"{self.frames[frame]}.png", self.year)

    @cached_property
    def num_objects(self) -> int:
        """Highest object number in the first mask; objects that appear later are not scored."""
        return int(self.mask(0).max())

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
        """Raise ValueError if the first mask is empty."""
        if self.num_objects == 0:
            raise ValueError(f"the first mask of {self.name} holds no object; there is nothing to propagate")

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
        sequences = tuple(_read_image_set(image_set))
    frames, masks = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
    clips = [Clip(name, frames / name, masks / name, year) for name in dict.fromkeys(sequences)]
    if not clips:
        raise ValueError(f"no sequences to evaluate in {root}; the image set is empty")
    for clip in clips:
        if not clip.masks_dir.is_dir():
            raise ValueError(f"sequence {clip.name!r} has no folder {clip.masks_dir}; check the name or the download")
    return clips


def _read_image_set(path: Path) -> list[str]:
    """Return the names of an image set.

    A line is a name or, in the 2016 download, a frame: `/JPEGImages/480p/<name>/00000.jpg /Annotations/...`.
    """
    first_words = [line.split()[0] for line in read_lines(path)]
    return [Path(word).parent.name if word.endswith(".jpg") else word for word in first_words]


def read_mask(path: Path, year: Year) -> np.ndarray:
    """Return a mask as uint8 [H, W] object numbers, 0 being the background.

    In 2016, every non-black pixel is object 1 (some masks are RGB files). In 2017, pixels are palette indices, and void
    (255) is background; a grey file of 0 and 255 alone is a mask of one object, as in 2016.

    Raises:
        ValueError: the file is missing, or is a colour picture where object numbers are needed.
    """
    if not path.exists():
        raise ValueError(f"no mask {path}; every scored frame needs one")
    with stored_image(path, "the mask") as image:
        bands = image.mode
        values = np.asarray(image.convert("L") if year == 2016 and bands != "P" else image)
    if values.ndim != 2:
        raise ValueError(f"{path} is a picture of mode {bands}; masks are palette or grey PNGs of object numbers")
    if year == 2016 or values.dtype == bool or (bands == "L" and np.isin(values, (0, VOID)).all()):
        return (values > 0).astype(np.uint8)
    return np.where(values == VOID, 0, values).astype(np.uint8)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write uint8 [H, W] object numbers as a palette PNG in DAVIS' colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    image.putpalette(PALETTE.flatten().tolist())
    image.save(path)


def _palette() -> np.ndarray:
    """Return PASCAL VOC's colour map, which DAVIS uses: bits of the index go to R, G, B in turn, highest bits first."""
    number = np.arange(256)
    bits = [sum(((number >> (3 * i + c)) & 1) << (7 - i) for i in range(8)) for c in range(3)]
    return np.stack(bits, axis=1).astype(np.uint8)


PALETTE = _palette()
"""RGB colours by object number, uint8 [256, 3]."""
