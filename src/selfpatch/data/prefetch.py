"""Prefetching of batches to the device, where they are rendered while the previous step still computes."""

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import TypeVar

import torch

from selfpatch.core.types import Views
from selfpatch.data.collate import Batch

T = TypeVar("T")

CLOSING_SECONDS = 10.0
"""Time in which the thread may end."""


def prefetched(steps: Iterator[Sequence[Batch]], device: torch.device) -> Generator[list[Views]]:
    """Yield the micro-batches of each step on a device, in order.

    On CUDA, a thread gathers, copies and renders the next step on a separate stream. On other devices they are copied
    on demand. Values are the same. Close the generator if it is not read to its end.
    """
    if device.type != "cuda":
        for batches in steps:
            yield [batch.to(device) for batch in batches]
        return
    with contextlib.closing(in_background(_on_own_stream(steps, device))) as made:
        for views, done in made:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(done)
            for tensor in (tensor for batch in views for tensor in batch.tensors().values()):
                tensor.record_stream(stream)  # otherwise its memory could be reused while it is read
            yield views


def _on_own_stream(
    steps: Iterator[Sequence[Batch]], device: torch.device
) -> Iterator[tuple[list[Views], torch.cuda.Event]]:
    stream = torch.cuda.Stream(device)
    for batches in steps:
        with torch.cuda.stream(stream):
            views = [batch.to(device) for batch in batches]
            done = stream.record_event()
        yield views, done


def in_background(items: Iterator[T]) -> Generator[T]:
    """Yield the items of an iterator while a thread makes the next one.

    An error of the iterator is raised here, after the items before it. Closing the generator ends thread and iterator;
    if the iterator hangs, both are left behind.
    """
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(maxsize=1)  # an item, or the error or the end
    stopped = threading.Event()

    def make() -> None:
        end: BaseException | None = None
        try:
            for item in items:
                ready.put((item,))
                if stopped.is_set():
                    break
        except BaseException as error:
            end = error
        if isinstance(items, Generator):
            items.close()  # in the thread that ran the generator
        ready.put(end)

    thread = threading.Thread(target=make, name="prefetching", daemon=True)
    thread.start()
    try:
        while isinstance(item := ready.get(), tuple):
            yield item[0]
            del item  # frees its memory while waiting for the next one
        if item is not None:
            raise item
    finally:
        stopped.set()
        patience = time.monotonic() + CLOSING_SECONDS
        while thread.is_alive() and time.monotonic() < patience:
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.05)
