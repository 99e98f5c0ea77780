"""NeCo: student and teacher order the same reference patches alike, from dissimilar to similar (arXiv 2408.11054)."""

from typing import Annotated

import torch
from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from selfpatch.config.schema import settings
from selfpatch.losses.feature_queue import FeatureQueue
from selfpatch.ops.contrast import l2_normalize
from selfpatch.ops.roi_align import align_overlap, overlap_rois
from selfpatch.ops.soft_sort import Network, comparators, soft_sort


@settings
class NeCoConfig:
    """Settings of NeCo; defaults are the released ones."""

    overlap_size: Annotated[int, Ge(2)] = 7
    """Side of the grid of points on which two crops are compared; each point is compared with its square references."""
    steepness: PositiveFloat = 100.0
    """Steepness of the comparators of the soft sort, of student and teacher."""
    network: Network = "bitonic"
    """Sorting network: `bitonic` or `odd_even`."""
    queue_size: NonNegativeInt = 8192
    """Number of the teacher's patches to draw references from, for each global crop; if 0, the compared patches."""
    tokens_per_image: PositiveInt = 10
    """Number of patches of each image and global crop that enter the queue per step."""


class NeCoLoss(nn.Module):
    """Cross-entropy between the soft orders in which teacher and student put the same references.

        for each global crop c:
            queue[c] takes in random patches of the teacher's c
            for each other crop v:
                t, s = the teacher's c and the student's v, RoIAligned to one grid over their overlap
                r = random rows of queue[c], as many as there are points in t
                for each image, for each point i:
                    P, Q = soft_sort(cos(s_i, r_1), ..., cos(s_i, r_K)), soft_sort(cos(t_i, r_1), ..., cos(t_i, r_K))
                    loss += - mean over references j of sum over ranks k of Q[j, k] log P[j, k]

    It is the mean over points, images, crops v, and crops c. Both crops overlap in every image of the released code,
    which draws crops until they do; here, images without overlap are left out. Regions are in cells of the map: the
    released code divides pixels by the patch size, which differs if that does not divide the crop (98 pixels, 16).
    Processes share one queue, where the released code has one each.
    At the released settings, each pair of crops keeps about 10 MB per image for the backward pass.

    Example:
        >>> criterion = NeCoLoss(dim=256)
        >>> loss = criterion(l2_normalize(head(student)), None, l2_normalize(teacher_head(teacher)), boxes)
        >>> loss.backward(), optimizer.step(), criterion.update()

    Args:
        dim: width of the embeddings.
        num_global: number G of global crops.
        config: grid, sorting and queue.

    Raises:
        ValueError: the network does not sort that many references.
    """

    def __init__(self, dim: int, num_global: int = 2, config: NeCoConfig = NeCoConfig()) -> None:
        super().__init__()
        self.config = config
        comparators(config.overlap_size**2, config.network)
        self.queues = nn.ModuleList(FeatureQueue(config.queue_size, dim) for _ in range(num_global))

    def forward(self, student: Tensor, local: Tensor | None, teacher: Tensor, boxes: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            student: [G, B, h, w, D] the student's embeddings of the global crops, of length 1.
            local: [L, B, h', w', D] of the local crops, if any.
            teacher: [G, B, h, w, D] the teacher's embeddings of the global crops, of length 1; they take no gradient.
            boxes: [G + L, B, 5] (left, top, width, height, flipped) of each crop in pixels of the image.

        Raises:
            ValueError: the numbers of crops and boxes do not fit, there is no pair of crops, or the queue is smaller
                than the references of a batch.
        """
        views = [view.float() for view in (*student, *(() if local is None else local))]
        self._check(views, teacher, boxes)
        teacher = teacher.detach().float()
        losses = []
        for c, target in enumerate(teacher):
            queue = self._take_in(c, target)
            for v, view in enumerate(views):
                if v != c:
                    losses.append(self._loss_of_pair(view, target, boxes[v], boxes[c], queue))
        return torch.stack(losses).mean()

    def update(self) -> None:
        """Finish a step: the queues keep what they took in."""
        for queue in self.queues:
            assert isinstance(queue, FeatureQueue)
            queue.update()

    def draw_references(self, aligned: Tensor, queue: tuple[Tensor, Tensor] | None) -> Tensor:
        """Draw references [B, N, D] at random: rows of a queue and its length or, without, of the points [B, N, D]."""
        B, N, _ = aligned.shape
        if queue is None:
            rows = aligned.flatten(0, 1)
            return rows[torch.randperm(B * N, device=rows.device)].unflatten(0, (B, N))
        rows, num_filled = queue
        # While the queue fills up, rows repeat, as in the released code.
        drawn = torch.randperm(len(rows), device=rows.device)[: B * N] % num_filled
        return rows[drawn].unflatten(0, (B, N))

    def _take_in(self, crop: int, target: Tensor) -> tuple[Tensor, Tensor] | None:
        """Push random patches of the teacher's [B, h, w, D] and return the queue's rows and their number."""
        queue = self.queues[crop]
        assert isinstance(queue, FeatureQueue)
        if self.config.queue_size == 0:
            return None
        patches = target.flatten(0, 2)
        chosen = torch.randperm(len(patches), device=patches.device)[: len(target) * self.config.tokens_per_image]
        return queue.push(patches[chosen])

    def _loss_of_pair(
        self, view: Tensor, target: Tensor, box: Tensor, target_box: Tensor, queue: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        side = self.config.overlap_size
        s, t, _ = align_overlap(view, target, box, target_box, (side, side))  # [B, N, D]
        loss = order_loss(s, t, self.draw_references(t, queue), self.config.steepness, self.config.network)
        rois = overlap_rois(box, target_box, view)
        counted = (rois[:, 2:] > rois[:, :2]).all(1).to(loss.dtype)  # [B]
        return (loss * counted).sum() / counted.sum().clamp(min=1)

    def _check(self, views: list[Tensor], teacher: Tensor, boxes: Tensor) -> None:
        if len(teacher) != len(self.queues) or len(boxes) != len(views) or len(views) < 2:
            raise ValueError(
                f"got {len(teacher)} global crops of the teacher, {len(views)} crops of the student and {len(boxes)} "
                f"boxes; give {len(self.queues)} (num_global) of the teacher, 2 or more of the student, and their boxes"
            )
        needed, size = teacher.shape[1] * self.config.overlap_size**2, self.config.queue_size
        if 0 < size < needed:
            raise ValueError(
                f"a batch of {teacher.shape[1]} images draws {needed} references, but queue_size is {size}; "
                f"use {needed} or more, or 0 to do without a queue"
            )


def soft_order(patches: Tensor, references: Tensor, steepness: float, network: Network = "bitonic") -> Tensor:
    """Sort the references of an image by their cosine with each patch, least similar first.

    Patches are [B, N, D], references [B, K, D], both of any norm; the result [B, N, K, K] float32 says how much of
    reference j (rows) comes at rank k (columns).
    """
    with torch.autocast(patches.device.type, enabled=False):
        cosine = l2_normalize(patches) @ l2_normalize(references).mT  # [B, N, K]
        return soft_sort(cosine, steepness, network)[1]


def order_loss(
    student: Tensor, teacher: Tensor, references: Tensor, steepness: float, network: Network = "bitonic"
) -> Tensor:
    """Compute NeCo's loss of one pair of crops, [B]: the mean over patches and references of H(Q[j], P[j]).

    Args:
        student: [B, N, D] patches.
        teacher: [B, N, D] patches of the same points, which take no gradient.
        references: [B, K, D], which take no gradient.
        steepness: steepness of the comparators.
        network: sorting network.
    """
    references = references.detach()
    with torch.no_grad():
        target = soft_order(teacher, references, steepness, network)
    predicted = soft_order(student, references, steepness, network)
    # The released code has no smallest number; this one is reached only where a share would round to 0.
    log_predicted = predicted.clamp(min=torch.finfo(predicted.dtype).tiny).log()
    return -(target * log_predicted).sum(-1).mean((1, 2))
