"""Weights into networks: every key is loaded, or the report names it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from selfpatch.checkpoints.config import DEFAULTS, LoadConfig
from selfpatch.checkpoints.infer_config import first_few
from selfpatch.checkpoints.key_mapping import TRUNK
from selfpatch.checkpoints.read import Weights, read_weights
from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.text import counted
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.pooling import AveragePool, ClassAttentionPool, PositivePool


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
    notes: tuple[str, ...] = ()
    """Notes on the pool and its norm, for runs with initial weights."""
    is_own: bool = False
    """True for files of this package; what they hold for training alone is left out without a word."""

    def __str__(self) -> str:
        parts = [f"{self.source}: {counted(len(self.matched), 'key')} matched"]
        left_out = () if self.is_own else self.left_out
        for word, keys in [("missing", self.missing), ("unexpected", self.unexpected), ("left out", left_out)]:
            if keys:
                parts.append(f"{len(keys)} {word} ({first_few(keys)})")
        return "; ".join([", ".join(parts), *self.notes])


def load_backbone(
    backbone: Backbone, weights: Weights, pool: nn.Module | None = None, *, allow_partial: bool = False
) -> LoadReport:
    """Copy weights into a backbone, and into a pool if the weights hold one of the same form.

    A trunk without CLS token, registers or final norm leaves these and the CLS token's position out. If the weights
    have no mask token or no registers, these stay as initialised. The first layer is adapted to the trunk's number of
    channels.

    Raises:
        ValueError: the family or a shape differs, or, unless `allow_partial`, a key is missing or unexpected.
    """
    if backbone.config.family != weights.config.family:
        raise ValueError(
            f"{weights.source} holds a {weights.config.family}, but the model is a {backbone.config.family}; "
            "give a --model of the same family"
        )
    parts, state = nn.ModuleDict({"backbone": backbone}), dict(weights.state)
    if pool is not None:
        shapes = {f"pool.{key}": tensor.shape for key, tensor in pool.state_dict().items()}
        if shapes == {key: tensor.shape for key, tensor in state.items() if key.startswith("pool.")}:
            parts["pool"] = pool
    current = parts.state_dict()
    for key in (f"{TRUNK}patch_embed.proj.weight", f"{TRUNK}conv1.weight", f"{TRUNK}stem.0.weight"):
        if key in state and key in current and state[key].shape[1] == 3 != current[key].shape[1]:
            state[key] = kernel_for_channels(state[key], current[key].shape[1])
    optional = [f"{TRUNK}norm.weight", f"{TRUNK}norm.bias", "backbone.mask_token"]
    new_registers = f"{TRUNK}reg_token" in current and f"{TRUNK}reg_token" not in state
    if not backbone.has_class_token:
        optional += [f"{TRUNK}cls_token", f"{TRUNK}reg_token"]
    if new_registers or not backbone.has_class_token:
        _take_position_of_cls(state)
    if new_registers:
        state[f"{TRUNK}reg_token"] = current[f"{TRUNK}reg_token"]
    if "backbone.mask_token" in current:
        state.setdefault("backbone.mask_token", current["backbone.mask_token"])  # most weights have none
    not_wanted = ("heads.",) if "pool" in parts else ("heads.", "pool.")
    left_out = [key for key in state if key.startswith(not_wanted) or (key in optional and key not in current)]
    report = load_strictly(parts, state, weights, left_out, allow_partial=allow_partial)
    notes = ["the register tokens are new"] if new_registers else []
    return replace(report, notes=(*notes, *_notes_on_pool(backbone, pool, is_new="pool" not in parts)))


def _take_position_of_cls(state: dict[str, Tensor]) -> None:
    """Add the CLS token's position, which a ViT with registers or without CLS token does not have, to the token."""
    token, positions = f"{TRUNK}cls_token", f"{TRUNK}pos_embed"
    if {token, positions} <= state.keys() and f"{TRUNK}reg_token" not in state:
        state[token] = state[token] + state[positions][:, :1]
        state[positions] = state[positions][:, 1:]


def _notes_on_pool(backbone: Backbone, pool: nn.Module | None, *, is_new: bool) -> Iterator[str]:
    """Yield notes on the pool: whether it is untrained, and where its norm comes from."""
    if pool is not None and is_new:
        yield "the pool is new, so that image features start untrained"
    if isinstance(pool, PositivePool) and backbone.final_norm is not None:
        yield "the pool's norm is the trunk's final norm, which goes on learning"


def kernel_for_channels(kernel: Tensor, channels: int) -> Tensor:
    """Return the first layer of a network for RGB images [D, 3, p, p] for other channels, [D, channels, p, p].

    As in timm: one channel gets the sum over the colours; more get red, green, blue, red, ... in turn, times
    3 / channels, so that the layer's output keeps its size.
    """
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    return kernel[:, torch.arange(channels) % 3] * (3 / channels)


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], weights: Weights, left_out: Sequence[str], *, allow_partial: bool
) -> LoadReport:
    """Load the tensors of `state`, except those that are left out, and report on the keys.

    Raises:
        ValueError: a tensor has another shape or type, or values that are not finite, or, unless `allow_partial`, a key
            is missing or unexpected.
    """
    state = {key: tensor for key, tensor in state.items() if key not in left_out}
    current = module.state_dict()
    # Files of transformers and timm leave the periods of rotary positions out; both compute the same.
    state |= {key: current[key] for key in current if key.endswith(".rope.periods") and key not in state}
    for key in current:
        if key not in state:
            continue
        if current[key].is_floating_point() != state[key].is_floating_point() and not in_dry_run():
            raise ValueError(
                f"{weights.source}: {key} is {state[key].dtype}, and {current[key].dtype} is needed; save it as such"
            )
        if current[key].shape != state[key].shape:
            raise ValueError(
                f"{weights.source} is of another architecture: {key} is {list(state[key].shape)} there "
                f"and {list(current[key].shape)} here; name its architecture with --model and --patch-size, "
                "or take it over with --model init"
            )
    report = LoadReport(
        weights.source,
        matched=tuple(key for key in current if key in state),
        missing=tuple(key for key in current if key not in state),
        unexpected=tuple(key for key in state if key not in current),
        left_out=(*left_out, *weights.left_out),
        sha256=weights.sha256,
        is_own=weights.is_own,
    )
    if (report.missing or report.unexpected) and not allow_partial:
        raise ValueError(f"{report}; give --allow-partial to load what matches, or --model init for its architecture")
    module.load_state_dict({key: state[key] for key in report.matched}, strict=False)
    _require_finite(module, report)
    return report


def _require_finite(module: nn.Module, report: LoadReport) -> None:
    """Raise ValueError if loaded values are not finite: no feature, and no gradient, would be."""
    loaded = set(report.matched)
    tensors = {key: x for key, x in module.state_dict().items() if key in loaded and x.is_floating_point()}
    bad = tuple(key for key, tensor in tensors.items() if not tensor.is_meta and not tensor.isfinite().all())
    if bad:
        raise ValueError(
            f"{report.source} holds values that are not finite in {len(bad)} of {len(tensors)} tensors "
            f"({first_few(bad)}), so that its features are not finite; use an earlier checkpoint, or download it again"
        )


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
    return encoder_of(weights, allow_partial=config.allow_partial, normed_patches=normed_patches)


def encoder_of(
    weights: Weights, *, allow_partial: bool = False, normed_patches: bool = True
) -> tuple[BranchEncoder, LoadReport]:
    """Return the network that weights are of, with these weights; arguments and errors are those of `load_encoder`."""
    head = "heads.image."
    encoder = BranchEncoder(
        build_backbone(weights.config),
        _build_pool(weights),
        normed_patches=normed_patches,
        projection={key.removeprefix(head): tensor for key, tensor in weights.state.items() if key.startswith(head)},
    )
    unused = {"backbone.mask_token", f"{TRUNK}norm.weight", f"{TRUNK}norm.bias"} - encoder.state_dict().keys()
    left_out = [key for key in weights.state if key.startswith("heads.") or key in unused]
    report = load_strictly(encoder, weights.state, weights, left_out, allow_partial=allow_partial)
    return encoder.eval(), report


def initialised_encoder(weights: Weights, seed: int = 0) -> BranchEncoder:
    """Return the network that weights are of, freshly initialised, as an `Encoder` in evaluation mode.

    The random state outside is kept. A DINOv2 network starts with a LayerScale of 1e-5, so that its features are
    almost those of its patch embedding with positions.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BranchEncoder(build_backbone(weights.config), _build_pool(weights)).eval()


def _build_pool(weights: Weights) -> nn.Module | None:
    keys = [key.removeprefix("pool.") for key in weights.state if key.startswith("pool.")]
    if not keys:
        return None
    if "query" not in keys:
        return AveragePool(weights.config.dim)
    blocks = {key.split(".")[1] for key in keys if key.startswith("blocks.")}
    return ClassAttentionPool(weights.config.dim, weights.config.num_heads, blocks=len(blocks))
