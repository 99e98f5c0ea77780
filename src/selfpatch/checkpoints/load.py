"""Weights into networks: every key finds its place, or the report says which did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.infer_config import some
from selfpatch.checkpoints.read import Weights, read_weights
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import AnyBackboneConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.pooling import AveragePool, ClassAttentionPool

_NOT_BACKBONE = ("pool.", "heads.")
"""Beginnings of the names, in our terms, that a backbone may leave out. Other names must find their place."""

_FIRST_KERNELS = ("trunk.patch_embed.proj.weight", "trunk.conv1.weight")
"""Of a ViT or a Swin, and of a ResNet: what reads the image's channels."""

_MAY_LACK = ("trunk.norm.weight", "trunk.norm.bias", "mask_token")
_MAY_LACK_WITH_CLASS_TOKEN = ("trunk.cls_token", "trunk.reg_token")
"""What a trunk below a pool leaves out where it has no CLS token."""


@dataclass(frozen=True)
class LoadReport:
    """Which keys of a state dict found their place."""

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Keys that are not wanted here, such as projection heads."""
    sha256: str | None = None
    """Of the file."""

    def __str__(self) -> str:
        parts = [f"{self.source}: {len(self.matched)} keys matched"]
        for word, keys in [("missing", self.missing), ("unexpected", self.unexpected), ("left out", self.left_out)]:
            if keys:
                parts.append(f"{len(keys)} {word} ({some(keys)})")
        return ", ".join(parts)


def load_backbone(
    backbone: Backbone, weights: Weights, pool: nn.Module | None = None, *, allow_partial: bool = False
) -> LoadReport:
    """Copies weights into a backbone, and into a pool where they have one of its form.

    CLS token, its position, registers and final norm are left out for a trunk that has none; so is the mask token, and
    where the weights have none it stays as it is. What reads three channels is adapted to a trunk that reads more or
    fewer.

    Raises:
        ValueError: the weights are of another family, or a key is missing, unexpected or of another shape, unless
            `allow_partial`.
    """
    if backbone.config.family != weights.shape.family:
        raise ValueError(
            f"{weights.source} holds a {weights.shape.family}, but the model is a {backbone.config.family}; "
            "give a --model of the same family"
        )
    state = {k.removeprefix("backbone."): v for k, v in weights.state.items() if not k.startswith(_NOT_BACKBONE)}
    pooled = _load_pool(pool, weights)
    left_out = [k for k in weights.state if k.startswith(_NOT_BACKBONE) and k not in pooled]
    own = backbone.state_dict()
    for name in _FIRST_KERNELS:
        if name in state and name in own and state[name].shape[1] == 3 != own[name].shape[1]:
            state[name] = kernel_for_channels(state[name], own[name].shape[1])
    may_lack: tuple[str, ...] = _MAY_LACK
    if not backbone.has_class_token:
        may_lack += _MAY_LACK_WITH_CLASS_TOKEN
        if "trunk.cls_token" in state and "trunk.reg_token" not in state:
            state["trunk.pos_embed"] = state["trunk.pos_embed"][:, 1:]
    if "mask_token" in own:
        state.setdefault("mask_token", own["mask_token"])  # most weights have none; it is learned soon
    for name in may_lack:
        if name in state and name not in own:
            del state[name]
            left_out.append(f"backbone.{name}")
    left_out += weights.left_out
    report = load_strictly(backbone, state, weights.source, allow_partial=allow_partial, left_out=tuple(left_out))
    return replace(report, matched=(*report.matched, *pooled))


def _load_pool(pool: nn.Module | None, weights: Weights) -> tuple[str, ...]:
    """The names of the pool's tensors, if the weights have just these, which are then copied."""
    state = {k: v for k, v in weights.state.items() if k.startswith("pool.")}
    own = {} if pool is None else {f"pool.{k}": v for k, v in pool.state_dict().items()}
    if pool is None or {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in own.items()}:
        return ()
    pool.load_state_dict({k.removeprefix("pool."): v for k, v in state.items()})
    return tuple(state)


def kernel_for_channels(kernel: Tensor, channels: int) -> Tensor:
    """The first layer of a network for colour pictures, for images of so many channels: as in timm, the sum over the
    colours for one channel; else red, green, blue, red, ... in turn, times 3 / channels, so that the layer's output
    keeps its size.

    Args:
        kernel: [D, 3, p, p].

    Returns:
        [D, channels, p, p].
    """
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    return kernel[:, torch.arange(channels) % 3] * (3 / channels)


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    allow_partial: bool = False,
    left_out: tuple[str, ...] = (),
) -> LoadReport:
    """`load_state_dict` with a report; all keys must match unless `allow_partial`. Shapes always must.

    Raises:
        ValueError: they do not.
    """
    own = module.state_dict()
    for name in own:
        if name in state and own[name].shape != state[name].shape:
            raise ValueError(
                f"{source} is of another architecture: {name} is {list(state[name].shape)} there "
                f"and {list(own[name].shape)} here; name its architecture with --model and --patch-size"
            )
    report = LoadReport(
        source,
        matched=tuple(k for k in own if k in state),
        missing=tuple(k for k in own if k not in state),
        unexpected=tuple(k for k in state if k not in own),
        left_out=left_out,
    )
    if (report.missing or report.unexpected) and not allow_partial:
        raise ValueError(f"{report}; give --allow-partial to load what matches, or --model init for its architecture")
    module.load_state_dict({k: state[k] for k in report.matched}, strict=False)
    return report


def load_encoder(
    source: str, config: LoadConfig = LoadConfig(), *, normed_patches: bool = True
) -> tuple[BranchEncoder, LoadReport]:
    """Load weights from anywhere as an `Encoder` in evaluation mode.

    Args:
        source: as `read_weights` takes it.
        config: which network of the source is read, and how.
        normed_patches: give patch features after the trunk's final norm (DINO), else the last block's output.

    Raises:
        ValueError: as `read_weights` and `load_strictly`.
    """
    weights = read_weights(source, config)
    shape = weights.shape
    if config.position_embedding is not None and isinstance(shape, ViTConfig):
        shape = replace(shape, position_embedding=config.position_embedding)
    backbone = build_backbone(shape)
    pool = _pool(_part(weights.state, "pool."), shape)
    encoder = BranchEncoder(backbone, pool, normed_patches=normed_patches)
    wanted = {k: v for k, v in weights.state.items() if not k.startswith("heads.") and k != "backbone.mask_token"}
    left_out = (*(k for k in weights.state if k not in wanted), *weights.left_out)
    report = load_strictly(encoder, wanted, source, allow_partial=config.allow_partial, left_out=left_out)
    return encoder.eval(), replace(report, sha256=weights.sha256)


def _pool(state: Mapping[str, Tensor], shape: AnyBackboneConfig) -> nn.Module | None:
    if not state:
        return None
    if "query" not in state:
        return AveragePool(shape.dim)
    blocks = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    return ClassAttentionPool(shape.dim, shape.num_heads, blocks=blocks)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
