"""Byte ranges of the images in a tar shard, from one pass over its headers."""

import posixpath
import tarfile
from collections.abc import Callable, Iterator

from selfpatch.core.folders import is_hidden
from selfpatch.data.sources.ranges import open_location

SHARD = ".tar"
COMPRESSED = tuple(".tar.gz .tgz .tar.bz2 .tbz .tbz2 .tar.xz .txz .tar.zst .tzst .tar.lz4 .tar.z".split())
"""Endings, in lower case, of tars that can be read only from the beginning."""


Extent = tuple[int, int]
"""Byte range of a member in a shard: (offset, size)."""


def is_shard(name: str) -> bool:
    """Return whether a file name has the ending of an uncompressed tar."""
    return name.lower().endswith(SHARD)


def is_compressed_shard(name: str) -> bool:
    """Return whether a file name has the ending of a compressed tar."""
    return name.lower().endswith(COMPRESSED)


def refuse_compressed(path: str) -> None:
    """Raise ValueError if a path has the ending of a compressed tar."""
    if is_compressed_shard(path):
        raise ValueError(
            f"{path} is compressed, so images in it cannot be read in any order; decompress it to a plain .tar first"
        )


def shard_images(path: str, is_image: Callable[[str], bool]) -> dict[str, Extent]:
    """Return the images in a shard by name, as unpacking it into a folder would leave them.

    Of members with one name the last one counts, and a hard link is the file that it leads to. Hidden files and files
    in hidden folders (`core.folders.is_hidden`) are left out, as in a folder. Symbolic links are not followed.

    Raises:
        ValueError: it is no tar, or a compressed, truncated or damaged one, or an image in it is stored sparsely.
        OSError: it cannot be opened.
    """
    extents: dict[str, Extent] = {}
    for member in _members(path):
        name = normal_name(member.name)
        if member.issparse() and is_image(name):
            raise ValueError(f"{member.name} in the shard {path} is stored sparsely; write it again without --sparse")
        if member.isreg():
            extents[name] = member.offset_data, member.size
        elif member.islnk() and (target := extents.get(normal_name(member.linkname))) is not None:
            extents[name] = target
    return {
        name: extent for name, extent in extents.items() if is_image(name) and not any(map(is_hidden, name.split("/")))
    }


def normal_name(name: str) -> str:
    """Return a member's path below the shard: `./a//b.jpg` and `/a/b.jpg` become `a/b.jpg`."""
    return posixpath.normpath(f"/{name.lstrip('/')}").lstrip("/")


def _members(path: str) -> Iterator[tarfile.TarInfo]:
    try:
        with open_location(path) as file, tarfile.open(path, "r:", file) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte of each
                if member.size < 0:  # a damaged header that would lead back, without end
                    raise tarfile.ReadError("negative size")
                yield member
            # `tarfile` takes every unreadable header but the first, and the end of a truncated file, for the end of
            # the tar: images would be missing unnoticed.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            block = tar.fileobj.read(tarfile.BLOCKSIZE)
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"damaged header at byte {tar.offset}")
            if len(block) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it is truncated, for the empty blocks that close a tar are missing")
    except RecursionError:  # each header of a long name announces another header
        raise ValueError(f"cannot read {path} as an uncompressed tar: its headers never end; write it again") from None
    except (tarfile.TarError, ValueError, ArithmeticError, MemoryError, LookupError) as error:
        # Damaged numbers raise more than TarError.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"cannot read {path} as an uncompressed tar: {reason}; write or fetch it again, or take it out"
        ) from None
