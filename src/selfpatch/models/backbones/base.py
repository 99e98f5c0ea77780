"""The base class of all backbones: images in, `Tokens` out, with patches masked in between."""

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from selfpatch.config.schema import check_sides
from selfpatch.core.text import counted
from selfpatch.core.types import Tokens
from selfpatch.models.backbones.config import AnyBackboneConfig
from selfpatch.models.layers.batch_norm import BatchNorm
from selfpatch.models.layers.lora import LoraLinear

LAYER_PARTS = {"qkv": ("q_proj", "k_proj", "v_proj"), "fc1": ("fc1_g", "fc1_x")}
"""Names of a block's linear layer where it is divided, as in EVA-02: queries, keys and values; gate and input."""
_BLOCK = re.compile(r"(?:.+\.)?(?:blocks|layer[1-4])\.\d+")
"""Names of timm's blocks: those of ViTs, Swins and ConvNeXts, and of ResNets."""

Batch = tuple[Tensor, Tensor | None]
"""Normalised images [B, C, H, W] and their mask [B, h, w], the arguments of a pass."""


class Backbone(nn.Module):
    """A timm model as `images [B, C, H, W] -> Tokens`.

    Attributes:
        trunk: the timm model.
        config: its architecture.
        dim: width D of its tokens.
        patch_size: side of a token in pixels.
        num_layers: number of layers after the embedding.
        map_dims: width of each map that `maps` can give, the first layer first.
        map_strides: side of a token of each such map, in pixels.
        has_class_token: whether `Tokens.cls` is given.
        packable: whether `forward_packed` encodes images of several sizes at once.
        mask_token: [1, E] replacement for embedded patches that are hidden from the student, or None.
    """

    maskable: ClassVar[bool] = True
    embedding_stride: int
    """Side in pixels of the embedded patches, on whose map masks are laid."""
    embedding_dim: int
    has_class_token = False
    packable = False

    def __init__(self, trunk: nn.Module, config: AnyBackboneConfig) -> None:
        super().__init__()
        self.trunk = trunk
        self.config = config
        self.dim, self.num_heads, self.patch_size = config.dim, config.num_heads, config.patch_size
        self.num_layers, self.map_dims, self.map_strides = config.num_layers, config.map_dims, config.map_strides
        self.mean, self.std = config.mean, config.std
        self.register_parameter("mask_token", None)

    @property
    def final_norm(self) -> nn.LayerNorm | None:
        """Norm after the last layer, or None if the trunk has none."""
        norm = dict(self.trunk.named_children()).get("norm")
        return norm if isinstance(norm, nn.LayerNorm) else None

    def keep_class_attention(self) -> None:
        """Return the CLS token's attention with the tokens from now on.

        Raises:
            ValueError: there is no CLS token.
        """
        raise ValueError(
            f"the foreground is what a CLS token attends to, but this {self.config.family} has none; use a ViT with a "
            "CLS token, or learn from all patches with --leopart.foreground false"
        )

    def add_mask_token(self) -> None:
        """Add the mask token; only if something masks, since DDP waits for a parameter without gradient."""
        self.mask_token = nn.Parameter(torch.zeros(1, self.embedding_dim))

    def check_size(self, height: int, width: int, patch_size: int | None = None) -> None:
        """Raise ValueError if a patch size, by default that of the tokens, does not divide the image."""
        check_sides((height, width), self.patch_size if patch_size is None else patch_size)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tokens:
        """Encode normalised images [B, C, H, W]; the mask token replaces embedded patches where mask [B, h, w] is True.

        Raises:
            ValueError: the patch size does not divide a side.
        """
        return self.encode(self.embed_visible(images, mask))

    def forward_each(self, batches: Sequence[Batch]) -> list[Tokens]:
        """Encode batches of images of several sizes, one batch after the other."""
        return [self(images, mask) for images, mask in batches]

    def forward_packed(self, batches: Sequence[Batch]) -> list[Tokens]:
        """Encode batches as `forward_each` does, their tokens in one sequence; only if the backbone is `packable`."""
        raise NotImplementedError

    def embed_visible(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed patches [B, h, w, E], with the mask token where mask [B, h, w] is True; arguments as for `forward`."""
        self.check_size(*images.shape[-2:])
        embedded = self.embed(images)
        return embedded if mask is None else self._mask(embedded, mask)

    def _mask(self, embedded: Tensor, mask: Tensor) -> Tensor:
        assert self.mask_token is not None
        finer = self.patch_size // self.embedding_stride
        if finer > 1:
            mask = mask.repeat_interleave(finer, 1).repeat_interleave(finer, 2)
        return torch.where(mask[..., None], self.mask_token.to(embedded.dtype), embedded)

    def embed(self, images: Tensor) -> Tensor:
        """Embed patches: [B, C, H, W] -> [B, H / embedding_stride, W / embedding_stride, E]."""
        return self.trunk.get_submodule("patch_embed")(images)

    def encode(self, embedded: Tensor) -> Tokens:
        """Run embedded patches through the rest of the trunk."""
        raise NotImplementedError

    def maps(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the outputs of inner layers before any norm, for decoders that read several of them.

        Layers are numbers of blocks of a ViT, or of stages of a Swin or a ResNet; the first one is 1. Images are as for
        `forward`, but only the stride of the last of these layers needs to divide their sides. The maps are
        [B, h, w, D], each in its layer's size and width.

        Raises:
            ValueError: there is no such layer, or its stride does not divide a side.
        """
        count = len(self.map_dims)
        for layer in layers:
            if not 1 <= layer <= count:
                raise ValueError(f"layer is {layer}, but this {self.config.family} has 1 to {count}; use one of these")
        height, width = images.shape[-2:]
        self.check_size(height, width, self.map_strides[max(layers) - 1])
        found = dict(self._maps(self.embed(images), max(layers)))
        return [found[layer] for layer in layers]

    def _maps(self, embedded: Tensor, last: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (layer, map) up to the layer `last`."""
        raise NotImplementedError

    def blocks(self) -> list[nn.Module]:
        """Return the residual blocks, which hold most parameters and activations, in their order."""
        return [module for name, module in self.trunk.named_modules() if _BLOCK.fullmatch(name)]

    def repeated_blocks(self) -> Sequence[nn.Module]:
        """Return blocks that are all alike, so that compiling one of them serves all.

        Raises:
            ValueError: there are none.
        """
        raise ValueError(f"compile is for a ViT; the blocks of a {self.config.family} take minutes each; leave it out")

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter, given its name in this module.

        It is 0 for the embedding, then 1, 2, ...; `num_layers` + 1 for what comes after the last layer.
        """
        raise NotImplementedError

    def freeze_first(self, layers: int) -> None:
        """Freeze the embedding and the first `layers` layers, or all but the last ones if the number is negative.

        Raises:
            ValueError: nothing would be left to train, or nothing frozen.
        """
        if not -self.num_layers < layers < self.num_layers:
            count, most = self.num_layers, self.num_layers - 1
            raise ValueError(
                f"backbone.frozen_blocks is {layers}, but the network has {counted(count, 'block')}; "
                + (f"use at most {most}, or at least -{most} to train the last ones" if most else "leave it out")
            )
        if layers < 0:
            layers += self.num_layers
        for name, parameter in self.named_parameters():
            if name != "mask_token" and self.layer_of(name) <= layers:
                parameter.requires_grad_(False)
        for name, module in self.named_modules():
            if isinstance(module, BatchNorm) and self.layer_of(name) <= layers:
                module.frozen = True

    def add_adapters(self, rank: int, alpha: float, layers: Sequence[str], last_blocks: int | None) -> None:
        """Freeze the trunk but for new low-rank adapters of linear layers, and the norms from the first of them on.

        Args:
            rank: rank of each adapter.
            alpha: see `LoraLinear`.
            layers: names of the linear layers within a block; `qkv` and `fc1` also name the parts of separate ones.
            last_blocks: number of last blocks with adapters; all of them if None.

        Raises:
            ValueError: there are no such layers, or not that many blocks.
        """
        if last_blocks is not None and last_blocks > self.num_layers:
            raise ValueError(
                f"lora.last_blocks is {last_blocks}, but the network has {counted(self.num_layers, 'block')}; use at "
                "most as many"
            )
        before = self.num_layers - (last_blocks or self.num_layers)
        kinds = (nn.Linear, nn.LayerNorm)
        within = {
            name: part
            for name, part in self.named_modules()
            if isinstance(part, kinds) and self.layer_of(f"{name}.weight") > before
        }
        names = {name for layer in layers for name in (layer, *LAYER_PARTS.get(layer, ()))}
        chosen = {
            name: part
            for name, part in within.items()
            if isinstance(part, nn.Linear) and name.rpartition(".")[2] in names
        }
        if not chosen:
            raise ValueError(
                f"lora.layers are {', '.join(layers)}, but a {self.config.family} has no linear layers of these names; "
                "use a ViT or a Swin, or leave lora.rank out"
            )
        self.trunk.requires_grad_(False)
        for part in within.values():
            if isinstance(part, nn.LayerNorm):
                part.requires_grad_(True)
        for name, linear in chosen.items():
            self.set_submodule(name, LoraLinear(linear, rank, alpha))

    def freeze_embedding(self) -> None:
        """Freeze the patch projection, as MoCo-v3 does (arXiv 2104.02057, section 4.2).

        Raises:
            ValueError: the trunk has no patch projection.
        """
        self.trunk.get_submodule("patch_embed.proj").requires_grad_(False)


def disable_drop_path(module: nn.Module) -> None:
    """Set every drop path rate to 0; the module may stay in training mode."""
    for part in module.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0
