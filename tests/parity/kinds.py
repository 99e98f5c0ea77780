"""Kinds of bundles: how each is recognised by its content, and what replays it.

A new kind is one file in this folder with a generator of checks, and one row in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.parity.check import Check
from tests.parity.davis_frames import replay_davis_frames
from tests.parity.davis_metric import replay_davis_metric
from tests.parity.debiasing import replay_debiasing
from tests.parity.dense_retrieval import replay_dense_retrieval
from tests.parity.depth import replay_depth_losses, replay_depth_metrics
from tests.parity.dinov2_vit import replay_dinov2_vit
from tests.parity.dinov3_vit import replay_dinov3_vit, replay_rope
from tests.parity.distillation import replay_distillation
from tests.parity.drawn_crops import replay_crops
from tests.parity.drawn_masks import replay_masks
from tests.parity.head_facts import replay_head_facts
from tests.parity.neco import replay_neco
from tests.parity.newer_losses import replay_gram, replay_koleo, replay_paka
from tests.parity.overclustering import replay_overclustering
from tests.parity.parameter_groups import replay_parameter_groups
from tests.parity.pieces import replay_pieces
from tests.parity.positions import replay_fixed_positions, replay_position_embeddings
from tests.parity.retrieval import replay_retrieval
from tests.parity.schedules import replay_schedules
from tests.parity.selfpatch_shapes import replay_selfpatch_shapes
from tests.parity.semi_supervised_head import replay_semi_supervised_head
from tests.parity.sinkhorn_losses import replay_sinkhorn
from tests.parity.trajectory import replay_trajectory
from tests.parity.vos_windows import replay_vos_windows

EXPECTED, TENSORS = "expected.json", "tensors.safetensors"


@dataclass(frozen=True)
class Kind:
    """One kind of bundle that the project can replay."""

    name: str
    contents: dict[str, tuple[str, ...]]
    """Every data file or subfolder of such a bundle -> names in it that tell the kind."""
    replay: Callable[[Path], Iterator[Check]]


@dataclass(frozen=True)
class MissingKind:
    """One kind of bundle whose method the project does not have."""

    name: str
    contents: dict[str, tuple[str, ...]]
    needs: str
    """What the project will need to replay it."""


KINDS = (
    Kind(
        "trajectory",
        {"trajectory.json": ("config", "steps"), "initial.pth": (), "final.pth": (), TENSORS: ()},
        replay_trajectory,
    ),
    Kind("pieces", {EXPECTED: ("moby", "mocov3", "vos", "lost", "knn"), TENSORS: ()}, replay_pieces),
    Kind("schedules", {"schedules.json": ("arguments", "steps")}, replay_schedules),
    Kind("parameter groups", {"parameters.json": ("decayed", "clipped_one_by_one")}, replay_parameter_groups),
    Kind("facts of iBOT's head", {"facts.json": ("loss_center_sizes",)}, replay_head_facts),
    Kind("DAVIS metric", {EXPECTED: ("global_means",), "DAVIS": (), "results": ()}, replay_davis_metric),
    Kind(
        "head for few labels",
        {EXPECTED: ("finetune_head_layer 1",), TENSORS: ("layer1.logits",)},
        replay_semi_supervised_head,
    ),
    Kind("SelfPatch shapes", {EXPECTED: ("variants", "shapes", "checksums"), TENSORS: ()}, replay_selfpatch_shapes),
    Kind("position embeddings", {EXPECTED: ("stored_grid", "position_weighted_sum")}, replay_position_embeddings),
    Kind(
        "DAVIS frames",
        {EXPECTED: ("frames", "first_propagated_frame"), TENSORS: (), "checkpoint.pth": (), "masks": ()},
        replay_davis_frames,
    ),
    Kind("mask statistics", {"ibot_masks.json": ("masked_share_of_all",)}, replay_masks),
    Kind("crop statistics", {"crops.json": ("box_area_share", "blur_radius")}, replay_crops),
    Kind("sinkhorn", {EXPECTED: ("cls.teacher_temp", "patch.loss"), TENSORS: ("cls.assignments",)}, replay_sinkhorn),
    Kind("overclustering", {EXPECTED: ("many_to_one_precision",), TENSORS: ("clusters",)}, replay_overclustering),
    Kind("dense retrieval", {EXPECTED: ("train_255_becomes",), TENSORS: ("label_memory",)}, replay_dense_retrieval),
    Kind("windows of label propagation", {EXPECTED: ("circle.size",), TENSORS: ("first_labels",)}, replay_vos_windows),
    Kind("DINOv2 ViT", {EXPECTED: ("registers",), TENSORS: ("weights.pos_embed",)}, replay_dinov2_vit),
    Kind("rope", {EXPECTED: ("prefix_tokens",), TENSORS: ("q_rotated",)}, replay_rope),
    Kind("DINOv3 ViT", {EXPECTED: ("rope_base", "storage_tokens"), TENSORS: ()}, replay_dinov3_vit),
    Kind("paka", {EXPECTED: ("align.loss",), TENSORS: ("align.student_rois",)}, replay_paka),
    Kind("gram", {EXPECTED: ("published.loss", "batch_level.loss"), TENSORS: ("teacher",)}, replay_gram),
    Kind("koleo", {EXPECTED: ("two_globals_sum",), TENSORS: ("neighbours",)}, replay_koleo),
    Kind("depth metrics", {EXPECTED: ("NYU_EIGEN",), TENSORS: ("bins.log",)}, replay_depth_metrics),
    Kind("depth losses", {EXPECTED: ("probe3d.sig",), TENSORS: ("valid",)}, replay_depth_losses),
    Kind("retrieval", {EXPECTED: ("easy", "gnd"), TENSORS: ("ranks",)}, replay_retrieval),
    Kind("neco", {EXPECTED: ("pair3.loss", "full.loss"), TENSORS: ("full.reference_rows",)}, replay_neco),
    Kind("position debiasing", {EXPECTED: ("components",), TENSORS: ("projector", "rasa.layers")}, replay_debiasing),
    Kind(
        "distillation",
        {EXPECTED: ("theia.cosine_of_whole_image",), TENSORS: ("student_image_projected",)},
        replay_distillation,
    ),
    Kind("fixed positions", {"moco_v3_positions.json": ("shape", "sum_abs")}, replay_fixed_positions),
)

MISSING_KINDS: tuple[MissingKind, ...] = ()
"""Kinds of methods that the project does not have yet."""
