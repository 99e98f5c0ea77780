"""Benchmark of the parts of a step one by one, forward and backward: fast paths against their references."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Case, against_reference
from selfpatch.config.sections import OptimizerConfig
from selfpatch.core.reference import use_references
from selfpatch.losses.koleo import KoLeoLoss
from selfpatch.losses.leopart import assignment_loss
from selfpatch.losses.neco import total_order_loss
from selfpatch.models.backbones.build import build_backbone, named_backbone_config
from selfpatch.models.branch import Branch
from selfpatch.models.layers.ema import ema_update
from selfpatch.models.pooling import ClassAttentionPool
from selfpatch.ops.cross_entropy import Scores, prototype_cross_view_loss, prototype_loss
from selfpatch.ops.linear import gelu_linear, norm_linear
from selfpatch.ops.neighbours import neighbour_table, top_positives
from selfpatch.ops.relation import overlap_grids, spatial_relation_loss
from selfpatch.ops.sinkhorn import sinkhorn_center, sinkhorn_reference
from selfpatch.ops.soft_sort import soft_sort
from selfpatch.training.optim import clip_gradients, make_optimizer

BATCH, DIM, HEADS, SIDE = 4, 384, 6, 14
"""Number of images, width and heads of a ViT-S, patches along a side of a global crop."""
VIEWS = 10
ROWS = 1024
"""Number of masked patches of about 17 images: half of the crops of 14 x 14 patches, 30 % of each."""


def cases(device: torch.device) -> Iterator[Case]:
    """Yield the cases of this benchmark."""
    torch.manual_seed(0)
    patches = torch.randn(2 * BATCH, SIDE * SIDE, DIM, device=device)
    table = neighbour_table(SIDE, SIDE, 3, "wrap", device)
    yield against_reference("positives of each patch", lambda: top_positives(patches, 4, table), len(patches), "views")

    pool = ClassAttentionPool(DIM, HEADS).to(device).requires_grad_(False)
    positives = top_positives(patches, 4, table)
    aggregate = torch.no_grad()(lambda: pool.pool_positives(patches, positives))
    yield against_reference("aggregates of the positives", aggregate, len(patches), "views")

    rows = BATCH * (2 * SIDE * SIDE + 8 * 36)
    weights = torch.full((rows,), 1 / rows, device=device)
    student, teacher = _scores(device, rows, prototypes=4096), _scores(device, rows, prototypes=4096)
    center = torch.zeros(4096, device=device)
    yield against_reference(
        "loss of all patches, 4,096 prototypes",
        lambda: _gradients(
            prototype_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04, weights=weights), student
        ),
        BATCH,
    )
    student_views = _scores(device, VIEWS, BATCH, prototypes=65536)
    teacher_views = _scores(device, 2, BATCH, prototypes=65536)
    large_center = torch.zeros(65536, device=device)
    yield against_reference(
        "loss across views, 65,536 prototypes",
        lambda: _gradients(
            prototype_cross_view_loss(student_views, teacher_views, large_center, student_temp=0.1, teacher_temp=0.04),
            student_views,
        ),
        BATCH,
    )
    yield from _linear_layers(device, rows)
    yield _relation(device)
    yield _soft_sort(device)
    yield from _crop_pairs(device)
    yield from _batch_balance(device)
    yield from _updates(device)


def _linear_layers(device: torch.device, rows: int) -> Iterator[Case]:
    norm, wide, narrow = nn.LayerNorm(DIM), nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
    for layer in (norm, wide, narrow):
        layer.to(device)
    x = torch.randn(rows, DIM, device=device, requires_grad=True)
    inner = torch.randn(rows, 4 * DIM, device=device, requires_grad=True)
    given = norm.weight, norm.bias, norm.eps, wide.weight, wide.bias
    yield against_reference(
        "layer norm and linear layer", lambda: norm_linear(x, *given).backward(inner.detach()), rows, "tokens"
    )
    yield against_reference(
        "GELU and linear layer",
        lambda: gelu_linear(inner, narrow.weight, narrow.bias).backward(x.detach()),
        rows,
        "tokens",
    )


def _relation(device: torch.device) -> Case:
    """Return the case of SERE's spatial relation of two views that half overlap."""
    student, teacher = (torch.randn(BATCH, SIDE, SIDE, DIM, device=device) for _ in range(2))
    student.requires_grad_()
    box = torch.tensor([0.0, 0.0, 200.0, 200.0, 0.0], device=device).expand(BATCH, 5)
    grids = overlap_grids(box, box + torch.tensor([60.0, 60.0, 0.0, 0.0, 0.0], device=device), SIDE)
    return against_reference(
        "spatial self-relations of two views",
        lambda: spatial_relation_loss(student, teacher, *grids[:2], HEADS, 0.1).backward(),
        BATCH,
    )


def _soft_sort(device: torch.device) -> Case:
    """Return the case of NeCo's soft sort: each of 49 points of an image sorts 49 references."""
    cosines = torch.rand(BATCH, 49, 49, device=device, requires_grad=True)
    return against_reference(
        "soft sort of 49 references", lambda: soft_sort(cosines, 100.0)[1].square().sum().backward(), BATCH
    )


def _crop_pairs(device: torch.device) -> Iterator[Case]:
    """Yield the cases of a pair of crops of NeCo and of Leopart, at their released settings."""
    student, teacher, references = (torch.randn(BATCH, 49, 256, device=device) for _ in range(3))
    weights = torch.full((BATCH,), 1 / BATCH, device=device)
    student.requires_grad_()
    yield against_reference(
        "NeCo's order of 49 references",
        lambda: total_order_loss(student, teacher, references, weights, 100.0, "bitonic").backward(),
        BATCH,
    )
    points, patches = _scores(device, BATCH, 49, prototypes=300), _scores(device, BATCH, SIDE, SIDE, prototypes=300)
    box = torch.tensor([0.0, 0.0, 200.0, 200.0, 0.0], device=device).expand(BATCH, 5)
    other = box + torch.tensor([60.0, 60.0, 0.0, 0.0, 0.0], device=device)
    center = torch.zeros(300, device=device)

    def clusters() -> Tensor:
        each = weights[:, None].expand(-1, 49)
        return assignment_loss(points, patches, center, each, box, other, grid=(7, 7), temp=0.1, epsilon=0.05)

    yield against_reference("Leopart's clusters of 49 points", lambda: _gradients(clusters(), points), BATCH)


def _batch_balance(device: torch.device) -> Iterator[Case]:
    """Yield the cases of what spreads a batch, against the formulas as their papers write them."""
    masked = _scores(device, ROWS, prototypes=8192)
    yield Case(
        f"Sinkhorn-Knopp of {ROWS} tokens, 8,192 prototypes",
        {
            "plain": lambda: sinkhorn_reference(masked.logits().detach(), 0.07),
            "fast": lambda: sinkhorn_center(masked, 0.07),
        },
        ROWS,
        "tokens",
    )
    tokens, koleo = torch.randn(2, 256, DIM, device=device, requires_grad=True), KoLeoLoss()

    def pairwise() -> Tensor:
        distances = torch.cdist(F.normalize(tokens, dim=-1), F.normalize(tokens, dim=-1))
        return -(distances + 10 * torch.eye(256, device=device)).amin(-1).log().mean(-1).sum()

    yield Case(
        "KoLeo of two views of 256 images",
        {"plain": lambda: pairwise().backward(), "fast": lambda: koleo(tokens).backward()},
        256,
    )


def _updates(device: torch.device) -> Iterator[Case]:
    """Yield the cases of what follows the backward pass, on the parameters of a ViT-S."""
    student = Branch(build_backbone(named_backbone_config("vit_small")), None, {}).to(device)
    teacher = student.make_teacher()
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)
    parameters = sum(p.numel() for p in student.parameters())
    yield against_reference(
        "clipping", lambda: clip_gradients(student.parameters(), 3.0, "tensor"), parameters, "parameters"
    )
    yield against_reference("moving the teacher", lambda: ema_update(teacher, student, 0.996), parameters, "parameters")
    fast = make_optimizer(copy.deepcopy(student), OptimizerConfig())
    with use_references():
        plain = make_optimizer(copy.deepcopy(student), OptimizerConfig())
    for optimizer in (fast, plain):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn_like(parameter)
    yield Case("AdamW", {"plain": plain.step, "fast": fast.step}, parameters, "parameters")


def _scores(device: torch.device, *rows: int, prototypes: int, width: int = 256) -> Scores:
    draws = torch.randn(*rows, width, device=device), torch.randn(prototypes, width, device=device)
    bottleneck, keys = (F.normalize(x, dim=-1).requires_grad_() for x in draws)
    return Scores(bottleneck, keys)


def _gradients(loss: Tensor, scores: Scores) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, scores)
