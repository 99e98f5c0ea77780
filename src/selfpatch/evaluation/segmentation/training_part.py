"""Parts of the training images, as protocols with few labels take them."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np

from selfpatch.core.text_files import numbered_lines
from selfpatch.data.augment.multicrop import generator
from selfpatch.evaluation.segmentation.dataset import SegmentationSet

_STREAM = 2**32 + 5


def training_part(images: SegmentationSet, part: str | None, seed: int) -> SegmentationSet:
    """Return the part of the images that a method may learn from, in their order.

    Args:
        images: all training images.
        part: a share, such as `1/128` or `5%`, of which the whole number of images is drawn, one at least; or a text
            file with the name of an image on each line, as in the `file_sets` of open-hummingbird-eval; all if None.
        seed: seed of the choice. A larger share contains a smaller one of the same seed.

    Raises:
        ValueError: `part` is neither a share nor a file, or the file names an image that is missing or named twice.
    """
    if part is None:
        return images
    if (share := _share(part)) is not None:
        if not 0 < share <= 1:
            raise ValueError(f"train_part is {part!r}; use a share above 0 and at most 1, such as 1/8 or 5%")
        order = np.argsort(generator(seed, 0, 0, _STREAM).random(len(images)), kind="stable")
        return images.chosen(np.sort(order[: max(1, int(len(images) * share))]))
    path = Path(part).expanduser()
    if not path.is_file():
        raise ValueError(f"train_part is {part!r}, neither a share such as 1/8 or 5% nor a text file of image names")
    return images.chosen(_listed(images, path))


def _share(part: str) -> Fraction | None:
    """Return a share without rounding: in floats, 29% of 100 images are fewer than 29."""
    if (percent := re.fullmatch(r"(\d{1,9}(\.\d{1,9})?)%", part.strip())) is not None:
        return Fraction(percent[1]) / 100
    ratio = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part.strip())
    return None if ratio is None or int(ratio[2]) == 0 else Fraction(int(ratio[1]), int(ratio[2]))


def _listed(images: SegmentationSet, path: Path) -> np.ndarray:
    positions = {name: i for i, name in enumerate(images.names)}
    found: set[int] = set()
    for number, line in numbered_lines(path):
        name = next((n for n in (line, line.removesuffix(Path(line).suffix)) if n in positions), None)
        if name is None or positions[name] in found:
            problem = "which is no training image" if name is None else "which an earlier line names too"
            raise ValueError(
                f"line {number} of {path} is {line!r}, {problem}; write one name per line, e.g. {images.names[0]}"
            )
        found.add(positions[name])
    if not found:
        raise ValueError(f"{path} names no image; write one name per line, e.g. {images.names[0]}")
    return np.array(sorted(found))
