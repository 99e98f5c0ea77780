"""Classification sets in their published layouts: images in one folder, their classes in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def write_image(path: Path, label: int = 0) -> None:
    """Write a plain image whose colour tells its class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 24), (90, 80 * label, 70)).save(path)


def write_flowers(root: Path, labels: tuple[int, ...] = (3, 1, 1, 3, 1, 3)) -> tuple[int, ...]:
    """Write six images or more of Oxford Flowers, and return their classes."""
    for number, label in enumerate(labels, start=1):
        write_image(root / "jpg" / f"image_{number:05d}.jpg", label)
    savemat(root / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(root / "setid.mat", {"trnid": [[6, 2]], "valid": [[1, *range(7, len(labels) + 1)]], "tstid": [[5, 3, 4]]})
    return labels


def write_cub(root: Path) -> dict[str, Path]:
    """Four images of two birds, as CUB-200-2011 has them, below CUB_200_2011/."""
    folder = root / "CUB_200_2011"
    names = ["002.Laysan/b 1.jpg", "001.Albatross/a.jpg", "002.Laysan/c.jpg", "001.Albatross/d.jpg"]
    for name in names:
        write_image(folder / "images" / name, int(name[:3]))
    tables = {
        "images": names, "image_class_labels": [2, 1, 2, 1], "train_test_split": [1, 0, 0, 1],
        "classes": ["001.Albatross", "002.Laysan"],
    }  # fmt: skip
    for name, values in tables.items():
        (folder / f"{name}.txt").write_text("".join(f"{i} {value}\n" for i, value in enumerate(values, start=1)))
    return {name: folder / f"{name}.txt" for name in tables}
