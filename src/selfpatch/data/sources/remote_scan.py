"""Search for images behind a URL: in a folder, in a container, or in those that a text file lists.

::

    a folder with the index of `selfpatch prepare`   one small file is read
    any other folder                                 is listed; each container's directory is read in ranges
    a container                                      its directory is read in ranges
    a text file (.txt, .lst or .list)                is read

Names and order are those of a local copy, so that it has the same draws.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from selfpatch.core.folders import is_hidden
from selfpatch.core.safe_paths import path_below
from selfpatch.data.sources import published, remote
from selfpatch.data.sources.cache import SourceStamp
from selfpatch.data.sources.containers import images_in, is_container
from selfpatch.data.sources.listing import Listing
from selfpatch.data.sources.scan import NoImagesError, Part, is_image, is_image_line, paths_in, sorted_parts
from selfpatch.data.sources.shards import refuse_compressed

LISTS = (".txt", ".lst", ".list")
"""Endings of text files that list images."""
THREADS = 16
"""Threads that ask a server at once."""


class RemoteSource(NamedTuple):
    """Source on another machine whose containers have not been read yet."""

    root: str
    """URL that all names are relative to."""
    stamps: list[SourceStamp]
    read: Callable[[], Listing]

    @property
    def versions(self) -> dict[str, int]:
        """Numbers by name of a container that change with its content."""
        return {stamp.path: stamp.time for stamp in self.stamps}


def url_below(root: str, name: str) -> str:
    """Return the URL of a file below a folder.

    Raises:
        ValueError: the name leads out of the folder.
    """
    path_below(Path("/"), name, root)
    return f"{root}/{quote(name) if _is_http(root) else name}"


def look(url: str) -> RemoteSource:
    """Ask a server about a source, of which hardly anything is read yet.

    Raises:
        ValueError: there is no such file or folder, or it holds no images.
        RemoteError: the server cannot be reached.
    """
    url = url.rstrip("/")
    root, _, name = url.rpartition("/")
    if _is_http(url):
        name = unquote(name)
    refuse_compressed(name)
    try:
        if is_container(name):
            return _files(root, {name: remote.describe(url)})
        return _list(root, name, url) if name.lower().endswith(LISTS) else _folder(url)
    except FileNotFoundError:
        raise ValueError(f"there is no file or folder {url}; check the URL") from None


def _folder(url: str) -> RemoteSource:
    index = url_below(url, published.NAME)
    try:
        stamps = [_stamp(published.NAME, remote.describe(index))]
    except FileNotFoundError:
        return _files(url, _names_below(url))
    return RemoteSource(url, stamps, lambda: published.parse(remote.read_all(index), index)[0])


def _list(root: str, name: str, url: str) -> RemoteSource:
    content = remote.read_all(url)
    lines = [line.decode("utf-8", "surrogateescape") for line in paths_in(content, url)]
    for line in lines:
        path_below(Path("/"), line, url)
        if not is_image_line(line.encode("utf-8", "surrogateescape")) and not is_container(line):
            raise ValueError(f"{url} names {line!r}; a remote list holds images and files that hold images alone")
    containers = {line: remote.describe(url_below(root, line)) for line in lines if is_container(line)}
    of_list = _stamp(name, {"ETag": content, "size": len(content)})

    def read() -> Listing:
        found = _listings(root, containers)
        return Listing.joined(
            [found[line] if line in found else line.encode("utf-8", "surrogateescape") for line in lines]
        )

    return RemoteSource(root, [of_list, *(_stamp(*item) for item in containers.items())], read)


def _files(root: str, files: Mapping[str, Mapping[str, Any]]) -> RemoteSource:
    """Return the source that holds these images and containers."""
    chosen: list[str] = []
    sorted_parts(files, lambda name: chosen.append(name) or Listing.of_files([]))  # type: ignore[func-returns-value]
    described = {name: files[name] for name in chosen}
    if missing := [name for name, description in described.items() if description.get("size") is None]:
        with ThreadPoolExecutor(THREADS) as pool:
            described |= zip(
                missing, pool.map(lambda name: remote.describe(url_below(root, name)), missing), strict=True
            )

    def read() -> Listing:
        found = _listings(root, described)
        parts: list[Part] = [part for part in sorted_parts(files, found.__getitem__) if len(part)]
        if not parts:
            raise NoImagesError(root)
        return Listing.joined(parts)

    names = "\n".join(sorted(files)).encode("utf-8", "surrogateescape")
    stamps = [_stamp("", {"ETag": names, "size": len(files)}), *(_stamp(*item) for item in described.items())]
    return RemoteSource(root, stamps, read)


def _listings(root: str, containers: Iterable[str]) -> dict[str, Listing]:
    """Return the images in each container, whose directories are read at the same time."""

    def listing(name: str) -> Listing:
        return Listing.of_container(name, images_in(url_below(root, name), is_image))

    names = [*containers]
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(listing, names), strict=True))


def _names_below(url: str) -> dict[str, Mapping[str, Any]]:
    """Return fsspec's description of each visible file below a folder, by its name relative to it."""
    base, files = remote.list_below(url)
    found: dict[str, Mapping[str, Any]] = {}
    for path, description in files.items():
        name = path.removeprefix(f"{base.rstrip('/')}/")
        if name == path or (_is_http(url) and any(mark in name for mark in "?#")):  # a link that leads elsewhere
            continue
        name = unquote(name) if _is_http(url) else name
        if not any(map(is_hidden, name.split("/"))):
            found[name] = description
    if not found:
        raise NoImagesError(url)
    return found


def _stamp(name: str, description: Mapping[str, Any]) -> SourceStamp:
    return SourceStamp(name, remote.version_of(description), int(description.get("size") or 0))


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))
