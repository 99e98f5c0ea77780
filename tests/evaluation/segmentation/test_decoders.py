"""Decoders of semantic segmentation: published parameter counts, and what they compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfpatch.evaluation.feature_pyramid import THIRDS, default_maps
from selfpatch.evaluation.segmentation.decoder_config import UPerNetConfig
from selfpatch.evaluation.segmentation.decoders import FCNHead, SemanticFPN, UPerNet
from selfpatch.evaluation.segmentation.segmenter import Segmenter, Taps
from selfpatch.models.backbones.build import build_backbone, named_backbone_config


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_a_semantic_fpn_has_the_parameters_of_the_released_one() -> None:
    laterals, smoothing = 4 * (384 * 256 + 256), 4 * (256 * 256 * 9 + 256)
    first = 256 * 128 * 9 + 2 * 128  # convolution without bias, norm
    further = 128 * 128 * 9 + 2 * 128
    head = 4 * first + 3 * further  # 1, 1, 2 and 3 convolutions
    assert laterals + smoothing + head + 128 * 150 + 150 == 4_397_718
    with torch.device("meta"):
        assert count(SemanticFPN([384] * 4, 150)) == 4_397_718
        resnet = build_backbone(named_backbone_config("resnet50"))
        # "Pyramid Vision Transformer" (arXiv 2102.12122), table 4: Semantic FPN of a ResNet-50 on ADE20K.
        assert round(count(resnet, SemanticFPN(resnet.map_dims, 150)) / 1e6, 1) == 28.5


def test_an_upernet_has_the_parameters_of_the_published_one() -> None:
    reduced, three = 768 * 512 + 1024, 512 * 512 * 9 + 1024
    bottleneck = (768 + 4 * 512) * 512 * 9 + 1024
    expected = 4 * reduced + bottleneck + 3 * reduced + 3 * three + 4 * 512 * 512 * 9 + 1024 + 512 * 150 + 150
    assert expected == 32_332_950
    with torch.device("meta"):
        assert count(UPerNet([768] * 4, 150)) == expected
        assert count(FCNHead(768, 150)) == 768 * 256 * 9 + 512 + 256 * 150 + 150
        for name, millions in {"swin_tiny": 60, "swin_small": 81, "swin_base": 121}.items():
            swin = build_backbone(named_backbone_config(name))
            taps = Taps(swin, default_maps(swin, THIRDS), normed=False)
            network = Segmenter(taps, 150, UPerNetConfig(channels=512))
            assert round(count(network) / 1e6) == millions, "of arXiv 2103.14030, table 3"


def test_a_semantic_fpn_computes_what_its_docstring_says() -> None:
    torch.manual_seed(0)
    fpn = SemanticFPN([4] * 4, 3, channels=6, head_channels=5).eval()
    maps = [torch.randn(1, 4, side, side) for side in (16, 8, 4, 2)]
    top, summed = None, torch.zeros(1, 5, 16, 16)
    for i in reversed(range(4)):
        top = fpn.laterals[i](maps[i]) + (0 if top is None else top.repeat_interleave(2, 2).repeat_interleave(2, 3))
        level = fpn.smoothing[i](top)
        for part in fpn.heads[i]:
            enlarges = isinstance(part, nn.Upsample)
            level = F.interpolate(level, scale_factor=2, mode="bilinear") if enlarges else part(level)
        assert sum(isinstance(part, nn.Sequential) for part in fpn.heads[i]) == max(1, i)
        summed = summed + level
    torch.testing.assert_close(fpn(maps), fpn.classify(summed))


THEIR_NAMES = {
    "pooled.": "psp_modules.",
    "laterals.": "lateral_convs.",
    "smoothing.": "fpn_convs.",
    "fuse.": "fpn_bottleneck.",
}


def test_an_upernet_computes_what_that_of_transformers_does() -> None:
    upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    config = pytest.importorskip("transformers").UperNetConfig(hidden_size=6, num_labels=3)
    torch.manual_seed(0)
    ours, theirs = UPerNet([4, 5, 6, 7], 3, channels=6).eval(), upernet.UperNetHead(config, [4, 5, 6, 7]).eval()

    def their_name(name: str) -> str:
        for mine, other in THEIR_NAMES.items():
            name = name.replace(mine, other) if name.startswith(mine) else name
        *parts, index, kind = name.split(".")
        if parts == ["classify"]:
            return f"classifier.{kind}"
        block = [*parts, "1"] if parts[0] == "psp_modules" else parts  # their first one pools
        return ".".join([*block, ("conv", "batch_norm")[int(index)], kind])

    theirs.load_state_dict({their_name(name): value for name, value in ours.state_dict().items()}, strict=True)
    maps = [torch.randn(2, dim, side, side + 1) for dim, side in ((4, 17), (5, 9), (6, 5), (7, 3))]
    torch.testing.assert_close(ours(maps), theirs(maps))
