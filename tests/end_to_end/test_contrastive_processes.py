"""Contrast over two processes is that of one on the same batch: losses, gradients and queues."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from selfpatch.losses.memory_bank import MemoryBank
from selfpatch.losses.selfpatch import SelfPatchConfig
from selfpatch.methods.image.moby import MoBY, MoBYConfig
from selfpatch.methods.image.moco_v3 import MoCoV3, MoCoV3Config
from selfpatch.methods.patch.selfpatch import SelfPatch
from tests.helpers.encodings import TwoGridSides, TwoSides, commit, tokens_of
from tests.helpers.tiny import hyperparameters
from tests.helpers.workers import WorkerPool

WORLD = 2


def moco_v3() -> TwoSides:
    torch.manual_seed(1)
    config = MoCoV3Config(projector_hidden_dim=8, out_dim=4, predictor_hidden_dim=8)
    return TwoSides(MoCoV3(5, config), tokens_of(batch=16))


def moby() -> TwoSides:
    torch.manual_seed(1)
    return TwoSides(MoBY(5, 6, MoBYConfig(hidden_dim=8, out_dim=4, queue_size=12)), tokens_of())


def patch_cosine() -> TwoGridSides:
    torch.manual_seed(1)
    config = SelfPatchConfig(agreement="cosine", hidden_dim=8, bottleneck_dim=4)
    return TwoGridSides(SelfPatch(TwoGridSides.dim, 2, config))


def patch_contrast() -> TwoGridSides:
    torch.manual_seed(1)
    # A queue of 17 with 12 keys per step: steps overlap in it.
    config = SelfPatchConfig(agreement="contrast", hidden_dim=8, bottleneck_dim=4, queue_size=17)
    return TwoGridSides(SelfPatch(TwoGridSides.dim, 2, config))


Make = Callable[[], TwoSides | TwoGridSides]


def two_steps(make: Make, images: slice = slice(None)) -> dict[str, list[Tensor]]:
    """Two steps on some of the images, without an optimizer."""
    sides, losses = make(), []
    for step in range(2):
        student, teacher = sides.encodings(images)
        (loss,) = sides.objective(student, teacher, sides.views(images), hyperparameters(step)).values()
        loss.backward()
        commit(sides.objective)
        losses.append(loss.detach())
    tokens = [sides.tokens] if isinstance(sides, TwoSides) else sides.raw
    own = [*sides.student["projector" if isinstance(sides, TwoSides) else "patch"].parameters()]
    parameters = [*own, *sides.objective.parameters()]
    return {
        "losses": losses,
        "queues": [module.keys for module in sides.objective.modules() if isinstance(module, MemoryBank)],
        "token gradients": [x.grad[:, images] for x in tokens if x.grad is not None],
        "gradients": [p.grad for p in parameters if p.grad is not None],
    }


def a_share(rank: int, make: Make, batch: int) -> dict[str, list[Tensor]]:
    share = batch // WORLD
    return two_steps(make, slice(rank * share, (rank + 1) * share))


@pytest.mark.parametrize("make", [moco_v3, moby, patch_cosine, patch_contrast])
def test_two_processes_compute_as_one(pool: WorkerPool, make: Make) -> None:
    alone = two_steps(make)
    shares = pool.run(a_share, make, alone["token gradients"][0].shape[1])

    def mean(name: str) -> list[Tensor]:
        return [torch.stack(parts).mean(0) for parts in zip(*(share[name] for share in shares), strict=True)]

    torch.testing.assert_close(mean("losses"), alone["losses"])
    torch.testing.assert_close(mean("gradients"), alone["gradients"], rtol=1e-3, atol=1e-5)
    for i, expected in enumerate(alone["token gradients"]):  # of the mean loss, not of each process's own
        got = torch.cat([share["token gradients"][i] for share in shares], 1) / WORLD
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
    for i, expected in enumerate(alone["queues"]):
        assert torch.equal(shares[0]["queues"][i], shares[1]["queues"][i])
        torch.testing.assert_close(shares[0]["queues"][i], expected)
