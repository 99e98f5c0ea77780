"""Write features of many images to a file."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.api.encoder import Network, open_encoder
from selfpatch.config.schema import height_and_width, override, recorded
from selfpatch.core import distributed
from selfpatch.core.atomic_io import make_folder
from selfpatch.core.console import console
from selfpatch.core.lock import locked_by_main
from selfpatch.core.version import VERSION
from selfpatch.data.images import NoneReadable, evenly_spread
from selfpatch.data.sources.index import ImageIndex
from selfpatch.embedding.config import EmbedConfig
from selfpatch.embedding.encode import columns_of, encode
from selfpatch.embedding.formats import Array, FeatureTable, writer_of
from selfpatch.embedding.store import DONE, FeatureStore
from selfpatch.evaluation.result import Progress, encoder_identity, silent
from selfpatch.models.features import evaluating


def embed(
    weights: Network,
    data: str | Path,
    out: str | Path,
    config: EmbedConfig | None = None,
    *,
    device: str = "auto",
    patch_size: int | None = None,
    load_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Path:
    """Write image and patch features of all images of a source to a file: `embed("run", "photos", "photos.npz")`.

    A call that was stopped continues when it is called again, and encodes images that have changed since anew; until
    the file is complete, features are in `OUT.partial`. Memory does not grow with the number of images. Under torchrun
    the processes share the images.

    Args:
        weights: weights as `selfpatch.load` takes them, an encoder, or a function of normalised images.
        data: folder of images, tar shard, or text file that lists images, folders and shards.
        out: file whose suffix chooses the format: .safetensors, .npz, .parquet or .zarr, see `embedding.formats`.
        config: settings; if None, the defaults.
        device: as `selfpatch.load` takes it.
        patch_size: side of a patch in pixels, if `weights` is a function.
        load_options: options of `selfpatch.load`.
        progress: called with the rate, the number of images done and the total.
        settings: fields of `EmbedConfig`; they override `config`.

    Returns:
        The file, `read_embeddings` opens it.

    Raises:
        ValueError: the file exists or has an unknown suffix, settings are wrong, or there are no weights or images.
    """
    config, path = override(config or EmbedConfig(), settings), Path(out)
    write = writer_of(path)
    with distributed.process_group(device):
        encoder, record = open_encoder(weights, device, patch_size, load_options)
        sides = _whole_patches(height_and_width(config.resolution), encoder.patch_size)
        index = ImageIndex.open(data)
        index.require_files()
        indices = evenly_spread(np.arange(len(index)), config.limit or len(index))
        unfinished = path.with_name(f"{path.name}.partial")
        store = FeatureStore(unfinished, columns_of(config, encoder, sides), len(indices))
        source = record.source if record is not None else type(encoder).__name__
        request = {
            "weights": source, "sha256": getattr(record, "sha256", None), "data": str(data),
            "images": len(index), "fingerprint": index.fingerprint, **recorded(config),
        }  # fmt: skip
        make_folder(unfinished)
        with locked_by_main(unfinished):
            if distributed.is_main_process():
                store.begin({**request, "encoder": encoder_identity(encoder)}, index.stamps()[indices])
            distributed.barrier()
            with evaluating(encoder):
                skipped = encode(encoder, index, indices, config, sides, store, progress or silent)
            skipped = [sentence for sentences in distributed.gather([skipped]) for sentence in sentences]
            if distributed.is_main_process():
                rows = store.rows(DONE)
                if not len(rows):
                    raise NoneReadable(len(indices), next(iter(skipped), None))
                write(_table(store, rows, index, indices, request), path)
                if missing := len(indices) - len(rows):
                    console.say(*skipped[:3], f"{missing} images could not be read and are left out")
        if distributed.is_main_process():
            store.remove()
        distributed.barrier()
    return path


def _whole_patches(sides: tuple[int, int], patch_size: int) -> tuple[int, int]:
    height, width = (side // patch_size * patch_size for side in sides)
    if not height or not width:
        raise ValueError(f"resolution is {sides[1]} x {sides[0]}; use sides of at least a patch, {patch_size} pixels")
    return height, width


def _table(
    store: FeatureStore, rows: np.ndarray, index: ImageIndex, indices: np.ndarray, request: Mapping[str, Any]
) -> FeatureTable:
    def names() -> Iterator[str]:
        return (index.name(int(i)).encode(errors="backslashreplace").decode() for i in indices[rows])

    arrays = {
        name: Array(column.dtype, (len(rows), *column.shape), partial(store.chunks, name, rows))
        for name, column in store.columns.items()
    }
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in request.items()}
    return FeatureTable(arrays, names, {**metadata, "selfpatch": VERSION})
