"""The anchor of a run: from the weights that `teacher` names, or as a copy of the initial student."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from selfpatch.checkpoints.load import encoder_of
from selfpatch.checkpoints.read import Weights, read_weights
from selfpatch.config.sections import AnchorConfig
from selfpatch.core.text import counted
from selfpatch.models.anchor import Anchor
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.config import backbone_config_from_dict
from selfpatch.models.branch import Branch

_STATE = "anchor.branch."
"""Prefix of the anchor's tensors in a checkpoint."""


def shapes(student: Backbone, anchor: Anchor | None) -> dict[str, Any]:
    """Return the entries of a checkpoint that describe the backbones of the student and of the anchor."""
    shape = {"shape": student.config.to_dict()}
    return shape if anchor is None else shape | {"anchor_shape": anchor.branch.backbone.config.to_dict()}


def named_anchor(source: Weights, channels: int) -> Branch:
    """Return the encoder of weights.

    Raises:
        ValueError: it takes images of another number of channels, or its weights do not fit together.
    """
    if source.config.in_channels != channels:
        raise ValueError(
            f"teacher {source.source} takes images of {counted(source.config.in_channels, 'channel')}, but channels is "
            f"{channels}; name a teacher of such images"
        )
    encoder, _ = encoder_of(source)
    return Branch(encoder.backbone, encoder.pool, {})


def anchor_weights(teacher: str | None, checkpoint: Mapping[str, Any] | None) -> Weights | None:
    """Return the weights of a named anchor, or None if the run names none.

    They come from the checkpoint of a run that is resumed, which needs the file no more.
    """
    if teacher is None:
        return None
    if checkpoint is None:
        return read_weights(teacher)
    saved = checkpoint["pretrainer"]
    state = {name.removeprefix(_STATE): saved[name] for name in saved if name.startswith(_STATE)}  # reads no others
    return Weights(state, backbone_config_from_dict(checkpoint["anchor_shape"]), teacher, sha256=None, is_own=True)


def make_anchor(
    config: AnchorConfig, named: Branch | None, student: Branch, objectives: Mapping[str, nn.Module], *, trained: bool
) -> Anchor:
    """Return the anchor of a run.

    Args:
        config: its settings.
        named: the encoder that `teacher` names. If None, a copy of the student is taken.
        student: the student before the first step.
        objectives: what compares the student with the anchor, by name.
        trained: whether the student starts from trained weights.

    Raises:
        ValueError: the anchor would hold random weights for good, or the teacher cannot replace it.
    """
    who = " and ".join(objectives)
    if named is None and not trained:
        learnt = any(True for objective in objectives.values() for _ in objective.parameters())
        if learnt or not config.refresh_every:
            refreshes = "" if learnt else ", or refresh it from the EMA teacher with --anchor.refresh-every"
            raise ValueError(
                f"{who} compares the student with a frozen encoder, but none is named; name one with --teacher, or "
                f"start from weights with --init{refreshes}"
            )
    branch = student.make_teacher() if named is None else named
    branch.heads = nn.ModuleDict()
    if config.refresh_every and named is not None:
        ours, theirs = ({n: t.shape for n, t in b.state_dict().items()} for b in (branch, student))
        computes, trained_to = (replace(b.backbone.config, timm_model=None) for b in (branch, student))
        if not ours.items() <= theirs.items() or computes != trained_to:
            raise ValueError(
                f"anchor.refresh_every is {config.refresh_every}, but the encoder of teacher is of another "
                "architecture or normalisation of images than the student, which cannot replace it; leave it out"
            )
    return Anchor(
        branch,
        refresh_every=config.refresh_every,
        max_refreshes=config.max_refreshes,
        trained=trained or named is not None,
    )
