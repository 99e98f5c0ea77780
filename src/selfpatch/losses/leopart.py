"""Leopart: clusters of patches, alike in all crops (Ziegler, Asano; CVPR 2022, arXiv 2204.13101)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from selfpatch.config.schema import PointGrid, height_and_width, settings
from selfpatch.core.distributed import rank, world_size
from selfpatch.core.reference import fast_path_of
from selfpatch.losses.crop_pairs import crop_pairs, mean_weights
from selfpatch.losses.feature_queue import FeatureQueue, draw_patches
from selfpatch.losses.swav import UnitPrototypes
from selfpatch.models.heads import MLPHeadConfig, mlp_head
from selfpatch.ops.cross_entropy import (
    Scores,
    chunks,
    soft_cross_entropy,
    sum_of_cross_entropies,
    teacher_distribution,
)
from selfpatch.ops.foreground import FULL
from selfpatch.ops.roi_align import overlaps, sample_overlap
from selfpatch.ops.sinkhorn import sinkhorn_center


@settings
class LeopartConfig(MLPHeadConfig):
    """Settings of Leopart; defaults are the released ones."""

    num_prototypes: PositiveInt = 300
    """Number of prototypes, the centres of the clusters."""
    overlap_size: PointGrid = 7
    """Grid of points on which two crops are compared: its side, or rows and columns."""
    temp: PositiveFloat = 0.1
    """Softmax temperature of the student's predictions."""
    epsilon: PositiveFloat = 0.05
    """Temperature of the assignments that Sinkhorn-Knopp finds; smaller is sharper."""
    iterations: PositiveInt = 3
    """Number of Sinkhorn-Knopp iterations."""
    queue_size: NonNegativeInt = 8192
    """Number of the teacher's earlier patches, of each global crop, that are assigned together with a batch, once there
    are as many; 0 assigns the batch alone."""
    tokens_per_image: PositiveInt = 10
    """Number of patches of each image and global crop that enter the queue per step."""


class LeopartHead(nn.Module):
    """MLP D - hidden - hidden - bottleneck to normalised embeddings, and prototypes of length 1."""

    def __init__(self, dim: int, config: LeopartConfig) -> None:
        super().__init__()
        self.mlp = mlp_head(dim, config)
        self.last_layer = UnitPrototypes(config.num_prototypes, config.bottleneck_dim)

    def forward(self, tokens: Tensor) -> Scores:
        """Return the scores of tokens [..., D] against the prototypes."""
        return Scores(F.normalize(self.mlp(tokens).float(), dim=-1), self.last_layer())


class LeopartLoss(nn.Module):
    """Prediction of the clusters to which the teacher assigns the foreground of a crop, from every other crop.

        for each global crop c:
            q = Sinkhorn-Knopp(exp(cosines of the teacher's patches of c, and of queue[c], with prototypes / epsilon))
            for each other crop v:
                q', p' = q and the student's cosines of v, RoIAligned to one grid over the overlap of c and v
                loss += mean over points in the foreground of c of H(q', softmax(p' / temp))
            queue[c] takes in random foreground patches of the teacher's c

    It is the mean over crops v, and crops c. Departures from the released code:

    - The teacher's prototypes score its patches and the queue, where the student's score the queue there.
    - As many patches of each image enter the queue, those of the foreground first, instead of as many of the batch.
    - The queue and the mean over points are those of all processes, so that their number does not matter; images
      without overlap of c and v are left out.

    No tensor of all patches and prototypes is kept; the loss can be differentiated once.

    Example:
        >>> head, criterion = LeopartHead(384, LeopartConfig()), LeopartLoss()
        >>> loss = criterion(head(student), None, teacher_head(teacher), boxes, foreground)
        >>> loss.backward(), optimizer.step(), head.last_layer.update(), criterion.update()

    Args:
        config: grid, temperatures and queue.
        num_global: number G of global crops.
    """

    def __init__(self, config: LeopartConfig = LeopartConfig(), num_global: int = 2) -> None:
        super().__init__()
        self.config = config
        self.grid = height_and_width(config.overlap_size)
        size, dim = config.queue_size, config.bottleneck_dim
        self.queues = nn.ModuleList(FeatureQueue(size, dim) for _ in range(num_global if size else 0))

    def forward(
        self,
        student: Scores,
        local: Scores | None,
        teacher: Scores,
        boxes: Tensor,
        foreground: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss, a scalar: this process's part if there are several, whose mean is the loss.

        Args:
            student: the student's scores of the global crops: bottleneck [G, B, h, w, E] and prototypes [K, E].
            local: those of the local crops, [L, B, h', w', E], with the same prototypes, if any.
            teacher: the teacher's scores of the global crops, [G, B, h, w, E]; they take no gradient.
            boxes: [G + L, B, 5] (left, top, width, height, flipped) of each crop in pixels of the image.
            foreground: [G, B, h, w] bool, True for patches that are learned, see `ops.foreground`. If None, all are.
            generator: source of the patches that enter the queues, on the tensors' device and in the same state on all
                processes. If None, torch's own.

        Raises:
            ValueError: the numbers of crops and boxes do not fit, or there is no pair of crops.
        """
        views = [*student.bottleneck, *(() if local is None else local.bottleneck)]
        targets = teacher.bottleneck.detach()
        prototypes = F.normalize(teacher.prototypes.detach(), dim=1)  # a mean of unit vectors is shorter
        pairs = crop_pairs(len(targets), len(views), len(boxes), len(self.queues) or len(targets))
        masks = torch.ones_like(targets[..., 0]) if foreground is None else foreground.float()
        counted = torch.stack([_counted(masks[c], boxes[c], boxes[v], self.grid) for c, v in pairs])  # [pairs, B, N]
        weights = mean_weights(counted.flatten(1)).view_as(counted) / len(pairs)
        centers = [self._center(c, targets[c], prototypes) for c in range(len(targets))]
        losses = []
        for weight, (c, v) in zip(weights, pairs, strict=True):
            predicted = Scores(sample_overlap(views[v], boxes[v], boxes[c], self.grid), student.prototypes)
            losses.append(
                assignment_loss(
                    predicted, Scores(targets[c], prototypes), centers[c], weight, boxes[c], boxes[v],
                    grid=self.grid, temp=self.config.temp, epsilon=self.config.epsilon,
                )
            )  # fmt: skip
        for c, queue in enumerate(self._queues()):
            patches, preferred = targets[c].flatten(1, 2), masks[c].flatten(1) > 0
            queue.accumulate(draw_patches(patches, self.config.tokens_per_image, generator, preferred))
        return torch.stack(losses).sum()

    def update(self) -> None:
        """Finish a step: the queues take in the patches of the step."""
        for queue in self._queues():
            queue.update()

    def _queues(self) -> list[FeatureQueue]:
        return [queue for queue in self.queues if isinstance(queue, FeatureQueue)]

    def _center(self, crop: int, patches: Tensor, prototypes: Tensor) -> Tensor:
        """Return the centre [K] that assigns patches [B, h, w, E] together with this process's share of the queue."""
        rows, masses = patches.flatten(0, 2), None
        if self.queues:
            queue = self._queues()[crop]
            share = queue.features.tensor_split(world_size())[rank()]
            is_full = (queue.num_filled == len(queue.features)).float()
            masses = torch.cat([torch.ones_like(rows[:, 0]), is_full.expand(len(share))])
            rows = torch.cat([rows, share])
        return sinkhorn_center(Scores(rows, prototypes), self.config.epsilon, self.config.iterations, masses)


def _counted(masks: Tensor, boxes: Tensor, other_boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which points [B, N] lie in the foreground [B, h, w] of a crop, in images in which the crops overlap."""
    points = sample_overlap(masks[..., None], boxes, other_boxes, size)[..., 0]
    return (points >= FULL) & overlaps(boxes, other_boxes)[:, None]


def assignment_loss_reference(
    student: Scores,
    teacher: Scores,
    center: Tensor,
    weights: Tensor,
    boxes: Tensor,
    other_boxes: Tensor,
    *,
    grid: tuple[int, int],
    temp: float,
    epsilon: float,
) -> Tensor:
    """Compute the weighted cross-entropy between assignments and predictions on the grid of an overlap, a scalar.

        q = softmax((teacher - center) / epsilon), RoIAligned over the overlap of its crop with the other one
        sum over images and points of weights * H(q, softmax(student / temp))

    Args:
        student: the student's scores at the points of the other crop, [B, N, K].
        teacher: the teacher's scores of the patches of its crop, [B, h, w, K]; they take no gradient.
        center: [K] of Sinkhorn-Knopp.
        weights: [B, N].
        boxes: [B, 5] of the teacher's crop.
        other_boxes: [B, 5] of the other crop.
        grid: rows and columns of the N points.
        temp: softmax temperature of the student.
        epsilon: softmax temperature of the assignments.
    """
    assignments = teacher_distribution(teacher, center, epsilon).detach()  # [B, h, w, K]
    points = sample_overlap(assignments, boxes, other_boxes, grid)  # [B, N, K]
    return (weights * soft_cross_entropy(points, student.logits() / temp)).sum()


@fast_path_of(assignment_loss_reference)
def assignment_loss(
    student: Scores,
    teacher: Scores,
    center: Tensor,
    weights: Tensor,
    boxes: Tensor,
    other_boxes: Tensor,
    *,
    grid: tuple[int, int],
    temp: float,
    epsilon: float,
) -> Tensor:
    """See `assignment_loss_reference`; images come in chunks, so that no assignments of all patches exist."""
    B, N = weights.shape

    def targets() -> Iterator[tuple[slice, Tensor, Tensor]]:
        for images in chunks(B, teacher.prototypes, rows=teacher.bottleneck.shape[1:3].numel()):
            part = Scores(teacher.bottleneck[images], teacher.prototypes)
            q = teacher_distribution(part, center, epsilon)
            points = sample_overlap(q, boxes[images], other_boxes[images], grid).flatten(0, 1)
            weight = weights[images].flatten()
            yield slice(images.start * N, images.stop * N), points * weight[:, None], weight

    return sum_of_cross_entropies(student.bottleneck.flatten(0, 1), student.prototypes, temp, targets())
