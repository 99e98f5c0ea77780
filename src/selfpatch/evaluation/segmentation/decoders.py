"""Decoders for semantic segmentation: from maps of four resolutions to logits at the finest one.

Sources: Semantic FPN, Kirillov et al., "Panoptic Feature Pyramid Networks" (arXiv 1901.02446); UPerNet, Xiao et al.,
"Unified Perceptual Parsing for Scene Understanding" (arXiv 1807.10221); both as mmsegmentation builds them, with which
the papers used. All take maps [B, D_i, h_i, w_i], the finest first, and return logits [B, K, h_1, w_1].
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "group"]
"""Norm of the decoder: batch norm, or group norm, which also trains on a batch of one image."""
POOL_SCALES = (1, 2, 3, 6)
DROPOUT = 0.1


class SemanticFPN(nn.Module):
    """A feature pyramid network and a head that upsamples every level to the finest one.

        top = None
        for map i from the coarsest to the finest:
            top = lateral_i(map_i) + enlarged(top)
            level_i = smooth_i(top)
            repeat max(1, i) times:  level_i = conv-norm-ReLU(level_i), enlarged twofold unless i = 0
        logits = classify(sum of the levels at the size of level 0)

    Levels are enlarged by their number, not by their size, as the released head is configured for strides 4, 8, 16 and
    32. Where all maps have one size, as in SelfPatch's released code, enlarged levels are reduced again.

    `dims` are the widths of the maps, the finest first; `channels` the width of the pyramid. The head alone has norms.
    """

    def __init__(
        self,
        dims: Sequence[int],
        num_classes: int,
        *,
        channels: int = 256,
        head_channels: int = 128,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(dim, channels, 1) for dim in dims)
        self.smoothing = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in dims)
        for conv in (*self.laterals, *self.smoothing):
            nn.init.xavier_uniform_(conv.get_parameter("weight"))
            nn.init.zeros_(conv.get_parameter("bias"))
        self.heads = nn.ModuleList(_scale_head(level, channels, head_channels, norm) for level in range(len(dims)))
        self.classify = _classifier(head_channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits [B, K, h_1, w_1] of four maps, the finest first."""
        pyramid = _top_down([lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)], "nearest")
        levels = [smooth(x) for smooth, x in zip(self.smoothing, pyramid, strict=True)]
        outputs = (head(level) for head, level in zip(self.heads, levels, strict=True))
        finest = next(outputs)
        return self.classify(sum((_resized(output, finest) for output in outputs), start=finest))


class UPerNet(nn.Module):
    """Pyramid pooling on the coarsest map, a feature pyramid network below, all levels side by side.

        level_4 = bottleneck(map_4, and its means over 1x1, 2x2, 3x3 and 6x6 cells, each reduced and enlarged)
        for i in 3, 2, 1:  top_i = lateral_i(map_i) + enlarged(top_{i+1});  level_i = smooth_i(top_i)
        logits = classify(fuse(all levels enlarged to level 1))

    `dims` are the widths of the maps, the finest first; `channels` is the width of every layer.
    """

    def __init__(self, dims: Sequence[int], num_classes: int, *, channels: int = 512, norm: Norm = "batch") -> None:
        super().__init__()
        *finer, coarsest = dims
        self.pooled = nn.ModuleList(_conv(coarsest, channels, 1, norm) for _ in POOL_SCALES)
        self.bottleneck = _conv(coarsest + len(POOL_SCALES) * channels, channels, 3, norm)
        self.laterals = nn.ModuleList(_conv(dim, channels, 1, norm) for dim in finer)
        self.smoothing = nn.ModuleList(_conv(channels, channels, 3, norm) for _ in finer)
        self.fuse = _conv(len(dims) * channels, channels, 3, norm)
        self.classify = _classifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits [B, K, h_1, w_1] of four maps, the finest first."""
        laterals = [lateral(x) for lateral, x in zip(self.laterals, maps[:-1], strict=True)]
        *finer, coarsest = _top_down([*laterals, self._pool(maps[-1])], "bilinear")
        levels = [*(smooth(x) for smooth, x in zip(self.smoothing, finer, strict=True)), coarsest]
        return self.classify(self.fuse(torch.cat([_resized(level, levels[0]) for level in levels], dim=1)))

    def _pool(self, x: Tensor) -> Tensor:
        scales = zip(self.pooled, POOL_SCALES, strict=True)
        means = [_resized(reduce(F.adaptive_avg_pool2d(x, scale)), x) for reduce, scale in scales]
        return self.bottleneck(torch.cat([x, *means], dim=1))


class FCNHead(nn.Module):
    """Auxiliary head of UPerNet on one map: convolution, norm, ReLU, classifier."""

    def __init__(self, dim: int, num_classes: int, *, channels: int = 256, norm: Norm = "batch") -> None:
        super().__init__()
        self.conv = _conv(dim, channels, 3, norm)
        self.classify = _classifier(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K, h, w] of a map [B, D, h, w]."""
        return self.classify(self.conv(x))


def _scale_head(level: int, channels: int, head_channels: int, norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for step in range(max(1, level)):
        layers.append(_conv(head_channels if step else channels, head_channels, 3, norm))
        if level:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
    return nn.Sequential(*layers)


def _top_down(laterals: list[Tensor], mode: str) -> list[Tensor]:
    """Add to every map the enlarged sum of the coarser ones."""
    summed = [laterals[-1]]
    for lateral in laterals[-2::-1]:
        summed.insert(0, lateral + _resized(summed[0], lateral, mode))
    return summed


def _resized(x: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode=mode)


def _conv(inputs: int, outputs: int, kernel: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, norm_layer(outputs, norm), nn.ReLU(inplace=True))


def _classifier(channels: int, num_classes: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.get_parameter("bias"))
    return nn.Sequential(nn.Dropout2d(DROPOUT), conv)


def norm_layer(channels: int, norm: Norm) -> nn.Module:
    """Return a norm for maps [B, channels, h, w]."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    groups = math.gcd(32, channels)
    # A group of a single channel is always 0 where the map is 1 x 1, so groups have two at least.
    return nn.GroupNorm(groups if groups < channels else max(1, channels // 2), channels)
