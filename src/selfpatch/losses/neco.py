"""NeCo: student and teacher order the same reference patches alike, from dissimilar to similar (arXiv 2408.11054)."""

import math

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from selfpatch.config.schema import PointGrid, height_and_width, settings
from selfpatch.core.distributed import all_gather, rows_of_global_draw
from selfpatch.core.reference import fast_path_of
from selfpatch.core.text import counted
from selfpatch.losses.crop_pairs import crop_pairs, mean_weights
from selfpatch.losses.feature_queue import FeatureQueue, draw_patches
from selfpatch.ops.contrast import l2_normalize
from selfpatch.ops.cross_entropy import attach_gradients
from selfpatch.ops.roi_align import align_overlap, overlaps
from selfpatch.ops.soft_sort import Network, comparators, soft_sort


@settings
class NeCoConfig:
    """Settings of NeCo; defaults are the released ones."""

    overlap_size: PointGrid = 7
    """Side of the grid of points on which two crops are compared, or rows and columns ([5, 10] for wide crops); each
    point is compared with as many references as there are points."""
    steepness: PositiveFloat = 100.0
    """Steepness of the soft sort, a factor on the differences that it compares; larger is closer to a hard sort."""
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

    It is the mean over points, images, crops v, and crops c. Departures from the released code:

    - Both crops overlap in every image there, as crops are drawn until they do; here, images without overlap are left
      out, those of all processes together.
    - Regions are in cells of the map. Pixels are divided by the patch size there, which differs if that does not divide
      the crop (98 pixels, 16).
    - Processes share one queue and one draw of references, instead of one each, so that their number does not matter.
    - As many patches of each image enter the queue, instead of as many of the batch.

    Gradients are computed in the forward pass, one pair of crops after the other: at the released settings with 2 + 4
    crops of 224 and 96 pixels the loss takes 40 MB per image instead of 222. It can be differentiated once.

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
        self.grid = height_and_width(config.overlap_size)
        comparators(math.prod(self.grid), config.network)
        self.queues = nn.ModuleList(FeatureQueue(config.queue_size, dim) for _ in range(num_global))

    def forward(
        self,
        student: Tensor,
        local: Tensor | None,
        teacher: Tensor,
        boxes: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss, a scalar: this process's part if there are several, whose mean is the loss.

        Args:
            student: [G, B, h, w, D] the student's embeddings of the global crops, of length 1.
            local: [L, B, h', w', D] of the local crops, if any.
            teacher: [G, B, h, w, D] the teacher's embeddings of the global crops, of length 1; they take no gradient.
            boxes: [G + L, B, 5] (left, top, width, height, flipped) of each crop in pixels of the image.
            generator: source of the random patches and references, on the tensors' device and in the same state on all
                processes. If None, torch's own.

        Raises:
            ValueError: the numbers of crops and boxes do not fit, there is no pair of crops, or the queue is smaller
                than the references of a batch.
        """
        views = [view.float() for view in (*student, *(() if local is None else local))]
        pairs = crop_pairs(len(teacher), len(views), len(boxes), len(self.queues))
        self._check_queue(num_images=teacher.shape[1])
        teacher = teacher.detach().float()
        weights = mean_weights(torch.stack([overlaps(boxes[v], boxes[c]) for c, v in pairs])) / len(pairs)  # [pairs, B]
        queues = [self._take_in(c, target, generator) for c, target in enumerate(teacher)]
        losses = []
        for weight, (c, v) in zip(weights, pairs, strict=True):
            s, t, _ = align_overlap(views[v], teacher[c], boxes[v], boxes[c], self.grid)
            references = self.draw_references(t, queues[c], generator)
            losses.append(total_order_loss(s, t, references, weight, self.config.steepness, self.config.network))
        return torch.stack(losses).sum()

    def update(self) -> None:
        """Finish a step: the queues keep what they took in."""
        for queue in self.queues:
            assert isinstance(queue, FeatureQueue)
            queue.update()

    def draw_references(
        self, aligned: Tensor, queue: tuple[Tensor, Tensor] | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw references [B, N, D] at random: rows of a queue and its length or, without, of the points [B, N, D].

        The rows of the batch of all processes differ, as long as there are enough in the queue.
        """
        B, N, _ = aligned.shape
        rows, num_filled = (all_gather(aligned).flatten(0, 2), None) if queue is None else queue

        def draw(count: int) -> Tensor:
            order = torch.randperm(max(len(rows), count), generator=generator, device=rows.device)
            return order[:count] % len(rows)

        drawn = rows_of_global_draw(draw, B * N)
        # While the queue fills up, rows repeat, as in the released code.
        return rows[drawn if num_filled is None else drawn % num_filled].unflatten(0, (B, N))

    def _take_in(self, crop: int, target: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor] | None:
        """Push random patches of the teacher's [B, h, w, D] and return the queue's rows and their number."""
        queue = self.queues[crop]
        assert isinstance(queue, FeatureQueue)
        if self.config.queue_size == 0:
            return None
        return queue.push(draw_patches(target.flatten(1, 2), self.config.tokens_per_image, generator))

    def _check_queue(self, num_images: int) -> None:
        needed, size = num_images * math.prod(self.grid), self.config.queue_size
        if 0 < size < needed:
            raise ValueError(
                f"a batch of {counted(num_images, 'image')} draws {needed} references, but queue_size is {size}; "
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


def total_order_loss_reference(
    student: Tensor, teacher: Tensor, references: Tensor, weights: Tensor, steepness: float, network: Network
) -> Tensor:
    """Compute the sum over images of `order_loss` times the weights [B], a scalar."""
    return (order_loss(student, teacher, references, steepness, network) * weights).sum()


@fast_path_of(total_order_loss_reference)
def total_order_loss(
    student: Tensor, teacher: Tensor, references: Tensor, weights: Tensor, steepness: float, network: Network
) -> Tensor:
    """See `total_order_loss_reference`; gradients are computed at once, so that no permutations are kept for later."""
    needs_gradient = torch.is_grad_enabled() and student.requires_grad
    given = student.detach().requires_grad_(needs_gradient)
    loss = total_order_loss_reference(given, teacher, references, weights, steepness, network)
    gradient = torch.autograd.grad(loss, given)[0] if needs_gradient else None
    return attach_gradients(loss.detach(), (student,), (gradient,))
