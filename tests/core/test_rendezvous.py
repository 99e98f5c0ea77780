"""Processes that torchrun starts again do not meet those that have ended."""

from __future__ import annotations

import datetime
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from selfpatch.core import rendezvous


def test_the_store_of_a_main_process_that_has_ended_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as ended:
        port = ended.getsockname()[1]
    agents, patience = dist.HashStore(), datetime.timedelta(seconds=30)
    agents.set(rendezvous._PORT, str(port))
    with ThreadPoolExecutor() as threads:
        other = threads.submit(rendezvous._store_of_main_process, agents, 1, 2, patience)
        main = rendezvous._store_of_main_process(agents, 0, 2, patience)
        main.set("word", "here")
        assert other.result(30).get("word") == b"here"


def test_a_main_process_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    agents = dist.HashStore()
    agents.set(rendezvous._PORT, "1")
    with pytest.raises(RuntimeError, match=r"has not been found on 127\.0\.0\.1 for 0 s"):
        rendezvous._store_of_main_process(agents, 1, 2, datetime.timedelta(seconds=0.1))
