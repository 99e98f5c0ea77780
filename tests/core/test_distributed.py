"""Functions for several processes on a single one, and names of devices."""

from __future__ import annotations

from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

from selfpatch.core import distributed
from selfpatch.core.failures import FailedElsewhere, FailedHere
from selfpatch.core.signals import Terminated


def test_every_function_is_the_identity_on_one_process() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not distributed.is_distributed()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main_process()) == (0, 1, True)
    mean = distributed.all_reduce_mean(x)
    assert torch.equal(mean, x)
    assert not mean.requires_grad
    assert torch.equal(distributed.all_gather(x), x.detach()[None])
    assert distributed.all_reduce_sum_with_gradient(x) is x
    assert torch.equal(distributed.all_gather_with_gradient(x), x[None])
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


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU of its own, as torch sees 2; start at"):
        distributed.start("cuda")


class Store:
    """The store of a group in which `failures` processes have failed."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def add(self, name: str, count: int) -> int:
        self.failures += count
        return self.failures


@pytest.mark.parametrize(
    ("rank", "failures", "error", "raised"),
    [
        (0, 0, ValueError("no data"), ValueError),
        (1, 0, ValueError("no data"), FailedHere),
        (1, 0, OSError(2, "No such file", "a.png"), FailedHere),
        (1, 0, RuntimeError("a bug"), RuntimeError),
        (0, 1, RuntimeError("Connection closed by peer"), FailedElsewhere),
        (1, 1, ValueError("no data"), FailedElsewhere),
        (0, 0, Terminated(), Terminated),
        (0, 1, Terminated(), FailedElsewhere),
    ],
)
def test_the_first_process_to_fail_says_why(
    monkeypatch: pytest.MonkeyPatch, rank: int, failures: int, error: BaseException, raised: type[BaseException]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "start", lambda device: None)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "_stores", [Store(failures)])
    with pytest.raises(BaseException) as caught, distributed.process_group("cpu"):  # noqa: PT011
        raise error
    assert type(caught.value) is raised
    if raised is FailedHere:
        assert str(caught.value) in ("no data", "No such file: a.png")


def test_a_group_that_exists_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that trains in a group evaluates in it; the error is the caller's to tell of."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "stop", lambda: pytest.fail("left the group of the caller"))
    with distributed.process_group("cpu"):
        pass
    with pytest.raises(KeyError), distributed.process_group("cpu"):
        raise KeyError


def of_torch_2_11(module: Any, *, static_graph: bool, broadcast_buffers: bool = True) -> None: ...


def of_torch_2_15(
    module: Any, *, static_graph: bool, broadcast_buffers: bool | None = None, forward_sync_buffers: bool | None = None
) -> None: ...


@pytest.mark.parametrize(
    ("signature", "expected"), [(of_torch_2_11, "broadcast_buffers"), (of_torch_2_15, "forward_sync_buffers")]
)
def test_buffers_stay_as_they_are_in_every_version_of_torch(
    signature: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap = create_autospec(signature)
    monkeypatch.setattr(distributed, "DistributedDataParallel", wrap)
    module = torch.nn.Linear(1, 1)
    distributed.averaging_gradients(module)
    wrap.assert_called_once_with(module, static_graph=False, **{expected: False})
