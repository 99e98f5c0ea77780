"""A planted deviation in the package makes the replay of a golden bundle fail: one or more for every kind of bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.data.augment import masks, multicrop
from selfpatch.evaluation.depth import head as depth_head
from selfpatch.evaluation.depth import metrics as depth_errors
from selfpatch.evaluation.retrieval import metrics as retrieval_metrics
from selfpatch.evaluation.segmentation.config import Matching
from selfpatch.evaluation.segmentation.matching import classes_of_clusters
from selfpatch.evaluation.video_segmentation import propagation
from selfpatch.losses import center, gram, ibot, koleo, neco, paka, selfpatch
from selfpatch.losses import depth as depth_losses
from selfpatch.losses import distill as distillation_losses
from selfpatch.losses.distill import similarity_divergence as divergence
from selfpatch.losses.ibot import masked_patch_weights
from selfpatch.models import pooling
from selfpatch.models.backbones import dinov3_keys, positions, vit
from selfpatch.models.layers import keyless_bias
from selfpatch.ops import debias, roi_align, rope, soft_sort
from selfpatch.ops import propagation as op_propagation
from selfpatch.ops.contrast import l2_normalize as unit
from selfpatch.ops.debias import remove_position_layers as remove_layers
from selfpatch.ops.neighbours import top_positives
from selfpatch.ops.roi_align import align_overlap as align
from selfpatch.ops.rope import Rotation
from selfpatch.ops.sinkhorn import sinkhorn, sinkhorn_center
from selfpatch.ops.soft_sort import _wiring as wiring
from tests.parity import (
    debiasing,
    dense_retrieval,
    dinov3_vit,
    distillation,
    drawn_crops,
    newer_losses,
    overclustering,
    sinkhorn_losses,
)
from tests.parity.kinds import KINDS
from tests.parity.test_parity import BUNDLES

Plant = Callable[[pytest.MonkeyPatch], None]


def constant(module: Any, name: str, value: Any) -> Plant:
    """Plant another value of a constant or another function of a module."""
    return lambda monkeypatch: monkeypatch.setattr(module, name, value)


def with_views(**changes: Any) -> Plant:
    """Plant other settings of every view."""

    def dino_views(crops: Any) -> tuple[multicrop.ViewRecipe, ...]:
        return tuple(replace(recipe, **changes) for recipe in multicrop.dino_views(crops))

    return constant(drawn_crops, "dino_views", dino_views)


def with_colour(**changes: Any) -> Plant:
    """Plant other settings of colours."""

    def dino_views(crops: Any) -> tuple[multicrop.ViewRecipe, ...]:
        return multicrop.dino_views(replace(crops, **changes))

    return constant(drawn_crops, "dino_views", dino_views)


def with_masks(**changes: Any) -> Plant:
    """Plant other settings of masks where both are drawn from a range."""

    def draw_mask(config: Any, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        varied = config.share_unmasked > 0
        return drawn_mask(replace(config, **changes) if varied else config, grid, rng)

    return constant(masks, "draw_mask", draw_mask)


def attend_unscaled(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None = None) -> Tensor:
    return pooling_attend(query * query.shape[-1] ** 0.5, keys, values, valid)


def antialiased(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    maps = patches.permute(0, 3, 1, 2)
    return F.interpolate(maps, grid, mode="bicubic", antialias=True).permute(0, 2, 3, 1)


def by_precision(counts: np.ndarray, matching: Matching) -> np.ndarray:
    return classes_of_clusters(counts, "precision" if matching == "iou" else matching)


def resize_in_floats(images: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images.float(), (height, width), mode="bilinear").round().to(torch.uint8)


def halves_swapped(rotation: Rotation) -> Rotation:
    sin, cos = (x.roll(x.shape[-1] // 4, -1) for x in rotation)
    return sin, cos


def rotate_interleaved(x: Tensor, rotation: Rotation) -> Tensor:
    """Pair channels 2 c and 2 c + 1 in place of c and c + d / 2."""
    halves = x.unflatten(-1, (-1, 2)).mT.flatten(-2)
    return rotate(halves, rotation).unflatten(-1, (2, -1)).mT.flatten(-2)


def with_key_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant the bias of keys that released files hold, unmasked, in the importer and in the network."""
    without_masks = constant(
        dinov3_keys, "join_parts", lambda state: {k: x for k, x in state.items() if not k.endswith("bias_mask")}
    )
    without_masks(monkeypatch)
    monkeypatch.setattr(keyless_bias.KeylessBias, "used_bias", lambda projection: projection.bias)


def logistic_sort(values: Tensor, steepness: float, network: str = "bitonic") -> tuple[Tensor, Tensor]:
    """Comparators of a logistic distribution in place of a Cauchy distribution."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "atan", lambda x: torch.pi * (torch.sigmoid(x) - 0.5))
        return soft_sort.soft_sort(values, steepness, network)


def cornered(patches: Tensor, grid: Any) -> Tensor:
    maps = patches.permute(0, 3, 1, 2)
    return F.interpolate(maps, tuple(grid), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)


def basis_with_mean(blank: Tensor, rank: int) -> Tensor:
    x = F.normalize(blank, dim=-1).flatten(0, -2)
    return torch.linalg.svd(x.mT, full_matrices=False).U[:, :rank]


SHAPES = ("released/selfpatch_vits", "SelfPatch shapes")
DAVIS, DAVIS_SELFPATCH = ((f"released/davis_{name}", "DAVIS frames") for name in ("dino", "selfpatch"))
MASKS, CROPS = (("released/statistics", f"{name} statistics") for name in ("mask", "crop"))
drawn_mask = masks.draw_mask
levels = retrieval_metrics.positives_and_ignored
rotate, rotation_of = rope.rotate_patches, rope.rope_rotation
pooling_attend, sincos, resized_weights = pooling.attend, vit.sincos_positions, positions.interpolation_weights

MUTATIONS: dict[str, tuple[tuple[str, str], Plant]] = {
    "one positive less": (
        SHAPES,
        constant(selfpatch, "top_positives", lambda x, k, table: top_positives(x, max(1, k - 1), table)),
    ),
    "attention without scale": (
        SHAPES,
        constant(pooling, "attend", attend_unscaled),
    ),
    "interpolation by size": (
        ("released/position_embeddings", "position embeddings"),
        constant(
            positions, "interpolation_weights", lambda h, w, G, _, device: resized_weights(h, w, G, "size", device)
        ),
    ),
    "sines and cosines swapped": (
        ("released/schedules", "fixed positions"),
        constant(vit, "sincos_positions", lambda grid, dim: sincos(grid, dim).roll(dim // 4, 1)),
    ),
    "ImageNet's deviation of red": (DAVIS, constant(propagation, "RELEASED_STD", {})),
    "resize in floating point": (
        DAVIS,
        constant(propagation, "resize_linear", resize_in_floats),
    ),
    "long side to the patch size": (
        DAVIS_SELFPATCH,
        constant(propagation, "LONG_SIDE_MULTIPLE", 16),
    ),
    "hard labels propagated": (
        DAVIS_SELFPATCH,
        lambda monkeypatch: monkeypatch.setattr(
            propagation, "propagate_labels", hardened(propagation.propagate_labels)
        ),
    ),
    "positions by scale factor": (
        ("newer/dinov2reg_tiny", "DINOv2 ViT"),
        constant(
            positions, "interpolation_weights", lambda h, w, G, _, device: resized_weights(h, w, G, "released", device)
        ),
    ),
    "pairs of neighbouring channels": (
        ("newer/rope", "rope"),
        constant(dinov3_vit, "rotate_patches", rotate_interleaved),
    ),
    "columns before rows": (
        ("newer/rope", "rope"),
        constant(dinov3_vit, "rope_rotation", lambda h, w, *rest: halves_swapped(rotation_of(h, w, *rest))),
    ),
    "corners in place of centres": (
        ("newer/dinov3_tiny", "DINOv3 ViT"),
        constant(vit, "rope_rotation", lambda h, w, *rest: rotation_of(h, w, rest[0], max(h, w) / (max(h, w) - 1))),
    ),
    "bias of keys": (
        ("newer/dinov3_tiny", "DINOv3 ViT"),
        with_key_bias,
    ),
    "classes counted by pixels": (
        ("newer/hummingbird", "dense retrieval"),
        constant(dense_retrieval, "commonness", lambda labels: labels @ labels.sum(0)),
    ),
    "precision in place of IoU": (
        ("newer/overclustering", "overclustering"),
        constant(overclustering, "classes_of_clusters", by_precision),
    ),
    "window of depth a row lower": (
        ("newer/depth_metrics", "depth metrics"),
        constant(depth_errors, "EIGEN_ROWS", (35, 461)),
    ),
    "bins without an offset": (("newer/depth_metrics", "depth metrics"), constant(depth_head, "OFFSET", 0.01)),
    "weight of the mean error": (("newer/depth_losses", "depth losses"), constant(depth_losses, "MEAN_WEIGHT", 0.5)),
    "gradient steps by powers of two": (
        ("newer/depth_losses", "depth losses"),
        constant(depth_losses, "STEPS", (1, 2, 4, 8)),
    ),
    "hard images among the easy": (
        ("newer/retrieval", "retrieval"),
        constant(retrieval_metrics, "positives_and_ignored", lambda query, level: levels(query, "medium")),
    ),
    "similarity by dot product": (
        ("newer/retrieval", "retrieval"),
        lambda monkeypatch: monkeypatch.setattr(retrieval_metrics.F, "normalize", lambda x, dim: x),
    ),
    "an iteration less": (
        ("newer/sinkhorn", "sinkhorn"),
        constant(sinkhorn_losses, "sinkhorn", lambda x, epsilon, n: sinkhorn(x, epsilon, n - 1)),
    ),
    "a centre of an iteration less": (
        ("newer/sinkhorn", "sinkhorn"),
        constant(center, "sinkhorn_center", lambda x, temp, n: sinkhorn_center(x, temp, n - 1)),
    ),
    "masked crops counted alone": (
        ("newer/sinkhorn", "sinkhorn"),
        constant(ibot, "masked_patch_weights", lambda x: masked_patch_weights(x) * len(x) / (len(x) - 2)),
    ),
    "circle without its border": (
        ("newer/vos_dinov3", "windows of label propagation"),
        constant(op_propagation, "_inside", lambda rows, columns, radius, _: rows + columns < radius**2),
    ),
    "patches without their mean": (
        ("newer/paka", "paka"),
        constant(paka, "mean_patch", lambda x, kept: torch.zeros_like(x[:, :1])),
    ),
    "map of a flipped crop": (("newer/paka", "paka"), constant(roi_align, "_unflipped", lambda maps, _: maps)),
    "kernels of any norm": (("newer/paka", "paka"), constant(paka, "MIN_NORM", 1e-30)),
    "antialiased teacher": (("newer/gram", "gram"), constant(newer_losses, "resize_patches", antialiased)),
    "tokens of any norm": (("newer/gram", "gram"), constant(gram, "l2_normalize", lambda x: x)),
    "a layer of the sorting network less": (
        ("newer/neco", "neco"),
        constant(soft_sort, "_wiring", lambda *settings: tuple(tables[:-1] for tables in wiring(*settings))),
    ),
    "logistic comparators": (("newer/neco", "neco"), constant(neco, "soft_sort", logistic_sort)),
    "references of any norm": (("newer/neco", "neco"), constant(neco, "l2_normalize", lambda x: 0.5 * unit(x))),
    "targets of the other crop": (
        ("newer/neco", "neco"),
        constant(neco, "align_overlap", lambda a, b, box, other, size: align(a, b, box, box, size)),
    ),
    "corners aligned": (("newer/distill", "distillation"), constant(distillation_losses, "resize_bilinear", cornered)),
    "similarities of any norm": (
        ("newer/distill", "distillation"),
        constant(distillation_losses, "l2_normalize", lambda x: x),
    ),
    "student's similarities as target": (
        ("newer/distill", "distillation"),
        constant(distillation, "similarity_divergence", lambda s, t, keys, temp: divergence(t, s, keys, temp)),
    ),
    "blank image with its mean": (
        ("newer/debias", "position debiasing"),
        constant(debiasing, "position_basis", basis_with_mean),
    ),
    "features of any norm": (("newer/debias", "position debiasing"), constant(debias, "l2_normalize", lambda x: x)),
    "layers in reverse": (
        ("newer/debias", "position debiasing"),
        constant(debiasing, "remove_position_layers", lambda x, layers: remove_layers(x, layers.flip(0))),
    ),
    "the feature itself as nearest": (
        ("newer/koleo", "koleo"),
        constant(koleo, "nearest_others", lambda y: torch.arange(y.shape[-2]).expand(y.shape[:-1])),
    ),
    "aspect of blocks": (MASKS, constant(masks, "ASPECT", (0.4, 1 / 0.4))),
    "tries of blocks": (MASKS, constant(masks, "BLOCK_TRIES", 6)),
    "smallest block": (MASKS, constant(masks, "SMALLEST_BLOCK", 4)),
    "share of unmasked images": (MASKS, with_masks(share_unmasked=0.47)),
    "range of masked shares": (MASKS, with_masks(ratio=(0.1, 0.47))),
    "aspect of crops": (CROPS, with_views(ratio=(0.7, 1 / 0.7))),
    "solarization": (CROPS, with_colour(solarize=(0.0, 0.25, 0.0))),
    "blur of local crops": (CROPS, with_colour(blur=(1.0, 0.1, 0.45))),
    "radius of blur": (CROPS, with_colour(blur_radius=(0.1, 1.9))),
    "saturation": (CROPS, with_colour(saturation=0.22)),
    "flip": (CROPS, with_views(flip=0.46)),
}
"""Name of a deviation -> bundle and kind whose replay notices it, and the deviation."""


def hardened(propagate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def propagate_hard(*arguments: Any, **settings: Any) -> Tensor:
        soft = propagate(*arguments, **settings)
        return F.one_hot(soft.argmax(0), len(soft)).movedim(-1, 0).float()

    return propagate_hard


WITH_OTHER_TESTS = {
    "trajectory",
    "pieces",
    "DAVIS metric",
    "head for few labels",
    "facts of iBOT's head",
    "schedules",
    "parameter groups",
}
"""Kinds whose deviations other tests plant."""


def test_every_kind_has_a_planted_deviation() -> None:
    planted = {kind for (_, kind), _ in MUTATIONS.values()}
    without = {kind.name for kind in KINDS} - planted - WITH_OTHER_TESTS
    assert not without, f"add a deviation to MUTATIONS, or the kind to WITH_OTHER_TESTS: {without}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, ((bundle, _), _) in MUTATIONS.items() if bundle not in BUNDLES])
def test_a_planted_deviation_is_noticed(full_golden_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert_noticed(full_golden_dir, monkeypatch, name)


@pytest.mark.parametrize("name", [name for name, ((bundle, _), _) in MUTATIONS.items() if bundle in BUNDLES])
def test_a_planted_deviation_of_a_loss_is_noticed(golden_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert_noticed(golden_dir, monkeypatch, name)


def assert_noticed(golden_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (folder, kind_name), plant = MUTATIONS[name]
    if not (golden_dir / folder).is_dir():
        pytest.skip(f"no bundle {golden_dir / folder}")
    (kind,) = (kind for kind in KINDS if kind.name == kind_name)
    plant(monkeypatch)
    assert not all(check.holds for check in kind.replay(golden_dir / folder))  # stops at the first that fails
