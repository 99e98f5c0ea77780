"""Squares around objects, and the points of their surface in camera coordinates."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.data.augment.pillow import to_tensor
from selfpatch.data.decode.opening import check_resized
from selfpatch.data.decode.pillow import as_bad_image, read_image
from selfpatch.evaluation.geometric_correspondence.dataset import View
from selfpatch.evaluation.label_maps import read_label_map

STORED = 1024
"""Shorter side that Probe3D shrinks images and depths to before all else."""
CELL = 4
"""Pixels between neighbouring points that are matched."""
DISPARITY = 65535 * 10
"""Value of a depth map times the depth in millimetres."""


@dataclass(frozen=True)
class Surface:
    """Square around an object in a view, and the points that it shows."""

    pixels: Tensor
    """Image [3, S, S], uint8, S pixels for the network."""
    points: Tensor
    """Points [n, n, 3] in metres in the camera's coordinates; 0 beside the object."""
    focal: float
    """Focal length in pixels of the square of `resolution`."""
    corner: tuple[float, float]
    """Upper left corner (x, y) of that square, from the principal point."""

    @property
    def mask(self) -> Tensor:
        """Points of the object, bool [n, n]."""
        return self.points[..., 2] > 0

    def project(self, points: Tensor) -> Tensor:
        """Return the pixels [m, 2] (x, y) of points [m, 3] in the square of `resolution`."""
        return self.focal * points[:, :2] / points[:, 2:].clamp(min=1e-9) - points.new_tensor(self.corner)


def load_surface(view: View, resolution: int, patch_size: int) -> Surface | None:
    """Load a view as Probe3D does; return None if it shows no surface.

    ::

        image, depths = both, the shorter side shrunk to 1024, then to `resolution`, cut to the square in the middle
        points = depths along the rays of the pixels
        square around the points, as large as their longer side, centred if it fits, else moved up and left
        the square resized to the network's size, and its points to every fourth pixel of `resolution`

    All sizes are changed by taking the nearest pixel, except for the first shrinking of the image.

    Raises:
        ValueError: a file cannot be read, image and depths differ in shape, or their sides differ too much.
    """
    image = read_image(view.image)
    disparity = read_label_map(view.depth, "the depths").values
    if abs(disparity.shape[1] / disparity.shape[0] - image.width / image.height) > 0.01:
        raise ValueError(
            f"{view.image} has {image.width} x {image.height} pixels and {view.depth} "
            f"{disparity.shape[1]} x {disparity.shape[0]}; use images and depths of one shape"
        )
    width, height = (int(side * STORED / min(image.size)) for side in image.size)
    with as_bad_image(view.image):
        check_resized(image.size, width, height)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    depth = np.where(disparity > 0, DISPARITY / np.maximum(disparity, 1) / 1000, 0)
    depth = _resized(depth, height, width, offset=0.5)
    pixels, depth = (_middle_square(values, resolution) for values in (pixels, depth))
    box = _square_around(depth > 0)
    if box is None:
        return None
    top, left, side = box
    focal = view.focal * resolution
    across = np.arange(resolution) + 0.5 - resolution / 2
    rays = np.stack([*np.broadcast_arrays(across / focal, across[:, None] / focal, np.ones(()))], axis=-1)
    points = (rays * depth[..., None])[top : top + side, left : left + side]
    seen = max(1, round(resolution / patch_size)) * patch_size
    crop = _resized(pixels[top : top + side, left : left + side], seen, seen)
    cells = np.arange(0, resolution, CELL) * side // resolution
    scale = resolution / side
    corner = scale * (left - resolution / 2), scale * (top - resolution / 2)
    kept = torch.from_numpy(points[cells[:, None], cells]).float()
    surface = Surface(to_tensor(Image.fromarray(crop)), kept, focal * scale, corner)
    return surface if surface.mask.any() else None  # a thin object may lie between the kept points


def _resized(values: np.ndarray, height: int, width: int, *, offset: float = 0.0) -> np.ndarray:
    """Return the nearest values; `offset` is 0 as torch takes them, and 0.5 as Pillow does."""
    rows, columns = (
        np.minimum(((np.arange(new) + offset) * old / new).astype(np.int64), old - 1)
        for new, old in zip((height, width), values.shape, strict=False)
    )
    return values[rows[:, None], columns]


def _middle_square(values: np.ndarray, side: int) -> np.ndarray:
    height, width = (int(side * length / min(values.shape[:2])) for length in values.shape[:2])
    top, left = (round((length - side) / 2) for length in (height, width))
    return _resized(values, height, width)[top : top + side, left : left + side]


def _square_around(mask: np.ndarray) -> tuple[int, int, int] | None:
    """Return top, left and side of a square around the pixels of a mask, without their last row and column.

    None is returned if they lie in one pixel, or if there are none.
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    first = np.array([rows[0], columns[0]])
    sides = np.array([rows[-1], columns[-1]]) - first
    side = int(sides.max())
    if not side:
        return None
    centred = first - (side - sides) // 2
    if not ((centred >= 0).all() and (centred + side <= mask.shape).all()):
        centred = np.maximum(first - (side - sides), 0)
    return int(centred[0]), int(centred[1]), side
