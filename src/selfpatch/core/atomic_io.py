"""Atomic writing of files: after a kill or a power cut, a reader finds the old file or the new one, both complete."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from selfpatch.core.dry_run import in_dry_run

_IN_THE_WAY = "move away what is in its place"
_NOT_ALLOWED = "allow writing"
_REMEDIES = {
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY), _IN_THE_WAY),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _NOT_ALLOWED),
}
"""Remedy by the number of an error; any other error, such as that of a full disk, asks for room."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` atomically, in a folder made if necessary; after an OSError the old file is intact."""
    with replacing(path) as file:
        # Bytes of file names that are not UTF-8 become `\udce9`, which JSON reads as it was.
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


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
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the renaming of what lies in a folder survive a power cut, if the file system can."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
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
        remedy = _REMEDIES.get(error.errno or 0, "make room")
        advice = f"what was written before is intact; {remedy} and try again, a run with `selfpatch resume`"
        raise OSError(error.errno, f"cannot write {path} ({error.strerror}); {advice}") from error


def make_folder(out: str | Path) -> None:
    """Create an output folder before the work begins; raise ValueError early if it cannot be made.

    In a dry run, only check that it can be made.
    """
    try:
        if in_dry_run():
            require_writable(Path(out))
            return
        Path(out).mkdir(parents=True, exist_ok=True)
        require_writable(Path(out))
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error.strerror}); name another folder with --out") from None


def require_writable(folder: Path) -> None:
    """Raise the OSError that making the folder, or writing into it, would meet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        number = errno.EEXIST if existing == folder else errno.ENOTDIR
        kind = FileExistsError if existing == folder else NotADirectoryError
        raise kind(number, os.strerror(number), str(folder))
    if not os.access(existing, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(existing).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), str(folder))
