"""Files of features: safetensors, npz, Parquet and zarr, written in chunks to bound the memory.

All hold `size` [n, 2] (width and height of each image in pixels), `image` [n, D] and `patches` [n, h, w, D], with
`image_scale` [n] and `patches_scale` [n, h, w] if those are int8, and names: npz and Parquet as text, safetensors and
zarr as `names`, UTF-8 bytes one after another, and `name_ends` [n], where each name ends.
"""

import importlib.util
import itertools
import json
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from selfpatch.core.atomic_io import clear_error, replacing
from selfpatch.embedding.store import ROWS_AT_ONCE

SAFETENSORS_TYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "int32": "I32", "int64": "I64", "uint8": "U8"}


class Array(NamedTuple):
    """Array that is read in chunks of its first axis."""

    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class FeatureTable:
    """Arrays with a row for each image, and the names of the rows."""

    arrays: Mapping[str, Array]
    names: Callable[[], Iterator[str]]
    metadata: Mapping[str, str]
    """Weights, images and settings."""

    def name_chunks(self) -> Iterator[list[str]]:
        """Yield the names in chunks of `ROWS_AT_ONCE`."""
        names = self.names()
        while chunk := list(itertools.islice(names, ROWS_AT_ONCE)):
            yield chunk

    def with_encoded_names(self) -> dict[str, Array]:
        """Return the arrays with the names as bytes."""

        def ends() -> Iterator[np.ndarray]:
            end = 0
            for names in self.name_chunks():
                of_chunk = end + np.cumsum([len(name.encode()) for name in names])
                end = int(of_chunk[-1])
                yield of_chunk

        def encoded() -> Iterator[np.ndarray]:
            for names in self.name_chunks():
                yield np.frombuffer("".join(names).encode(), np.uint8)

        counts = [(len(chunk), int(chunk[-1])) for chunk in ends()]
        num_rows, total = sum(count for count, _ in counts), counts[-1][1]
        return {
            **self.arrays,
            "names": Array("uint8", (total,), encoded),
            "name_ends": Array("int64", (num_rows,), ends),
        }


def write_safetensors(table: FeatureTable, path: Path) -> None:
    """Write a safetensors file (https://github.com/huggingface/safetensors): length of the header, header, arrays."""
    arrays, end = table.with_encoded_names(), 0
    header: dict[str, Any] = {"__metadata__": dict(table.metadata)}
    # The widest types come first, so that each array starts at a multiple of its type's size.
    order = sorted(arrays, key=lambda name: -np.dtype(arrays[name].dtype).itemsize)
    for name in order:
        array, start = arrays[name], end
        end += int(np.prod(array.shape, dtype=np.int64)) * np.dtype(array.dtype).itemsize
        header[name] = {
            "dtype": SAFETENSORS_TYPES[array.dtype], "shape": [*array.shape], "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            _write_chunks(file, arrays[name])


def write_npz(table: FeatureTable, path: Path) -> None:
    """Write an uncompressed npz file with `names` as text."""
    longest = max(len(name) for name in table.names())
    num_rows = table.arrays["size"].shape[0]
    names = Array(f"<U{longest}", (num_rows,), lambda: (np.array(n, f"<U{longest}") for n in table.name_chunks()))
    metadata = np.array(json.dumps(dict(table.metadata)))
    arrays = {"names": names, **table.arrays, "metadata": Array(metadata.dtype.str, (), lambda: (metadata,))}
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                descr = np.lib.format.dtype_to_descr(np.dtype(array.dtype))
                header = {"descr": descr, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_2_0(member, header)
                _write_chunks(member, array)


def write_parquet(table: FeatureTable, path: Path) -> None:
    """Write a Parquet file with a row for each image; features are lists of numbers, patches row by row of the grid."""
    import pyarrow
    from pyarrow import parquet

    kinds = {name: _parquet_type(array) for name, array in table.arrays.items() if name != "size"}
    fields = [("name", pyarrow.string()), ("width", pyarrow.int32()), ("height", pyarrow.int32()), *kinds.items()]
    shapes = {f"{name}_shape": json.dumps(table.arrays[name].shape[1:]) for name in kinds}
    schema = pyarrow.schema(fields, metadata={**table.metadata, **shapes})
    chunks = zip(*(array.chunks() for array in table.arrays.values()), strict=True)
    with replacing(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for names, values in zip(table.name_chunks(), chunks, strict=True):
            rows = dict(zip(table.arrays, values, strict=True))
            width, height = rows.pop("size").T
            columns = [pyarrow.array(names), pyarrow.array(width), pyarrow.array(height)]
            for name, kind in kinds.items():
                flat = pyarrow.array(np.ascontiguousarray(rows[name]).reshape(-1))
                is_list = isinstance(kind, pyarrow.FixedSizeListType)
                columns.append(pyarrow.FixedSizeListArray.from_arrays(flat, kind.list_size) if is_list else flat)
            writer.write_table(pyarrow.table(columns, schema=schema))


def _parquet_type(array: Array) -> Any:
    import pyarrow

    kind = pyarrow.from_numpy_dtype(np.dtype(array.dtype))
    return kind if len(array.shape) == 1 else pyarrow.list_(kind, int(np.prod(array.shape[1:])))


def write_zarr(table: FeatureTable, path: Path) -> None:
    """Write a zarr group, a folder with an array each in chunks of `ROWS_AT_ONCE` rows."""
    import zarr

    temporary = path.with_name(f".{path.name}.tmp")
    with clear_error(path):
        shutil.rmtree(temporary, ignore_errors=True)
        group = zarr.open_group(temporary, mode="w")
        group.attrs.update(dict(table.metadata))
        for name, array in table.with_encoded_names().items():
            chunks = tuple(min(ROWS_AT_ONCE, size) for size in array.shape[:1]) + array.shape[1:]
            stored = group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=chunks)
            first = 0
            for chunk in array.chunks():
                stored[first : first + len(chunk)] = chunk
                first += len(chunk)
        temporary.rename(path)


def _write_chunks(file: BinaryIO | Any, array: Array) -> None:
    for chunk in array.chunks():
        file.write(np.ascontiguousarray(chunk, np.dtype(array.dtype)).tobytes())


FORMATS: Mapping[str, Callable[[FeatureTable, Path], None]] = {
    ".safetensors": write_safetensors,
    ".npz": write_npz,
    ".parquet": write_parquet,
    ".zarr": write_zarr,
}
"""Function that writes a file, by its suffix."""
_EXTRAS = {".parquet": "pyarrow", ".zarr": "zarr"}


def writer_of(path: Path) -> Callable[[FeatureTable, Path], None]:
    """Return the function that writes a file of this name.

    Raises:
        ValueError: the suffix is unknown, its package is missing, or the file exists.
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"out is {str(path)!r}; name a file that ends with one of: {', '.join(FORMATS)}")
    extra = _EXTRAS.get(path.suffix)
    if extra is not None and importlib.util.find_spec(extra) is None:
        raise ValueError(f"{path.suffix} files need {extra}; install it with `pip install 'selfpatch[embed]'`")
    if path.exists():
        raise ValueError(f"{path} exists; remove it, or name another --out")
    return FORMATS[path.suffix]
