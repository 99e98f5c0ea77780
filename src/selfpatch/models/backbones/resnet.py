"""ResNets, for the methods and released weights that the papers compare with."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, ClassVar, Self

from timm.models.resnet import Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn

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

    def with_output_stride(self, stride: int, *, dilate: bool = True) -> Self:
        """Return a copy with finer maps: stages whose stride would exceed `stride` keep the grid of the stage before.

        ::

            dilation = 1
            for each stage after the first:
                if its stride exceeds `stride`:
                    remove the stride of its first bottleneck, whose kernel keeps the dilation so far
                    dilation = 2 * dilation
                dilate the kernels of its other bottlenecks by `dilation`

        It equals torchvision's `replace_stride_with_dilation` and timm's `output_stride`. Without `dilate`, strides are
        removed and kernels stay as they are, as in the released code of Jabri et al. (arXiv 2006.14613). The copy
        shares its weights with this network.

        Args:
            stride: largest stride in pixels, a power of two, at least that of the first stage.
            dilate: whether to dilate kernels.

        Raises:
            ValueError: the network strides elsewhere than in a convolution, e.g. in a pool.
        """
        # The modules are copied, their weights are not: what is moved or replaced in one network is so in the other.
        weights = [part for module in self.modules() for part in (module._parameters, module._buffers)]
        finer = deepcopy(self, {id(part): part for part in weights})
        dilation = 1
        strides = list(self.config.map_strides)
        for number, stage_stride in enumerate(strides, start=1):
            stage: Any = finer.trunk.get_submodule(f"layer{number}")
            first_dilation = dilation
            if stage_stride > stride:
                _remove_stride(stage[0])
                dilation = 2 * dilation if dilate else dilation
            for block, bottleneck in enumerate(stage):
                _dilate(bottleneck.conv2, dilation if block else first_dilation)
        finer.map_strides = tuple(min(stride, stage_stride) for stage_stride in strides)
        finer.patch_size = finer.map_strides[-1]
        return finer

    def layer_of(self, name: str) -> int:
        """Return the number of a parameter's bottleneck, 0 for the stem."""
        _, part, *rest = name.split(".")
        if not part.startswith("layer"):
            return 0
        return 1 + sum(self.config.depths[: int(part.removeprefix("layer")) - 1]) + int(rest[0])

    def freeze_embedding(self) -> None:
        """Raise ValueError: a ResNet has no patch projection."""
        raise ValueError("backbone.freeze_patch_embed is for a ViT or a Swin; a resnet embeds no patches")


def _remove_stride(bottleneck: Bottleneck) -> None:
    """Set the stride of a stage's first bottleneck, and of its shortcut, to 1."""
    strided = [part for part in bottleneck.modules() if isinstance(part, nn.Conv2d) and part.stride == (2, 2)]
    if len(strided) != 2:
        raise ValueError(
            "output_stride is for a ResNet that strides in two convolutions a stage, and this one pools there; "
            "choose a stage instead"
        )
    for part in strided:
        part.stride = (1, 1)


def _dilate(convolution: nn.Conv2d, dilation: int) -> None:
    convolution.dilation = convolution.padding = (dilation, dilation)


def build_resnet(config: ResNetConfig, *, drop_path: float = 0.0) -> ResNet:
    """Build a freshly initialised ResNet.

    Weights are drawn as in torchvision, MoCo, DenseCL and SwAV: every batch norm starts at 1. A last norm of 0 in each
    bottleneck, timm's default, would also have no norm for LARS to scale its steps by.
    """
    trunk = TimmResNet(
        block=Bottleneck,  # type: ignore[arg-type]  # timm's annotation means the class
        layers=config.depths,
        num_classes=0,
        in_chans=config.in_channels,
        channels=config.stage_widths,
        drop_path_rate=drop_path,
        zero_init_last=False,
    )
    return ResNet(trunk, config)
