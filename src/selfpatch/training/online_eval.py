"""What is measured and drawn while a network trains: a callable that the loop is handed, so that training never knows
of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfpatch.data.augment.multicrop import ViewRecipe
from selfpatch.data.decode.pillow import BadImage, read_picture
from selfpatch.data.images import LoadedImages, evenly_spread, load_images
from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.baselines import MeanColour
from selfpatch.evaluation.view_matching import ViewPairs, make_view_pairs, view_matching
from selfpatch.models.branch import Branch
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.features import image_features, mean_patch_features
from selfpatch.ops.knn import leave_one_out
from selfpatch.training.trainer import StudentTeacher
from selfpatch.visualization.sheet import picture_sheet

SHEET_PATCHES = 28
"""Patches along a side of the images on the picture sheets."""
NEIGHBOURS = 20
"""k of the k-NN meter, the number that DINO quotes."""
BATCH = 64
"""Images that are encoded at once."""


class OnlineEvaluator:
    """Measures the teacher on images that it does not train on: the dense meter, k-NN where the folder has classes, a
    picture sheet.

    Args:
        held_out: images for the dense meter and the sheets, and their places.
        labelled: training images whose sub-folders are their classes, and the places that k-NN may use.
        recipes: how the training's global views are drawn; pairs for the dense meter are drawn so too.
        channels: of the images.
        pictures: folder for the sheets.
    """

    def __init__(
        self,
        held_out: tuple[ImageIndex, np.ndarray],
        labelled: tuple[ImageIndex, np.ndarray],
        recipes: tuple[ViewRecipe, ...],
        *,
        channels: int = 3,
        patch_size: int,
        pictures: Path,
        picture_images: int,
        knn_images: int,
        seed: int,
        of_patches: bool = False,
    ) -> None:
        self._of_patches = of_patches
        self._pictures, self._seed = pictures, seed
        self._patch_size, self._channels = patch_size, channels
        self._pairs, self._floor = self._draw_pairs(*held_out, recipes)
        self._sheet_images = self._load_sheet_images(*held_out, picture_images)
        self._labelled = self._load_labelled(*labelled, knn_images, recipes[0].size)

    def _draw_pairs(
        self, index: ImageIndex, places: np.ndarray, recipes: tuple[ViewRecipe, ...]
    ) -> tuple[ViewPairs | None, float]:
        """The pairs of the dense meter, and what mean patch colour makes of them; None where there are none."""
        images = []
        for place in places:
            with contextlib.suppress(BadImage):  # the loader lists those that it meets
                images.append(read_picture(index.file(int(place)), self._channels))
        if not images:
            return None, 0.0
        pairs = make_view_pairs(images, (recipes[0], recipes[1]), seed=self._seed)
        try:
            return pairs, view_matching(MeanColour(self._patch_size, self._channels), *pairs)
        except ValueError:  # so few images that no two views of one overlap
            return None, 0.0

    def _load_sheet_images(self, index: ImageIndex, places: np.ndarray, count: int) -> Tensor | None:
        loaded = _load(index, places, count, SHEET_PATCHES * self._patch_size, self._channels)
        return None if loaded is None else loaded.images

    def _load_labelled(
        self, index: ImageIndex, places: np.ndarray, count: int, size: int
    ) -> tuple[Tensor, Tensor] | None:
        """Images and labels of as many places as are wanted; None where k-NN has no meaning."""
        loaded = _load(index, places, count, size, self._channels) if index.classes else None
        if loaded is None:
            return None
        labels = torch.tensor([index.label(int(place)) for place in loaded.indices])
        alone = labels.bincount()[labels] == 1
        return None if alone.float().mean() > 0.5 else (loaded.images, labels)

    def __call__(self, pretrainer: StudentTeacher, step: int) -> dict[str, float]:
        """The metrics after so many steps; with step 0 also those of mean patch colour, the floor."""
        encoder = teacher_encoder(pretrainer)
        metrics: dict[str, float] = {}
        if self._pairs is not None:
            metrics["view_matching"] = view_matching(encoder, *self._pairs)
            if step == 0:
                metrics["view_matching_mean_colour"] = self._floor
        if self._labelled is not None:
            images, labels = self._labelled
            features = image_features(encoder, images.split(BATCH))
            k = min(NEIGHBOURS, len(labels) - 1)
            metrics["knn_top1"] = leave_one_out(features, labels, k)
            if self._of_patches:
                metrics["patch_knn_top1"] = leave_one_out(mean_patch_features(encoder, images.split(BATCH)), labels, k)
        if self._sheet_images is not None:
            path = self._pictures / f"step-{step:08d}.png"
            picture_sheet({"patch features": encoder}, self._sheet_images, path, title=f"after {step} steps")
        return metrics

    def before_and_after(self, trained: StudentTeacher, untrained: BranchEncoder) -> Path | None:
        """One sheet of what the teacher and an untrained network see; None where there is nothing to draw."""
        if self._sheet_images is None:
            return None
        path = self._pictures / "before-and-after.png"
        networks = {"patch features": teacher_encoder(trained), "patch features, untrained": untrained}
        return picture_sheet(networks, self._sheet_images, path, title="before and after")


def _load(index: ImageIndex, places: np.ndarray, count: int, size: int, channels: int) -> LoadedImages | None:
    """So many of the places, evenly spread; None where none is wanted or readable: the loader judges of that."""
    if not count or not len(places):
        return None
    try:
        return load_images(index, evenly_spread(places, count), size, channels=channels)
    except ValueError:
        return None


def teacher_encoder(pretrainer: StudentTeacher) -> BranchEncoder:
    """The teacher's backbone and pool, sharing its weights."""
    teacher: Branch = pretrainer.teacher
    return BranchEncoder(teacher.backbone, teacher.pool)
