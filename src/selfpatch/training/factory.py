"""Builders of a run's objects: the only module of training that reads the whole `RunConfig`."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfpatch.checkpoints.load import LoadReport, load_backbone
from selfpatch.checkpoints.read import Weights, read_weights
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import NO_METHOD, SAMPLES, RunConfig
from selfpatch.config.schema import size_text
from selfpatch.core import distributed
from selfpatch.core.machine import autocast_dtype
from selfpatch.core.malloc import keep_freed_memory
from selfpatch.core.text import counted
from selfpatch.core.types import Needs, Objective
from selfpatch.data.augment.backends import choose_backend
from selfpatch.data.augment.masks import batch_ratios, draw_mask
from selfpatch.data.augment.multicrop import ViewRecipe, anchor_views, dino_views, grid_of, pair_views, view_groups
from selfpatch.data.loader import CropLoader
from selfpatch.data.sample_images import sample_index
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.statistics import ChannelStatistics
from selfpatch.methods.registry import METHODS, OBJECTIVES, find_objective
from selfpatch.models.anchor import Anchor
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.config import AnyBackboneConfig
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.branch import Branch
from selfpatch.models.param_groups import PATCH_PROJECTION, head_lr_scales, layer_lr_scales
from selfpatch.training import optim
from selfpatch.training.anchor import anchor_weights, make_anchor, named_anchor
from selfpatch.training.architecture import BackboneRequest
from selfpatch.training.components import all_heads, make_component, only_pool
from selfpatch.training.dataset import TrainingData
from selfpatch.training.online_eval import OnlineEvaluator
from selfpatch.training.optim import Schedule
from selfpatch.training.packing import check_packing, pack_crops
from selfpatch.training.parallel import recompute_activations, shard
from selfpatch.training.student_teacher import StudentTeacher


def open_training_data(config: RunConfig) -> TrainingData:
    """Find the images of a run, and hold some of them out; the samples have a separate held-out folder.

    Raises:
        ValueError: there are no images, or a shard is damaged.
    """
    if config.data == SAMPLES:
        index, held_out = sample_index("training"), sample_index("held_out")
        return TrainingData(index, np.arange(len(index)), held_out, np.arange(len(held_out)))
    index = ImageIndex.open(config.data)
    index.require_files()
    indices, held_out_indices = index.split(config.loader.held_out, config.seed)
    return TrainingData(index, indices, index, held_out_indices)


def backbone_request(config: RunConfig) -> BackboneRequest:
    """Return what a configuration says about its backbone."""
    return BackboneRequest(config.model, config.patch_size, config.backbone, config.init, config.crops.global_size)


def make_student_teacher(
    config: RunConfig,
    architecture: AnyBackboneConfig | None = None,
    *,
    statistics: ChannelStatistics | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    with_anchor: bool = True,
) -> tuple[StudentTeacher, LoadReport | None]:
    """Return the network of a run, initialised from its seed or from `config.init`, and how the latter matched.

    Args:
        config: the configuration.
        architecture: backbone of a run that is resumed. If None, it follows from the configuration and `config.init`.
        statistics: normalisation of the images of a new run. If None, the model's own, which is ImageNet's.
        checkpoint: checkpoint of a run that is resumed, which holds the anchor.
        with_anchor: if False, leave the anchor out, for a network that takes no step.

    Raises:
        ValueError: a name or setting is unknown, the patch size does not divide a crop, the weights do not fit, a
            method masks patches and the backbone embeds none, or an objective lacks an anchor; or as `_add_adapters`.
    """
    is_new, request = architecture is None, backbone_request(config)
    classes = _objective_classes(config)
    weights = read_weights(config.init) if is_new and config.init is not None else None
    if architecture is None:
        architecture = request.named() if weights is None else request.for_weights(weights.config)
        architecture = _with_channels(architecture, config.channels, weights, statistics)
    named = None
    if with_anchor and (teacher := anchor_weights(config.teacher, checkpoint)):
        named = named_anchor(teacher, config.channels)
    torch.manual_seed(config.seed)
    facts = {"dim": architecture.dim, "num_heads": architecture.num_heads}
    facts |= {"num_local": config.crops.num_local, "batch_size": config.batch_size, "seed": config.seed}
    facts |= {"anchor_dim": architecture.dim if named is None else named.backbone.dim}
    objectives = {
        name: make_component(cls, name, config.components.get(name, {}), facts) for name, cls in classes.items()
    }
    pool = only_pool(objectives)
    if pool is not None and is_new:
        architecture = request.below_pool(architecture, None if weights is None else weights.config, pool)
    backbone = request.build(architecture)
    check_packing(config.packing, backbone, config.model)
    _check_crops(backbone, config, objectives)
    _add_mask_token(backbone, config, objectives)
    report = None if weights is None else load_backbone(backbone, weights, pool, allow_partial=config.allow_partial)
    if config.backbone.frozen_blocks:
        backbone.freeze_first(config.backbone.frozen_blocks)
    if config.lora.rank:
        _add_adapters(backbone, config, report if is_new else None, is_new=is_new)
    student = Branch(backbone, pool, all_heads(objectives))
    anchor = _anchor(config, named, student, objectives) if with_anchor else None
    return StudentTeacher(student, objectives, _loss_weights(config, objectives), anchor), report


def _objective_classes(config: RunConfig) -> dict[str, type[Objective]]:
    """Return the classes of the method, if there is one, and of the objectives by name."""
    classes: dict[str, type[Objective]] = {}
    if config.method != NO_METHOD:
        classes[config.method] = find_objective(METHODS, config.method, "method")
    return classes | {name: find_objective(OBJECTIVES, name, "objective") for name in config.objectives}


def _with_channels(
    architecture: AnyBackboneConfig, channels: int, weights: Weights | None, statistics: ChannelStatistics | None
) -> AnyBackboneConfig:
    """Return the architecture for images of a number of channels, with their normalisation."""
    of_weights = weights is not None and channels == weights.config.in_channels  # and so are mean and deviation
    if channels == architecture.in_channels and (statistics is None or of_weights):
        return architecture
    mean, std = statistics or ((0.0,) * channels, (1.0,) * channels)  # without statistics they stay in [0, 1]
    return replace(architecture, in_channels=channels, mean=mean, std=std)


def _add_mask_token(backbone: Backbone, config: RunConfig, objectives: Mapping[str, Objective]) -> None:
    """Add a mask token if a method masks patches, or raise ValueError if the backbone embeds none."""
    masking = [name for name, objective in objectives.items() if objective.needs.masks]
    if masking and not backbone.maskable:
        raise ValueError(
            f"{' and '.join(masking)} hides patches from the student, but {config.model} embeds no patches that "
            "could be masked; use a ViT or a Swin"
        )
    if masking:
        backbone.add_mask_token()


def _anchor(
    config: RunConfig, named: Branch | None, student: Branch, objectives: Mapping[str, Objective]
) -> Anchor | None:
    """Return the frozen encoder if an objective needs one; raise ValueError if one is named that none needs."""
    anchored = {name: objective for name, objective in objectives.items() if objective.needs.anchor}
    if anchored:
        return make_anchor(config.anchor, named, student, anchored, trained=config.init is not None)
    if named is not None:
        raise ValueError(
            f"teacher is {config.teacher!r}, but a run of {' and '.join(objectives)} has no use for a frozen encoder; "
            "leave --teacher out, or add an objective that has, e.g. --objective distill"
        )
    return None


def _add_adapters(backbone: Backbone, config: RunConfig, report: LoadReport | None, *, is_new: bool) -> None:
    """Add low-rank adapters, beside which everything learns that the weights of `init` do not have.

    Raises:
        ValueError: there are no weights to adapt, parts of them are missing, or other settings choose what is frozen.
    """
    rank, lora = config.lora.rank, config.lora
    if is_new and report is None:
        raise ValueError(f"lora.rank is {rank}, but there are no weights to adapt; give --init, or leave lora.rank out")
    if report is not None and report.missing:
        raise ValueError(
            f"lora.rank is {rank}, but {report.source} lacks {counted(len(report.missing), 'tensor')} of the network, "
            "which would stay frozen as initialised; leave lora.rank out, or give all weights"
        )
    if config.backbone.frozen_blocks:
        raise ValueError(
            f"backbone.frozen_blocks is {config.backbone.frozen_blocks}, but lora.rank is {rank}, which freezes all "
            "blocks; set backbone.frozen_blocks to 0, and choose the blocks with adapters by lora.last_blocks"
        )
    backbone.add_adapters(rank, lora.alpha, lora.layers, lora.last_blocks)
    if config.backbone.registers:  # they may be new
        backbone.get_parameter("trunk.reg_token").requires_grad_(True)


def _loss_weights(config: RunConfig, objectives: Mapping[str, Objective]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for objective in objectives.values():
        weights |= objective.loss_weights
    for name, weight in config.loss_weights.items():
        if name in weights:
            weights[name] = float(weight)
        # A recipe may set it for a method or objective that an option replaced. A resumed run's recipe may no longer
        # exist, so read it last.
        elif not (config.recipe and load_recipe(config.recipe).loss_weights.get(name) == weight):
            losses = ", ".join(weights)
            raise ValueError(f"loss_weights names {name!r}, which is no loss here; the losses are: {losses}")
    return weights


def _check_crops(backbone: Backbone, config: RunConfig, objectives: Mapping[str, Objective]) -> None:
    for objective in objectives.values():
        recipes = view_recipes(config, objective.needs)
        groups = view_groups(recipes, pair_recipes=pair_recipes(config, objective.needs))
        for crops, (recipe, *_) in groups.items():
            try:
                backbone.check_size(*recipe.sides)
                objective.check_grid(crops, *grid_of(recipe.size, backbone.patch_size))
            except ValueError as error:
                section = "crops" if crops in ("global_crops", "local_crops") else "pairs"
                option = f"{section}.{crops.removesuffix('_crops')}_size"
                raise ValueError(f"{option} is {size_text(recipe.size)}: {error}") from None


def view_recipes(config: RunConfig, needs: Needs) -> tuple[ViewRecipe, ...]:
    """Return the recipe of each view of multi-crop that is needed."""
    views = dino_views(config.crops)
    return (views if needs.local_crops else views[:2]) if needs.global_crops else ()


def pair_recipes(config: RunConfig, needs: Needs) -> tuple[ViewRecipe, ...]:
    """Return the recipes of clean crops and of those inside them, if they are needed."""
    return pair_views(config.pairs, config.crops) if needs.pairs else ()


def anchor_recipes(config: RunConfig, student_teacher: StudentTeacher) -> tuple[ViewRecipe, ...]:
    """Return the recipes of the anchor's crops, if there is an anchor and it does not see the global crops."""
    anchor = student_teacher.anchor
    return () if anchor is None else anchor_views(config.anchor, config.crops, anchor.branch.backbone.patch_size)


def with_renderer(config: RunConfig, device: torch.device) -> RunConfig:
    """Resolve the renderer `auto`, so that a run that is resumed elsewhere keeps its renderer.

    Raises:
        ValueError: the renderer is `fast`, and OpenCV is not installed.
    """
    render = choose_backend(config.loader.render, device_type=device.type, channels=config.channels)
    return replace(config, loader=replace(config.loader, render=render))


def make_loader(
    config: RunConfig, student_teacher: StudentTeacher, data: TrainingData, device: torch.device
) -> CropLoader:
    """Return the training stream of this process."""
    grid = grid_of(config.crops.global_size, student_teacher.student.backbone.patch_size)
    return CropLoader(
        data.index,
        data.indices,
        view_recipes(config, student_teacher.needs),
        config.loader,
        pair_recipes=pair_recipes(config, student_teacher.needs),
        anchor_recipes=anchor_recipes(config, student_teacher),
        batch_size=config.batch_size,
        seed=config.seed,
        accumulate=config.accumulate,
        channels=config.channels,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        device_type=device.type,
        draw_mask=partial(draw_mask, config.masks, grid) if student_teacher.needs.masks else None,
        draw_ratios=partial(batch_ratios, config.masks) if config.masks.schedule == "batch" else None,
    )


def make_schedule(config: RunConfig, steps_per_epoch: int) -> Schedule:
    """Return the hyperparameters of a run by step; where `minutes` alone limits it, those of one epoch."""
    return Schedule(config.optimizer, config.epochs or 1, steps_per_epoch, config.batch_size)


def make_optimizer(config: RunConfig, student_teacher: StudentTeacher) -> torch.optim.Optimizer:
    """Return the optimizer of a run, with layer-wise learning rates of the backbone and a rate of everything else.

    Raises:
        ValueError: the backbone would be frozen at first, and nothing else is trained, or it has no patch projection
            to slow down.
    """
    student, c = student_teacher.student, config.optimizer
    outside = (name for name, p in student_teacher.named_parameters() if p.requires_grad)
    if c.freeze_backbone_epochs and all(name.startswith("student.backbone.trunk.") for name in outside):
        raise ValueError(
            f"optimizer.freeze_backbone_epochs is {c.freeze_backbone_epochs:g}, but {config.objective} trains nothing "
            "outside the backbone; leave it out"
        )
    has_projection = any(name.startswith(PATCH_PROJECTION) for name, _ in student.backbone.named_parameters())
    if c.patch_embed_lr_scale != 1 and not has_projection:
        raise ValueError(
            f"optimizer.patch_embed_lr_scale is {c.patch_embed_lr_scale:g}, but {config.model} has no such projection; "
            "leave it out"
        )
    lr_scales = {
        **layer_lr_scales(student.backbone, c.layer_decay, c.patch_embed_lr_scale),
        **head_lr_scales(student_teacher, student.backbone, student.pool, c.head_lr_scale),
    }
    return optim.make_optimizer(student_teacher, c, lr_scales)


def make_online_evaluator(
    config: RunConfig, student_teacher: StudentTeacher, data: TrainingData, pictures: Path
) -> OnlineEvaluator:
    """Return what measures the teacher during training and draws sheets into the folder `pictures`."""
    return OnlineEvaluator(
        config.watch,
        data,
        dino_views(config.crops),
        channels=config.channels,
        patch_size=student_teacher.student.backbone.patch_size,
        pictures=pictures,
        seed=config.seed,
        patch_knn=config.init is not None,
    )


def move_to_device(config: RunConfig, student_teacher: StudentTeacher, device: torch.device) -> StudentTeacher:
    """Move the network to its device; pack its crops, and checkpoint, compile and shard its blocks, if configured.

    An anchor that is no ViT is not compiled.
    """
    student_teacher.to(device)
    autocast = autocast_dtype(config.precision, device)
    pack_crops(student_teacher, config.packing, device, autocast)
    if device.type == "cpu":
        keep_freed_memory()
    if config.activation_checkpointing:
        recompute_activations(student_teacher.student)
    if config.compile:
        for branch in (student_teacher.student, student_teacher.teacher):
            branch.compile_blocks()
        anchor = student_teacher.anchor
        if anchor is not None and isinstance(anchor.branch.backbone, ViT):
            anchor.branch.compile_blocks()
    if config.parallel == "fsdp":
        shard(student_teacher, device, autocast)
    return student_teacher
