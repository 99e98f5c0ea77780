"""The composition root: the only place that turns a configuration into objects, and the tables of what there is."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn

from selfpatch import distributed
from selfpatch.config import RunConfig, convert
from selfpatch.data.crops import ViewRecipe, dino_views
from selfpatch.data.index import ImageIndex
from selfpatch.data.loader import CropLoader
from selfpatch.keeping import Saving
from selfpatch.nn.backbones import SIZES, Backbone, ViTShape, build_backbone, build_timm
from selfpatch.nn.branch import Branch
from selfpatch.optim import Schedule
from selfpatch.pretraining import Clipping, LoopSettings, Pretrainer
from selfpatch.types import Objective
from selfpatch.weights import TIMM, LoadReport, load_backbone, read_weights

METHODS = {
    "dino": "selfpatch.methods.dino:DINO",
}
OBJECTIVES = {
    "selfpatch": "selfpatch.objectives.selfpatch:SelfPatch",
}
EVALUATIONS = {
    "davis": "selfpatch.evaluation.davis:evaluate",
    "knn": "selfpatch.evaluation.knn:evaluate",
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


def backbone_shape(config: RunConfig) -> ViTShape:
    """The architecture that a configuration names.

    Raises:
        ValueError: the model is unknown, or what is set does not go with it.
    """
    b = config.backbone
    if config.model in SIZES:
        width, depth, heads = SIZES[config.model]
        patch = 16 if config.patch_size is None else config.patch_size
        if patch < 1:
            raise ValueError(f"patch_size is {patch}; it must be above 0, e.g. 16")
        shape = ViTShape(
            embed_dim=b.embed_dim or width,
            depth=b.depth or depth,
            num_heads=b.num_heads or heads,
            patch_size=patch,
            grid=max(1, config.crops.global_size // patch),
            position_embedding=b.position_embedding,
        )
        if shape.embed_dim % shape.num_heads:
            raise ValueError(
                f"width {shape.embed_dim} cannot be split into {shape.num_heads} attention heads; "
                "change backbone.num_heads"
            )
        return shape
    shape = build_timm(config.model.removeprefix(TIMM)).shape
    own = {
        "patch_size": config.patch_size,
        "backbone.embed_dim": b.embed_dim,
        "backbone.depth": b.depth,
        "backbone.num_heads": b.num_heads,
    }
    for name, value in own.items():
        if value is not None:
            raise ValueError(f"{name} is {value}, but the timm model {config.model!r} has its own; leave it out")
    return replace(shape, grid=max(1, config.crops.global_size // shape.patch_size))


def make_pretrainer(config: RunConfig, shape: ViTShape | None = None) -> tuple[Pretrainer, LoadReport | None]:
    """The network of a run, freshly initialised from its seed, or from `config.init`, and how the latter matched.

    Args:
        shape: of the backbone, for a run that goes on; None: as the configuration and `config.init` say.

    Raises:
        ValueError: an unknown name or setting, a patch that does not divide a crop, weights that do not fit.
    """
    classes = _classes(config)
    weights = None if config.init is None or shape is not None else read_weights(config.init)
    if shape is None:
        shape = backbone_shape(config)
    if weights is not None:
        shape = replace(shape, grid=weights.shape.grid)  # position embeddings stay as they are, whatever the crops
    torch.manual_seed(config.seed)
    objectives = {
        name: _make_component(cls, name, config.components.get(name, {}), shape) for name, cls in classes.items()
    }
    pool = _only_pool(objectives)
    backbone = build_backbone(shape if pool is None else shape.for_pool(), drop_path=config.backbone.drop_path)
    _check_crops(backbone, config)
    report = None if weights is None else load_backbone(backbone, weights, allow_partial=config.allow_partial)
    student = Branch(backbone, pool, _all_heads(objectives))
    return Pretrainer(student, objectives, _loss_weights(config, objectives)), report


def _classes(config: RunConfig) -> dict[str, type[Objective]]:
    """The method and the objectives by name, in that order."""
    known = {**METHODS, **OBJECTIVES}
    for name in config.components:
        if name not in known:
            raise ValueError(
                f"{name!r} is neither a setting of a run nor a method or objective; there are: {', '.join(known)}"
            )
    objectives = {name: find(OBJECTIVES, name, "objective") for name in config.objectives}
    return {config.method: find(METHODS, config.method, "method"), **objectives}


def _make_component(cls: type[Objective], name: str, settings: Mapping[str, Any], shape: ViTShape) -> Objective:
    """A method or objective; its settings are the keyword arguments of its constructor. Width and heads are the
    backbone's."""
    accepted = inspect.signature(cls).parameters
    of_backbone = {"dim": shape.embed_dim, "num_heads": shape.num_heads}
    offered = {key: p.default for key, p in accepted.items() if key not in of_backbone}
    for key in settings:
        if key not in offered:
            raise ValueError(f"{name} has no setting {key!r}; it has: {', '.join(offered)}")
    kinds = get_type_hints(cls.__init__)
    own = {key: _setting(value, kinds[key], offered[key], f"{name}.{key}") for key, value in settings.items()}
    return cls(**{k: v for k, v in of_backbone.items() if k in accepted}, **own)


def _setting(value: Any, kind: Any, default: Any, name: str) -> Any:
    """A setting of a component as its constructor takes it: counts from 1 on, other numbers from 0 on; of the words it
    knows the constructor itself speaks."""
    for alternative in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        if get_origin(alternative) is Literal and isinstance(value, str):
            return value
        with contextlib.suppress(ValueError):
            converted = convert(value, alternative, name)
            is_number = isinstance(converted, int | float) and not isinstance(converted, bool)
            if not is_number or (1 if alternative is int else 0) <= converted < math.inf:
                return converted
    raise ValueError(f"{name} is {value!r}; a value like {default!r} is needed")


def _only_pool(objectives: Mapping[str, Objective]) -> nn.Module | None:
    pools = {name: pool for name, o in objectives.items() if (pool := o.pool()) is not None}
    if len(pools) > 1:
        raise ValueError(f"{' and '.join(pools)} each bring a pool for the image token; only one can")
    return next(iter(pools.values()), None)


def _all_heads(objectives: Mapping[str, Objective]) -> dict[str, nn.Module]:
    heads: dict[str, nn.Module] = {}
    for name, objective in objectives.items():
        own = objective.heads()
        twice = heads.keys() & own.keys()
        if twice:
            raise ValueError(f"{name} brings a head {', '.join(twice)!r} that another method or objective brings too")
        heads |= own
    return heads


def _loss_weights(config: RunConfig, objectives: Mapping[str, Objective]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for objective in objectives.values():
        weights |= objective.loss_weights
    for name, weight in config.loss_weights.items():
        if name not in weights:
            raise ValueError(
                f"loss_weights names {name!r}, which is no loss here; the losses are: {', '.join(weights)}"
            )
        weights[name] = float(weight)
    return weights


def _check_crops(backbone: Backbone, config: RunConfig) -> None:
    backbone.check_size(config.crops.global_size, config.crops.global_size)
    if config.crops.num_local:
        backbone.check_size(config.crops.local_size, config.crops.local_size)


def view_recipes(config: RunConfig) -> tuple[ViewRecipe, ...]:
    return dino_views(**asdict(config.crops))


def make_loader(config: RunConfig, index: ImageIndex, places: np.ndarray, device: torch.device) -> CropLoader:
    """The training stream of this process.

    Raises:
        ValueError: as `CropLoader`.
    """
    return CropLoader(
        index,
        places,
        view_recipes(config),
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        seed=config.seed,
        workers=config.loader.workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        max_bad=config.loader.max_bad,
        pin_memory=device.type == "cuda",
    )


def make_schedule(config: RunConfig, steps_per_epoch: int) -> Schedule:
    scheduled = {field.name for field in fields(Schedule)}
    settings = {name: value for name, value in asdict(config.optimizer).items() if name in scheduled}
    peak_lr = config.optimizer.base_lr * config.batch_size / 256
    return Schedule(epochs=config.epochs, steps_per_epoch=steps_per_epoch, peak_lr=peak_lr, **settings)


def make_clipping(config: RunConfig) -> Clipping:
    return Clipping(config.optimizer.clip, config.optimizer.clip_mode)


def make_loop_settings(config: RunConfig, device: torch.device) -> LoopSettings:
    return LoopSettings(
        seed=config.seed,
        autocast=autocast_dtype(config.precision, device),
        log_every=config.watch.log_every,
        evaluate_every=config.watch.evaluate_every,
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
    throughout."""
    if precision == "auto":
        fast = {
            "cuda": lambda: torch.cuda.get_device_capability(device) >= (8, 0),
            "cpu": lambda: "avx512_bf16" in _cpu_flags(),
        }
        precision = "bf16" if device.type in fast and fast[device.type]() else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:  # no Linux
        return set()
    return set(line.split())
