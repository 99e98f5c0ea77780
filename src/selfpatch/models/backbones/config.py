"""All that decides the parameters of a backbone: plain values, saved beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Self

from selfpatch.ops.images import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What every family has. Each also says of its output: `dim`, `num_heads` and `patch_size`, the side in pixels of
    what one token stands for."""

    family: ClassVar[str]
    in_channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    """Of the channels, that images are normalised with."""
    timm_model: str | None = None
    """Name of the timm model that was built; the other fields then only describe it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `backbone_config_from_dict` reads."""
        return {"family": self.family, **asdict(self)}

    def for_pool(self) -> Self:
        """The trunk below a pool that makes the image token from raw patches, with a norm of its own."""
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
    """Side of the stored grid of position embeddings."""
    class_token: bool = True
    num_registers: int = 0
    """Register tokens (DINOv2); then no position embedding is added to the CLS token."""
    final_norm: bool = True
    layer_scale: bool = False
    """Each residual branch has a learned scale (CaiT, DINOv2)."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    position_embedding: Literal["released", "size"] = "released"

    @property
    def dim(self) -> int:
        return self.embed_dim

    def for_pool(self) -> Self:
        """Neither CLS token nor final norm."""
        return replace(self, class_token=self.class_token and self.timm_model is not None, final_norm=False)


@dataclass(frozen=True, kw_only=True)
class SwinConfig(BackboneConfig):
    """A Swin transformer (arXiv 2103.14030); its tokens are those of the last stage."""

    family: ClassVar[str] = "swin"
    embed_dim: int = 96
    """Of the first stage; each further one doubles it, and halves the grid."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    first_heads: int = 3
    """Attention heads of the first stage; each further one doubles them."""
    window: int = 7
    final_norm: bool = True

    EMBEDDING: ClassVar[int] = 4
    """Side of the patches that are embedded."""

    @property
    def dim(self) -> int:
        return self.embed_dim << (len(self.depths) - 1)

    @property
    def num_heads(self) -> int:
        return self.first_heads << (len(self.depths) - 1)

    @property
    def patch_size(self) -> int:
        return self.EMBEDDING << (len(self.depths) - 1)

    def for_pool(self) -> Self:
        """No final norm."""
        return replace(self, final_norm=False)


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(BackboneConfig):
    """A ResNet of bottlenecks (arXiv 1512.03385); its tokens are the last map."""

    family: ClassVar[str] = "resnet"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    """Of the first stage's bottlenecks; each further one doubles it."""

    @property
    def dim(self) -> int:
        return 4 * self.width << (len(self.depths) - 1)

    @property
    def num_heads(self) -> int:
        """A convolutional trunk has none; of what attends to its map, or relates it head by head."""
        return max(1, self.dim // 64)

    @property
    def patch_size(self) -> int:
        return 4 << (len(self.depths) - 1)


FAMILIES: dict[str, type[BackboneConfig]] = {cls.family: cls for cls in (ViTConfig, SwinConfig, ResNetConfig)}

AnyBackboneConfig = ViTConfig | SwinConfig | ResNetConfig


def backbone_config_from_dict(values: Mapping[str, Any]) -> AnyBackboneConfig:
    """The inverse of `BackboneConfig.to_dict`; lists read as tuples, as JSON has no others."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "family"}
    shape = FAMILIES[values.get("family", "vit")](**plain)
    assert isinstance(shape, AnyBackboneConfig)
    return shape
