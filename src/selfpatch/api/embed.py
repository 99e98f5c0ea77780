"""Write features of many images to a file."""

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from torch import Tensor, nn

from selfpatch.api.dry_run import DryRun, evaluation_report
from selfpatch.api.encoder import Network, open_encoder, without_values
from selfpatch.config.schema import height_and_width, override, recorded
from selfpatch.core import distributed
from selfpatch.core.atomic_io import make_folder
from selfpatch.core.console import console
from selfpatch.core.dry_run import dry_run as dry_running
from selfpatch.core.lock import locked_by_main
from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.core.version import VERSION
from selfpatch.data.images import NoneReadable
from selfpatch.data.sources.remote import is_url
from selfpatch.data.sources.scan import NoImagesError
from selfpatch.embedding.config import EmbedConfig
from selfpatch.embedding.encode import columns_of, encode
from selfpatch.embedding.formats import Array, FeatureTable, writer_of
from selfpatch.embedding.rows import ImageRows, Rows
from selfpatch.embedding.store import DONE, FeatureStore
from selfpatch.embedding.videos import FrameRows, find_videos, is_video
from selfpatch.evaluation.identity import encoder_identity
from selfpatch.evaluation.result import Progress, silent
from selfpatch.evaluation.workload import Workload
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.features import evaluating


@overload
def embed(
    weights: Network,
    data: str | Path,
    out: str | Path,
    config: EmbedConfig | None = None,
    *,
    dry_run: Literal[True],
    **options: Any,
) -> DryRun: ...
@overload
def embed(
    weights: Network,
    data: str | Path,
    out: str | Path,
    config: EmbedConfig | None = None,
    *,
    dry_run: Literal[False] = False,
    **options: Any,
) -> Path: ...
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
    dry_run: bool = False,
    **settings: Any,
) -> Path | DryRun:
    """Write image and patch features of all images of a source to a file: `embed("run", "photos", "photos.npz")`.

    A call that was stopped continues when it is called again, and encodes images that have changed since anew; until
    the file is complete, features are in `OUT.partial`. Memory does not grow with the number of images. Under torchrun
    the processes share the images.

    Args:
        weights: weights as `selfpatch.load` takes them, an encoder, or a function of normalised images.
        data: folder of images, tar shard, zip archive, Parquet file, text file that lists any of these, or URL of one;
            or a video; or a folder of videos, with `fps` or `every`.
        out: file whose suffix chooses the format: .safetensors, .npz, .parquet or .zarr, see `embedding.formats`.
        config: settings; if None, the defaults.
        device: as `selfpatch.load` takes it.
        patch_size: side of a patch in pixels, if `weights` is a function.
        load_options: options of `selfpatch.load`.
        progress: called with the rate, the number of images done and the total.
        dry_run: check everything, count images and bytes, and estimate memory; read no image and write nothing.
        settings: fields of `EmbedConfig`; they override `config`.

    Returns:
        The file, which `read_embeddings` opens, or the report of a dry run.

    Raises:
        ValueError: the file exists or has an unknown suffix, settings are wrong, or there are no weights or images.
    """
    config, path = override(config or EmbedConfig(), settings), Path(out)
    write = writer_of(path)
    with dry_running(enabled=dry_run), distributed.process_group(device):
        encoder, record = open_encoder(weights, device, patch_size, load_options)
        sides = _whole_patches(height_and_width(config.resolution), encoder.patch_size)
        rows = open_rows(data, config)
        unfinished = path.with_name(f"{path.name}.partial")
        store = FeatureStore(unfinished, columns_of(config, encoder, sides), len(rows))
        source = record.source if record is not None else type(encoder).__name__
        request = {
            "weights": source, "sha256": getattr(record, "sha256", None), "data": str(data),
            "images": rows.num_images, "fingerprint": rows.fingerprint, **recorded(config),
        }  # fmt: skip
        if dry_run:
            return _report(encoder, rows, store, {**request, "out": str(out)}, config, sides, device)
        make_folder(unfinished)
        with locked_by_main(unfinished):
            if distributed.is_main_process():
                store.begin({**request, "encoder": encoder_identity(encoder)}, rows.stamps())
            distributed.barrier()
            with evaluating(encoder):
                skipped = encode(encoder, rows, config, sides, store, progress or silent)
            skipped = [sentence for sentences in distributed.gather([skipped]) for sentence in sentences]
            if distributed.is_main_process():
                write(_readable_rows(store, rows, request, skipped), path)
        if distributed.is_main_process():
            store.remove()
        distributed.barrier()
    return path


def _readable_rows(store: FeatureStore, rows: Rows, request: Mapping[str, Any], skipped: Sequence[str]) -> FeatureTable:
    """Return the rows that could be encoded, and say how many could not."""
    done = store.rows(DONE)
    if not len(done):
        raise NoneReadable(len(rows), next(iter(skipped), None))
    if missing := len(rows) - len(done):
        console.say(*skipped[:3], f"left out: {counted(missing, 'image')} that could not be read")
    return _table(store, done, rows, request)


def _whole_patches(sides: tuple[int, int], patch_size: int) -> tuple[int, int]:
    height, width = (side // patch_size * patch_size for side in sides)
    if not height or not width:
        raise ValueError(f"resolution is {sides[1]} x {sides[0]}; use sides of at least a patch, {patch_size} pixels")
    return height, width


def open_rows(data: str | Path, config: EmbedConfig) -> Rows:
    """Return the images of a source, or the frames of its videos if the settings ask for them, or it is a video.

    Raises:
        ValueError: there are none, or PyAV is missing.
    """
    if config.fps is None and config.every is None and not is_video(Path(data).expanduser()):
        try:
            return ImageRows(data, config.limit)
        except NoImagesError:
            videos = [] if is_url(str(data)) else find_videos(data)
            if not videos:
                raise
            raise ValueError(
                f"no images in {data}, but {counted(len(videos), 'video')}; give --fps 1 to take their frames"
            ) from None
    if importlib.util.find_spec("av") is None:
        raise ValueError("frames of videos need PyAV; install it with `pip install 'selfpatch[video]'`")
    rows = FrameRows(data, config)
    if rows.unreadable and distributed.is_main_process():
        console.say(
            *map(str, rows.unreadable[:3]), f"left out: {counted(len(rows.unreadable), 'video')} that could not be read"
        )
    return rows


def _report(
    encoder: Encoder,
    rows: Rows,
    store: FeatureStore,
    settings: Mapping[str, Any],
    config: EmbedConfig,
    sides: tuple[int, int],
    device: str,
) -> DryRun:
    found, encoder = distributed.find_device(device), without_values(encoder)
    if not isinstance(encoder, nn.Module):
        encoder.device = found  # type: ignore[misc]

    def forward(images: Tensor) -> object:
        if len(config.features) == 2 and isinstance(encoder, BranchEncoder):
            return encoder(images)  # one pass
        return [getattr(encoder, name)(images) for name in config.features]

    data = {"images": len(rows), "bytes of the features": store.num_bytes}
    workload = Workload(
        settings,
        data,
        forward,
        (min(config.batch_size, len(rows)), len(encoder.mean), *sides),
        len(rows),
        notes=("While the file is made, its features take twice that many bytes on the disk.",),
    )
    with evaluating(encoder):
        return evaluation_report("embed", encoder, workload, found)


def _table(store: FeatureStore, done: np.ndarray, rows: Rows, request: Mapping[str, Any]) -> FeatureTable:
    def names() -> Iterator[str]:
        return (rows.name(int(row)).encode(errors="backslashreplace").decode() for row in done)

    arrays = {
        name: Array(column.dtype, (len(done), *column.shape), partial(store.chunks, name, done))
        for name, column in store.columns.items()
    }
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in request.items()}
    return FeatureTable(arrays, names, {**metadata, "selfpatch": VERSION})
