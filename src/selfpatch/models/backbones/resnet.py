"""ResNets, for the methods and released weights that the papers compare with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import ClassVar

from timm.models.resnet import Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor

from selfpatch.core.types import Tokens
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.config import ResNetConfig
from selfpatch.models.layers.batch_norm import BatchNorm2d

SIZES = {"resnet50": (3, 4, 6, 3)}
"""Bottlenecks of each stage by name (arXiv 1512.03385)."""


class ResNet(Backbone):
    """A timm `ResNet` whose batch norms go over the global batch. Its tokens are the last map; it has no patches to
    mask."""

    maskable: ClassVar[bool] = False
    trunk: TimmResNet
    config: ResNetConfig

    def __init__(self, trunk: TimmResNet, config: ResNetConfig) -> None:
        super().__init__(trunk, config)
        BatchNorm2d.convert(trunk)

    def embed(self, images: Tensor) -> Tensor:
        trunk = self.trunk
        return trunk.maxpool(trunk.act1(trunk.bn1(trunk.conv1(images)))).movedim(1, -1)

    def encode(self, embedded: Tensor) -> Tokens:
        *_, (_, last) = self._maps(embedded, len(self.config.depths))
        return Tokens(None, last, last)

    @property
    def map_dims(self) -> tuple[int, ...]:
        return tuple(4 * self.config.width << stage for stage in range(len(self.config.depths)))

    def _maps(self, embedded: Tensor, last: int) -> Iterator[tuple[int, Tensor]]:
        x = embedded.movedim(-1, 1)
        for number, stage in enumerate(self._stages()[:last], start=1):
            x = getattr(self.trunk, stage)(x)
            yield number, x.movedim(1, -1)

    def _stages(self) -> list[str]:
        return [f"layer{i + 1}" for i in range(len(self.config.depths))]

    @property
    def num_layers(self) -> int:
        return sum(self.config.depths)

    def layer_of(self, name: str) -> int:
        _, part, *rest = name.split(".")
        if part in self._stages():
            before = [0, *accumulate(self.config.depths)][self._stages().index(part)]
            return 1 + before + int(rest[0])
        return 0


def build_resnet(shape: ResNetConfig, *, drop_path: float = 0.0) -> ResNet:
    """A freshly initialised ResNet."""
    trunk = TimmResNet(
        block=Bottleneck,  # type: ignore[arg-type]  # timm's annotation means the class
        layers=shape.depths,
        num_classes=0,
        in_chans=shape.in_channels,
        channels=tuple(shape.width << stage for stage in range(len(shape.depths))),
        drop_path_rate=drop_path,
    )
    return ResNet(trunk, shape)
