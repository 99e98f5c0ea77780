"""Store in which the processes that torchrun starts meet."""

import datetime
import os
import socket
import time

import torch.distributed as dist

_PORT = "selfpatch/port"
"""Key of the port of the main process's store."""


def meet(patience: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """Return a store that all processes share, the number of this process, and that of all.

    Raises:
        RuntimeError: nobody holds the store.
    """
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=patience)))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = _store_of_main_process(store, rank, size, patience)
    return store, rank, size


def _store_of_main_process(agents: dist.Store, rank: int, size: int, patience: datetime.timedelta) -> dist.Store:
    """Return a store that ends with the main process.

    The agent's own outlives a restart: processes would read the addresses of those that have ended. So that of the main
    process is found by its port, which is read again until somebody listens on it.
    """
    host, ends = os.environ["MASTER_ADDR"], time.monotonic() + patience.total_seconds()
    if rank == 0:
        store = dist.TCPStore(host, 0, size, is_master=True, timeout=patience, wait_for_workers=False)
        agents.set(_PORT, str(store.port))
        return store
    while not _listens(host, port := int(agents.get(_PORT))):
        if time.monotonic() > ends:
            raise RuntimeError(f"the main process has not been found on {host} for {patience.total_seconds():.0f} s")
        time.sleep(0.05)
    return dist.TCPStore(host, port, size, timeout=patience, wait_for_workers=False)


def _listens(host: str, port: int) -> bool:
    """Return whether a process accepts connections; torch would print a stack trace where none does."""
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:
        return False
