"""Images in a column of a Parquet file, as data sets on the Hugging Face Hub have them.

A row group is read at once, because Parquet compresses it as a whole, and its images are kept in the cache on disk.
Training in random order is fast as long as the data set fits into that cache.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from selfpatch.core.disk_cache import keep, lookup
from selfpatch.data.sources.image_files import ContainedImage
from selfpatch.data.sources.ranges import open_location
from selfpatch.data.sources.remote import RemoteError
from selfpatch.data.sources.shards import Extent

PARQUET = ".parquet"
COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content", "picture")
"""Names of columns of bytes that are taken for images, the first one that is there."""
LABELS = ("label", "labels", "cls", "class", "fine_label")
"""Names of columns that are taken for classes, the first one that is there."""
INSTALL = "run `pip install 'selfpatch[parquet]'`"


@dataclass(frozen=True)
class ParquetImage(ContainedImage):
    """An image in one row of a Parquet file; `str()` gives `file.parquet/class/row`."""

    group: int  # row group
    row: int  # row in the group
    version: int = 0  # changes with the content of the file

    def read(self) -> bytes:
        """Return the bytes of the image; raise OSError if there are none."""
        content = lookup(self._key(self.row))
        if content is None:
            content = self._unpack()
        if not content:
            raise OSError("its row has no bytes of an image")
        return content

    def _key(self, row: int) -> str:
        return f"parquet\n{self.file}\n{self.version}\n{self.group}\n{row}"

    def _unpack(self) -> bytes:
        """Return the image, and keep all images of its row group."""
        with _opened(self.file) as parquet:
            column, _, _ = _columns(parquet, self.file)
            images = parquet.read_row_group(self.group, columns=[column], use_threads=False).column(0)
            if not 0 <= self.row < len(images):
                raise OSError("the file has changed: there is no such row")
            wanted = b""
            for row, image in enumerate(images):
                content = _bytes_of(image.as_py())
                if row == self.row:
                    wanted = content
                if content:
                    keep(self._key(row), content)
            return wanted


def parquet_images(location: str) -> dict[str, Extent]:
    """Return the images in a Parquet file, by class (if it has a column of them) and row, as (row group, row in it).

    Raises:
        ValueError: it is no Parquet file, has no column of images, or pyarrow is not installed.
        OSError: it cannot be opened.
    """
    with _opened(location) as parquet:
        _, label, names = _columns(parquet, location)
        found: dict[str, Extent] = {}
        number = 0
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            labels: list[Any] = [None] * count
            if label is not None:
                labels = parquet.read_row_group(group, columns=[label], use_threads=False).column(0).to_pylist()
            for row, value in enumerate(labels):
                found[f"{_folder(value, names) if label else ''}{number:09d}"] = group, row
                number += 1
        return found


def _folder(value: Any, names: list[str] | None) -> str:
    """Return the name of a class as that of a folder, with a slash."""
    known = names is not None and isinstance(value, int) and 0 <= value < len(names)
    name = names[value] if known and names is not None else "none" if value is None else value
    return re.sub(r"[/\\\0]", "_", str(name)).lstrip(".") + "/"


@contextlib.contextmanager
def _opened(location: str) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{location} is a Parquet file, for which pyarrow is not installed; {INSTALL}") from None
    with open_location(location) as stream:
        try:
            yield ParquetFile(stream)
        except RemoteError:
            raise
        except (ArrowException, OSError) as error:  # damaged pages raise plain OSError
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"cannot read {location} as Parquet: {reason}; fetch it again, or take it out") from None


def _columns(parquet: Any, location: str) -> tuple[str, str | None, list[str] | None]:
    """Return the column of images, and that of classes with their names, if there are any.

    Columns have the form that Hugging Face's `datasets` writes, a record of `bytes` and `path`, or are bytes.
    """
    schema = parquet.schema_arrow
    if len({*schema.names}) < len(schema.names):
        raise ValueError(f"{location} has several columns of one name ({', '.join(schema.names)[:300]}); rename them")
    features: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # metadata of any form
        described = json.loads(schema.metadata[b"huggingface"])["info"]["features"].items()
        features = {name: feature for name, feature in described if isinstance(feature, dict)}
    kinds = {name: feature.get("_type") for name, feature in features.items()}
    by_kind = [name for name in schema.names if kinds.get(name) == "Image" and _holds_bytes(schema.field(name).type)]
    records = [f.name for f in schema if hasattr(f.type, "num_fields") and _is_record(f.type)]
    named = [name for name in COLUMNS if name in schema.names and _holds_bytes(schema.field(name).type)]
    images = [*by_kind, *records, *named]
    if not images:
        raise ValueError(
            f"{location} has no column of encoded images (its columns: {', '.join(schema.names)[:300]}); name the "
            "column `image`, or write the images to a folder"
        )
    classes = [n for n in schema.names if kinds.get(n) == "ClassLabel"] or [n for n in LABELS if n in schema.names]
    label = next((n for n in classes if _is_label(schema.field(n).type)), None)
    names = features[label].get("names") if label is not None and kinds.get(label) == "ClassLabel" else None
    return images[0], label, [str(name) for name in names] if isinstance(names, list) else None


def _is_record(kind: Any) -> bool:
    from pyarrow import types

    return types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _holds_bytes(kind: Any) -> bool:
    return _is_binary(kind) or _is_record(kind)


def _is_label(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def _bytes_of(value: Any) -> bytes:
    """Return the bytes in a row, which may hold none, or a path alone."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else b""
