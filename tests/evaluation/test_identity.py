"""Hashes of networks and of functions: equal for equal ones, and of nothing else."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from selfpatch.evaluation.encoders import MeanColour, RawPatch
from selfpatch.evaluation.identity import encoder_identity, function_identity, network_sha256
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.segmentation.config import SegmentationConfig
from selfpatch.evaluation.segmentation.evaluate import evaluate
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.encoder import BranchEncoder
from tests.helpers.block_images import write_blocks
from tests.helpers.labelled_images import tiny_encoder


def test_the_hash_of_a_network() -> None:
    """It is that of names and values, wherever they lie; a half-precision, an empty and a single number count too."""
    network = nn.Linear(3, 2)
    network.register_buffer("short", torch.ones(2, dtype=torch.bfloat16))
    network.register_buffer("nothing", torch.zeros(0, 4))
    network.register_buffer("steps_taken", torch.tensor(7))
    before = network_sha256(network)
    assert network_sha256(copy.deepcopy(network)) == before
    for change in (
        lambda: network.bias.data.add_(1e-3),
        lambda: network.steps_taken.add_(1),
        lambda: network.register_buffer("nothing", torch.zeros(4, 0)),
    ):
        change()
        before, earlier = network_sha256(network), before
        assert before != earlier


class Scaled(MeanColour):
    scale = 1.0

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        return super().patches(images) * self.scale


def test_encoders_that_compute_other_features_are_told_apart() -> None:
    plain, twice, other = Scaled(8), Scaled(8), Scaled(8)
    twice.scale = 2.0
    other.mean = (0.1, 0.0, 0.0)
    hashes = [encoder_identity(e) for e in (plain, twice, other, Scaled(4), MeanColour(8), RawPatch(8))]
    assert len(set(hashes)) == len(hashes)
    before = torch.get_rng_state()
    assert encoder_identity(Scaled(8)) == hashes[0]
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_is_told_apart_by_its_tensors_and_how_it_is_used() -> None:
    network = tiny_encoder("vit")
    before = encoder_identity(network)
    assert encoder_identity(tiny_encoder("vit")) == before
    for change in (
        lambda: next(network.parameters()).data.add_(1.0),
        lambda: setattr(network, "mean", (0.1, 0.2, 0.3)),
        lambda: setattr(network, "std", (0.1, 0.2, 0.3)),
        lambda: setattr(network, "normed_patches", not network.normed_patches),
    ):
        change()
        before, earlier = encoder_identity(network), before
        assert before != earlier


class OfLayer(nn.Module):
    """An encoder of a user, whose layer is no tensor."""

    mean, std, dim, patch_size, device = (0.0,) * 3, (1.0,) * 3, 3, 8, torch.device("cpu")

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.scales, self.layer, self.drop = nn.Parameter(torch.tensor([1.0, 2.0])), layer, nn.Dropout()

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(nn.functional.avg_pool2d(images, 8) * self.scales[self.layer])

    def image(self, images: torch.Tensor) -> torch.Tensor:
        return self.patches(images).mean((2, 3))


def test_a_module_of_a_user_is_told_apart_by_what_it_computes() -> None:
    first = encoder_identity(OfLayer(0))
    assert encoder_identity(OfLayer(0)) == first
    assert encoder_identity(OfLayer(1)) != first
    changed = OfLayer(0)
    changed.scales.data[1] = 3.0
    assert encoder_identity(changed) != first


def test_another_image_feature_is_another_function(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = tiny_encoder("vit")
    before = function_identity(vit)
    monkeypatch.setattr(vit, "image", lambda images: vit.patches(images).mean((2, 3)))
    assert function_identity(vit) != before


def with_architecture(encoder: BranchEncoder, **changes: object) -> BranchEncoder:
    """Return the network with the same tensors, put together in another way."""
    assert isinstance(encoder.backbone.config, ViTConfig)
    backbone = build_backbone(replace(encoder.backbone.config, **changes))  # type: ignore[arg-type]
    backbone.load_state_dict(encoder.backbone.state_dict())
    return BranchEncoder(backbone, encoder.pool).eval()


@pytest.mark.parametrize("change", [{"num_heads": 1}, {"position_embedding": "size"}, {"norm_eps": 1e-2}])
def test_networks_of_the_same_tensors_are_told_apart_by_their_architecture(change: dict[str, object]) -> None:
    plain = tiny_encoder("vit")
    other, images = with_architecture(plain, **change), torch.randn(1, 3, 40, 40)
    assert not torch.equal(other.patches(images), plain.patches(images))
    assert network_sha256(other) == network_sha256(plain)
    assert encoder_identity(other) != encoder_identity(plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "linear", "preset": "small", "crop": 16, "steps": 1, "batch_size": 2},
        {"method": "fpn", "preset": "small", "crop": 16, "steps": 1, "batch_size": 2},
        {"method": "finetune", "preset": "small", "crop": 16, "epochs": 3, "batch_size": 6},
    ],
    ids=lambda settings: settings["method"],
)
def test_a_training_on_other_heads_is_not_continued(tmp_path: Path, settings: dict[str, object]) -> None:
    """It had been: `--num-heads` changes no tensor, so that a finished training was scored on other features."""
    data, out, plain = write_blocks(tmp_path / "data"), Output(tmp_path), tiny_encoder("vit")
    config = SegmentationConfig.from_settings(settings)
    before = evaluate(plain, data, config, out)
    assert evaluate(plain, data, config, out) == before
    with pytest.raises(ValueError, match=r"holds a training with other settings \(network "):
        evaluate(with_architecture(plain, num_heads=1), data, config, out)
