"""Agreements between patches and targets, each against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.config.run import RunConfig
from selfpatch.config.sections import OptimizerConfig
from selfpatch.losses.memory_bank import MemoryBank
from selfpatch.losses.selfpatch import Agreement, SelfPatchConfig, key_patches
from selfpatch.methods.patch.selfpatch import SelfPatch
from selfpatch.training.factory import make_student_teacher
from selfpatch.training.trainer import training_step
from tests.helpers.encodings import TwoGridSides, commit
from tests.helpers.tiny import hyperparameters, plain_sgd, tiny_views

SMALL: dict[str, Any] = {"hidden_dim": 8, "bottleneck_dim": 5, "k": 3}
OF_AGREEMENT: dict[str, dict[str, Any]] = {
    "prototypes": {"num_prototypes": 7, "student_temp": 0.2},
    "cosine": {},
    "contrast": {"temp": 0.3, "queue_size": 24, "keys_per_view": 2},
}


def two_sides(agreement: str, **settings: Any) -> TwoGridSides:
    torch.manual_seed(1)
    values = SMALL | OF_AGREEMENT[agreement] | settings
    return TwoGridSides(SelfPatch(TwoGridSides.dim, 2, SelfPatchConfig(agreement=agreement, **values)))


def loss_of(sides: TwoGridSides, step: int = 0) -> Tensor:
    losses = sides.objective(*sides.encodings(), sides.views(), hyperparameters(step))
    assert list(losses) == ["patch"] == list(sides.objective.loss_weights)
    return losses["patch"]


def patches_and_targets(sides: TwoGridSides) -> tuple[list[Tensor], list[Tensor]]:
    """Return patches and targets of each resolution, [V*B, N, D]."""
    student, teacher = sides.encodings()
    targets = [
        sides.objective.targets(tokens, sides.teacher["pool"]).detach() for tokens in teacher.tokens_per_resolution
    ]
    return [tokens.patches.flatten(1, 2) for tokens in student.tokens_per_resolution], targets


def mean_over_views(losses: list[Tensor]) -> Tensor:
    """Return the mean over the patches of a view, then over views, of losses [V*B, N]."""
    views = [view.mean() for grid in losses for view in grid]
    return sum(views, start=torch.zeros(())) / len(views)


def projected(sides: TwoGridSides) -> tuple[list[Tensor], list[Tensor]]:
    """Queries and keys [V*B, N, E] of each resolution; batch norms see all patches at once."""
    patches, targets = patches_and_targets(sides)
    sizes = [grid.shape[:2] for grid in patches]
    together = [torch.cat([grid.flatten(0, 1) for grid in grids]) for grids in (patches, targets)]
    queries = sides.objective.agreement.predictor(sides.student["patch"](together[0]))
    keys = sides.teacher["patch"](together[1])
    counts = [size.numel() for size in sizes]
    return tuple(  # type: ignore[return-value]
        [part.unflatten(0, size) for part, size in zip(F.normalize(x, dim=1).split(counts), sizes, strict=True)]
        for x in (queries, keys)
    )


def prototypes_plainly(sides: TwoGridSides) -> Tensor:
    patches, targets = patches_and_targets(sides)
    center, temps = sides.objective.agreement.loss.center.center, (hyperparameters().teacher_temp, 0.2)
    losses = []
    for own, target in zip(patches, targets, strict=True):
        distribution = ((sides.teacher["patch"](target).logits() - center) / temps[0]).softmax(-1)
        prediction = (sides.student["patch"](own).logits() / temps[1]).log_softmax(-1)
        losses.append(-(distribution * prediction).sum(-1))
    return mean_over_views(losses)


def cosine_plainly(sides: TwoGridSides) -> Tensor:
    queries, keys = projected(sides)
    return mean_over_views([-F.cosine_similarity(q, k, dim=-1) for q, k in zip(queries, keys, strict=True)])


def contrast_plainly(sides: TwoGridSides) -> Tensor:
    queries, keys = projected(sides)
    losses = []
    for q, k in zip(queries, keys, strict=True):
        own = ((q * k).sum(-1) / 0.3).exp()
        others = sum((q @ negative / 0.3).exp() for negative in sides.objective.agreement.queue.keys)
        losses.append(-(own / (own + others)).log())
    return mean_over_views(losses)


PLAIN = {"prototypes": prototypes_plainly, "cosine": cosine_plainly, "contrast": contrast_plainly}


@pytest.mark.parametrize("agreement", PLAIN)
def test_loss_and_gradients_are_the_plain_ones(agreement: str) -> None:
    sides = two_sides(agreement)
    if agreement == "prototypes":
        sides.objective.agreement.loss.center.center.normal_()
    loss, expected = loss_of(sides), PLAIN[agreement](sides)
    torch.testing.assert_close(loss, expected)
    learned = [*sides.raw, *sides.student["patch"].parameters(), *sides.objective.parameters()]
    learned = [parameter for parameter in learned if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, learned)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, learned), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_each_agreement_has_what_it_uses_and_no_more() -> None:
    held = {
        name: {type(module).__name__ for module in two_sides(name).objective.modules()}
        & {"Center", "MemoryBank", "Linear"}
        for name in PLAIN
    }
    assert held == {"prototypes": {"Center"}, "cosine": {"Linear"}, "contrast": {"Linear", "MemoryBank"}}


@pytest.mark.parametrize("count", [1, 3, 16])
def test_key_patches_are_those_of_the_loop(count: int) -> None:
    samples, patches = torch.tensor([0, 5, 1_000_003]), 16
    for step in (0, 9):
        expected = [[(b + step + j * patches // count) % patches for j in range(count)] for b in samples.tolist()]
        chosen = key_patches(samples, step, patches, count)
        assert chosen.tolist() == expected
        assert all(len(set(row)) == count for row in chosen.tolist()), "no patch gives two keys"


def test_more_keys_than_patches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"keys_per_view is 17, but a view has 16 patches; use fewer"):
        key_patches(torch.arange(2), 0, 16, 17)


def test_keys_of_each_view_enter_the_queue_image_by_image() -> None:
    sides = two_sides("contrast")
    _, keys = projected(sides)
    step = 3
    loss_of(sides, step)
    commit(sides.objective)
    batch, samples, expected = sides.batch, sides.views().samples, []
    for image in range(batch):
        for grid, views in zip(keys, (2, 1), strict=True):
            chosen = key_patches(samples, step, grid.shape[1], 2)
            expected += [grid[view * batch + image, patch] for view in range(views) for patch in chosen[image]]
    queue = sides.objective.agreement.queue
    assert len(expected) == len(queue.keys) == 24, "3 views of 4 images, 2 keys each"
    torch.testing.assert_close(queue.keys, torch.stack(expected))


def test_no_random_number_decides_which_keys_enter() -> None:
    first, again = two_sides("contrast"), two_sides("contrast")
    for sides, seed in ((first, 1), (again, 2)):
        torch.manual_seed(seed)
        loss_of(sides)
        commit(sides.objective)
    assert torch.equal(first.objective.agreement.queue.keys, again.objective.agreement.queue.keys)


@pytest.mark.parametrize(
    ("agreement", "setting", "value", "read"),
    [
        ("cosine", "num_prototypes", 1024, "hidden_dim, bottleneck_dim"),
        ("cosine", "temp", 0.1, "hidden_dim, bottleneck_dim"),
        ("contrast", "norm_last_layer", False, "hidden_dim, bottleneck_dim, temp, queue_size, keys_per_view"),
        ("prototypes", "queue_size", 64, "hidden_dim, bottleneck_dim, head_norm, norm_last_layer"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(agreement: str, setting: str, value: Any, read: str) -> None:
    with pytest.raises(ValueError, match=f"^{setting} is {value}, which is not used with agreement='{agreement}'") as e:
        SelfPatchConfig(agreement=agreement, **{setting: value})
    assert set(read.split(", ")) <= set(str(e.value).split("valid settings: ")[1].split(", "))


def test_an_unknown_agreement_is_refused() -> None:
    with pytest.raises(ValueError, match=r"agreement is 'l2'; use one of: prototypes, cosine, contrast"):
        SelfPatchConfig(agreement="l2")


@pytest.mark.parametrize("agreement", PLAIN)
@pytest.mark.parametrize("method", ["moby", "moco_v3"])
def test_a_step_with_a_contrastive_method_reaches_every_parameter(method: str, agreement: str) -> None:
    of_method = {
        "moby": {"queue_size": 8, "hidden_dim": 16},
        "moco_v3": {"projector_hidden_dim": 16, "predictor_hidden_dim": 16},
    }
    config = RunConfig().override(
        {
            "method": method,
            "objective": "selfpatch",
            "model": "vit_tiny",
            "patch_size": 4,
            "batch_size": 4,
            "backbone": {"embed_dim": 16, "depth": 1, "num_heads": 2, "drop_path": 0.0},
            "crops": {"global_size": 16, "num_local": 0},
            method: {"out_dim": 8, **of_method[method]},
            "selfpatch": {"agreement": agreement, "hidden_dim": 16, "bottleneck_dim": 8, **OF_AGREEMENT[agreement]},
        }
    )
    student_teacher = make_student_teacher(config)[0].train()
    outcome = training_step(
        student_teacher,
        [tiny_views(4)],
        plain_sgd(student_teacher),
        hyperparameters(),
        OptimizerConfig(clip=0, clip_mode="tensor"),
    )
    assert outcome.finite
    assert {"loss", "contrast", "patch"} <= outcome.values.keys()
    still = [name for name, p in student_teacher.named_parameters() if p.requires_grad and p.grad is None]
    assert still == [], "a parameter without gradient stops DDP"
    queues: list[nn.Module] = [module for module in student_teacher.modules() if isinstance(module, MemoryBank)]
    assert len(queues) == 2 * (method == "moby") + (agreement == "contrast")


@pytest.mark.parametrize("agreement", ["cosine", "contrast"])
def test_patches_are_averaged_in_float32_under_autocast(agreement: Any) -> None:
    torch.manual_seed(0)
    criterion = Agreement(5, SelfPatchConfig(agreement=agreement, hidden_dim=8, bottleneck_dim=5))
    criterion.predictor = nn.Identity()  # nothing else is computed in bfloat16
    patches, targets = ([torch.randn(6, n, 5) for n in (9, 4)] for _ in range(2))
    heads, given = (nn.Identity(), nn.Identity()), {"teacher_temp": 0.04, "samples": torch.arange(2), "step": 0}
    with torch.autocast("cpu", torch.bfloat16):
        loss = criterion(patches, targets, heads, **given)
    torch.testing.assert_close(loss, criterion(patches, targets, heads, **given))
