"""ConvNeXts (arXiv 2201.03545; V2, 2301.00808), as DINOv3 distils them too (2508.10104)."""

from collections.abc import Iterator
from typing import ClassVar

from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor, nn

from selfpatch.core.types import Tokens
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.config import ConvNeXtConfig

MOST_STAGES = 4


class ConvNeXt(Backbone):
    """A timm `ConvNeXt` whose final norm is `norm`, for the mean of the last map and for each of its positions alike.

    Its tokens are the last map; it has no patches to mask. Its image token, given as `Tokens.cls`, is the norm of the
    mean, as in the released code, not the mean of the normed patches.
    """

    maskable: ClassVar[bool] = False
    has_class_token = True
    trunk: TimmConvNeXt
    config: ConvNeXtConfig

    def embed(self, images: Tensor) -> Tensor:
        """Run images through the stem: [B, C, H, W] -> [B, H / 4, W / 4, E]."""
        return self.trunk.stem(images).movedim(1, -1)

    def encode(self, embedded: Tensor) -> Tokens:
        """Run the stem's output through the stages and the final norm."""
        *_, (_, raw) = self._maps(embedded, len(self.config.depths))
        norm = self.trunk.get_submodule("norm")
        return Tokens(norm(raw.mean((1, 2))), norm(raw), raw)

    def _maps(self, embedded: Tensor, last: int) -> Iterator[tuple[int, Tensor]]:
        x = embedded.movedim(-1, 1)
        for number, stage in enumerate(self.trunk.stages[:last], start=1):
            x = stage(x)
            yield number, x.movedim(1, -1)

    def layer_of(self, name: str) -> int:
        """Return the number of a parameter's block; the downsampling before a stage belongs to its first block."""
        _, part, *rest = name.split(".")
        if part == "stages":
            stage, kind, *block = rest
            return 1 + sum(self.config.depths[: int(stage)]) + (int(block[0]) if kind == "blocks" else 0)
        return self.num_layers + 1 if part == "norm" else 0

    def freeze_embedding(self) -> None:
        """Freeze the first convolution, which embeds patches of four pixels."""
        self.trunk.get_submodule("stem.0").requires_grad_(False)


def build_convnext(config: ConvNeXtConfig, *, drop_path: float = 0.0) -> ConvNeXt:
    """Build a freshly initialised ConvNeXt.

    Raises:
        ValueError: there are more than four stages.
    """
    missing = MOST_STAGES - len(config.depths)
    if missing < 0:
        raise ValueError(f"a ConvNeXt has at most {MOST_STAGES} stages, not {len(config.depths)}; shorten its depths")
    trunk = TimmConvNeXt(
        in_chans=config.in_channels,
        num_classes=0,
        depths=(*config.depths, *(1,) * missing),
        dims=config.doubled(config.embed_dim, MOST_STAGES),
        ls_init_value=1e-6 if config.layer_scale else None,
        use_grn=config.response_norm,
        norm_eps=config.norm_eps,
        drop_path_rate=drop_path,
    )
    trunk.stages = trunk.stages[: len(config.depths)]
    trunk.head = nn.Identity()  # type: ignore[assignment]
    trunk.add_module("norm", nn.LayerNorm(config.dim, eps=config.norm_eps) if config.final_norm else nn.Identity())
    return ConvNeXt(trunk, config)
