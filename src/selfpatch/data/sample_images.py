"""Built-in sample photographs, enough to see the whole tool work before there is other data.

They are cut out of photographs in the scikit-image wheel; nothing is downloaded.
"""

import importlib.util
import itertools
import math
import operator
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from selfpatch.core.atomic_io import clear_error
from selfpatch.core.cache_folder import default_cache_dir
from selfpatch.core.dry_run import in_dry_run
from selfpatch.data.decode.opening import open_image
from selfpatch.data.sources.index import ImageIndex

TRAINING = tuple(
    "astronaut.png brick.png camera.png clock_motion.png coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png "
    "moon.png motorcycle_left.png motorcycle_right.png retina.jpg rocket.jpg".split()
)
HELD_OUT = ("chelsea.png", "coffee.png")
"""Photographs of scenes that appear in no training tile."""

FOLDER = "sample-photographs-2"
"""Name in the cache; its number grows when the tiles change, so that an older cache is not used."""
TILE = 224
STRIDE = 72
"""Largest distance between neighbouring tiles in pixels; they overlap by two thirds."""
ZOOMS = (1.0, 1.5, 2.25)
"""Scales of each photograph, as its shorter side in tiles. None is enlarged, and the last scale is the limit for large
ones, so that they do not outweigh the others."""


def sample_photographs(cache_dir: Path | None = None) -> Path:
    """Return the folder of the sample photographs, `training/` and `held_out/`.

    It is made on first use in `cache_dir` (default: `default_cache_dir()`). ValueError is raised if that cannot be
    written, or if the installed scikit-image lacks a photograph.
    """
    parent = default_cache_dir() if cache_dir is None else cache_dir
    folder = parent / FOLDER
    if folder.is_dir():
        return folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # Renamed once complete: an interrupted run, or many processes at once, leave a whole folder or none.
        staging = Path(tempfile.mkdtemp(dir=parent, prefix=f"{FOLDER}-"))
    except OSError as error:
        raise ValueError(
            f"the sample photographs cannot be written to {parent}: {error}; set XDG_CACHE_HOME to a writable folder"
        ) from None
    try:
        for part, names in [("training", TRAINING), ("held_out", HELD_OUT)]:
            (staging / part).mkdir()
            for name in names:
                _write_tiles(source_folder() / name, staging / part)
        staging.chmod(0o755)
        os.rename(staging, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was first, with the same tiles
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def sample_index(part: str) -> ImageIndex:
    """Return the index of the photographs of `training` or `held_out`; in a dry run, of those that will be made."""
    folder = default_cache_dir() / FOLDER
    if not in_dry_run() or folder.is_dir():
        return ImageIndex.open(sample_photographs() / part)
    names: list[bytes] = []
    for name in {"training": TRAINING, "held_out": HELD_OUT}[part]:
        with open_image(source_folder() / name) as photograph:  # reads the header alone
            names += [_tile_name(name, number).encode() for number, _ in enumerate(_tile_corners(photograph.size))]
    return ImageIndex(folder / part, sorted(names))


def source_folder() -> Path:
    """Return scikit-image's folder of photographs without importing the package, which is slow."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError(
            "the sample photographs need scikit-image, which is not installed; run `pip install scikit-image`"
        )
    return Path(spec.origin).parent / "data"


def _write_tiles(source: Path, folder: Path) -> None:
    if not source.is_file():
        raise ValueError(f"scikit-image has no photograph {source}; run `pip install --force-reinstall scikit-image`")
    with open_image(source) as photograph:
        for number, tile in enumerate(_tiles(photograph)):
            file = folder / _tile_name(source.name, number)
            with clear_error(file):
                tile.save(file, quality=95, subsampling=0)


def _tile_name(photograph: str, number: int) -> str:
    return f"{Path(photograph).stem}-{number:03d}.jpg"


def _tiles(photograph: Image.Image) -> Iterator[Image.Image]:
    for size, corners in itertools.groupby(_tile_corners(photograph.size), operator.itemgetter(0)):
        scaled = photograph.resize(size, Image.Resampling.LANCZOS)
        for _, left, top in corners:
            yield scaled.crop((left, top, left + TILE, top + TILE))


def _tile_corners(size: tuple[int, int]) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Yield, for each tile, the size that the photograph is scaled to, and the tile's left and top side there."""
    full_zoom = min(size) / TILE
    for zoom in [*(z for z in ZOOMS if z < full_zoom), min(full_zoom, ZOOMS[-1])]:
        width, height = (round(side * zoom / full_zoom) for side in size)
        for top in _starts(height):
            for left in _starts(width):
                yield (width, height), left, top


def _starts(side: int) -> list[int]:
    """Return where tiles begin along a side: evenly spaced, the first and the last flush with its ends."""
    last = side - TILE
    count = math.ceil(last / STRIDE)
    return [round(last * i / count) for i in range(count + 1)] if count else [0]
