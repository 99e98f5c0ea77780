"""Outputs of networks and objectives for the first step's views, before any update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from selfpatch.core.types import EncoderOutput, Views
from selfpatch.methods.patch.sere import tokens_by_view
from selfpatch.ops.neighbours import neighbour_table, top_positives
from selfpatch.ops.relation import (
    channel_relation,
    overlap_grids,
    sample_patches,
    sample_patches_reference,
    spatial_relation,
)
from selfpatch.training.student_teacher import StudentTeacher
from tests.parity.check import TIGHT, Check, compare, compare_exactly

RELEASED_OUTSIDE = -2.0
"""Coordinate of every point of a released grid whose two crops do not overlap."""


class Replayed(Protocol):
    """Parts of a trajectory that the comparisons read."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    student_teacher: StudentTeacher

    def views(self, step: int) -> Views: ...
    def encode(self, step: int) -> tuple[EncoderOutput, EncoderOutput]: ...


def _dino_intermediates(run: Replayed) -> Iterator[Check]:
    student, teacher = run.encode(0)
    for name, side in (("student", student), ("teacher", teacher)):
        logits = side.heads["image"](side.image).logits().flatten(0, 1)
        yield compare(f"{name} cls_logits", logits, run.tensors[f"step0.{name}.cls_logits"], TIGHT)
    tokens = teacher.tokens_per_resolution[0]
    assert tokens.cls is not None
    last = torch.cat([tokens.cls[:, None], tokens.patches.flatten(1, 2)], 1)
    yield compare("teacher tokens after the final norm", last, run.tensors["step0.teacher.intermediate_last"], TIGHT)


def _selfpatch_intermediates(run: Replayed) -> Iterator[Check]:
    student, teacher = run.encode(0)
    c, t = run.settings, run.tensors
    objective = run.student_teacher.objectives["selfpatch"]
    assert teacher.pool is not None
    assert student.pool is not None
    images = {"global": slice(0, 2), "local": slice(2, None)}
    for grid, (name, views) in enumerate(images.items()):
        if grid >= len(teacher.tokens_per_resolution):
            continue
        raw = teacher.tokens_per_resolution[grid].raw_patches
        h, w = raw.shape[1:3]
        patches = raw.flatten(1, 2)
        table = neighbour_table(h, w, c["window"], c["border"])
        if f"neighbour_indices_{h}x{w}" in t:
            yield compare_exactly(f"neighbour table {h} x {w}", table.indices, t[f"neighbour_indices_{h}x{w}"])
        yield compare(f"teacher patch_features_{name}", patches, t[f"step0.teacher.patch_features_{name}"], TIGHT)
        positives = top_positives(patches, c["k"], table).indices
        if f"step0.teacher.positive_indices_{name}" in t:
            yield compare_exactly(f"teacher positives {name}", positives, t[f"step0.teacher.positive_indices_{name}"])
        targets = objective.targets(teacher.tokens_per_resolution[grid], teacher.pool)
        aggregated = torch.cat([teacher.image[views].flatten(0, 1)[:, None], targets], 1)
        yield compare(f"teacher aggregated_{name}", aggregated, t[f"step0.teacher.aggregated_{name}"], TIGHT)
        student_patches = student.pool.norm(student.tokens_per_resolution[grid].raw_patches.flatten(1, 2))
        if f"step0.student.tokens_{name}" in t:
            tokens = torch.cat([student.image[views].flatten(0, 1)[:, None], student_patches], 1)
            yield compare(f"student tokens_{name}", tokens, t[f"step0.student.tokens_{name}"], TIGHT)
        for role, side, tokens in (("student", student, student_patches), ("teacher", teacher, targets)):
            logits = side.heads["image"](side.image[views]).logits().flatten(0, 1)
            yield compare(f"{role} cls_logits_{name}", logits, t[f"step0.{role}.cls_logits_{name}"], TIGHT)
            patch_logits = side.heads["patch"](tokens).logits()
            yield compare(f"{role} patch_logits_{name}", patch_logits, t[f"step0.{role}.patch_logits_{name}"], TIGHT)


def _ibot_intermediates(run: Replayed) -> Iterator[Check]:
    student, teacher = run.encode(0)
    method = run.student_teacher.objectives["ibot"]
    for role, side in (("student", student), ("teacher", teacher)):
        image = side.heads["image"](side.image[:2].flatten(0, 1)).logits()
        yield compare(f"{role} cls_logits", image, t_of(run, f"{role}_cls_logits"), TIGHT)
        patches = method.patch_scores(side, side.tokens_per_resolution[0].patches, role).logits().flatten(1, 2)
        if f"step0.{role}_patch_logits" in run.tensors:
            yield compare(f"{role} patch_logits", patches, t_of(run, f"{role}_patch_logits"), TIGHT)
        else:
            yield compare(
                f"{role} patch_logits of image 0", patches[0], t_of(run, f"{role}_patch_logits_image0"), TIGHT
            )


def _sere_intermediates(run: Replayed) -> Iterator[Check]:
    yield from _ibot_intermediates(run)
    if "step0.grid_global_query" in run.tensors:
        yield from _grids(run)
        yield from _relations(run, *run.encode(0))


def _grids(run: Replayed) -> Iterator[Check]:
    boxes, c = run.views(0).boxes, run.settings
    compared = [("global", 0, 1, c["overlap_size"])]
    if c["local_crops"]:
        compared.append(("local0", 2, 0, c["local_overlap_size"]))
    for name, first, second, size in compared:
        grids = overlap_grids(boxes[first], boxes[second], size)
        for part, grid in zip(("query", "key"), grids, strict=True):
            yield from compare_grids(f"grid_{name}_{part}", grid, t_of(run, f"grid_{name}_{part}"))


def compare_grids(name: str, got: Tensor, expected: Tensor) -> Iterator[Check]:
    """Compare grids [B, s, s, 2] by what they sample, and by their coordinates where the crops overlap.

    Where two crops do not overlap, released grids are -2 everywhere and ours another constant; both sample zeros.
    """
    apart = (expected == RELEASED_OUTSIDE).flatten(1).all(1)  # [B]
    if not apart.all():
        yield compare(name, got[~apart], expected[~apart], TIGHT)
    patches = torch.randn(len(got), 5, 7, 3, generator=torch.manual_seed(0))  # any map
    yield compare(f"{name}, sampled", sample_patches(patches, got), sample_patches_reference(patches, expected), TIGHT)


def _relations(run: Replayed, student: EncoderOutput, teacher: EncoderOutput) -> Iterator[Check]:
    views, config = run.views(0), run.student_teacher.objectives["sere"].loss.config
    num_heads = run.settings["num_heads"]
    tokens, local_tokens = (*tokens_by_view(student, views, 2), None)[:2]
    (targets,) = tokens_by_view(teacher, views, 1)
    related: dict[str, Tensor] = {}
    with torch.no_grad():
        predictions = student.heads["channel_relation"](tokens)
        local = None if local_tokens is None else student.heads["channel_relation_local"](local_tokens)
        target = teacher.heads["channel_relation"](targets, teacher=True)
        for role, projected in (("student", predictions), ("teacher", target)):
            related[f"{role}_channel_relation"] = channel_relation(
                projected.flatten(0, 1).flatten(1, 2), config.channel_scale
            )
        if local is not None:
            patches = local.flatten(0, 1).flatten(1, 2)
            related["student_channel_relation_local"] = channel_relation(patches, config.local_channel_scale)
        predictions = student.heads["spatial_relation"](tokens)
        local = None if local_tokens is None else student.heads["spatial_relation_local"](local_tokens)
        target = teacher.heads["spatial_relation"](targets, teacher=True)
        grid, _ = overlap_grids(views.boxes[0], views.boxes[1], run.settings["overlap_size"])
        for role, projected in (("student", predictions), ("teacher", target)):
            sampled = sample_patches(projected[0, :1], grid[:1])
            related[f"{role}_spatial_relation_sampled0"] = spatial_relation(sampled, num_heads)
        if local is not None:
            patches = local[0, :1].flatten(1, 2)
            related["student_spatial_relation_local0"] = spatial_relation(patches, num_heads)
    for name, relation in related.items():
        yield compare(name, relation, t_of(run, name), TIGHT)


def t_of(run: Replayed, name: str) -> Tensor:
    return run.tensors[f"step0.{name}"]


INTERMEDIATES: dict[str, Callable[[Replayed], Iterator[Check]]] = {
    "dino": _dino_intermediates,
    "selfpatch": _selfpatch_intermediates,
    "ibot": _ibot_intermediates,
    "sere": _sere_intermediates,
}
