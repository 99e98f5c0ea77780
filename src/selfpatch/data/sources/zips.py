"""Images in a zip archive: their byte ranges from its directory, and their content, read in place."""

import itertools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from selfpatch.core.folders import is_hidden
from selfpatch.data.sources.image_files import ContainedImage
from selfpatch.data.sources.limits import LIMIT_VARIABLE, max_file_bytes
from selfpatch.data.sources.ranges import read_range
from selfpatch.data.sources.remote import RemoteError
from selfpatch.data.sources.shards import Extent, normal_name

ZIP = ".zip"
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
ENCRYPTED, SIZES_BEHIND = 1, 8
"""Bits of a member's flags: it needs a password; its sizes stand behind its content."""
_HEADER = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class ZipMember(ContainedImage):
    """An image in a zip archive, stored or deflated; `str()` gives `archive.zip/member.jpg`."""

    offset: int  # first byte of the member's header in the archive
    size: int  # bytes up to the next member
    version: int = 0  # changes with the content behind a URL

    def read(self) -> bytes:
        """Return the bytes of the image; raise OSError if they are damaged or too many."""
        return _content(read_range(*self.byte_range))

    @property
    def byte_range(self) -> tuple[str, int, int, int]:
        """Place of the member in the archive, with its header."""
        return self.file, self.offset, self.size, self.version

    def content_of(self, span: bytes) -> bytes:
        """Return the content of the member; raise OSError if it is damaged or too large."""
        return _content(span)


def zip_images(stream: BinaryIO, name: str, is_image: Callable[[str], bool]) -> dict[str, Extent]:
    """Return the images in an open zip archive by name, with their ranges: a header, the content, and what follows.

    Hidden files are left out, as in a folder. Of members with one name the last one counts.

    Raises:
        ValueError: it is no zip, or a damaged one, or an image in it is encrypted or compressed by a rare method.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            members, end = archive.infolist(), int(archive.start_dir)
    except Exception as error:  # damaged directories raise more than BadZipFile
        if isinstance(error.__context__, RemoteError):  # zipfile takes any failed read for the end of the file
            raise error.__context__ from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read {name} as a zip archive: {reason}; fetch it again, or take it out") from None
    starts = sorted({*(member.header_offset for member in members), end})
    ends = dict(itertools.pairwise(starts))
    found: dict[str, Extent] = {}
    for member in members:
        path = normal_name(member.filename)
        if member.is_dir() or not is_image(path) or any(map(is_hidden, path.split("/"))):
            continue
        if member.flag_bits & ENCRYPTED or member.compress_type not in (STORED, DEFLATED):
            how = "encrypted" if member.flag_bits & ENCRYPTED else "compressed by a method that is not read"
            raise ValueError(f"{member.filename} in {name} is {how}; unpack the archive, and give the folder")
        if not 0 <= member.header_offset < end:
            raise ValueError(
                f"cannot read {name} as a zip archive: {path} lies outside of it; fetch it again, or take it out"
            )
        found[path] = member.header_offset, ends[member.header_offset] - member.header_offset
    return found


def _content(span: bytes) -> bytes:
    """Return the content of a member whose header begins the span."""
    try:
        magic, _, flags, method, _, _, checksum, packed, _, name, extra = _HEADER.unpack_from(span)
    except struct.error:
        raise OSError("the archive ends within the image") from None
    if magic != b"PK\x03\x04":
        raise OSError("the archive has changed or is damaged: there is no member at its place")
    data = memoryview(span)[_HEADER.size + name + extra :]
    if method == STORED:
        content = bytes(data[: packed if not flags & SIZES_BEHIND else _length_before_sizes(data)])
    else:
        limit = max_file_bytes()
        try:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            content = inflate.decompress(data, limit)
        except zlib.error as error:
            raise OSError(f"its compressed content is damaged ({error})") from None
        if not inflate.eof:
            raise OSError(f"it is cut short, or has more than {limit} bytes (see {LIMIT_VARIABLE})")
    if not flags & SIZES_BEHIND and zlib.crc32(content) != checksum:
        raise OSError("its checksum is wrong")
    return content


def _length_before_sizes(data: memoryview) -> int:
    """Return the length of stored content that is followed by its checksum and sizes, of 4 or 8 bytes each."""
    for length in _possible_lengths(data):
        return length
    raise OSError("the sizes behind the image are missing")


def _possible_lengths(data: memoryview) -> Iterator[int]:
    for record in (struct.Struct("<4s3L"), struct.Struct("<4sL2Q"), struct.Struct("<3L"), struct.Struct("<L2Q")):
        start = len(data) - record.size
        if start >= 0:
            *signature, checksum, packed, size = record.unpack_from(data, start)
            fits = signature in ([], [b"PK\x07\x08"]) and start == packed == size
            if fits and zlib.crc32(data[:start]) == checksum:
                yield start
