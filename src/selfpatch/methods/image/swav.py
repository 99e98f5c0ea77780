"""SwAV: swapped predictions of online cluster assignments (Caron et al., arXiv 2006.09882)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.core.distributed import rank, world_size
from selfpatch.core.types import EncoderOutput, Hyperparameters, Needs, Objective, Views
from selfpatch.losses.memory_bank import MemoryBank, check_bank_size
from selfpatch.models.layers.deferred_state import DeferredState
from selfpatch.models.layers.mlp import mlp
from selfpatch.ops.cross_entropy import Scores, cross_view_loss
from selfpatch.ops.sinkhorn import sinkhorn


class UnitPrototypes(DeferredState):
    """K prototypes that are put back to norm 1 after each step, as the released code does before the next.

    The gradient is that of free vectors. DINO's weight-normalised `Prototypes` would take the same directions to first
    order, but its gradient lacks the radial part, by which LARS measures how far a step may go.
    """

    def __init__(self, num_prototypes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(nn.Linear(dim, num_prototypes, bias=False).weight.detach(), dim=1))

    def forward(self) -> Tensor:
        """[K, E]."""
        return self.weight

    @torch.no_grad()
    def update(self) -> None:
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def discard(self) -> None:
        """Nothing was taken."""

    def changing(self) -> list[Tensor]:
        return [self.weight]


class SwAVHead(nn.Module):
    """Projector to normalised features, and prototypes (appendix A of the paper)."""

    def __init__(self, dim: int, num_prototypes: int, *, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.projector = mlp([dim, hidden_dim, out_dim])
        self.last_layer = UnitPrototypes(num_prototypes, out_dim)

    def forward(self, tokens: Tensor) -> Scores:
        """Tokens [..., D] -> their scores against the prototypes."""
        return Scores(F.normalize(self.projector(tokens).float(), dim=-1), self.last_layer())


class SwAV(Objective):
    """The code of each global view, its assignment to prototypes, is to be predicted from every other view:

        scores = cosines of all views' projections to the prototypes
        for each global view g:
            code = sinkhorn(scores of view g over the batch)                                         no gradient
            for each other view v, local ones too:
                loss += H(code, softmax(scores of view v / temp)) / ((V - 1) G)

    As in the paper there is no second network: codes come from the student's own scores, whatever the teacher's
    momentum. To take them from a teacher of momentum 0 would not be the same, for the projector's batch norm is over
    all views, local ones too, and the teacher sees the global ones only. With momentum 0 the teacher is the student,
    and what is kept of the run is SwAV's network.

    The codes of an accumulated step are those of each micro-batch, not of the whole batch.

    Args:
        dim: width of the image token.
        batch_size: images a step, over all processes; divides `queue_size`.
        num_prototypes: K.
        hidden: hidden width of the projector (2 layers, batch norm).
        out_dim: width of projections and prototypes.
        epsilon, iterations: of Sinkhorn-Knopp.
        queue_size: projections of earlier batches, for each global view, that are assigned together with the batch's,
            for a batch that is small beside the number of prototypes; the released code's is 3840 at batch 256. None:
            no queue.
        queue_from_epoch: from here on the queues are used. They are filled from the first step on, where the released
            code begins to fill them now and uses them once they are full.
    """

    needs: ClassVar[Needs] = Needs(local_crops=True)
    loss_weights: ClassVar[Mapping[str, float]] = {"swapped": 1.0}

    def __init__(
        self,
        dim: int,
        batch_size: int,
        *,
        num_prototypes: int = 3000,
        hidden_dim: int = 2048,
        out_dim: int = 128,
        temp: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue_size: int | None = None,
        queue_from_epoch: float = 15,
    ) -> None:
        super().__init__()
        if queue_size is not None:
            check_bank_size("swav.queue_size", queue_size, batch_size)
        self.temp = temp
        self.queue_from_epoch = queue_from_epoch
        self.steps_to_fill = 0 if queue_size is None else queue_size // batch_size
        self._make_head = partial(SwAVHead, dim, num_prototypes, hidden_dim=hidden_dim, out_dim=out_dim)
        self._assign = partial(sinkhorn, epsilon=epsilon, iterations=iterations)
        self.queues = nn.ModuleList(() if queue_size is None else (MemoryBank(queue_size, out_dim) for _ in range(2)))

    def heads(self) -> dict[str, nn.Module]:
        return {"prototypes": self._make_head()}

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters
    ) -> dict[str, Tensor]:
        """`{"swapped": loss}`.

        Raises:
            ValueError: there are queues, and not exactly two global crops.
        """
        if self.queues and views.num_global != len(self.queues):
            raise ValueError(
                f"SwAV's queues are for 2 global crops of an image, but there are {views.num_global}; make 2"
            )
        scores = student.heads["prototypes"](student.image)
        with torch.autocast(student.image.device.type, enabled=False):  # epsilon would magnify the rounding
            logits = scores.logits()  # [V, B, K]
            codes = self._codes(logits[: views.num_global], scores.prototypes, hp)
        for queue, projections in zip(self.queues, scores.bottleneck, strict=False):
            assert isinstance(queue, MemoryBank)
            queue.accumulate(projections)
        return {"swapped": cross_view_loss(codes, logits / self.temp)}

    @torch.no_grad()
    def _codes(self, logits: Tensor, prototypes: Tensor, hp: Hyperparameters) -> Tensor:
        """[G, B, K] the codes of each global view, together with this process's share of the view's queue."""
        if not (self.queues and hp.epoch >= self.queue_from_epoch and hp.step >= self.steps_to_fill):
            return torch.stack([self._assign(view) for view in logits])
        shares = [queue.get_buffer("keys").chunk(world_size())[rank()] for queue in self.queues]
        together = [torch.cat([view, share @ prototypes.T]) for view, share in zip(logits, shares, strict=True)]
        return torch.stack([self._assign(rows)[: logits.shape[1]] for rows in together])
