"""Progress bar of the commands that report how far they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from selfpatch.core.text import visible
from selfpatch.core.torchrun import announced_rank

if TYPE_CHECKING:
    from selfpatch.evaluation.result import Progress


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Progress]:
    """Show a bar on a terminal, moved by the function that is given out."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as ProgressBar

    from selfpatch.core.console import console

    named = TextColumn("{task.description}", markup=False)
    columns = named, BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    disable = announced_rank() != 0 or not console.is_terminal  # a file would get an empty line
    with ProgressBar(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task(name, total=None)

        def progress(description: str, done: int, total: int) -> None:
            bar.update(task, description=visible(description), completed=done, total=total)

        yield progress
