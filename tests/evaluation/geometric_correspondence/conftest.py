"""A coloured sphere seen by cameras around it, in the layout of NAVI; every pixel tells its point by its colour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from selfpatch.evaluation.encoders import MeanColour

RADIUS, DISTANCE, FOCAL = 60.0, 400.0, 200.0
"""Radius of the sphere and distance of the cameras in millimetres, focal length in pixels."""
SIZE = (128, 96)
"""Width and height of the images."""
ANGLES = (0.0, 25.0, 60.0, 170.0)
"""Angle of each camera about the vertical axis, in degrees."""


class Colour(MeanColour):
    """Mean colour about grey: the direction of the point from the middle of the sphere."""

    def patches(self, images: Tensor) -> Tensor:
        return super().patches(images - 0.5)


def colour_of(points: np.ndarray) -> np.ndarray:
    """Return the colours of points [..., 3] of the sphere, in its own coordinates."""
    return 127.5 + 110 * points / RADIUS


def rotation(angle: float) -> np.ndarray:
    """Return the matrix that turns about y by an angle in degrees."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def render(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the image [h, w, 3] and the depths [h, w] in millimetres, by casting a ray through each pixel."""
    width, height = SIZE
    middle = np.array([0.0, 0.0, DISTANCE])
    rows, columns = np.mgrid[:height, :width] + 0.5
    rays = np.stack([(columns - width / 2) / FOCAL, (rows - height / 2) / FOCAL, np.ones(SIZE[::-1])], axis=-1)
    half, square = rays @ middle, (rays**2).sum(-1)
    root = half**2 - square * (middle @ middle - RADIUS**2)
    depths = np.where(root > 0, (half - np.sqrt(np.maximum(root, 0))) / square, 0)
    points = (depths[..., None] * rays - middle) @ rotation(angle)
    return np.where(root[..., None] > 0, colour_of(points).round(), 60).astype(np.uint8), depths


def write_navi(root: Path, subjects: tuple[str, ...] = ("ball",)) -> Path:
    for subject in subjects:
        scene = root / subject / "wild_set"
        annotations = []
        for i, angle in enumerate(ANGLES):
            pixels, depths = render(angle)
            disparity = np.where(depths > 0, 655350 / np.maximum(depths, 1), 0).round().astype(np.uint16)
            for folder, content in (("images", pixels), ("depth", disparity)):
                (scene / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(scene / folder / f"{i:03d}.png")
            half = np.radians(angle) / 2
            camera = {"q": [np.cos(half), 0, np.sin(half), 0], "t": [0, 0, DISTANCE], "focal_length": FOCAL}
            annotations.append({"filename": f"{i:03d}.png", "image_size": [SIZE[1], SIZE[0]], "camera": camera})
        (scene / "annotations.json").write_text(json.dumps(annotations))
    return root


@pytest.fixture(scope="session")
def navi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One object with four views."""
    return write_navi(tmp_path_factory.mktemp("navi"))


def object_points(points: Tensor, angle: float) -> np.ndarray:
    """Return points [m, 3] in metres of a camera in the sphere's coordinates, in millimetres."""
    return (1000 * points.double().numpy() - np.array([0, 0, DISTANCE])) @ rotation(angle)
