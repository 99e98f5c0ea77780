"""Weights into networks: every key finds its place, or the report names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from selfpatch.checkpoints.config import DEFAULTS, LoadConfig
from selfpatch.checkpoints.infer_config import first_few
from selfpatch.checkpoints.read import Weights, read_weights
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import AnyBackboneConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.pooling import AveragePool, ClassAttentionPool

_NOT_BACKBONE = ("pool.", "heads.")
"""Prefixes of keys that a backbone may leave out."""

_FIRST_KERNELS = ("trunk.patch_embed.proj.weight", "trunk.conv1.weight")
"""Layers that read the image's channels: of a ViT or a Swin, and of a ResNet."""

_MAY_LACK = ("trunk.norm.weight", "trunk.norm.bias", "mask_token")
"""Keys of weights that a backbone may have no parameter for."""

_MAY_LACK_WITHOUT_CLASS_TOKEN = ("trunk.cls_token", "trunk.reg_token")
"""Further such keys of a trunk below a pool, which has no CLS token."""


@dataclass(frozen=True)
class LoadReport:
    """Keys of a state dict that were loaded, and those that were not."""

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Keys that are not wanted here, such as projection heads."""
    sha256: str | None = None
    """Hash of the file."""

    def __str__(self) -> str:
        parts = [f"{self.source}: {len(self.matched)} keys matched"]
        for word, keys in [("missing", self.missing), ("unexpected", self.unexpected), ("left out", self.left_out)]:
            if keys:
                parts.append(f"{len(keys)} {word} ({first_few(keys)})")
        return ", ".join(parts)


def load_backbone(
    backbone: Backbone, weights: Weights, pool: nn.Module | None = None, *, allow_partial: bool = False
) -> LoadReport:
    """Copy weights into a backbone, and into a pool if the weights hold one of the same form.

    A trunk without CLS token, registers or final norm leaves these and the CLS token's position out. If the weights
    have no mask token, it stays as initialised. The first layer is adapted to the trunk's number of channels.

    Raises:
        ValueError: the weights are of another family, a tensor has another shape, or, unless `allow_partial`, a key is
            missing or unexpected.
    """
    if backbone.config.family != weights.config.family:
        raise ValueError(
            f"{weights.source} holds a {weights.config.family}, but the model is a {backbone.config.family}; "
            "give a --model of the same family"
        )
    state = {k.removeprefix("backbone."): v for k, v in weights.state.items() if not k.startswith(_NOT_BACKBONE)}
    pooled = _load_pool(pool, weights)
    left_out = [k for k in weights.state if k.startswith(_NOT_BACKBONE) and k not in pooled]
    current = backbone.state_dict()
    for key in _FIRST_KERNELS:
        if key in state and key in current and state[key].shape[1] == 3 != current[key].shape[1]:
            state[key] = kernel_for_channels(state[key], current[key].shape[1])
    may_lack: tuple[str, ...] = _MAY_LACK
    if not backbone.has_class_token:
        may_lack += _MAY_LACK_WITHOUT_CLASS_TOKEN
        if "trunk.cls_token" in state and "trunk.reg_token" not in state:
            state["trunk.pos_embed"] = state["trunk.pos_embed"][:, 1:]
    if "mask_token" in current:
        state.setdefault("mask_token", current["mask_token"])  # most weights have none; it is learned soon
    for key in may_lack:
        if key in state and key not in current:
            del state[key]
            left_out.append(f"backbone.{key}")
    left_out += weights.left_out
    report = load_strictly(backbone, state, weights.source, allow_partial=allow_partial, left_out=tuple(left_out))
    return replace(report, matched=(*report.matched, *pooled))


def _load_pool(pool: nn.Module | None, weights: Weights) -> tuple[str, ...]:
    """Copy the weights' pool if keys and shapes are the same, and return its keys."""
    state = {k: v for k, v in weights.state.items() if k.startswith("pool.")}
    current = {} if pool is None else {f"pool.{k}": v for k, v in pool.state_dict().items()}
    if pool is None or {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in current.items()}:
        return ()
    pool.load_state_dict({k.removeprefix("pool."): v for k, v in state.items()})
    return tuple(state)


def kernel_for_channels(kernel: Tensor, channels: int) -> Tensor:
    """Return the first layer of a network for RGB images, adapted to another number of channels.

    As in timm: one channel gets the sum over the colours; more get red, green, blue, red, ... in turn, times
    3 / channels, so that the layer's output keeps its size.

    Args:
        kernel: [D, 3, p, p].
        channels: number of channels.

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
    """Load a state dict and report on its keys.

    Raises:
        ValueError: a tensor has another shape, or, unless `allow_partial`, a key is missing or unexpected.
    """
    current = module.state_dict()
    for key in current:
        if key in state and current[key].shape != state[key].shape:
            raise ValueError(
                f"{source} is of another architecture: {key} is {list(state[key].shape)} there "
                f"and {list(current[key].shape)} here; name its architecture with --model and --patch-size"
            )
    report = LoadReport(
        source,
        matched=tuple(k for k in current if k in state),
        missing=tuple(k for k in current if k not in state),
        unexpected=tuple(k for k in state if k not in current),
        left_out=left_out,
    )
    if (report.missing or report.unexpected) and not allow_partial:
        raise ValueError(f"{report}; give --allow-partial to load what matches, or --model init for its architecture")
    module.load_state_dict({k: state[k] for k in report.matched}, strict=False)
    return report


def load_encoder(
    source: str, config: LoadConfig = DEFAULTS, *, normed_patches: bool = True
) -> tuple[BranchEncoder, LoadReport]:
    """Load weights from any source as an `Encoder` in evaluation mode.

    Args:
        source: as `read_weights` takes it.
        config: which network of the source is read, and how.
        normed_patches: give patch features after the trunk's final norm (DINO), else the last block's output.

    Raises:
        ValueError: as `read_weights` and `load_strictly`.
    """
    weights = read_weights(source, config)
    pool = _build_pool(weights.state, weights.config)
    encoder = BranchEncoder(build_backbone(weights.config), pool, normed_patches=normed_patches)
    wanted = {k: v for k, v in weights.state.items() if not k.startswith("heads.") and k != "backbone.mask_token"}
    left_out = (*(k for k in weights.state if k not in wanted), *weights.left_out)
    report = load_strictly(encoder, wanted, source, allow_partial=config.allow_partial, left_out=left_out)
    return encoder.eval(), replace(report, sha256=weights.sha256)


def _build_pool(state: Mapping[str, Tensor], config: AnyBackboneConfig) -> nn.Module | None:
    keys = [k.removeprefix("pool.") for k in state if k.startswith("pool.")]
    if not keys:
        return None
    if "query" not in keys:
        return AveragePool(config.dim)
    blocks = 1 + max(int(k.split(".")[1]) for k in keys if k.startswith("blocks."))
    return ClassAttentionPool(config.dim, config.num_heads, blocks=blocks)
