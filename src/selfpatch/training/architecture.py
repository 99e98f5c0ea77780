"""Architecture of a run's backbone, from the model's name, its settings and the initial weights."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from selfpatch.checkpoints.infer_config import usual_num_heads
from selfpatch.checkpoints.names import TIMM
from selfpatch.config.run import FROM_INIT
from selfpatch.config.schema import Size, height_and_width
from selfpatch.config.sections import BackboneOverrides
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.build import MODELS, build_backbone, build_timm, check_heads, named_backbone_config
from selfpatch.models.backbones.config import AnyBackboneConfig, ConvNeXtConfig, ResNetConfig, ViTConfig
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.pooling import PositivePool


@dataclass(frozen=True)
class BackboneRequest:
    """Settings of a run that decide its backbone, as in `RunConfig`."""

    model: str
    patch_size: int | None
    backbone: BackboneOverrides
    init: str | None
    global_size: Size
    """Size of a global crop in pixels, for which positions are made."""

    def named(self) -> AnyBackboneConfig:
        """Return the architecture that the model's name and the settings decide.

        Raises:
            ValueError: the model is unknown, or a setting does not apply to it.
        """
        b = self.backbone
        if self.model == FROM_INIT:
            raise ValueError(
                "model is 'init', the architecture of the initial weights, but none are named; add --init WEIGHTS"
            )
        if self.model in MODELS:
            grid = self._grid(self.patch_size or 16)
            positions = b.position_embedding or "released"
            return named_backbone_config(
                self.model, grid=grid, position_embedding=positions, patch_size=self.patch_size, **b.architecture()
            )
        architecture = build_timm(self.model.removeprefix(TIMM)).config
        self._refuse_sizes(f"the timm model {self.model!r} has its own")
        if b.position_embedding not in (None, "size"):
            raise ValueError(
                "backbone.position_embedding is 'released', but a timm model interpolates by 'size'; leave it out"
            )
        if isinstance(architecture, ViTConfig):
            return replace(architecture, grid=self._grid(architecture.patch_size))
        return architecture

    def _grid(self, patch_size: int) -> int:
        """Return the side of the grid of positions that are learned, in patches.

        It is the shorter side of a global crop, and the positions of other crops are interpolated. It is square because
        the formats of DINO's family, of Hugging Face and of timm know no other grid. It is not the longer side, because
        interpolating to fewer rows would leave some directions of the stored positions as they were initialised.
        """
        return max(1, min(height_and_width(self.global_size)) // patch_size)

    def for_weights(self, weights: AnyBackboneConfig) -> AnyBackboneConfig:
        """Return the architecture that weights are loaded into.

        The weights or the settings decide it; position grid, epsilon of the norms, base of the rotations and image
        normalisation always come from the weights. Register tokens may be added to a ViT that was trained without.
        """
        b = self.backbone
        if self.model == FROM_INIT:
            new_registers = isinstance(weights, ViTConfig) and weights.timm_model is None
            free = ("num_heads", "registers") if new_registers else ("num_heads",)
            self._refuse_sizes(f"model 'init' is as the weights in {self.init}", but=free)
            architecture = weights
            if isinstance(weights, ViTConfig) and b.registers is not None:
                architecture = replace(weights, num_registers=b.registers)
        else:
            architecture = replace(self.named(), mean=weights.mean, std=weights.std, in_channels=weights.in_channels)
        if isinstance(architecture, ConvNeXtConfig) and isinstance(weights, ConvNeXtConfig):
            return replace(architecture, norm_eps=weights.norm_eps)
        if not (isinstance(architecture, ViTConfig) and isinstance(weights, ViTConfig)):
            return architecture
        if b.num_heads is not None and self.model == FROM_INIT:
            check_heads(architecture.embed_dim, b.num_heads)
        usual = usual_num_heads(weights.embed_dim, gated=weights.mlp == "swiglu")
        guessed = weights.num_heads == usual  # most files do not show the number of heads
        heads = b.num_heads or (architecture.num_heads if guessed else weights.num_heads)
        positions = b.position_embedding or weights.position_embedding
        return replace(
            architecture,
            grid=weights.grid,
            num_heads=heads,
            position_embedding=positions,
            norm_eps=weights.norm_eps,
            rope_base=weights.rope_base,
        )

    def _refuse_sizes(self, reason: str, but: tuple[str, ...] = ()) -> None:
        """Raise ValueError if the settings give a size of the network that is decided elsewhere."""
        sizes: dict[str, Any] = {f"backbone.{name}": value for name, value in self.backbone.architecture().items()}
        for name, value in {"patch_size": self.patch_size, **sizes}.items():
            if value is not None and name.removeprefix("backbone.") not in but:
                raise ValueError(f"{name} is {value}, but {reason}; leave it out")

    def below_pool(
        self, architecture: AnyBackboneConfig, weights: AnyBackboneConfig | None, pool: nn.Module
    ) -> AnyBackboneConfig:
        """Return the trunk of a new run below a pool.

        It has neither CLS token nor final norm, unless its initial weights do: without either, patches would be others
        than those that the weights were trained to give, before the first step.
        """
        below = architecture.for_pool()
        if isinstance(below, ViTConfig) and isinstance(architecture, ViTConfig):
            keep = self.backbone.keep_class_token
            if keep or (keep is None and isinstance(weights, ViTConfig) and weights.class_token):
                below = replace(below, class_token=architecture.class_token)
        # Only a positive pool goes on with the trunk's norm; another one would leave it without gradient.
        if (
            not isinstance(pool, PositivePool)
            or isinstance(below, ResNetConfig)
            or isinstance(weights, ResNetConfig | None)
        ):
            return below
        return replace(below, final_norm=weights.final_norm)

    def build(self, architecture: AnyBackboneConfig) -> Backbone:
        """Return the freshly initialised backbone.

        Raises:
            ValueError: a setting does not apply to it.
        """
        b, backbone = self.backbone, build_backbone(architecture, drop_path=self.backbone.drop_path)
        if b.initialisation == "xavier":
            if not isinstance(backbone, ViT):
                raise ValueError(
                    f"backbone.initialisation 'xavier' is for a ViT, but the model is {self.model}; leave it out"
                )
            backbone.draw_xavier_weights()
        if b.positions == "sincos":
            if self.init is not None:
                raise ValueError(
                    "backbone.positions is 'sincos', but the weights of init bring their own; leave it out"
                )
            if not isinstance(backbone, ViT) or backbone.trunk.pos_embed is None:
                raise ValueError(f"backbone.positions is 'sincos', but {self.model} has no position embeddings to fix")
            backbone.fix_positions()
        if b.rope_rescale != 1:
            if not isinstance(backbone, ViT):
                raise ValueError(
                    f"backbone.rope_rescale is for a ViT with rotary positions, but the model is {self.model}; "
                    "leave it out"
                )
            backbone.rescale_rope(b.rope_rescale)
        if b.freeze_patch_embed:
            backbone.freeze_embedding()
        return backbone
