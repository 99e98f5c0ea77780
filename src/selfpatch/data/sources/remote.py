"""Files behind a URL (http, s3, gs, hf, ...), read by fsspec, with retries in bounded time.

Options of a protocol, such as an endpoint or a proxy, are read from fsspec's own configuration (`~/.config/fsspec`).
"""

import errno
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE_VARIABLE = "SELFPATCH_REMOTE_SECONDS"
"""Environment variable with the seconds after which a file that cannot be read ends the program."""
DEFAULT_PATIENCE = 120.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before the first try again, doubled for each further one, up to the longest."""
THREADS = 16
"""Folders that are listed at once."""
MAX_DEPTH = 12
"""Largest depth of nested folders of a web server, for one that answers anything with one page has no end."""
ATTEMPT = 30.0
"""Seconds that one try may take."""
RETRIED = (408, 425, 429)
"""HTTP errors below 500 that pass by themselves."""
INSTALL = "run `pip install 'selfpatch[remote]'`"
VERSION_FIELDS = (
    "ETag", "etag", "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "blob_id", "size",
)  # fmt: skip
"""Fields of fsspec's description of a file that change with its content."""

_alive: dict[int, Any] = {}
"""File systems that were used. In a forked process those of its parent must not be destroyed: closing their connections
would take them out of the system's list of events (epoll), which both processes share, and the parent would wait."""


class RemoteError(OSError):
    """A file behind a URL cannot be read, for a reason that has nothing to do with the file itself."""


def is_url(name: str) -> bool:
    """Return whether a name is a URL, such as `https://host/photos`; a name of one letter is a drive of Windows."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


def read(url: str, offset: int, size: int) -> bytes:
    """Return bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
        RemoteError: they cannot be read.
    """

    def attempt(files: Any, path: str, seconds: float) -> bytes:
        content = _call(files, "cat_file", seconds, path, start=offset, end=offset + size)
        if len(content) > size:
            raise _Refused("the server ignores byte ranges; copy the data, or use another server")
        if len(content) < size:
            raise EOFError(f"{len(content)} of {size} bytes arrived")
        return content

    return retrying(url, attempt) if size else b""


def read_several(ranges: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
    """Return bytes of several ranges (URL, offset, size), all asked for at once; None for those to be read singly.

    One crossing into fsspec's thread for all of them costs a third of the CPU time of one for each.
    """
    nothing: list[bytes | None] = [None] * len(ranges)
    try:
        files, _ = _file_system(ranges[0][0])
        if not files.async_impl:
            return nothing
        paths = [files._strip_protocol(url) for url, _, _ in ranges]
        starts, ends = [start for _, start, _ in ranges], [start + size for _, start, size in ranges]
        seconds = min(ATTEMPT, patience())
        found = _call(files, "cat_ranges", seconds, paths, starts=starts, ends=ends, on_error="return")
    except Exception:  # the single reads tell what is wrong
        return nothing
    sizes = [size for _, _, size in ranges]
    return [c if isinstance(c, bytes) and len(c) == size else None for c, size in zip(found, sizes, strict=True)]


def read_all(url: str) -> bytes:
    """Return a whole file; raise the errors of `read`."""
    return retrying(url, lambda files, path, seconds: _call(files, "cat_file", seconds, path))


def describe(url: str) -> dict[str, Any]:
    """Return fsspec's description of a file; raise the errors of `read`."""
    return retrying(url, lambda files, path, seconds: _call(files, "info", seconds, path))


def list_below(url: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the folder's path as fsspec writes it, and its description of every file below, by such a path.

    Over http, where a folder is a page of links, each page is tried again by itself; a page that fails would count as
    an empty one in fsspec's own search.
    """
    if not url.lower().startswith(("http://", "https://")):
        return retrying(url, lambda files, path, seconds: (path, files.find(path, detail=True)))
    found: dict[str, dict[str, Any]] = {}
    seen, folders, depth = {url}, [url], 0
    with ThreadPoolExecutor(THREADS) as pool:
        while folders:
            entries = [entry for page in pool.map(_page, folders) for entry in page]
            below = [entry for entry in entries if entry["name"].startswith(f"{url}/")]
            found |= {entry["name"]: entry for entry in below if entry["type"] == "file"}
            folders = sorted({entry["name"].rstrip("/") for entry in below if entry["type"] == "directory"} - seen)
            seen.update(folders)
            depth += 1
            if folders and depth > MAX_DEPTH:
                raise ValueError(
                    f"{folders[0]} is more than {MAX_DEPTH} folders deep; give a URL further down, or a list of images"
                )
    return url, found


def _page(url: str) -> list[dict[str, Any]]:
    return retrying(url, lambda files, path, seconds: _call(files, "ls", seconds, path, detail=True))


def version_of(description: Mapping[str, Any]) -> int:
    """Return a number that changes with the content of a file, from its description; 0 if nothing is known."""
    known = [f"{name}={description[name]}" for name in VERSION_FIELDS if description.get(name) is not None]
    digest = hashlib.sha256("\n".join(known).encode()).digest()
    return int.from_bytes(digest[:7], "little") if known else 0


def patience() -> float:
    """Return the seconds in which a file is tried: `SELFPATCH_REMOTE_SECONDS`, or 120.

    Raises:
        ValueError: the variable holds no positive number.
    """
    value = os.environ.get(PATIENCE_VARIABLE) or str(DEFAULT_PATIENCE)
    if re.fullmatch(r"\d+(\.\d+)?", value) is None or not float(value):
        raise ValueError(f"{PATIENCE_VARIABLE} is {value!r}; set it to a number of seconds, e.g. {DEFAULT_PATIENCE:g}")
    return float(value)


def retrying(url: str, attempt: Callable[[Any, str, float], T]) -> T:
    """Return `attempt(file system, path, seconds)`, tried again after errors that may pass, with growing pauses.

    Raises:
        FileNotFoundError: there is no such file.
        RemoteError: it cannot be read, is not in time, or a package is missing.
    """
    began, pause, tries = time.monotonic(), FIRST_PAUSE, 0
    while True:
        tries += 1
        left = patience() - (time.monotonic() - began)
        try:
            files, path = _file_system(url)
            return attempt(files, path, max(1.0, min(ATTEMPT, left)))
        except Exception as raised:
            error = _told_apart(raised)
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from None
            reason = " ".join(str(error).split())[:300] or _unnamed(error)
            if not _may_pass(error):
                raise RemoteError(f"cannot read {url}: {reason}") from error
            left = patience() - (time.monotonic() - began)
            if left <= pause:
                raise RemoteError(
                    f"cannot read {url}: {reason} ({tries} tries in {time.monotonic() - began:.0f} s); check the "
                    f"connection, or set {PATIENCE_VARIABLE} to more than {patience():g}"
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


class RemoteFile(io.RawIOBase):
    """A file behind a URL, read in ranges; use it in an `io.BufferedReader`."""

    def __init__(self, url: str) -> None:
        self.url, self._position = url, 0
        size = describe(url).get("size")
        if size is None:
            raise RemoteError(f"cannot read {url}: the server does not tell its size; copy the file")
        self.size = int(size)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, and return it."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position on, and return the number of bytes."""
        count = max(0, min(len(buffer), self.size - self._position))
        buffer[:count] = read(self.url, self._position, count)
        self._position += count
        return count


class _Refused(Exception):
    """An answer that another try does not change."""


def _file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system, one per process and protocol, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise _Refused(f"fsspec is not installed; {INSTALL}") from None
    try:
        files, path = url_to_fs(url)
        _alive[id(files)] = files
        return files, path
    except ImportError as error:
        raise _Refused(f"{' '.join(str(error).split())}; {INSTALL}") from None
    except ValueError as error:  # an unknown protocol
        raise _Refused(str(error)) from None


def _call(files: Any, name: str, seconds: float, path: str | list[str], **options: Any) -> Any:
    """Call a method of a file system, in bounded time where it is asynchronous."""
    if not files.async_impl:
        return getattr(files, name)(path, **options)
    from fsspec.asyn import sync

    return sync(files.loop, getattr(files, f"_{name}"), path, timeout=seconds, **options)


def _told_apart(error: Exception) -> Exception:
    """Return the cause of an error that fsspec takes for a missing file, whatever it was, unless a file is missing."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and _status(cause) not in (404, 410):
        error = cause
    if type(error).__name__ == "TooManyRedirects":  # of aiohttp and requests alike; aiohttp gives it no text
        return _Refused("the server redirects without end; check the URL")
    return error


def _may_pass(error: Exception) -> bool:
    if isinstance(error, _Refused | PermissionError | NotImplementedError | TypeError):
        return False
    status = _status(error)
    return status is None or not 400 <= status < 500 or status in RETRIED


def _unnamed(error: Exception) -> str:
    return "the server does not answer in time" if isinstance(error, TimeoutError) else type(error).__name__


def _status(error: Exception) -> int | None:
    """Return the HTTP status that an error tells of, if it does."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
