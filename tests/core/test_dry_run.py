"""The switch of dry runs."""

from __future__ import annotations

import pytest
import torch

from selfpatch.core import distributed
from selfpatch.core.dry_run import dry_run, in_dry_run


def test_networks_are_built_without_values() -> None:
    with dry_run():
        assert in_dry_run()
        assert torch.nn.Linear(2, 2).weight.is_meta
    assert not in_dry_run()
    with pytest.raises(ValueError, match="stop"), dry_run():
        raise ValueError("stop")
    assert not in_dry_run()
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_it_can_be_off() -> None:
    with dry_run(enabled=False):
        assert not in_dry_run()
        assert not torch.nn.Linear(2, 2).weight.is_meta


def test_processes_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    with dry_run():
        assert distributed.start("cpu") == torch.device("cpu")
        assert (distributed.rank(), distributed.world_size(), distributed.is_distributed()) == (3, 8, False)
        assert not distributed.is_main_process()
