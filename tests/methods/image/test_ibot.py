"""iBOT's losses against plain loops, and what its kinds of prototypes share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from selfpatch.core.types import EncoderOutput, Tokens, Views
from selfpatch.losses.ibot import IBOTConfig
from selfpatch.methods.image.ibot import IBOT
from tests.helpers.tiny import hyperparameters

D, B, G, L, GRID = 6, 3, 2, 1, 4
SMALL: dict[str, Any] = {"num_prototypes": 10, "hidden_dim": 8, "bottleneck_dim": 5}


def make(**settings: Any) -> tuple[IBOT, EncoderOutput, EncoderOutput, Views]:
    """The method and both sides, with heads and tokens of their own."""
    generator = torch.manual_seed(1)
    method = IBOT(D, IBOTConfig(**{**SMALL, **settings}))
    sides = []
    for views in (G + L, G):
        patches = torch.randn(G * B, GRID, GRID, D, generator=generator)
        sides.append(
            EncoderOutput(
                torch.randn(views, B, D, generator=generator), (Tokens(None, patches, patches),), method.heads(), None
            )
        )
    masks = torch.rand(G, B, GRID, GRID, generator=generator) < 0.4
    masks[0, 1] = False
    boxes = torch.zeros(G + L, B, 5)
    views = Views(torch.zeros(G, B, 3, 8, 8), torch.zeros(L, B, 3, 4, 4), boxes, torch.arange(B), masks)
    with torch.no_grad():
        for buffer in method.buffers():  # centres
            buffer.normal_(generator=generator)
    return method, sides[0], sides[1], views


def probabilities(logits: Tensor, center: Tensor, temp: float) -> Tensor:
    return ((logits - center) / temp).softmax(-1)


def test_the_masked_patches_are_averaged_image_by_image() -> None:
    method, student, teacher, views = make()
    hp = hyperparameters(teacher_temp=0.05, teacher_patch_temp=0.09)
    loss = method(student, teacher, views, hp)["masked_patch"]
    per_image = []
    for v in range(G):
        for b in range(B):
            terms = []
            for i in range(GRID * GRID):
                y, x = divmod(i, GRID)
                if views.masks[v, b, y, x]:
                    seen, own = (
                        side.heads["image"](side.tokens_per_resolution[0].patches[v * B + b, y, x]).logits()
                        for side in (teacher, student)
                    )
                    target = probabilities(seen, method.patch_loss.center.center, 0.09)
                    terms.append(-(target * (own / 0.1).log_softmax(-1)).sum())
            per_image.append(torch.stack(terms).mean() if terms else torch.zeros(()))
    torch.testing.assert_close(loss, torch.stack(per_image).mean())


def test_image_tokens_learn_across_views() -> None:
    method, student, teacher, views = make()
    loss = method(student, teacher, views, hyperparameters(teacher_temp=0.05))["image"]
    target = probabilities(teacher.heads["image"](teacher.image).logits(), method.image_loss.center.center, 0.05)
    predicted = (student.heads["image"](student.image).logits() / 0.1).log_softmax(-1)
    pairs = [-(target[t] * predicted[s]).sum(-1).mean() for t in range(G) for s in range(G + L) if s != t]
    torch.testing.assert_close(loss, torch.stack(pairs).mean())


def test_centres_follow_image_tokens_and_all_patches() -> None:
    method, student, teacher, views = make(center_momentum=0.8)
    before = method.image_loss.center.center.clone(), method.patch_loss.center.center.clone()
    method(student, teacher, views, hyperparameters())
    for center, old, tokens in zip(
        (method.image_loss.center, method.patch_loss.center),
        before,
        (teacher.image, teacher.tokens_per_resolution[0].patches),
        strict=True,
    ):
        center.update()
        mean = teacher.heads["image"](tokens).logits().flatten(0, -2).mean(0)
        torch.testing.assert_close(center.center, 0.8 * old + 0.2 * mean)


@pytest.mark.parametrize("on", ["masked", "all"])
def test_sinkhorn_assigns_only_patches_that_count(on: str) -> None:
    method, student, teacher, views = make(centering="sinkhorn", patch_loss_on=on, prototypes="untied")
    loss = method(student, teacher, views, hyperparameters(teacher_temp=0.05, teacher_patch_temp=0.09))
    scores = [side.heads["masked_patch"](side.tokens_per_resolution[0].patches) for side in (student, teacher)]
    torch.testing.assert_close(loss["masked_patch"], method.patch_loss(*scores, views.masks.flatten(0, 1), 0.09))
    torch.testing.assert_close(
        loss["image"],
        method.image_loss(student.heads["image"](student.image), teacher.heads["image"](teacher.image), 0.05),
    )


def test_untied_heads_share_nothing_and_have_sizes_of_their_own() -> None:
    method, student, teacher, views = make(prototypes="untied", num_patch_prototypes=7, patch_bottleneck_dim=4)
    method(student, teacher, views, hyperparameters())["masked_patch"].backward()
    assert student.heads["masked_patch"](torch.zeros(1, D)).prototypes.shape == (7, 4)
    assert student.heads["image"](torch.zeros(1, D)).prototypes.shape == (10, 5)
    assert all(p.grad is None for p in student.heads["image"].parameters())
    trained = [p for p in student.heads["masked_patch"].parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    with pytest.raises(ValueError, match="patch_bottleneck_dim is 4, but patches share the head of width 5; leave it"):
        IBOTConfig(**SMALL, patch_bottleneck_dim=4)


@pytest.mark.parametrize("kind", ["shared", "separate", "shared_by_teacher", "shared_by_student"])
def test_whose_prototypes_patches_are_compared_with(kind: str) -> None:
    method, student, teacher, views = make(prototypes=kind, norm_last_layer=False)
    method(student, teacher, views, hyperparameters())["masked_patch"].backward()
    image, own = student.heads["image"].last_layer.weight_v, method.patch_prototypes
    assert (image.grad is not None) == (kind in ("shared", "shared_by_student"))
    assert (own is not None) == kind.startswith("shared_by")
    if own is not None:
        assert (own.last_layer.weight_v.grad is not None) == (kind == "shared_by_teacher")
        assert {p.requires_grad for p in own.parameters()} == {kind == "shared_by_teacher"}
    if kind == "separate":
        assert student.heads["masked_patch"].last_layer.weight_v.grad is not None
    assert all(p.grad is None for head in teacher.heads.values() for p in head.parameters())


def test_the_first_teacher_takes_over_the_patch_prototypes_if_it_alone_shares() -> None:
    method, student, _, _ = make(prototypes="shared_by_teacher")
    heads = copy.deepcopy(dict(student.heads))
    method.start_teacher(heads)
    started, image, own = heads["image"].last_layer, student.heads["image"].last_layer, method.patch_prototypes
    assert own is not None
    assert torch.equal(started.weight_v, own.last_layer.weight_v)
    assert not torch.equal(started.weight_v, image.weight_v)
    assert own.last_layer.weight_v is not started.weight_v


def test_patch_prototypes_of_the_teacher_start_as_the_image_tokens_if_the_student_alone_shares() -> None:
    method, student, _, _ = make(prototypes="shared_by_student")
    method.start_teacher(copy.deepcopy(dict(student.heads)))
    assert method.patch_prototypes is not None
    assert torch.equal(method.patch_prototypes.last_layer.weight_v, student.heads["image"].last_layer.weight_v)


def test_separate_patch_prototypes_may_be_of_another_number() -> None:
    method, student, teacher, views = make(prototypes="separate", num_patch_prototypes=7)
    assert method(student, teacher, views, hyperparameters())["masked_patch"].isfinite()
    assert method.patch_loss.center.center.shape == (7,)
    with pytest.raises(ValueError, match=r"num_patch_prototypes is 7, but shared prototypes are 10; leave it out"):
        IBOTConfig(**SMALL, num_patch_prototypes=7)
    with pytest.raises(ValueError, match="prototypes is 'some'; use one of: shared, separate, shared_by_teacher"):
        IBOTConfig(**SMALL, prototypes="some")
