"""File with the traceback of an unexpected error."""

import contextlib
import os
import platform
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from selfpatch.core.text import shell
from selfpatch.core.version import VERSION


def write_failure_log(arguments: Sequence[str], error: Exception) -> Path | None:
    """Write command, versions and traceback of an error into the cache or the temporary folder, and return the file.

    If neither can be written, the traceback is printed.
    """
    torch = "not imported"
    with contextlib.suppress(ImportError):
        from importlib.metadata import version

        torch = version("torch")
    head = f"{shell('selfpatch', *arguments)}\nselfpatch {VERSION}, Python {platform.python_version()}, torch {torch}\n"
    text = head + platform.platform() + "\n\n" + "".join(traceback.format_exception(error))
    for folder in _folders():
        file = folder / f"selfpatch-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
            return file
    traceback.print_exception(error)
    return None


def _folders() -> Iterator[Path]:
    from selfpatch.core.cache_folder import default_cache_dir

    yield default_cache_dir() / "errors"
    with contextlib.suppress(OSError):  # there is no temporary folder
        yield Path(tempfile.gettempdir())
