"""A Python function as an encoder: what it may return, what is found out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.evaluation.encoders import FunctionEncoder, MeanColour, in_precision
from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from selfpatch.evaluation.video_segmentation.evaluate import evaluate
from tests.helpers.command_line import write_davis

IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
MEANS = F.avg_pool2d(IMAGES, 8)


def as_map(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 8)


def as_tokens(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 8).flatten(2).movedim(1, 2)


def as_tokens_after_two_others(images: Tensor) -> Tensor:
    return F.pad(as_tokens(images), (0, 0, 2, 0), value=9.0)


@pytest.mark.parametrize(
    ("function", "prefix"), [(as_map, 0), (as_tokens, 0), (as_tokens_after_two_others, 2), (as_map, 2)]
)
def test_what_a_function_may_return(function, prefix: int) -> None:
    encoder = FunctionEncoder(function, 8, prefix_tokens=prefix)
    assert isinstance(encoder, Encoder)
    torch.testing.assert_close(encoder.patches(IMAGES), MEANS)
    torch.testing.assert_close(encoder.image(IMAGES), MEANS.mean((2, 3)))
    assert encoder.dim == 3


def test_as_good_as_the_encoder_it_is(tmp_path: Path) -> None:
    tree = write_davis(tmp_path / "davis")
    encoder = FunctionEncoder(as_tokens, 8, mean=(0, 0, 0), std=(1, 1, 1))
    config = DAVISConfig(resolution=48)
    assert evaluate(encoder, tree, config) == evaluate(MeanColour(8), tree, config)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 5, 14, 14, dtype=torch.bfloat16)
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape))
        return self.embed(images.bfloat16())


def test_a_network_and_its_methods() -> None:
    """The width is found by one black image of about 224 pixels, the device is the network's, features are float32 and
    have no gradient."""
    network = Network()
    encoder = FunctionEncoder(network, 14)
    assert encoder.dim == 5
    assert network.sizes == [(1, 3, 224, 224)]
    features = encoder.patches(torch.zeros(1, 3, 28, 14))
    assert (features.dtype, features.requires_grad, features.shape) == (torch.float32, False, (1, 5, 2, 1))
    network.to("meta")
    for function in (network, network.forward):
        assert FunctionEncoder(function, 14).device.type == "meta"
    assert FunctionEncoder(network, 14, 5, device="cpu").device.type == "cpu"
    assert FunctionEncoder(as_map, 8).device.type == "cpu"
    assert FunctionEncoder(nn.AvgPool2d(8), 8).device.type == "cpu"


def test_dim_is_not_asked_of_the_function_when_told() -> None:
    network = Network()
    assert FunctionEncoder(network, 14, 5).dim == 5
    assert network.sizes == []


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (as_tokens_after_two_others, r"\[2, 26, 3\]; return .* \[2, 24, D\]; .* set prefix_tokens=2"),
        (lambda x: as_map(x).movedim(1, -1), r"\[2, 4, 6, 3\]; return \[2, D, 4, 6\] .* move the last axis"),
        (lambda x: as_map(x).mean((2, 3)), r"\[2, 3\]; return .* image features"),
        (lambda x: F.avg_pool2d(x, 16), r"\[2, 3, 2, 3\]; return \[2, D, 4, 6\] .* for patches of 8 pixels"),
        (lambda x: as_tokens(x)[:, 1:], r"\[2, 23, 3\]; return"),
        (lambda x: as_map(x)[:1], r"\[1, 3, 4, 6\]; return \[2, D, 4, 6\]"),
        (lambda x: x.mean(), r"shape \[\]; return"),
        (lambda x: {"tokens": x}, "returned a dict; it must return one tensor"),
        (lambda x: as_map(x).repeat(1, 2, 1, 1), "width 6, but dim is 3"),
    ],
)
def test_what_a_function_may_not_return(function, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FunctionEncoder(function, 8, 3).patches(IMAGES)


def test_images_that_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="48 x 30 pixels cannot be cut into patches of 8"):
        FunctionEncoder(as_map, 8).patches(IMAGES[:, :, :30])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function": "resnet"}, "function is 'resnet', which cannot be called"),
        ({"patch_size": 0}, "use patch_size >= 1"),
        ({"dim": 0}, "dim >= 1"),
        ({"prefix_tokens": -1}, "prefix_tokens >= 0"),
        ({"mean": (0.5,)}, "one number a channel"),
        ({"std": (1, 1, 0)}, "std above 0"),
        ({"function": lambda x: x}, r"shape \[1, 3, 224, 224\]; return \[1, D, 28, 28\]"),
    ],
)
def test_what_is_no_encoder(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FunctionEncoder(**{"function": as_map, "patch_size": 8, **changes})


def test_an_encoder_in_bfloat16_gives_float32() -> None:
    torch.manual_seed(0)
    encoder = ConvolutionInFloat32()
    images = torch.rand(2, 3, 32, 32)
    assert in_precision(encoder, "float32") is encoder
    rounded = in_precision(encoder, "bf16")
    assert (rounded.dim, rounded.patch_size, rounded.mean, rounded.std) == (8, 16, encoder.mean, encoder.std)
    for exact, other in (
        (encoder.patches(images), rounded.patches(images)),
        (encoder.image(images), rounded.image(images)),
    ):
        assert other.dtype == torch.float32
        assert not torch.equal(exact, other)
        torch.testing.assert_close(exact, other, rtol=0, atol=2e-2)


class ConvolutionInFloat32(MeanColour):
    def __init__(self) -> None:
        super().__init__(16)
        self.dim, self.convolution = 8, nn.Conv2d(3, 8, 16, 16)

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:
        return self.convolution(images)
