"""ResNets, for the methods and released weights that the papers compare with."""

from collections.abc import Iterator
from typing import ClassVar

from timm.models.resnet import Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor

from selfpatch.core.types import Tokens
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.config import ResNetConfig
from selfpatch.models.layers.batch_norm import BatchNorm2d


class ResNet(Backbone):
    """A timm `ResNet` with batch norms over the global batch.

    Its tokens are the last map; it has no patches to mask.
    """

    maskable: ClassVar[bool] = False
    trunk: TimmResNet
    config: ResNetConfig

    def __init__(self, trunk: TimmResNet, config: ResNetConfig) -> None:
        super().__init__(trunk, config)
        BatchNorm2d.convert(trunk)

    def embed(self, images: Tensor) -> Tensor:
        """Run images through the stem: [B, C, H, W] -> [B, H / 4, W / 4, E]."""
        trunk = self.trunk
        return trunk.maxpool(trunk.act1(trunk.bn1(trunk.conv1(images)))).movedim(1, -1)

    def encode(self, embedded: Tensor) -> Tokens:
        """Run the stem's output through the stages."""
        *_, (_, last) = self._maps(embedded, len(self.config.depths))
        return Tokens(None, last, last)

    def _maps(self, embedded: Tensor, last: int) -> Iterator[tuple[int, Tensor]]:
        x = embedded.movedim(-1, 1)
        for stage in range(1, last + 1):
            x = self.trunk.get_submodule(f"layer{stage}")(x)
            yield stage, x.movedim(1, -1)

    def layer_of(self, name: str) -> int:
        """Return the number of a parameter's bottleneck, 0 for the stem."""
        _, part, *rest = name.split(".")
        if not part.startswith("layer"):
            return 0
        return 1 + sum(self.config.depths[: int(part.removeprefix("layer")) - 1]) + int(rest[0])

    def freeze_embedding(self) -> None:
        """Raise ValueError: a ResNet has no patch projection."""
        raise ValueError("backbone.freeze_patch_embed is for a ViT or a Swin; a resnet embeds no patches")


def build_resnet(config: ResNetConfig, *, drop_path: float = 0.0) -> ResNet:
    """Build a freshly initialised ResNet."""
    trunk = TimmResNet(
        block=Bottleneck,  # type: ignore[arg-type]  # timm's annotation means the class
        layers=config.depths,
        num_classes=0,
        in_chans=config.in_channels,
        channels=config.stage_widths,
        drop_path_rate=drop_path,
    )
    return ResNet(trunk, config)
