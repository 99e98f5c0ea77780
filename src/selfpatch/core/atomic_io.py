"""Atomic writing of files: after a kill or a power cut, a reader finds the old file or the new one, both complete."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` atomically, in a folder made if necessary; after an OSError the old file is intact."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` once it is complete and on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with clear_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):  # the renaming survives a power cut too, if the file system can
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


@contextlib.contextmanager
def clear_error(path: Path) -> Iterator[None]:
    """Raise every OSError from inside again with advice on what to do."""
    try:
        yield
    except OSError as error:
        advice = "what was written before is intact; make room and try again, a run with `selfpatch resume`"
        raise OSError(error.errno, f"cannot write {path} ({error.strerror}); {advice}") from error


def make_folder(out: str | Path) -> None:
    """Create an output folder before the work begins; raise ValueError early if it cannot be made."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error.strerror}); name another folder with --out") from None
