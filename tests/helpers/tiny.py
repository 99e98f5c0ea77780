"""The smallest network and batch that still have everything: two resolutions, a head for images, one for patches."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.checkpoints.export.safetensors import export_state, write_safetensors
from selfpatch.config.run import RunConfig
from selfpatch.config.schema import plain
from selfpatch.core.types import Hyperparameters, Views
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.param_groups import param_groups
from selfpatch.training.factory import make_student_teacher
from selfpatch.training.student_teacher import StudentTeacher
from tests.helpers import tiny_eva
from tests.helpers.released_forms import random_backbone

RUN: dict[str, Any] = {
    "method": "dino",
    "objective": "selfpatch",
    "model": "vit_tiny",
    "patch_size": 4,
    "batch_size": 4,
    "backbone": {"embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path": 0.0},
    "crops": {"global_size": 16, "local_size": 12, "num_local": 2},
    "pairs": {"num_clean": 1, "clean_size": 16, "num_contained": 2, "contained_size": 12},
}
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny": {},
    "swin_tiny": {"backbone": {"embed_dim": 8, "depths": [1, 1], "num_heads": 1}},
    "resnet50": {"backbone": {"embed_dim": 4, "depths": [1, 1]}},
    "convnext_tiny": {"backbone": {"embed_dim": 8, "depths": [1, 1]}},
    "vit_small_dinov3": {
        "patch_size": 8,
        "backbone": {"embed_dim": 16, "depth": 2, "num_heads": 2, "registers": 2},
    },
    tiny_eva.EVA02: {},
}
"""Settings that make a model tiny; all but the first have one token for 8 x 8 pixels."""
COMPONENTS: dict[str, dict[str, Any]] = {
    "dino": {"num_prototypes": 24, "hidden_dim": 16, "bottleneck_dim": 8},
    "ibot": {"num_prototypes": 24, "hidden_dim": 16, "bottleneck_dim": 8},
    "moco_v3": {"projector_hidden_dim": 16, "predictor_hidden_dim": 16, "out_dim": 8},
    "moby": {"hidden_dim": 16, "out_dim": 8, "queue_size": 8},
    "moco_v2": {"out_dim": 8, "queue_size": 8},
    "swav": {"num_prototypes": 12, "hidden_dim": 16, "out_dim": 8},
    "densecl": {"out_dim": 8, "queue_size": 8},
    "selfpatch": {"num_prototypes": 12, "hidden_dim": 16, "bottleneck_dim": 8},
    "sere": {},
    "paka": {"hidden_dim": 16, "bottleneck_dim": 8, "overlap_size": 3},
    "selfpatch_pairs": {"overlap_size": 3, "k": 2},
    "sere_pairs": {"overlap_size": 3},
    "gram": {},
    "retain": {},
    "distill": {
        "losses": ["patch_features", "image_features", "patch_similarities", "image_similarities"],
        "queue_size": 8,
    },
    "neco": {
        "hidden_dim": 16,
        "bottleneck_dim": 8,
        "overlap_size": 2,
        "steepness": 10.0,
        "queue_size": 24,
        "tokens_per_image": 3,
    },
    "koleo": {},
    "leopart": {
        "num_prototypes": 10,
        "hidden_dim": 16,
        "bottleneck_dim": 8,
        "overlap_size": 3,
        "queue_size": 24,
        "tokens_per_image": 3,
    },
}


@cache
def tiny_encoder_file() -> str:
    """Return the file of a tiny ViT for teacher: 16 channels as all tiny students but other patches, of 8 pixels."""
    folder = tempfile.mkdtemp(prefix="selfpatch-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = ViTConfig(embed_dim=16, depth=1, num_heads=2, patch_size=8, grid=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)  # other processes make the same
        encoder = BranchEncoder(random_backbone(config, seed=5), None)
    return str(write_safetensors(Path(folder) / "encoder.safetensors", *export_state(encoder)))


def tiny_config(**settings: Any) -> RunConfig:
    """`settings` laid over the smallest ones of the method, the objectives and the model that they name."""
    model = settings.get("model", RUN["model"])
    base = RUN if model == "vit_tiny" else {**RUN, "patch_size": None, "backbone": {"drop_path": 0.0}}
    larger = {"crops": {"global_size": 32, "local_size": 24}, "pairs": {"clean_size": 32, "contained_size": 24}}
    crops = {} if model == "vit_tiny" else larger
    named = {name: settings[name] for name in ("method", "objective", "model") if name in settings}
    if {"gram", "retain", "distill"} & {*settings.get("objective", "").split("+")} and "init" not in settings:
        settings = {"teacher": tiny_encoder_file(), **settings}
    config = RunConfig().override(base).override(crops).override(named).override(MODELS.get(model, {}))
    config = config.override({name: COMPONENTS[name] for name in config.used if name in COMPONENTS})
    if "leopart" in config.used and model != "vit_tiny":  # has no CLS token
        config = config.override({"leopart": {"foreground": False}})
    return config.override(settings)


def wide_crops(config: RunConfig) -> dict[str, Any]:
    """Return settings of crops as high as those of a configuration, and twice as wide."""
    sizes = {"crops": ("global_size", "local_size"), "pairs": ("clean_size", "contained_size")}
    settings: dict[str, Any] = {}
    for name, fields in sizes.items():
        section = plain(getattr(config, name))
        settings[name] = {field: (section[field], 2 * section[field]) for field in fields}
    return settings


def tiny_student_teacher(**settings: Any) -> StudentTeacher:
    """Return a network in training mode, its weights larger than at initialisation, so that gradients do not vanish."""
    student_teacher, _ = make_student_teacher(tiny_config(**settings))
    generator = torch.manual_seed(7)
    with torch.no_grad():
        for parameter in student_teacher.student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        student_teacher.teacher.load_state_dict(student_teacher.student.state_dict())
    return student_teacher.train()


def tiny_views(batch: int, seed: int = 0, *, scale: int = 1, wide: bool = False) -> Views:
    """Draw two global crops of 4 x 4 patches and two local ones of 3 x 3, masks, and boxes most of which overlap.

    There are also one clean crop and two contained ones, of these sizes.

    Args:
        scale: 1 for patches of 4 pixels, 2 for 8.
        wide: make all crops twice as wide as high.
    """
    generator = torch.manual_seed(seed)

    def crops(views: int, size: int) -> Tensor:
        return torch.randint(256, (views, batch, 3, size, size * (1 + wide)), generator=generator, dtype=torch.uint8)

    global_crops, local_crops = crops(2, 16 * scale), crops(2, 12 * scale)
    corners = torch.randint(30, (4, batch, 2), generator=generator)
    sides = torch.randint(20, 60, (4, batch, 2), generator=generator)
    flips = torch.randint(2, (4, batch, 1), generator=generator)
    masks = torch.rand(2, batch, 4, 4 * (1 + wide), generator=generator) < 0.3
    boxes = torch.cat([corners, sides, flips], -1).float()
    generator = torch.Generator().manual_seed(seed)  # the global one goes on as it would without pairs
    around, within = boxes[:1], boxes[1:3].clone()
    within[..., :4] = around[..., :4] * torch.tensor([1, 1, 0.7, 0.7]) + torch.tensor([3.0, 2.0, 0.0, 0.0])
    pairs = {"clean_crops": crops(1, 16 * scale), "contained_crops": crops(2, 12 * scale)}
    samples, pair_boxes = torch.arange(batch), torch.cat([around, within])
    return Views(global_crops, local_crops, boxes, samples, masks, **pairs, pair_boxes=pair_boxes)


def part_of(views: Views, images: slice) -> Views:
    """Return the same views of some of the images."""
    parts = {name: tensor[:, images] for name, tensor in views.tensors().items() if name != "samples"}
    return replace(views, samples=views.samples[images], **parts)


def hyperparameters(step: int = 0, **values: Any) -> Hyperparameters:
    defaults = {
        "epoch": 0,
        "lr": 0.1,
        "weight_decay": 0.04,
        "teacher_momentum": 0.9,
        "teacher_temp": 0.07,
        "teacher_patch_temp": 0.07,
        "freeze_last_layer": False,
        "freeze_backbone": False,
    }
    return Hyperparameters(step=step, **(defaults | values))


@contextlib.contextmanager
def not_finite(student_teacher: StudentTeacher, micro_batch: int) -> Iterator[None]:
    """Feed NaN to student and teacher in one micro-batch of a step, counted from 0."""
    hooks = []
    for branch in (student_teacher.student, student_teacher.teacher):
        count = itertools.count()

        def poison(_: nn.Module, inputs: tuple[Any, ...], count: Iterator[int] = count) -> Any:
            return ([crops * float("nan") for crops in inputs[0]],) if next(count) == micro_batch else inputs

        hooks.append(branch.register_forward_pre_hook(poison))
    yield
    for hook in hooks:
        hook.remove()


def plain_sgd(student_teacher: StudentTeacher) -> torch.optim.SGD:
    """Return an optimizer for comparisons: AdamW would turn rounding of tiny gradients into whole updates."""
    return torch.optim.SGD(param_groups(student_teacher), lr=0.1)


def snapshot(student_teacher: StudentTeacher) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in student_teacher.state_dict().items()}


def movement_error(begin: dict[str, Tensor], end: dict[str, Tensor], expected_end: dict[str, Tensor]) -> float:
    """Return how far two trainings from the same weights part, relative to how far they moved, in the worst tensor."""
    worst = 0.0
    for name, expected in expected_end.items():
        distance = (expected - begin[name]).double().norm()
        apart = (end[name] - expected).double().norm()
        # The gradient of key biases, and of biases before a batch norm, is rounding alone: they do not move.
        smallest = 5e-3 * (1 + expected.double().norm())
        worst = max(worst, float(apart / distance.clamp(min=smallest)))
    return worst
