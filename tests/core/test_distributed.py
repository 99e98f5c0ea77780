"""Functions for several processes on a single one, and names of devices."""

from __future__ import annotations

import pytest
import torch

from selfpatch.core import distributed


def test_every_function_is_the_identity_on_one_process() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not distributed.is_distributed()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main_process()) == (0, 1, True)
    mean = distributed.all_reduce_mean(x)
    assert torch.equal(mean, x)
    assert not mean.requires_grad
    assert torch.equal(distributed.all_gather(x), x.detach()[None])
    assert distributed.all_reduce_sum_with_gradient(x) is x
    assert distributed.any_rank(True, False) == (True, False)
    assert distributed.all_ranks(torch.tensor(True)).item() is True
    assert distributed.broadcast_from_main("runs/a") == "runs/a"
    distributed.barrier()
    distributed.stop()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "unknown device 'gpu'; use auto, cpu, cuda, cuda:N or mps"),
        ("cuda", "device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu"),
        ("cpu:3", "device 'cpu:3' was asked for, but there are 1; use a lower number"),
    ],
)
def test_devices_that_are_not_there_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distributed.find_device(name)


def test_a_device_by_name() -> None:
    assert distributed.start("cpu") == torch.device("cpu")
    assert distributed.find_device("auto").type in ("cuda", "mps", "cpu")
