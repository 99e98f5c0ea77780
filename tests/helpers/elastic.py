"""torchrun's own agent in a warm process: it starts training processes, and starts them again when one fails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.command_line import program


def agent(processes: int, nodes: str, endpoint: str, words: Sequence[str]) -> int:
    """Do what `torchrun --nnodes NODES --nproc-per-node N --max-restarts 2 --rdzv-backend c10d` does."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    smallest, _, largest = nodes.partition(":")
    config = LaunchConfig(
        min_nodes=int(smallest), max_nodes=int(largest or smallest), nproc_per_node=processes, run_id="test",
        rdzv_endpoint=endpoint, rdzv_backend="c10d", rdzv_configs={"last_call_timeout": 1}, max_restarts=2,
        monitor_interval=0.1, start_method="fork",
    )  # fmt: skip
    try:
        elastic_launch(config, entry)(list(words))
    except ChildFailedError as error:
        return abs(next(iter(error.failures.values())).exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def entry(words: list[str]) -> None:
    """Run the command line in a process that an agent forked."""
    code = program(words)
    if code:
        os._exit(code)


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started, which are its ranks in order."""
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
