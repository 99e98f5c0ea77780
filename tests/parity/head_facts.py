"""Replay of the facts about iBOT's head: which prototypes each side has, what they start as, and what they follow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.config.run import RunConfig
from selfpatch.core.types import EncoderOutput
from selfpatch.methods.image.ibot import IBOT
from selfpatch.training.factory import make_student_teacher
from selfpatch.training.student_teacher import StudentTeacher
from tests.parity.check import Check

PROTOTYPES = {
    (True, True): "shared",
    (False, False): "separate",
    (False, True): "shared_by_teacher",
    (True, False): "shared_by_student",
}
"""Released flags `shared_head` and `shared_head_teacher` -> our setting."""
OTHER = {"student": "teacher", "teacher": "student"}
SIZE = 32
"""Side of the global crops in pixels."""
NOT_OF_US = {"keys_not_loaded"}
"""Facts about `load_state_dict` of the released classes."""


def replay_head_facts(bundle: Path) -> Iterator[Check]:
    """Compare the facts of every pair of flags in a `facts.json`."""
    for flags, expected in json.loads((bundle / "facts.json").read_text()).items():
        student, teacher = (flag == "true" for flag in re.findall(r"=(true|false)", flags))
        yield from compare_facts(flags, PROTOTYPES[student, teacher], expected)


def compare_facts(name: str, prototypes: str, expected: Mapping[str, Any]) -> Iterator[Check]:
    """Compare recorded facts of one pair of flags with those of a tiny network; each must be equal."""
    found = observe(prototypes, *expected["loss_center_sizes"])
    if unknown := expected.keys() - found.keys() - NOT_OF_US:
        raise ValueError(f"{name}: nothing is known about the facts {sorted(unknown)}")
    for fact in sorted(expected.keys() & found.keys()):
        yield Check(f"{name}: {fact}", float(found[fact] != expected[fact]), 0.0)


def observe(prototypes: str, num_prototypes: int, num_patch_prototypes: int) -> dict[str, Any]:
    """Return the facts of our code under the names of the released code."""
    student_teacher = _tiny(prototypes, num_prototypes, num_patch_prototypes)
    method = method_of(student_teacher)
    sides = {role: _last_layers(student_teacher, role) for role in OTHER}
    parameters = {role: _parameters(layers) for role, layers in sides.items()}
    before = {name: p.detach().clone() for name, p in parameters["teacher"].items()}
    starts = {layer: _names_equal_to(_weight(sides["teacher"], layer), parameters["student"]) for layer in LAYERS}
    with torch.no_grad():
        for p in student_teacher.student.parameters():
            p.add_(torch.randn_like(p))
    student_teacher.finish_step(teacher_momentum=0.5)
    patches_like_images = {role: _shares(student_teacher, role) for role in OTHER}
    moved = {name for name, p in parameters["teacher"].items() if not torch.equal(p, before[name])}
    alone = [name for name in parameters["student"] if name not in parameters["teacher"]]
    if not _teacher_reads_mask_token(student_teacher):
        alone.insert(0, "backbone.masked_embed")
    return {
        "student_patch_prototypes_are_its_cls_prototypes": patches_like_images["student"],
        "teacher_patch_prototypes_are_its_cls_prototypes": patches_like_images["teacher"],
        "teacher_last_layer_starts_as": starts["last_layer"],
        "teacher_last_layer2_starts_as": starts["last_layer2"],
        "names_of_student_head_parameters": list(parameters["student"]),
        "names_of_teacher_head_parameters": list(parameters["teacher"]),
        "teacher_parameters_that_follow_the_student": [name for name in parameters["teacher"] if name in moved],
        "teacher_parameters_that_never_move": [name for name in parameters["teacher"] if name not in moved],
        "student_parameters_without_a_teacher": alone,
        "loss_center_sizes": [len(loss.center.center) for loss in (method.image_loss, method.patch_loss)],
        "student_parameters_without_gradient": [n for n, p in parameters["student"].items() if not p.requires_grad],
        "teacher_last_layer_moved": "head.last_layer.weight_v" in moved,
        "teacher_last_layer2_moved": _name_of(sides["teacher"], "last_layer2") in moved,
    }


LAYERS = ("last_layer", "last_layer2")
"""Released names of the last layers of image tokens and of patches."""


def method_of(student_teacher: StudentTeacher) -> IBOT:
    method = student_teacher.objectives["ibot"]
    assert isinstance(method, IBOT)
    return method


def prototypes_of_one_side(student_teacher: StudentTeacher, role: str) -> nn.Module | None:
    """Return the patch prototypes of a side whose other side has none: the method holds them, not the branch."""
    method = next(iter(student_teacher.objectives.values()))
    only_here = isinstance(method, IBOT) and method.config.prototypes == f"shared_by_{OTHER[role]}"
    return method.patch_prototypes if only_here else None


def _tiny(prototypes: str, num_prototypes: int, num_patch_prototypes: int) -> StudentTeacher:
    config = RunConfig().override(
        {
            "method": "ibot",
            "objective": "none",
            "model": "vit_tiny",
            "backbone": {"embed_dim": 16, "depth": 1, "num_heads": 2},
            "crops": {"global_size": SIZE, "num_local": 0},
            "ibot": {
                "prototypes": prototypes,
                "num_prototypes": num_prototypes,
                "num_patch_prototypes": num_patch_prototypes,
                "hidden_dim": 8,
                "bottleneck_dim": 4,
            },
        }
    )
    return make_student_teacher(config)[0]


def _last_layers(student_teacher: StudentTeacher, role: str) -> dict[str, nn.Module]:
    """Return the last layers of a side by their released names; a shared one has both."""
    heads = getattr(student_teacher, role).heads
    of_images = heads["image"].last_layer
    own = prototypes_of_one_side(student_teacher, role) or dict(heads.items()).get("masked_patch")
    return {"last_layer": of_images, "last_layer2": of_images if own is None else own.last_layer}


def _parameters(layers: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the distinct parameters of last layers by their released names."""
    named: dict[str, nn.Parameter] = {}
    for layer, module in layers.items():
        for name, parameter in module.named_parameters():
            if all(parameter is not other for other in named.values()):
                named[f"head.{layer}.{name}"] = parameter
    return named


def _weight(layers: Mapping[str, nn.Module], layer: str) -> Tensor:
    return layers[layer].get_parameter("weight_v")


def _name_of(layers: Mapping[str, nn.Module], layer: str) -> str:
    """Return the name under which `_parameters` lists the weight of a layer."""
    shared = layers[layer] is layers["last_layer"]
    return f"head.{'last_layer' if shared else layer}.weight_v"


def _names_equal_to(weight: Tensor, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the student's names with equal values; the released student lists a shared layer under both names."""
    names = [name for name, p in parameters.items() if p.shape == weight.shape and torch.equal(p, weight)]
    has_one_layer = not any(".last_layer2." in name for name in parameters)
    return names + [name.replace("last_layer", "last_layer2") for name in names if has_one_layer]


def _shares(student_teacher: StudentTeacher, role: str) -> bool:
    """Return whether a side scores patches against the prototypes of image tokens."""
    branch = getattr(student_teacher, role)
    output: EncoderOutput = branch([torch.zeros(2, 1, 3, SIZE, SIZE)])
    patches = output.tokens_per_resolution[0].patches
    scores = method_of(student_teacher).patch_scores(output, patches, role)  # type: ignore[arg-type]
    of_images = branch.heads["image"].last_layer()
    return scores.prototypes.shape == of_images.shape and torch.equal(scores.prototypes, of_images)


def _teacher_reads_mask_token(student_teacher: StudentTeacher) -> bool:
    crops, teacher = [torch.zeros(2, 1, 3, SIZE, SIZE)], student_teacher.teacher
    assert teacher.backbone.mask_token is not None
    with torch.no_grad():
        before = teacher(crops).image
        teacher.backbone.mask_token.add_(1.0)
        return not torch.equal(teacher(crops).image, before)
