"""The fine-tuned network: a copy with layers of their own learning rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from selfpatch.evaluation.classification.finetune.config import FinetuneConfig
from selfpatch.evaluation.classification.finetune.network import Classifier, ProjectionClassifier
from selfpatch.evaluation.finetuning import layer_groups
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.heads import PrototypeHead, PrototypeHeadConfig
from selfpatch.models.pooling import ClassAttentionPool
from tests.helpers.labelled_images import NETWORKS, tiny_encoder


def classifier(kind: str, token: Any = "image", drop_path: float = 0.0) -> Classifier:
    return Classifier(tiny_encoder(kind), 3, FinetuneConfig(token=token, drop_path=drop_path, head_std=0.02))


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_copy_computes_what_the_encoder_does(kind: str) -> None:
    """And holds drop path, which training alone sees."""
    encoder, images = tiny_encoder(kind), torch.randn(2, 3, 16, 16)
    tuned = classifier(kind, drop_path=0.5).eval()
    torch.testing.assert_close(tuned(images), tuned.head(encoder.image(images)))
    if kind == "vit":
        first, second = tuned.train()(images), tuned(images)
        assert not torch.equal(first, second)


def test_a_norm_that_trunk_and_pool_share_stays_one() -> None:
    """The export put the trunk's norm, which had not been trained, in place of the pool's, before the test."""
    vit, pool = tiny_encoder("vit"), tiny_encoder("vit+pool").pool
    network = Classifier(BranchEncoder(vit.backbone, pool), 3, FinetuneConfig.from_settings({"token": "image"})).eval()
    assert isinstance(network.pool, ClassAttentionPool)
    nn.init.normal_(network.pool.norm.weight)
    images = torch.randn(2, 3, 16, 16)
    logits = network(images)
    exported = BranchEncoder(network.backbone, network.pool)
    torch.testing.assert_close(network(images), logits, rtol=0, atol=0)
    torch.testing.assert_close(network.head(exported.image(images)), logits)


def test_a_mask_token_is_left_behind() -> None:
    encoder = tiny_encoder("vit")
    encoder.backbone.add_mask_token()
    tuned = Classifier(encoder, 3, FinetuneConfig(token="image", drop_path=0.0))
    assert tuned.backbone.mask_token is None


def test_learning_rates_fall_from_layer_to_layer() -> None:
    """Three blocks: the embedding is 4 layers below the head."""
    tuned = classifier("vit+pool")
    rates = {}
    for group in layer_groups(tuned, tuned.backbone, lr=2.0, layer_decay=0.5, weight_decay=0.1):
        for parameter in group["params"]:
            rates[parameter] = (group["lr"], group["weight_decay"])
    found = {name: rates.pop(parameter) for name, parameter in tuned.named_parameters()}
    assert not rates, "each parameter is in one group"
    assert found["backbone.trunk.patch_embed.proj.weight"] == (2.0 * 0.5**4, 0.1)
    assert found["backbone.trunk.pos_embed"] == (2.0 * 0.5**4, 0.0)
    assert found["backbone.trunk.blocks.0.mlp.fc1.weight"] == (2.0 * 0.5**3, 0.1)
    assert found["backbone.trunk.blocks.0.mlp.fc1.bias"] == (2.0 * 0.5**3, 0.0)
    assert found["backbone.trunk.blocks.2.norm1.weight"] == (2.0 * 0.5, 0.0)
    assert found["pool.blocks.0.attn.q.weight"] == (2.0, 0.1)
    assert found["pool.query"] == (2.0, 0.0)
    assert found["head.weight"] == (2.0, 0.1)


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_every_family_has_layers(kind: str) -> None:
    tuned = classifier(kind, token="mean")
    groups = layer_groups(tuned, tuned.backbone, lr=1.0, layer_decay=0.5, weight_decay=0.1)
    assert {group["lr"] for group in groups} == {1.0, 0.5, 0.25, 0.125}, "embedding, two layers, head"
    assert sum(len(group["params"]) for group in groups) == len(list(tuned.parameters()))


def projection_head(**settings: Any) -> PrototypeHead:
    torch.manual_seed(5)
    return PrototypeHead(16, PrototypeHeadConfig(num_prototypes=12, hidden_dim=10, bottleneck_dim=6, **settings))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_first_layers_of_the_projection_head_are_kept(layers: int) -> None:
    """Against plain loops over the head's layers and prototypes."""
    head, tokens = projection_head(), torch.randn(4, 16)
    encoder = tiny_encoder("vit")
    encoder.projection = head.state_dict()
    tuned = Classifier(encoder, 5, FinetuneConfig(token="image", head_layers=layers, head_std=0.02)).head
    assert isinstance(tuned, ProjectionClassifier)
    for token, logits in zip(tokens, tuned(tokens), strict=True):
        x = token
        for number in range(layers):
            linear = head.mlp[2 * number]
            x = linear.weight @ x + linear.bias
            x = torch.nn.functional.gelu(x) if number < 2 else x
        if layers == 3:
            x = torch.stack([(x / x.norm()) @ (v / v.norm()) for v in head.last_layer.weight_v])
        torch.testing.assert_close(logits, tuned.classify.weight @ x)
    assert all(parameter.requires_grad for parameter in tuned.parameters())
    assert tuned.classify.bias.abs().max() == 0
    assert 0.005 < tuned.classify.weight.std() < 0.04


def test_kept_layers_learn_at_the_rate_of_the_classifier_and_gains_decay() -> None:
    encoder = tiny_encoder("vit")
    encoder.projection = projection_head().state_dict()
    tuned = Classifier(encoder, 5, FinetuneConfig(token="image", head_layers=3))
    groups = layer_groups(tuned, tuned.backbone, lr=2.0, layer_decay=0.5, weight_decay=0.1)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    of = {name: found[id(parameter)] for name, parameter in tuned.head.named_parameters()}
    assert of["mlp.0.weight"] == of["last_layer.weight_g"] == of["classify.weight"] == (2.0, 0.1)
    assert of["mlp.0.bias"] == of["classify.bias"] == (2.0, 0.0)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a pre-trained projection head, but the weights have none; give a full"):
        ProjectionClassifier({}, 1, 5)
    with pytest.raises(ValueError, match="head_layers is 4, but the projection head has 3"):
        ProjectionClassifier(projection_head().state_dict(), 4, 5)
    with pytest.raises(ValueError, match="the projection head has batch norms"):
        ProjectionClassifier(projection_head(head_norm=True).state_dict(), 1, 5)
    with pytest.raises(ValueError, match="head_layers is 1, but the projection head is of the image token"):
        FinetuneConfig(token="mean", head_layers=1)
