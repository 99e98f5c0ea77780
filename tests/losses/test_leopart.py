"""`LeopartLoss` on plain tensors, against loops over crops, images and points."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from selfpatch.core.reference import use_references
from selfpatch.losses import LeopartConfig, LeopartHead, LeopartLoss, leopart
from selfpatch.losses.feature_queue import FeatureQueue
from selfpatch.ops import cross_entropy
from selfpatch.ops.cross_entropy import Scores
from selfpatch.ops.sinkhorn import sinkhorn

B, E, K = 3, 5, 6
SMALL = LeopartConfig(num_prototypes=K, bottleneck_dim=E, overlap_size=3, queue_size=12, tokens_per_image=2)
BOXES = torch.tensor([[0.0, 0, 60, 60, 0], [20, 10, 60, 60, 0], [25, 15, 30, 30, 0]])[:, None].repeat(1, B, 1)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, E, generator=torch.manual_seed(seed)), dim=-1)


def sides() -> tuple[Scores, Scores, Scores, Tensor]:
    """Student's globals and local, teacher's globals, of 3 images, and a foreground."""
    own, other = unit(K, seed=5), unit(K, seed=6)
    student, local, teacher = unit(2, B, 4, 4), unit(1, B, 2, 2, seed=1), unit(2, B, 4, 4, seed=2)
    foreground = torch.rand(2, B, 4, 4, generator=torch.manual_seed(3)) < 0.8
    return Scores(student, own), Scores(local, own), Scores(teacher, other), foreground


def on_overlap(maps: Tensor, box: Tensor, other: Tensor) -> Tensor:
    """Return the points [9, D] of one crop [h, w, D] on the grid of its overlap with another, by torchvision."""
    begin = torch.maximum(box[:2], other[:2])
    end = torch.minimum(box[:2] + box[2:4], other[:2] + other[2:4])
    corners = torch.cat([begin - box[:2], end - box[:2]]) / box[2:4].repeat(2) * len(maps)
    aligned = roi_align(maps.permute(2, 0, 1)[None], [corners[None]], 3, aligned=True)
    return aligned[0].flatten(1).T


def loop(queued: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
    """Return the loss, and the student's embeddings that it depends on."""
    student, local, teacher, foreground = sides()
    leaves = [student.bottleneck.requires_grad_(), local.bottleneck.requires_grad_()]
    views, total = [*student.bottleneck, *local.bottleneck], torch.zeros(())
    for c in range(2):
        rows = teacher.bottleneck[c].flatten(0, 2)
        rows = rows if queued is None else torch.cat([rows, queued[c]])
        q = sinkhorn(rows @ teacher.prototypes.T, 0.05, 3)[: B * 16].view(B, 4, 4, K)
        for v in (v for v in range(3) if v != c):
            losses = []
            for b in range(B):
                target = on_overlap(q[b], BOXES[c, b], BOXES[v, b])
                inside = on_overlap(foreground[c, b, :, :, None].float(), BOXES[c, b], BOXES[v, b])[:, 0] > 0.9999
                logits = on_overlap(views[v][b] @ student.prototypes.T, BOXES[v, b], BOXES[c, b])
                each = -(target * (logits / 0.1).log_softmax(-1)).sum(-1)
                losses += [loss for loss, counts in zip(each, inside, strict=True) if counts]
            total = total + torch.stack(losses).mean() / 4
    return total, leaves


@pytest.mark.parametrize("plain", [False, True])
def test_the_loss_is_that_of_the_loop(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "MIN_CHUNK_ROWS", 20)  # an image at a time
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", {"cpu": 1})
    student, local, teacher, foreground = sides()
    learned = [student.bottleneck.requires_grad_(), local.bottleneck.requires_grad_()]
    with use_references() if plain else contextlib.nullcontext():
        loss = LeopartLoss(SMALL)(student, local, teacher, BOXES, foreground)
    gradients = torch.autograd.grad(loss, learned)
    expected, leaves = loop()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves))


def test_earlier_patches_are_assigned_along_once_the_queue_is_full() -> None:
    criterion, (student, local, teacher, foreground) = LeopartLoss(SMALL), sides()
    queues = [queue for queue in criterion.queues if isinstance(queue, FeatureQueue)]
    losses = []
    for _ in range(3):
        losses.append(criterion(student, local, teacher, BOXES, foreground))
        before = [queue.features.clone() for queue in queues]
        criterion.update()
    torch.testing.assert_close(losses[0], losses[1])
    assert [int(queue.num_filled) for queue in queues] == [12, 12]
    torch.testing.assert_close(losses[2], loop(before)[0])
    for c, queue in enumerate(queues):
        inside = teacher.bottleneck[c][foreground[c]]
        assert (queue.features @ inside.T).max(1).values.min() > 1 - 1e-5, "of the foreground of its crop"


def test_processes_divide_a_queue_with_fewer_rows_than_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Tensor.chunk` would divide 5 rows among 4 processes as 2, 2 and 1, and leave none for the last one."""
    student, local, teacher, _ = sides()
    criterion = LeopartLoss(dataclasses.replace(SMALL, queue_size=5))
    monkeypatch.setattr(leopart, "world_size", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(leopart, "rank", lambda rank=rank: rank)
        assert criterion(student, local, teacher, BOXES).isfinite()


def test_images_without_foreground_or_overlap_do_not_count() -> None:
    student, _, teacher, foreground = sides()
    student.bottleneck.requires_grad_()
    boxes = BOXES.clone()
    boxes[1, 0, :2] = 500
    foreground[:, 1] = False
    criterion = LeopartLoss(SMALL)
    loss = criterion(student, None, teacher, boxes[:2], foreground)
    (gradient,) = torch.autograd.grad(loss, student.bottleneck)
    assert [bool(gradient[:, b].any()) for b in range(B)] == [False, False, True]
    assert criterion(student, None, teacher, boxes[:2], foreground & False) == 0


def test_a_heads_prototypes_have_length_1_after_a_step() -> None:
    head = LeopartHead(4, SMALL)
    scores = head(torch.randn(2, 3, 4))
    torch.testing.assert_close(scores.bottleneck.norm(dim=-1), torch.ones(2, 3))
    with torch.no_grad():
        head.last_layer.weight.mul_(3)
    head.last_layer.update()
    torch.testing.assert_close(head(torch.randn(1, 4)).prototypes.norm(dim=1), torch.ones(K))


def test_other_numbers_of_crops_are_refused() -> None:
    student, local, teacher, _ = sides()
    with pytest.raises(ValueError, match="got 2 global crops of the teacher, 3 crops of the student and 2 boxes"):
        LeopartLoss(SMALL)(student, local, teacher, BOXES[:2])
