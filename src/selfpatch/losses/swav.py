"""SwAV's swapped prediction of online cluster assignments (Caron et al., arXiv 2006.09882)."""

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from selfpatch.config.schema import settings
from selfpatch.core.distributed import local_shard, rank, world_size
from selfpatch.losses.memory_bank import MemoryBank
from selfpatch.models.layers.deferred_state import DeferredState
from selfpatch.models.layers.mlp import mlp
from selfpatch.ops.cross_entropy import Scores, cross_view_loss
from selfpatch.ops.sinkhorn import sinkhorn


@settings
class SwAVConfig:
    """Settings of SwAV: its head and its loss."""

    num_prototypes: PositiveInt = 3000
    """Number of prototypes."""
    hidden_dim: PositiveInt = 2048
    """Width of the projector's hidden layer."""
    out_dim: PositiveInt = 128
    """Width of projections and prototypes."""
    temp: PositiveFloat = 0.1
    """Softmax temperature of the predictions."""
    epsilon: PositiveFloat = 0.05
    """Temperature of the codes that Sinkhorn-Knopp finds; smaller is sharper."""
    iterations: PositiveInt = 3
    """Number of Sinkhorn-Knopp iterations."""
    queue_size: PositiveInt | None = None
    """Number of earlier projections per global view that join the batch's assignment, for batches much smaller than the
    number of prototypes (released code: 3840 at batch size 256). If None, no queue."""
    queue_from_epoch: NonNegativeFloat = 15
    """Epoch from which the queues are used. They fill from the first step on; the released code fills them from this
    epoch on, then uses them."""


class UnitPrototypes(DeferredState):
    """K prototypes that are normalised to length 1 after each step, as the released code does before the next.

    The gradient treats them as free vectors. DINO's weight-normalised `Prototypes` would move in the same directions to
    first order, but its gradient lacks the radial part, by which LARS scales its steps.
    """

    def __init__(self, num_prototypes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(nn.Linear(dim, num_prototypes, bias=False).weight.detach(), dim=1))

    def forward(self) -> Tensor:
        """Return the prototypes [K, E]."""
        return self.weight

    @torch.no_grad()
    def update(self) -> None:
        """Normalise the prototypes to length 1."""
        rows = local_shard(self.weight)
        rows.copy_(F.normalize(rows, dim=1))

    def changing(self) -> list[Tensor]:
        """Return the prototypes."""
        return [local_shard(self.weight)]


class SwAVHead(nn.Module):
    """Projector to normalised features, and prototypes (appendix A of the paper)."""

    def __init__(self, dim: int, config: SwAVConfig) -> None:
        super().__init__()
        self.projector = mlp([dim, config.hidden_dim, config.out_dim])
        self.last_layer = UnitPrototypes(config.num_prototypes, config.out_dim)

    def forward(self, tokens: Tensor) -> Scores:
        """Return the scores of tokens [..., D] against the prototypes."""
        return Scores(F.normalize(self.projector(tokens).float(), dim=-1), self.last_layer())


class SwAVLoss(nn.Module):
    """Prediction of the code of each global view, its assignment to prototypes, from every other view (eq. 1 to 5).

        scores = cosines of all views' projections with the prototypes
        for each global view g:
            code = sinkhorn(scores of view g over the batch)                               without gradient
            for each other view v, local ones too:
                loss += H(code, softmax(scores of view v / temp)) / ((V - 1) G)

    Example:
        >>> head, criterion = SwAVHead(384, SwAVConfig()), SwAVLoss()
        >>> loss = criterion(head(tokens), num_global=2)
        >>> loss.backward(), optimizer.step(), head.last_layer.update(), criterion.update()

    Args:
        config: temperature, Sinkhorn-Knopp and queues.
    """

    def __init__(self, config: SwAVConfig = SwAVConfig()) -> None:
        super().__init__()
        self.config = config
        size = config.queue_size
        self.queues = nn.ModuleList(() if size is None else (MemoryBank(size, config.out_dim) for _ in range(2)))

    def forward(self, scores: Scores, num_global: int = 2, *, use_queues: bool = False) -> Tensor:
        """Return the loss, a scalar.

        Args:
            scores: scores of all V views, the global ones first: projections [V, B, E] and prototypes [K, E].
            num_global: number of global views, G.
            use_queues: assign the projections in the queues along, once they are filled.

        Raises:
            ValueError: there are queues, and not exactly two global views.
        """
        if self.queues and num_global != len(self.queues):
            raise ValueError(f"SwAV's queues are for 2 global crops of an image, but there are {num_global}; make 2")
        with torch.autocast(scores.bottleneck.device.type, enabled=False):  # epsilon would magnify the rounding
            logits = scores.logits()  # [V, B, K]
            codes = self.codes(logits[:num_global], scores.prototypes, use_queues=use_queues)
        for queue, projections in zip(self._banks(), scores.bottleneck, strict=False):
            queue.accumulate(projections)
        return cross_view_loss(codes, logits / self.config.temp)

    @torch.no_grad()
    def codes(self, logits: Tensor, prototypes: Tensor, *, use_queues: bool) -> Tensor:
        """Return the codes [G, B, K] of each global view's logits [G, B, K].

        Each process assigns its part of the batch together with its share of the view's queue.
        """
        if not (self.queues and use_queues):
            return torch.stack([self._assign(view) for view in logits])
        shares = [queue.keys.tensor_split(world_size())[rank()] for queue in self._banks()]
        joined = [torch.cat([view, share @ prototypes.T]) for view, share in zip(logits, shares, strict=True)]
        return torch.stack([self._assign(rows)[: logits.shape[1]] for rows in joined])

    def update(self) -> None:
        """Move the step's projections into the queues; call it once per step, after the optimizer's."""
        for queue in self._banks():
            queue.update()

    def _assign(self, scores: Tensor) -> Tensor:
        return sinkhorn(scores, self.config.epsilon, self.config.iterations)

    def _banks(self) -> list[MemoryBank]:
        return [queue for queue in self.queues if isinstance(queue, MemoryBank)]
