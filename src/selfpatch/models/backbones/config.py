"""Architecture of a backbone: plain values that decide its parameters, saved with its weights."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self, get_type_hints

from annotated_types import Ge, Gt, Le, Len

from selfpatch.config.schema import checked, unknown_name
from selfpatch.core.text import counted
from selfpatch.ops.images import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Architecture values that every family has.

    Each family also has `dim` and `num_heads` of its output, `patch_size` (side of an output token in pixels),
    `num_layers` after the embedding, and `map_dims` and `map_strides` (the width of each map that `Backbone.maps`
    gives, and the side of its tokens in pixels).
    """

    family: ClassVar[str]
    maps_need_norm: ClassVar[bool] = False
    """True if decoders put a new norm on each map, because the trunk leaves them without one."""
    in_channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    """Mean and standard deviation of the channels, for normalising images in [0, 1]."""
    timm_model: str | None = None
    """Name of the timm model that was built; the other fields then only describe it."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `backbone_config_from_dict` reads."""
        return {"family": self.family, **asdict(self)}

    def for_pool(self) -> Self:
        """Return the trunk of a new network below a pool, which makes the image token of raw patches and has a norm."""
        return self


@dataclass(frozen=True, kw_only=True)
class ViTConfig(BackboneConfig):
    """A plain vision transformer, as DINO and its descendants release them."""

    family: ClassVar[str] = "vit"
    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 16
    grid: int = 14
    """Side of the stored grid of position embeddings, in patches."""
    class_token: bool = True
    num_registers: int = 0
    """Number of register tokens (DINOv2); with any, no position embedding is added to the CLS token."""
    final_norm: bool = True
    layer_scale: bool = False
    """Learned scale on each residual branch (CaiT, DINOv2)."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    mlp_width: int | None = None
    """Inner width of the MLP; if None, four times the tokens' width, or two thirds of that where it is gated."""
    rope: bool = False
    """Rotary in place of learned positions, and no bias of keys (DINOv3)."""
    rope_base: float = 100.0
    """Longest period of the rotary positions, in units of the image's half side."""
    norm_eps: float | None = None
    """Epsilon of the layer norms; if None, 1e-6, or 1e-5 with rotary positions (DINOv3)."""
    position_embedding: Literal["released", "size"] = "released"
    """Interpolation of position embeddings, see `positions.add_positions`."""

    @property
    def dim(self) -> int:
        """Width of the output tokens."""
        return self.embed_dim

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return self.depth

    @property
    def eps(self) -> float:
        """Epsilon of the layer norms."""
        return self.norm_eps or (1e-5 if self.rope else 1e-6)

    @property
    def inner_width(self) -> int:
        """Inner width of the MLP; of each of the two halves of a gated one."""
        if self.mlp_width is not None:
            return self.mlp_width
        # DINOv2 rounds the width of a gated MLP up to a multiple of 8.
        return 4 * self.embed_dim if self.mlp == "gelu" else (8 * self.embed_dim // 3 + 7) // 8 * 8

    @property
    def map_dims(self) -> tuple[int, ...]:
        """Width after each block."""
        return (self.embed_dim,) * self.depth

    @property
    def map_strides(self) -> tuple[int, ...]:
        """Side of a token after each block, in pixels."""
        return (self.patch_size,) * self.depth

    def for_pool(self) -> Self:
        """Return the trunk below a pool, without CLS token and final norm."""
        return replace(self, class_token=self.class_token and self.timm_model is not None, final_norm=False)


@dataclass(frozen=True, kw_only=True)
class StagedConfig(BackboneConfig):
    """A trunk of stages; each further stage doubles the width and halves the grid. Tokens are the last stage's."""

    depths: tuple[int, ...]
    """Number of blocks in each stage."""

    EMBEDDING: ClassVar[int] = 4
    """Side of a token of the first stage, in pixels."""

    def doubled(self, first: int, stages: int | None = None) -> tuple[int, ...]:
        """Return a value for each stage, by default of this trunk: `first`, and twice as much in each further stage."""
        return tuple(first << stage for stage in range(len(self.depths) if stages is None else stages))

    @property
    def map_dims(self) -> tuple[int, ...]:
        """Width of each stage."""
        raise NotImplementedError

    @property
    def map_strides(self) -> tuple[int, ...]:
        """Side of a token of each stage, in pixels."""
        return self.doubled(self.EMBEDDING)

    @property
    def dim(self) -> int:
        """Width of the output tokens."""
        return self.map_dims[-1]

    @property
    def num_heads(self) -> int:
        """Number of heads for modules that attend to the last map or relate it by head; convolutions have none."""
        return max(1, self.dim // 64)

    @property
    def patch_size(self) -> int:
        """Side of an output token, in pixels."""
        return self.map_strides[-1]

    @property
    def num_layers(self) -> int:
        """Number of blocks in all stages."""
        return sum(self.depths)


@dataclass(frozen=True, kw_only=True)
class SwinConfig(StagedConfig):
    """A Swin transformer (arXiv 2103.14030)."""

    family: ClassVar[str] = "swin"
    maps_need_norm: ClassVar[bool] = True
    embed_dim: int = 96
    """Width of the first stage."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    first_heads: int = 3
    """Attention heads of the first stage; each further stage doubles them."""
    window: int = 7
    """Side of an attention window, in tokens."""
    final_norm: bool = True

    @property
    def map_dims(self) -> tuple[int, ...]:
        """Width of each stage."""
        return self.doubled(self.embed_dim)

    @property
    def stage_heads(self) -> tuple[int, ...]:
        """Number of attention heads in each stage."""
        return self.doubled(self.first_heads)

    @property
    def num_heads(self) -> int:
        """Attention heads of the last stage."""
        return self.stage_heads[-1]

    def for_pool(self) -> Self:
        """Return the trunk below a pool, without final norm."""
        return replace(self, final_norm=False)


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(StagedConfig):
    """A ResNet of bottlenecks (arXiv 1512.03385)."""

    family: ClassVar[str] = "resnet"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    """Inner width of the first stage's bottlenecks."""

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Inner width of the bottlenecks in each stage."""
        return self.doubled(self.width)

    @property
    def map_dims(self) -> tuple[int, ...]:
        """Width of each stage's output."""
        return self.doubled(4 * self.width)


@dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig(StagedConfig):
    """A ConvNeXt (arXiv 2201.03545) or ConvNeXt V2 (2301.00808)."""

    family: ClassVar[str] = "convnext"
    maps_need_norm: ClassVar[bool] = True
    embed_dim: int = 96
    """Width of the first stage."""
    depths: tuple[int, ...] = (3, 3, 9, 3)
    layer_scale: bool = True
    """Learned scale on each residual branch; V2 has none."""
    response_norm: bool = False
    """Normalisation of channels by their response inside each MLP (V2)."""
    norm_eps: float = 1e-6
    """Epsilon of the layer norms."""
    final_norm: bool = True

    @property
    def map_dims(self) -> tuple[int, ...]:
        """Width of each stage."""
        return self.doubled(self.embed_dim)

    def for_pool(self) -> Self:
        """Return the trunk below a pool, without final norm."""
        return replace(self, final_norm=False)


FAMILIES = {cls.family: cls for cls in (ViTConfig, SwinConfig, ResNetConfig, ConvNeXtConfig)}

MAX_SIZE = 100_000
"""Largest width or number of anything in a configuration; a guard against damaged files."""
MAX_STAGES = 8
MAX_FIELDS = 100

AnyBackboneConfig = ViTConfig | SwinConfig | ResNetConfig | ConvNeXtConfig


def backbone_config_from_dict(values: Mapping[str, Any]) -> AnyBackboneConfig:
    """Return the configuration that `BackboneConfig.to_dict` gave; lists become tuples, as JSON has only lists.

    Raises:
        ValueError: the values are of no known family, or one of them is unknown, missing or out of range.
    """
    if not isinstance(values, Mapping) or len(values) > MAX_FIELDS:
        raise ValueError(f"the architecture is a {type(values).__name__}; use a mapping of names to values")
    plain = dict(values)
    odd = [name for name, value in plain.items() if not (isinstance(name, str) and _is_plain(value))]
    if odd:
        name = odd[0] if isinstance(odd[0], str) else "a name"
        kind = type(plain[odd[0]]).__name__
        raise ValueError(f"{name[:40]} is an unusual {kind}; use a number, a short text or a short list of numbers")
    family = plain.pop("family", "vit")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"family is {family!r}; use one of: {', '.join(FAMILIES)}")
    cls = FAMILIES[family]
    kinds, known = get_type_hints(cls), {field.name: field for field in fields(cls)}
    unknown = next((name for name in plain if name not in known), None)
    if unknown is not None:
        raise ValueError(unknown_name(unknown, unknown, known))
    missing = [name for name, field in known.items() if field.default is MISSING and name not in plain]
    if missing:
        raise ValueError(f"{missing[0]} is not given; it has no default")
    plain = {name: checked(value, _in_range(name, kinds[name]), name) for name, value in plain.items()}
    config: AnyBackboneConfig = cls(**plain)
    if len(config.mean) != len(config.std):
        raise ValueError(
            f"mean has {counted(len(config.mean), 'value')} and std {len(config.std)}; give one of each per channel"
        )
    return config


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, a text or a list of a length that a configuration may hold."""
    if isinstance(value, list | tuple):
        return len(value) <= MAX_FIELDS and all(_is_plain(x) and not isinstance(x, list | tuple) for x in value)
    if isinstance(value, str):
        return len(value) <= MAX_FIELDS
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**MAX_FIELDS)


def _in_range(name: str, kind: Any) -> Any:
    """Return the type of a field with the range that every network is in."""
    size = Annotated[int, Ge(0 if name == "num_registers" else 1), Le(MAX_SIZE)]
    ranges: dict[Any, Any] = {
        int: size,
        int | None: size | None,
        tuple[int, ...]: Annotated[tuple[size, ...], Len(1, MAX_STAGES)],
    }
    positive = Annotated[float, Gt(0), Le(MAX_SIZE)]
    ranges |= {float: positive, float | None: positive | None}
    return Annotated[tuple[Annotated[float, Gt(0)], ...], Len(1)] if name == "std" else ranges.get(kind, kind)
