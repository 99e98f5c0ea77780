"""Evaluation of the teacher during training: view matching, k-NN and picture sheets."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfpatch.checkpoints.run_dir import sheet_of
from selfpatch.config.schema import Size
from selfpatch.config.sections import WatchConfig
from selfpatch.core.console import console
from selfpatch.core.text import counted
from selfpatch.data.augment.multicrop import ViewRecipe
from selfpatch.data.decode.pillow import BadImage
from selfpatch.data.images import LoadedImages, NoneReadable, evenly_spread, load_images
from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.view_matching.dataset import ViewPairs, load_pairs
from selfpatch.evaluation.view_matching.evaluate import view_matching
from selfpatch.models.branch import Branch
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.features import image_features, mean_patch_features
from selfpatch.models.finite_features import NonFiniteFeatures, requiring_finite_features
from selfpatch.ops.knn import leave_one_out
from selfpatch.training.dataset import TrainingData
from selfpatch.visualization.encoded import encode_pixels
from selfpatch.visualization.explorer.page import write_explorer
from selfpatch.visualization.sheet import picture_sheet

SHEET_PATCHES = 28
"""Patches along a side of the images on the picture sheets, if crops are square; else as many patches in all."""
K_NEIGHBOURS = 20
"""k of the k-NN metric, as DINO reports it."""
BATCH_SIZE = 64


class OnlineEvaluator:
    """Measures the teacher: view matching on held-out images, k-NN where the folder has classes, a picture sheet.

    The sub-folders of the training images are their classes. `recipes` augment the two global views of the view pairs,
    which `seed` draws. Sheets are written into `pictures`. `patch_knn` adds k-NN of mean patch features
    (pool-independent). Unreadable images are left out.
    """

    bad: dict[str, str]
    """Reason by path for each unreadable image."""
    warnings: list[str]
    """A sentence on each metric that is measured on fewer images than there are, or not at all."""

    def __init__(
        self,
        config: WatchConfig,
        data: TrainingData,
        recipes: tuple[ViewRecipe, ...],
        *,
        channels: int = 3,
        patch_size: int,
        pictures: Path,
        seed: int,
        patch_knn: bool = False,
    ) -> None:
        self._patch_knn, self._pictures = patch_knn, pictures
        self._patch_size, self._channels = patch_size, channels
        self.bad, self.warnings = {}, []
        held_out, indices = data.held_out_index, data.held_out_indices
        self._pairs, self._baseline = self._make_pairs(held_out, indices, recipes, seed)
        shown = evenly_spread(indices, config.picture_images)
        sheet_images = self._load(held_out, shown, sheet_size(recipes[0], patch_size))
        self._sheet_images = None if sheet_images is None else sheet_images.images
        self._sheet_names = [] if sheet_images is None else [held_out.name(int(i)) for i in sheet_images.indices]
        self._warn_of_unreadable("held-out images", len(indices), "view matching and pictures are left out")
        self._labelled = self._load_labelled(data, config.knn_images, recipes[0].size)

    def _load_labelled(self, data: TrainingData, max_images: int, size: Size) -> tuple[Tensor, Tensor] | None:
        """Return images and labels for k-NN, or None if most images are the only ones of their class."""
        chosen = evenly_spread(data.indices, max_images)
        if not data.index.classes or not _most_share_a_class(_labels(data.index, chosen)):
            return None
        num_bad = len(self.bad)
        loaded = self._load(data.index, chosen, size)
        self._warn_of_unreadable("images for k-NN", len(chosen), "k-NN is left out", first=num_bad)
        if loaded is None:
            return None
        labels = _labels(data.index, loaded.indices)  # of fewer images, if some cannot be read
        return (loaded.images, labels) if _most_share_a_class(labels) else None

    def _make_pairs(
        self, index: ImageIndex, indices: np.ndarray, recipes: tuple[ViewRecipe, ...], seed: int
    ) -> tuple[ViewPairs | None, float]:
        """Return the view pairs and the score of mean patch colour, or None and 0 if no two views overlap."""
        views = recipes[0], recipes[1]
        try:
            read, pairs = load_pairs(index, indices, views, seed=seed, channels=self._channels, on_bad=self._note_bad)
        except NoneReadable:
            return None, 0.0
        try:
            return pairs, view_matching(MeanColour(self._patch_size, self._channels), pairs)
        except ValueError:  # there are so few images that no two views of one overlap
            self.warnings.append(
                f"no two views of any of the {len(read)} held-out images overlap; view matching is left out"
            )
            return None, 0.0

    def _load(self, index: ImageIndex, indices: np.ndarray, size: Size) -> LoadedImages | None:
        """Return the images of these indices that can be read, or None if there are none."""
        if not len(indices):
            return None
        try:
            return load_images(index, indices, size, channels=self._channels, on_bad=self._note_bad)
        except NoneReadable:  # the loader decides how many unreadable images end the run
            return None

    def _note_bad(self, error: BadImage) -> None:
        self.bad[error.path] = error.reason

    def _warn_of_unreadable(self, what: str, count: int, loss: str, first: int = 0) -> None:
        """Add a warning on the entries of `bad` from the number `first` on; `loss` ends it if no image can be read."""
        bad = list(self.bad.items())[first:]
        if bad:
            (path, reason), none = bad[0], len(bad) == count
            found = f"none of the {count} {what} can" if none else f"{len(bad)} of the {count} {what} cannot"
            rest = loss if none else "it is measured on the others"
            self.warnings.append(f"{found} be read, e.g. {path}: {reason}; {rest}")

    def __call__(self, teacher: Branch, step: int) -> dict[str, float]:
        """Return the metrics after `step` steps; at step 0 also the baseline, which is mean patch colour."""
        encoder = teacher_encoder(teacher)
        metrics: dict[str, float] = {}
        if self._pairs is not None:
            with nan_if_not_finite(metrics, "view_matching"):
                metrics["view_matching"] = view_matching(encoder, self._pairs)
            if step == 0:
                metrics["view_matching_mean_colour"] = self._baseline
        if self._labelled is not None:
            images, labels = self._labelled
            batches, k = images.split(BATCH_SIZE), min(K_NEIGHBOURS, len(labels) - 1)
            with nan_if_not_finite(metrics, "knn_top1"):
                metrics["knn_top1"] = leave_one_out(image_features(encoder, batches), labels, k)
            if self._patch_knn:
                with nan_if_not_finite(metrics, "patch_knn_top1"):
                    metrics["patch_knn_top1"] = leave_one_out(mean_patch_features(encoder, batches), labels, k)
        if self._sheet_images is not None:
            path = sheet_of(self._pictures, step)
            picture_sheet({"patch features": encoder}, self._sheet_images, path, title=f"after {counted(step, 'step')}")
        return metrics

    def before_and_after(self, trained: Branch, untrained: BranchEncoder) -> Path | None:
        """Draw a sheet of the teacher and an untrained network; return its path, or None if there are no images."""
        if self._sheet_images is None:
            return None
        path = self._pictures / "before-and-after.png"
        networks = {"patch features": teacher_encoder(trained), "patch features, untrained": untrained}
        return picture_sheet(networks, self._sheet_images, path, title="before and after")

    def write_explorer(self, path: Path, trained: Branch, untrained: BranchEncoder) -> Path | None:
        """Write a page that compares patches of the images of the sheet before and after training.

        Return its path, or None if there are no images; also None, after a warning, if features are not finite or the
        page would be too large.
        """
        if self._sheet_images is None:
            return None
        named = list(zip(self._sheet_names, self._sheet_images, strict=True))
        networks = {"untrained": untrained, "trained": teacher_encoder(trained)}
        try:
            encoded = {
                network: [encode_pixels(encoder, pixels, name) for name, pixels in named]
                for network, encoder in networks.items()
            }
            return write_explorer(path, "Patch features before and after training", self._sheet_names, encoded)
        except ValueError as error:  # the weights and the report, which are still to be written, matter more
            console.say(f"warning: {path.name} is left out: {error}")
            return None


@contextlib.contextmanager
def nan_if_not_finite(metrics: dict[str, float], name: str) -> Iterator[None]:
    """Leave a metric NaN if features are not finite; a measurement must not end a run, but a score would be wrong."""
    metrics[name] = math.nan
    with contextlib.suppress(NonFiniteFeatures), requiring_finite_features("the teacher"):
        yield


def sheet_size(recipe: ViewRecipe, patch_size: int) -> tuple[int, int]:
    """Return height and width of the images on a picture sheet, in pixels; their shape is that of global crops."""
    height, width = recipe.sides
    stretch = math.sqrt(width / height)
    rows, columns = (max(1, round(SHEET_PATCHES * factor)) for factor in (1 / stretch, stretch))
    return rows * patch_size, columns * patch_size


def teacher_encoder(teacher: Branch) -> BranchEncoder:
    """Return the teacher's backbone, pool and projection head as an encoder, which shares their weights."""
    projection = teacher.heads["image"].state_dict() if "image" in teacher.heads else None
    return BranchEncoder(teacher.backbone, teacher.pool, projection=projection)


def _labels(index: ImageIndex, indices: np.ndarray) -> Tensor:
    return torch.tensor([index.label(int(i)) for i in indices], dtype=torch.int64)


def _most_share_a_class(labels: Tensor) -> bool:
    """Return whether at least half of the labels occur more than once; without, k-NN finds nothing of its class."""
    return bool((labels.bincount()[labels] > 1).float().mean() >= 0.5)
