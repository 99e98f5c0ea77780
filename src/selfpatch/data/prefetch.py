"""Batches brought to the device, and rendered there, while the step before still computes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

from selfpatch.core.types import Views
from selfpatch.data.collate import Batch

T = TypeVar("T")


def prefetched(steps: Iterator[Sequence[Batch]], device: torch.device) -> Generator[list[Views]]:
    """The micro-batches of each step on a device, in their order.

    On CUDA a thread gathers, copies and renders the next step's on a stream of its own; on other devices they are
    brought there when they are asked for. Values are the same. Close it where it is not read to its end.
    """
    if device.type != "cuda":
        for batches in steps:
            yield [batch.to(device) for batch in batches]
        return
    with contextlib.closing(in_background(_on_a_stream_of_their_own(steps, device))) as made:
        for views, done in made:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(done)
            for tensor in (t for v in views for t in _tensors(v)):
                tensor.record_stream(stream)  # or the other stream's allocator would give it away while it is read
            yield views


def _on_a_stream_of_their_own(
    steps: Iterator[Sequence[Batch]], device: torch.device
) -> Iterator[tuple[list[Views], torch.cuda.Event]]:
    stream = torch.cuda.Stream(device)
    for batches in steps:
        with torch.cuda.stream(stream):
            views = [batch.to(device) for batch in batches]
            done = stream.record_event()
        yield views, done


def _tensors(views: Views) -> list[Tensor]:
    values = (getattr(views, f.name) for f in fields(views))
    return [value for value in values if isinstance(value, Tensor)]


class _End:
    """The last thing in the queue: the items are over, or what ended them was raised."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def in_background(items: Iterator[T]) -> Generator[T]:
    """The items, of which a thread makes the next one while the last is in use.

    What the iterator raises is raised here, after the items before it. Closing this ends the thread and closes the
    iterator.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def make() -> None:
        end = _End()
        try:
            for item in items:
                ready.put(item)
                if stopped.is_set():
                    break
        except BaseException as error:
            end = _End(error)
        if isinstance(items, Generator):
            items.close()  # in the thread that ran it
        ready.put(end)

    thread = threading.Thread(target=make, name="prefetching", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
            del item  # its memory is free while the next one is waited for
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.05)
        thread.join()
