"""Objectives on pairs of a clean crop and crops inside it, against loops over crops and images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from selfpatch.core.types import EncoderOutput, Needs, Objective, Tokens, Views
from selfpatch.losses import AlignedContrastLoss, AlignedRelationLoss, PaKALoss
from selfpatch.methods.patch.pairs import (
    PaKA,
    PaKAConfig,
    SelfPatchPairs,
    SelfPatchPairsConfig,
    SEREPairs,
    SEREPairsConfig,
)
from selfpatch.ops.roi_align import align_overlap
from tests.helpers.tiny import hyperparameters, tiny_student_teacher, tiny_views

P, Q, B, D = 2, 3, 4, 8
BOXES = torch.tensor([10.0, 20.0, 60.0, 50.0, 0.0])


def maps(count: int, side: int, seed: int) -> Tensor:
    return torch.randn(count * B, side, side, D, generator=torch.manual_seed(seed))


def boxes() -> Tensor:
    """Clean boxes, then boxes inside them: [P + Q, B, 5], some flipped."""
    generator = torch.manual_seed(3)
    clean = BOXES + torch.rand(P, B, 5, generator=generator) * torch.tensor([9.0, 9.0, 9.0, 9.0, 0.0])
    inside = clean[torch.arange(Q) % P] * torch.tensor([1, 1, 0.6, 0.7, 1.0]) + torch.tensor([4.0, 5.0, 0, 0, 0])
    both = torch.cat([clean, inside])
    both[..., 4] = torch.randint(2, (P + Q, B), generator=generator)
    return both


def views() -> Views:
    return Views(torch.empty(0, B, 3, 1, 1), None, torch.empty(0, B, 5), torch.arange(B), pair_boxes=boxes())


def sides(objective: Objective) -> tuple[EncoderOutput, EncoderOutput, Tensor, Tensor]:
    student, teacher = maps(Q, 4, 0).requires_grad_(), maps(P, 6, 1)
    outputs = []
    for tokens in (student, teacher):
        pair_tokens = Tokens(None, tokens, tokens.detach() + 1)
        outputs.append(EncoderOutput(torch.empty(0), (), objective.heads(), None, pair_tokens))
    return (*outputs, student, teacher)  # type: ignore[return-value]


def mean_of_four(teacher: Tensor) -> Tensor:
    """Mean of the four most similar of the eight patches around each patch, by loops; matched on patches + 1."""
    h, w = teacher.shape[1:3]
    result = torch.empty_like(teacher)
    for image, target in zip(teacher, result, strict=True):
        for y in range(h):
            for x in range(w):
                around = [
                    (v, u)
                    for v in range(max(0, y - 1), min(h, y + 2))
                    for u in range(max(0, x - 1), min(w, x + 2))
                    if (v, u) != (y, x)
                ]
                cosines = [torch.cosine_similarity(image[y, x] + 1, image[v, u] + 1, dim=0) for v, u in around]
                best = torch.stack(cosines).topk(min(4, len(around))).indices.tolist()
                target[y, x] = torch.stack([image[around[i]] for i in best]).mean(0)
    return result


PLAIN = PaKAConfig(head=False, overlap_size=5)
KERNEL = SelfPatchPairsConfig(overlap_size=5, agreement="kernel")
CONTRAST = SelfPatchPairsConfig(overlap_size=5, agreement="contrast", student_temp=0.2)


@pytest.mark.parametrize(
    ("objective", "name", "criterion"),
    [
        (PaKA(D, PLAIN), "paka", lambda s, t, _: PaKALoss()(s, t)),
        (SEREPairs(SEREPairsConfig(overlap_size=5)), "relations", lambda s, t, _: AlignedRelationLoss()(s, t)),
        (
            SelfPatchPairs(SelfPatchPairsConfig(overlap_size=5)),
            "neighbours",
            lambda s, t, y: AlignedRelationLoss()(s, t, targets=y),
        ),
        (SelfPatchPairs(KERNEL), "neighbours", lambda s, _, y: PaKALoss()(s, y)),
        (SelfPatchPairs(CONTRAST), "neighbours", lambda s, _, y: AlignedContrastLoss(temp=0.2)(s, y)),
    ],
    ids=["paka", "sere", "selfpatch", "selfpatch, kernel", "selfpatch, contrast"],
)
def test_each_contained_crop_is_compared_with_its_clean_crop(
    objective: Objective, name: str, criterion: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    student, teacher, contained, clean = sides(objective)
    losses = objective(student, teacher, views(), hyperparameters())
    assert losses.keys() == {name} == objective.loss_weights.keys()
    targets = mean_of_four(clean)
    pairs = []
    for i in range(Q):
        for b in range(B):
            one = slice(i * B + b, i * B + b + 1)
            other = slice(i % P * B + b, i % P * B + b + 1)
            box, other_box = boxes()[P + i, b : b + 1], boxes()[i % P, b : b + 1]
            s, t, _ = align_overlap(contained[one], clean[other], box, other_box, (5, 5))
            _, y, _ = align_overlap(contained[one], targets[other], box, other_box, (5, 5))
            pairs.append(criterion(s, t, y))
    expected = torch.stack(pairs).mean()
    torch.testing.assert_close(losses[name], expected)
    gradients = [torch.autograd.grad(loss, contained)[0] for loss in (losses[name], expected)]
    torch.testing.assert_close(*gradients)


def test_the_grid_may_have_more_columns_than_rows() -> None:
    objective = SEREPairs(SEREPairsConfig(overlap_size=(3, 5)))
    student, _, contained, clean = sides(objective)
    s, _, ignored = objective.aligned(student, clean, views())
    assert s.shape == (Q * B, 15, D)
    assert ignored.shape == (Q * B, 15)
    expected, _, _ = align_overlap(contained[:B], clean[:B], boxes()[P], boxes()[0], (3, 5))
    torch.testing.assert_close(s[:B], expected)


def test_the_contrast_of_uniform_predictions_is_as_announced() -> None:
    objective = SelfPatchPairs(CONTRAST)
    student, teacher, contained, _ = sides(objective)
    with torch.no_grad():
        contained.zero_()
    expected = objective.uniform_losses(views())
    loss = objective(student, teacher, views(), hyperparameters())["neighbours"]
    assert loss.item() == pytest.approx(expected["neighbours"])


def test_heads_follow_the_alignment_and_the_teachers_takes_no_gradient() -> None:
    objective = PaKA(D, PaKAConfig(hidden_dim=16, bottleneck_dim=4, overlap_size=5))
    student, teacher, contained, clean = sides(objective)
    loss = objective(student, teacher, views(), hyperparameters())["paka"]
    around = torch.arange(Q) % P
    s, t, _ = align_overlap(
        contained,
        clean.unflatten(0, (P, B))[around].flatten(0, 1),
        boxes()[P:].flatten(0, 1),
        boxes()[:P][around].flatten(0, 1),
        (5, 5),
    )
    expected = PaKALoss()(student.heads["paka"](s), teacher.heads["paka"](t))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in student.heads["paka"].parameters())
    assert all(p.grad is None for p in teacher.heads["paka"].parameters())


def test_pairs_alone_need_no_multi_crop() -> None:
    alone = tiny_student_teacher(method="none", objective="sere_pairs")
    assert alone.needs == Needs(global_crops=False, teacher_on_global_crops=False, pairs=True)
    pairs_only = tiny_views(4)
    pairs_only = Views(
        pairs_only.global_crops[:0],
        None,
        pairs_only.boxes[:0],
        pairs_only.samples,
        clean_crops=pairs_only.clean_crops,
        contained_crops=pairs_only.contained_crops,
        pair_boxes=pairs_only.pair_boxes,
    )
    ours = alone(pairs_only, hyperparameters(), with_meters=True)
    assert ours.keys() == {"loss", "relations", "patch_rank", "patch_outliers"}
    torch.testing.assert_close(ours["loss"], alone(tiny_views(4), hyperparameters())["loss"])
    both = tiny_student_teacher(method="dino", objective="sere_pairs")
    assert both.needs == Needs(local_crops=True, pairs=True)
