"""The composition root: the only place that turns a configuration into objects, and the tables of what there is."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from selfpatch.checkpoints.load import LoadReport, load_backbone
from selfpatch.checkpoints.read import TIMM, read_weights
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import FROM_INIT, RunConfig
from selfpatch.core import distributed
from selfpatch.core.machine import processor_flags
from selfpatch.core.types import Needs, Objective
from selfpatch.data.augment.backends import choose_backend
from selfpatch.data.augment.masks import draw_mask
from selfpatch.data.augment.multicrop import ViewRecipe, dino_views
from selfpatch.data.loader import CropLoader
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.statistics import ChannelStatistics
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.build import MODELS, build_backbone, build_timm, check_heads, named_backbone_config
from selfpatch.models.backbones.config import AnyBackboneConfig, ViTConfig
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.branch import Branch
from selfpatch.models.param_groups import layer_lr_scales
from selfpatch.training import optim
from selfpatch.training.checkpointing import Saving
from selfpatch.training.components import all_heads, make_component, only_pool
from selfpatch.training.optim import Schedule
from selfpatch.training.trainer import Clipping, LoopSettings, StudentTeacher, union_of_needs

METHODS = {
    "dino": "selfpatch.methods.image.dino:DINO",
    "ibot": "selfpatch.methods.image.ibot:IBOT",
    "moco_v3": "selfpatch.methods.image.moco_v3:MoCoV3",
    "moby": "selfpatch.methods.image.moby:MoBY",
    "moco_v2": "selfpatch.methods.image.moco_v2:MoCoV2",
    "swav": "selfpatch.methods.image.swav:SwAV",
    "densecl": "selfpatch.methods.image.densecl:DenseCL",
}
OBJECTIVES = {
    "selfpatch": "selfpatch.methods.patch.selfpatch:SelfPatch",
    "sere": "selfpatch.methods.patch.sere:SERE",
}
EVALUATIONS = {
    "detect": "selfpatch.evaluation.detection.evaluate:evaluate",
    "segment": "selfpatch.evaluation.segmentation.evaluate:evaluate",
}


def find(table: Mapping[str, str], name: str, kind: str) -> Any:
    """The class or function behind a name of a table.

    Raises:
        ValueError: the table has no such name.
    """
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; use one of: {', '.join(sorted(table))}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def backbone_config(config: RunConfig) -> AnyBackboneConfig:
    """The architecture that a configuration names.

    Raises:
        ValueError: the model is unknown, or what is set does not go with it.
    """
    b = config.backbone
    if config.model == FROM_INIT:
        raise ValueError("model is 'init', the architecture of the weights of init, but none are named; give --init")
    if config.model in MODELS:
        grid = max(1, config.crops.global_size // (config.patch_size or 16))
        positions = b.position_embedding or "released"
        own = {"embed_dim": b.embed_dim, "depth": b.depth, "num_heads": b.num_heads, "patch_size": config.patch_size}
        return named_backbone_config(config.model, grid=grid, position_embedding=positions, depths=b.depths, **own)
    shape = build_timm(config.model.removeprefix(TIMM)).config
    _refuse_own_architecture(config, f"the timm model {config.model!r} has its own", num_heads=b.num_heads)
    if b.position_embedding not in (None, "size"):
        raise ValueError(
            "backbone.position_embedding is 'released', but a timm model interpolates by 'size'; leave it out"
        )
    if isinstance(shape, ViTConfig):
        return replace(shape, grid=max(1, config.crops.global_size // shape.patch_size))
    return shape


def _refuse_own_architecture(config: RunConfig, why: str, **others: Any) -> None:
    """Where something else than the configuration says what is built."""
    b = config.backbone
    own = {"embed_dim": b.embed_dim, "depth": b.depth, "depths": b.depths, **others}
    for name, value in {"patch_size": config.patch_size, **{f"backbone.{k}": v for k, v in own.items()}}.items():
        if value is not None:
            raise ValueError(f"{name} is {value}, but {why}; leave it out")


def _shape_for(given: AnyBackboneConfig, config: RunConfig) -> AnyBackboneConfig:
    """The architecture that weights are loaded into: theirs, or that of the configuration with what belongs to weights:
    the grid of position embeddings, which stay as they are, whatever the crops, and what images are normalised with.
    """
    b = config.backbone
    if config.model == FROM_INIT:
        _refuse_own_architecture(config, f"model 'init' is as the weights in {config.init}")
        shape = given
    else:
        shape = backbone_config(config)
        shape = replace(shape, mean=given.mean, std=given.std, in_channels=given.in_channels)
    if not (isinstance(shape, ViTConfig) and isinstance(given, ViTConfig)):
        return shape
    if b.num_heads is not None and config.model == FROM_INIT:
        check_heads(shape.embed_dim, b.num_heads)
    guessed = given.num_heads == max(1, given.embed_dim // 64)  # heads leave no trace in most files
    heads = b.num_heads or (shape.num_heads if guessed else given.num_heads)
    positions = b.position_embedding or given.position_embedding
    return replace(shape, grid=given.grid, num_heads=heads, position_embedding=positions)


def _for_channels(shape: AnyBackboneConfig, channels: int, statistics: ChannelStatistics | None) -> AnyBackboneConfig:
    """The architecture for images of so many channels; without statistics they are taken as they are, in [0, 1]."""
    if channels == shape.in_channels and statistics is None:
        return shape
    mean, std = statistics or ((0.0,) * channels, (1.0,) * channels)
    return replace(shape, in_channels=channels, mean=mean, std=std)


def make_student_teacher(
    config: RunConfig, shape: AnyBackboneConfig | None = None, *, statistics: ChannelStatistics | None = None
) -> tuple[StudentTeacher, LoadReport | None]:
    """The network of a run, freshly initialised from its seed, or from `config.init`, and how the latter matched.

    Args:
        shape: of the backbone, for a run that goes on; None: as the configuration and `config.init` say.
        statistics: what the images of a new run are normalised with; None: as the model expects, which is ImageNet's.

    Raises:
        ValueError: an unknown name or setting, a patch that does not divide a crop, weights that do not fit, masks for
            a backbone that embeds no patches.
    """
    classes = _classes(config)
    weights = None if config.init is None or shape is not None else read_weights(config.init)
    if shape is None:
        shape = backbone_config(config) if weights is None else _shape_for(weights.config, config)
        shape = _for_channels(shape, config.channels, statistics)
    torch.manual_seed(config.seed)
    objectives = {
        name: make_component(cls, name, config.components.get(name, {}), _facts(config, shape))
        for name, cls in classes.items()
    }
    pool = only_pool(objectives)
    backbone = _make_backbone(config, _below_pool(config, shape) if pool is not None else shape)
    _check_crops(backbone, config, objectives)
    masking = [name for name, objective in objectives.items() if objective.needs.masks]
    if masking:
        if not backbone.maskable:
            raise ValueError(
                f"{' and '.join(masking)} hides patches from the student, but {config.model} embeds no patches that "
                "could be masked; use a ViT or a Swin"
            )
        backbone.add_mask_token()
    report = None if weights is None else load_backbone(backbone, weights, pool, allow_partial=config.allow_partial)
    if config.backbone.frozen_blocks:
        backbone.freeze_first(config.backbone.frozen_blocks)
    student = Branch(backbone, pool, all_heads(objectives))
    return StudentTeacher(student, objectives, _loss_weights(config, objectives)), report


def _facts(config: RunConfig, shape: AnyBackboneConfig) -> dict[str, int]:
    """What a method or objective is told by these names, if its constructor asks."""
    return {
        "dim": shape.dim,
        "num_heads": shape.num_heads,
        "num_local": config.crops.num_local,
        "batch_size": config.batch_size,
    }


def _below_pool(config: RunConfig, shape: AnyBackboneConfig) -> AnyBackboneConfig:
    """The trunk whose image token a pool makes."""
    below = shape.for_pool()
    if config.backbone.keep_class_token and isinstance(shape, ViTConfig) and isinstance(below, ViTConfig):
        return replace(below, class_token=shape.class_token)
    return below


def _make_backbone(config: RunConfig, shape: AnyBackboneConfig) -> Backbone:
    backbone = build_backbone(shape, drop_path=config.backbone.drop_path)
    if config.backbone.positions == "sincos":
        if config.init is not None:
            raise ValueError("backbone.positions is 'sincos', but the weights of init bring their own; leave it out")
        if not isinstance(backbone, ViT):
            raise ValueError(f"backbone.positions is 'sincos', but {config.model} has no position embeddings to fix")
        backbone.fix_positions()
    if config.backbone.freeze_patch_embed:
        backbone.freeze_embedding()
    return backbone


def _classes(config: RunConfig) -> dict[str, type[Objective]]:
    """The method and the objectives by name, in that order."""
    objectives = {name: find(OBJECTIVES, name, "objective") for name in config.objectives}
    return {config.method: find(METHODS, config.method, "method"), **objectives}


def _loss_weights(config: RunConfig, objectives: Mapping[str, Objective]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for objective in objectives.values():
        weights |= objective.loss_weights
    for name, weight in config.loss_weights.items():
        if name not in weights:
            # Read only now: the recipe of a run that is resumed may be gone.
            if config.recipe and load_recipe(config.recipe).loss_weights.get(name) == weight:
                continue  # of a method or objective that an option replaced
            raise ValueError(
                f"loss_weights names {name!r}, which is no loss here; the losses are: {', '.join(weights)}"
            )
        weights[name] = float(weight)
    return weights


def _check_crops(backbone: Backbone, config: RunConfig, objectives: Mapping[str, Objective]) -> None:
    sides = [config.crops.global_size]
    if config.crops.num_local and union_of_needs(objectives).local_crops:
        sides.append(config.crops.local_size)
    for side in sides:
        backbone.check_size(side, side)
        for objective in objectives.values():
            objective.check_grid(side // backbone.patch_size, side // backbone.patch_size)


def view_recipes(config: RunConfig, needs: Needs) -> tuple[ViewRecipe, ...]:
    """Return the recipe of each view, local ones only if they are needed."""
    views = dino_views(config.crops)
    return views if needs.local_crops else views[:2]


def with_renderer(config: RunConfig, device: torch.device) -> RunConfig:
    """Resolve the renderer `auto`, so that a run that is resumed elsewhere keeps its renderer.

    Raises:
        ValueError: the renderer is `fast`, and OpenCV is not installed.
    """
    render = choose_backend(config.loader.render, device_type=device.type, channels=config.channels)
    return replace(config, loader=replace(config.loader, render=render))


def make_loader(
    config: RunConfig, pretrainer: StudentTeacher, index: ImageIndex, indices: np.ndarray, device: torch.device
) -> CropLoader:
    """Return the training stream of this process.

    Raises:
        ValueError: as `CropLoader`.
    """
    grid = config.crops.global_size // pretrainer.student.backbone.patch_size
    return CropLoader(
        index,
        indices,
        view_recipes(config, pretrainer.needs),
        config.loader,
        batch_size=config.batch_size,
        seed=config.seed,
        accumulate=config.accumulate,
        channels=config.channels,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        device_type=device.type,
        draw_mask=partial(draw_mask, config.masks, grid) if pretrainer.needs.masks else None,
    )


def make_schedule(config: RunConfig, steps_per_epoch: int) -> Schedule:
    scheduled = {field.name for field in fields(Schedule)}
    settings = {name: value for name, value in asdict(config.optimizer).items() if name in scheduled}
    peak_lr = config.optimizer.base_lr * config.batch_size / 256
    return Schedule(epochs=config.epochs, steps_per_epoch=steps_per_epoch, peak_lr=peak_lr, **settings)


def make_optimizer(config: RunConfig, pretrainer: StudentTeacher) -> torch.optim.Optimizer:
    """The optimizer of a run; the backbone's layers may learn at rates of their own."""
    o = config.optimizer
    return optim.make_optimizer(
        pretrainer,
        name=o.name,
        momentum=o.momentum,
        weight_decay_on=o.weight_decay_on,
        lr_scales=layer_lr_scales(pretrainer.student.backbone, o.layer_decay),
    )


def make_clipping(config: RunConfig) -> Clipping:
    return Clipping(config.optimizer.clip, config.optimizer.clip_mode)


def make_loop_settings(config: RunConfig, device: torch.device) -> LoopSettings:
    return LoopSettings(
        seed=config.seed,
        autocast=autocast_dtype(config.precision, device),
        log_every=config.watch.log_every,
        evaluate_every=config.watch.evaluate_every,
        guard_features=config.init is not None,
        max_nonfinite=config.checkpoint.max_nonfinite,
        saving=Saving(
            every_minutes=config.checkpoint.every_minutes,
            every_steps=config.checkpoint.every_steps,
            keep=config.checkpoint.keep,
            keep_every_epochs=config.checkpoint.keep_every_epochs,
        ),
    )


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bf16 where it was asked for, or where `auto` finds that the device computes it in hardware; None: float32
    throughout.
    """
    if precision == "auto":
        fast = {
            "cuda": lambda: torch.cuda.get_device_capability(device) >= (8, 0),
            "cpu": lambda: "avx512_bf16" in processor_flags(),
        }
        precision = "bf16" if device.type in fast and fast[device.type]() else "fp32"
    return torch.bfloat16 if precision == "bf16" else None
