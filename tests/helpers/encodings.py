"""Encoder outputs made by hand, for objectives without a backbone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Objective, Tokens, Views
from selfpatch.models.layers.deferred_state import deferred_states
from selfpatch.models.pooling import PositivePool


def _other_than(student: nn.Module) -> nn.Module:
    """Return a copy of the student as a teacher with other weights."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    generator = torch.manual_seed(3)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return teacher


def commit(objective: Objective) -> None:
    """Finish a step."""
    for state in deferred_states(objective):
        state.update()


class TwoSides:
    """Heads of an objective for student and teacher, and their image tokens.

    Attributes:
        tokens: [V, B, D] image tokens of the student, with gradient.
    """

    def __init__(self, objective: Objective, tokens: Tensor, num_global: int = 2) -> None:
        self.objective, self.num_global = objective.train(), num_global
        torch.manual_seed(2)
        self.student = nn.ModuleDict(objective.heads())
        self.teacher = _other_than(self.student)
        self.tokens = tokens.clone().requires_grad_()
        self.teacher_tokens = tokens.flip(-1) + 0.5

    def encodings(self, images: slice = slice(None)) -> tuple[EncoderOutput, EncoderOutput]:
        """Return the outputs of student and teacher for some of the images."""
        return (
            EncoderOutput(self.tokens[:, images], (), dict(self.student.items()), None),
            EncoderOutput(self.teacher_tokens[:, images], (), dict(self.teacher.items()), None),
        )

    def views(self, images: slice = slice(None)) -> Views:
        samples = torch.arange(self.tokens.shape[1])[images]
        crops = torch.zeros(self.num_global, len(samples), 3, 1, 1)
        return Views(crops, None, torch.zeros(len(self.tokens), len(samples), 5), samples)


def tokens_of(views: int = 2, batch: int = 6, dim: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(views, batch, dim, generator=torch.manual_seed(seed))


class TwoGridSides:
    """Heads and pool of an objective for student and teacher, and their patches of two resolutions.

    Attributes:
        raw: [V, B, h, w, D] of each resolution: the student's patches before any norm, with gradient.
    """

    num_global, num_local, batch, dim = 2, 1, 4, 6

    def __init__(self, objective: Objective) -> None:
        self.objective = objective.train()
        torch.manual_seed(2)
        pool = objective.pool()
        assert pool is not None
        self.student = nn.ModuleDict({**objective.heads(), "pool": pool})
        self.teacher = _other_than(self.student)
        generator = torch.manual_seed(4)
        shapes = [(self.num_global, self.batch, 4, 4, self.dim), (self.num_local, self.batch, 3, 3, self.dim)]
        self.raw = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        self.teacher_raw = [torch.randn(shape, generator=generator) for shape in shapes]

    def encodings(self, images: slice = slice(None)) -> tuple[EncoderOutput, EncoderOutput]:
        return self._encode(self.student, self.raw, images), self._encode(self.teacher, self.teacher_raw, images)

    def _encode(self, side: nn.ModuleDict, grids: list[Tensor], images: slice) -> EncoderOutput:
        pool = side["pool"]
        assert isinstance(pool, PositivePool)
        some = [grid[:, images].flatten(0, 1) for grid in grids]
        tokens = tuple(Tokens(None, pool.norm(raw), raw) for raw in some)
        image = torch.cat([pool(grid[:, images].flatten(2, 3)) for grid in grids])
        return EncoderOutput(image, tokens, {name: head for name, head in side.items() if name != "pool"}, pool)

    def views(self, images: slice = slice(None)) -> Views:
        samples = torch.tensor([5, 2, 11, 7])[images]
        crops = torch.zeros(self.num_global, len(samples), 3, 1, 1)
        boxes = torch.zeros(self.num_global + self.num_local, len(samples), 5)
        return Views(crops, torch.zeros(self.num_local, len(samples), 3, 1, 1), boxes, samples)


def grid_outputs(side: int, dim: int, batch: int = 2, seed: int = 0) -> EncoderOutput:
    """Return the output of one side for two global crops of `side` x `side` patches, with random tokens."""
    generator = torch.manual_seed(seed)
    patches = torch.randn(2 * batch, side, side, dim, generator=generator)
    image = torch.randn(2, batch, dim, generator=generator)
    return EncoderOutput(image, (Tokens(None, patches, patches),), {}, None)


def views_of(batch: int) -> Views:
    """Return two global crops of a batch whose pixels nothing reads."""
    return Views(torch.zeros(2, batch, 3, 1, 1), None, torch.zeros(2, batch, 5), torch.arange(batch))
