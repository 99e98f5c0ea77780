"""Views of objects, their depths and cameras, as NAVI has them (Jampani et al., arXiv 2306.09109).

::

    OBJECT/wild_set/annotations.json      for each image its file, size and camera
    OBJECT/wild_set/images/000.jpg
    OBJECT/wild_set/depth/000.png         65535 * 10 / (depth in millimetres), 0 beside the object
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Gt, Len
from pydantic import FiniteFloat, PositiveInt
from typing_extensions import TypedDict

from selfpatch.config.json_schema import check_json
from selfpatch.core.folders import subfolders
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text_files import read_json
from selfpatch.data.images import limited
from selfpatch.evaluation.geometric_correspondence.config import NAVIConfig

SCENE = "wild_set"


class _Camera(TypedDict):
    q: Annotated[list[FiniteFloat], Len(4, 4)]
    t: Annotated[list[FiniteFloat], Len(3, 3)]
    focal_length: Annotated[FiniteFloat, Gt(0)]


class _Annotation(TypedDict):
    filename: str
    image_size: Annotated[list[PositiveInt], Len(2, 2)]
    camera: _Camera


@dataclass(frozen=True)
class View:
    """One image of an object and its camera: a point p of the object lies at `rotation @ p + translation`."""

    subject: str
    """Name of the object."""
    name: str
    image: Path
    depth: Path
    rotation: np.ndarray
    """float64 [3, 3]"""
    translation: np.ndarray
    """float64 [3], in metres; x points right, y down and z into the image."""
    focal: float
    """Focal length as a share of the image's shorter side."""

    def angle_to(self, other: "View") -> float:
        """Return the angle of the rotation between two cameras, in degrees."""
        cosine = (np.trace(self.rotation @ other.rotation.T) - 1) / 2
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


Pair = tuple[View, View]


def open_pairs(data: str | Path, config: NAVIConfig) -> list[Pair]:
    """Return every n-th view with another view of its object, drawn among those within the largest angle.

    Objects and views are in the order of their names. Views without such another view are left out.

    Raises:
        ValueError: the folder holds no object or none that is named, a file is missing or invalid, or no pair is left.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give the one of NAVI that holds the objects")
    found = {folder.name: folder / SCENE for folder in subfolders(root) if (folder / SCENE).is_dir()}
    if not found:
        raise ValueError(f"{root} has no OBJECT/{SCENE}/ as NAVI has; give the folder that holds the objects")
    if config.objects is not None:
        if missing := sorted({*config.objects} - found.keys()):
            raise ValueError(f"{root} has no object {', '.join(missing)}; the objects are: {', '.join(sorted(found))}")
        found = {name: found[name] for name in config.objects}
    rng = np.random.default_rng(config.seed)
    pairs: list[Pair | None] = []
    for subject in sorted(found):
        views = _read_views(subject, found[subject])
        for view in views:
            near = [one for one in views if one is not view and view.angle_to(one) <= config.max_angle]
            pairs.append((view, near[rng.integers(len(near))]) if near else None)
    kept = [pair for pair in pairs[:: config.every] if pair is not None]
    if not kept:
        raise ValueError(f"no two views of {root} are within {config.max_angle:g} degrees; use a larger max_angle")
    return list(limited(kept, config.limit))


def _read_views(subject: str, scene: Path) -> list[View]:
    file = scene / "annotations.json"
    content = check_json(read_json(file, "every object of NAVI has it"), list[_Annotation], str(file))
    views = [_view(subject, scene, entry, file) for entry in content]
    if len({view.name for view in views}) < len(views):
        raise ValueError(f"{file} lists an image twice; download it again")
    return sorted(views, key=lambda view: view.name)


def _view(subject: str, scene: Path, entry: _Annotation, file: Path) -> View:
    name = entry["filename"]
    image = path_below(scene / "images", name, file, nested=False)
    depth = scene / "depth" / f"{image.stem}.png"
    for path in (image, depth):
        if not path.is_file():
            raise ValueError(f"there is no file {path}, which {file} names; complete the download")
    camera = entry["camera"]
    translation = np.array(camera["t"], np.float64) / 1000
    focal = camera["focal_length"] / min(entry["image_size"])
    return View(subject, image.stem, image, depth, _rotation(camera["q"], image), translation, focal)


def _rotation(quaternion: list[float], image: Path) -> np.ndarray:
    """Return the rotation matrix of a quaternion (w, x, y, z) of any length."""
    values = np.array(quaternion, np.float64)
    if not np.linalg.norm(values) > 0:
        raise ValueError(f"the camera of {image} has a rotation of length 0; download the annotations again")
    w, x, y, z = values / np.linalg.norm(values)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
