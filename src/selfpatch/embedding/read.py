"""Reader of feature files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfpatch.core.text import counted
from selfpatch.embedding.encode import SCALE
from selfpatch.embedding.formats import SAFETENSORS_TYPES

_TYPES = {theirs: ours for ours, theirs in SAFETENSORS_TYPES.items()}


@dataclass(frozen=True)
class Embeddings:
    """Features of images, as `selfpatch embed` writes them."""

    names: list[str]
    """Name of each image, relative to the source."""
    arrays: Mapping[str, np.ndarray]
    """`size` [n, 2], and `image` [n, D] or `patches` [n, h, w, D] in the type of the file; memory-mapped if the file is
    safetensors."""
    metadata: Mapping[str, str]

    def __repr__(self) -> str:
        held = (f"{name} {list(array.shape)} {array.dtype}" for name, array in self.arrays.items())
        return f"Embeddings of {counted(len(self.names), 'image')} of {self.metadata.get('data')}: {', '.join(held)}"

    def vectors(self, name: str, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Return rows of `image` or `patches` as float32, multiplied by their scale if they are int8.

        Raises:
            ValueError: the file does not hold these features.
        """
        if name not in self.arrays:
            held = ", ".join(key for key in ("image", "patches") if key in self.arrays)
            raise ValueError(f"the file has no {name!r}; it holds {held}")
        values = np.asarray(self.arrays[name][rows], np.float32)
        scale = self.arrays.get(name + SCALE)
        return values if scale is None else values * scale[rows][..., None]


def read_embeddings(path: str | Path) -> Embeddings:
    """Open a safetensors or npz file of `selfpatch embed`.

    Raises:
        ValueError: the file is of another kind.
        OSError: the file cannot be read.
    """
    path = Path(path)
    read = {".safetensors": _read_safetensors, ".npz": _read_npz}.get(path.suffix)
    if read is None:
        raise ValueError(
            f"{path} is no safetensors or npz file; read Parquet with pandas or pyarrow, and zarr with zarr.open"
        )
    try:
        return _checked(read(path))
    except OSError:
        raise
    except Exception as error:  # the parsers of damaged files raise errors of many types
        raise ValueError(f"{path} is no file of `selfpatch embed` ({error}); write it again") from None


def _checked(found: Embeddings) -> Embeddings:
    """Return the features, or raise ValueError if they have not one row for each name."""
    if not isinstance(found.metadata, dict):
        raise ValueError("the metadata are no mapping")
    for name, array in found.arrays.items():
        if array.shape[:1] != (len(found.names),):
            raise ValueError(f"{name} has shape {list(array.shape)} for {counted(len(found.names), 'name')}")
    return found


def _read_safetensors(path: Path) -> Embeddings:
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > path.stat().st_size:
            raise ValueError("the header is cut off")
        header = json.loads(file.read(start - 8))
    metadata = header.pop("__metadata__")
    arrays = {
        name: np.memmap(path, _TYPES[x["dtype"]], "r", start + x["data_offsets"][0], tuple(x["shape"]))
        for name, x in header.items()
    }
    text, ends = arrays.pop("names").tobytes(), arrays.pop("name_ends").tolist()
    names = [text[first:last].decode() for first, last in zip([0, *ends], ends, strict=False)]
    return Embeddings(names, arrays, metadata)


def _read_npz(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    metadata = json.loads(str(arrays.pop("metadata")))
    return Embeddings(arrays.pop("names").tolist(), arrays, metadata)
