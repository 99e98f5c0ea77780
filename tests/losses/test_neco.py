"""`NeCoLoss` on plain tensors: a pair against loops, pairs and references of a step, and its queue."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selfpatch.config.schema import height_and_width
from selfpatch.losses import NeCoConfig, NeCoLoss
from selfpatch.losses.feature_queue import FeatureQueue
from selfpatch.losses.neco import order_loss, soft_order, total_order_loss, total_order_loss_reference
from selfpatch.ops.contrast import l2_normalize
from selfpatch.ops.roi_align import align_overlap
from selfpatch.ops.soft_sort import soft_sort

B, D = 3, 5
SMALL = NeCoConfig(overlap_size=2, steepness=20.0, queue_size=40, tokens_per_image=4)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return l2_normalize(torch.randn(*shape, D, generator=torch.manual_seed(seed)))


def crops(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student's globals and local, teacher's globals, and boxes, of 3 images."""
    boxes = torch.tensor([[0.0, 0, 60, 60, 0], [20, 10, 60, 60, 1], [25, 15, 30, 30, 0]])[:, None].expand(-1, B, -1)
    return draw(2, B, 4, 4, seed=seed), draw(1, B, 2, 2, seed=seed + 1), draw(2, B, 4, 4, seed=seed + 2), boxes


def test_a_pair_is_that_of_the_loop() -> None:
    student, teacher, references = draw(2, 3).requires_grad_(), draw(2, 3, seed=1), draw(2, 4, seed=2)
    losses = []
    for b in range(2):
        total = torch.zeros(())
        for i in range(3):
            orders = []
            for patch in (student[b, i], teacher[b, i]):
                cosines = torch.stack([torch.cosine_similarity(patch, r, dim=0) for r in references[b]])
                orders.append(soft_sort(cosines, 20.0)[1])
            for j in range(4):
                for rank in range(4):
                    total = total - orders[1][j, rank] * orders[0][j, rank].log() / (3 * 4)
        losses.append(total)
    expected = torch.stack(losses)
    loss = order_loss(student, teacher, references, 20.0)
    torch.testing.assert_close(loss, expected)
    weights = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(
        torch.autograd.grad(loss @ weights, student), torch.autograd.grad(expected @ weights, student)
    )


def test_only_the_student_takes_a_gradient() -> None:
    student, teacher, references = (draw(2, 4, seed=seed).requires_grad_() for seed in range(3))
    order_loss(student, teacher, references, 20.0).sum().backward()
    assert teacher.grad is None
    assert references.grad is None
    assert student.grad is not None


def test_the_least_similar_reference_comes_first() -> None:
    patch, references = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 0.1], [-1.0, 0.0], [0.0, 3.0], [2.0, 3.0]]])
    assert soft_order(patch, references, 1e6)[0, 0].argmax(0).tolist() == [1, 2, 3, 0]


def test_shares_that_round_to_zero_keep_loss_and_gradient_finite() -> None:
    student, references = draw(1, 4).requires_grad_(), draw(1, 4, seed=1)
    loss = order_loss(student, -student.detach(), references, 1e12).sum()
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_training_puts_references_in_the_teachers_order() -> None:
    student, teacher, references = draw(2, 4).requires_grad_(), draw(2, 4, seed=1), draw(2, 4, seed=2)
    optimizer = torch.optim.Adam([student], lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = order_loss(student, teacher, references, 20.0).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    ranks = [soft_order(x, references, 1e6).argmax(-2) for x in (student, teacher)]
    assert torch.equal(*ranks)


class CountedReferences(NeCoLoss):
    """NeCo's loss whose references of pair k are draws of seed k."""

    num_drawn = 0

    def draw_references(
        self, aligned: Tensor, queue: tuple[Tensor, Tensor] | None, generator: torch.Generator | None = None
    ) -> Tensor:
        self.num_drawn += 1
        return draw(*aligned.shape[:2], seed=100 + self.num_drawn)


@pytest.mark.parametrize("grid", [2, (2, 4)])
def test_the_loss_is_the_mean_over_pairs_of_crops(grid: int | tuple[int, int]) -> None:
    student, local, teacher, boxes = crops()
    boxes = boxes.clone()
    boxes[2, 1] += torch.tensor([200.0, 0, 0, 0, 0])  # the local crop of image 1 overlaps with no global crop
    expected, pair = [], 0
    views = [*student, *local]
    for c in range(2):
        for v in (v for v in range(3) if v != c):
            pair += 1
            s, t, _ = align_overlap(views[v], teacher[c], boxes[v], boxes[c], height_and_width(grid))
            losses = order_loss(s, t, draw(*s.shape[:2], seed=100 + pair), SMALL.steepness)
            expected.append(losses[[0, 2]].mean() if v == 2 else losses.mean())
    loss = CountedReferences(D, config=replace(SMALL, overlap_size=grid))(student, local, teacher, boxes)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_references_of_a_batch_larger_than_the_queue_repeat() -> None:
    aligned, rows = draw(B, 16), draw(40)
    references = NeCoLoss(D, config=SMALL).draw_references(aligned, (rows, torch.tensor(40)), torch.Generator())
    found = (references.flatten(0, 1) @ rows.T).argmax(1)
    assert set(found.bincount(minlength=40).tolist()) == {1, 2}


def test_gradients_at_once_are_those_of_the_reference() -> None:
    student, teacher, references = draw(2, 4).requires_grad_(), draw(2, 4, seed=1), draw(2, 4, seed=2)
    given = student, teacher, references, torch.tensor([0.5, 2.0]), 20.0, "bitonic"
    losses = [total(*given) for total in (total_order_loss, total_order_loss_reference)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(3 * loss, student)[0] for loss in losses]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        torch.testing.assert_close(total_order_loss(*given), losses[0])


def test_crops_apart_cost_nothing_and_have_finite_gradients() -> None:
    student, _, teacher, boxes = crops()
    boxes = boxes.clone()
    boxes[1, :, 0] = 500
    student.requires_grad_()
    loss = NeCoLoss(D, config=SMALL)(student, None, teacher, boxes[:2])
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert (student.grad == 0).all()


def test_references_are_rows_of_the_queue_without_repetition_once_it_is_full() -> None:
    criterion = NeCoLoss(D, config=SMALL)
    rows, aligned = draw(40), draw(B, 4)
    references = criterion.draw_references(aligned, (rows, torch.tensor(40)))
    found = (references.flatten(0, 1) @ rows.T > 1 - 1e-5).nonzero()[:, 1]
    assert references.shape == aligned.shape
    assert len(found.unique()) == len(found) == B * 4
    references = criterion.draw_references(aligned, (rows, torch.tensor(3)))
    assert (references.flatten(0, 1) @ rows[:3].T).max(1).values.min() > 1 - 1e-5, "of the rows that are filled"


def test_without_a_queue_references_are_the_compared_patches_in_another_order() -> None:
    criterion, aligned = NeCoLoss(D, config=NeCoConfig(overlap_size=2, queue_size=0)), draw(B, 4)
    references = criterion.draw_references(aligned, None)
    assert not torch.equal(references, aligned)
    assert sorted(references.flatten(0, 1).tolist()) == sorted(aligned.flatten(0, 1).tolist())
    student, local, teacher, boxes = crops()
    assert criterion(student, local, teacher, boxes) > 0
    criterion.update()


def test_each_global_crop_has_a_queue_of_its_own_patches() -> None:
    criterion = NeCoLoss(D, config=SMALL)
    student, local, teacher, boxes = crops()
    criterion(student, local, teacher, boxes)
    criterion.update()
    criterion(student, local, draw(2, B, 4, 4, seed=9), boxes)
    criterion.update()
    for c, queue in enumerate(criterion.queues):
        assert isinstance(queue, FeatureQueue)
        assert queue.num_filled == 2 * B * SMALL.tokens_per_image
        older = queue.features[B * SMALL.tokens_per_image : int(queue.num_filled)]
        assert (older @ teacher[c].flatten(0, 2).T).max(1).values.min() > 1 - 1e-5
        assert (older @ teacher[1 - c].flatten(0, 2).T).max() < 1 - 1e-5
        assert len(older.unique(dim=0)) == len(older)


def test_low_precision_is_widened() -> None:
    student, local, teacher, boxes = (x.bfloat16() if x.shape[-1] == D else x for x in crops())
    boxes = crops()[3]
    loss = NeCoLoss(D, config=SMALL)(student, local, teacher, boxes)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_a_queue_smaller_than_the_references_is_refused() -> None:
    student, local, teacher, boxes = crops()
    criterion = NeCoLoss(D, config=NeCoConfig(overlap_size=4, queue_size=47))
    with pytest.raises(
        ValueError, match="a batch of 3 images draws 48 references, but queue_size is 47; use 48 or more"
    ):
        criterion(student, local, teacher, boxes)


def test_other_numbers_of_crops_are_refused() -> None:
    student, local, teacher, boxes = crops()
    criterion = NeCoLoss(D, config=SMALL)
    with pytest.raises(ValueError, match="got 2 global crops of the teacher, 3 crops of the student and 2 boxes"):
        criterion(student, local, teacher, boxes[:2])
    with pytest.raises(ValueError, match=r"got 1 global crops .*; give 2 \(num_global\) of the teacher"):
        criterion(student, local, teacher[:1], boxes)


def test_grids_that_the_network_does_not_sort_are_refused() -> None:
    with pytest.raises(ValueError, match="a bitonic network on 169 values does not sort them; use odd_even"):
        NeCoLoss(D, config=NeCoConfig(overlap_size=13))
    NeCoLoss(D, config=NeCoConfig(overlap_size=13, network="odd_even"))
    NeCoLoss(D, config=NeCoConfig(overlap_size=(5, 10)))
