"""Encoding of many images into a `FeatureStore`."""

import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfpatch.core.distributed import barrier
from selfpatch.core.types import Encoder
from selfpatch.data.augment.pillow import resize_picture, to_tensor
from selfpatch.data.decode.pillow import BadImage, Picture, as_bad_image
from selfpatch.data.images import centre_crop
from selfpatch.data.workers import computed_ahead
from selfpatch.embedding.config import EmbedConfig
from selfpatch.embedding.rows import Rows
from selfpatch.embedding.store import DONE, MISSING, UNREADABLE, Column, FeatureStore
from selfpatch.evaluation.encoders import in_precision
from selfpatch.evaluation.result import Progress
from selfpatch.evaluation.sharding import share_of
from selfpatch.models.debiased import debiased
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.finite_features import checked_features
from selfpatch.ops.images import normalise, to_common_dtype

SCALE = "_scale"
"""End of the name of the column with the scales of an int8 column."""


class Loaded(NamedTuple):
    """Images of one size, and which they are."""

    images: Tensor  # [b, C, H, W]
    rows: np.ndarray  # [b] int64
    sizes: np.ndarray  # [b, 2] int32, width and height in the file
    unreadable: Sequence[tuple[int, str]]  # row and reason


def columns_of(config: EmbedConfig, encoder: Encoder, sides: tuple[int, int]) -> dict[str, Column]:
    """Return the columns of a file; images are `sides` (height, width) pixels."""
    grid = tuple(side // encoder.patch_size for side in sides)
    shapes = {"image": (), "patches": grid}
    columns = {"size": Column("int32", (2,))}
    for name in config.features:
        columns[name] = Column(config.dtype, (*shapes[name], encoder.dim))
        if config.dtype == "int8":
            columns[name + SCALE] = Column("float32", shapes[name])
    return columns


def encode(
    encoder: Encoder,
    source: Rows,
    config: EmbedConfig,
    sides: tuple[int, int],
    store: FeatureStore,
    progress: Progress,
) -> list[str]:
    """Encode the images that are missing in a store, and return a sentence for each unreadable one.

    Under torchrun each process encodes its share; all return when all are done.

    Args:
        encoder: the network.
        source: the images, a row each.
        config: the settings.
        sides: height and width of the images in pixels.
        store: where the features go.
        progress: called with the rate, the number of images done and the number of all images.
    """
    missing = store.rows(MISSING)
    barrier()  # all have read the states before any changes
    share = share_of(len(missing))
    mine = missing[share.start : share.stop]
    workers = min(config.workers, -(-len(mine) // config.batch_size))
    batches = source.batches(mine, config.batch_size, workers)
    load = partial(_load, source, sides, config.fit, len(encoder.mean))
    unreadable, done, started = list[str](), 0, time.perf_counter()
    for batch in computed_ahead(load, batches, workers):
        if len(batch.rows):
            store.write("size", batch.rows, batch.sizes)
            for name, values in features_of(encoder, batch.images, config).items():
                store.write(name, batch.rows, values.cpu().numpy())
            store.write("state", batch.rows, np.full(len(batch.rows), DONE))
        for row, reason in batch.unreadable:
            store.write("state", np.array([row]), np.array([UNREADABLE]))
            unreadable.append(reason)
        done += len(batch.rows) + len(batch.unreadable)
        rate = done / (time.perf_counter() - started)
        progress(f"embed, {rate:.3g} images/s", store.num_rows - len(mine) + done, store.num_rows)
    barrier()
    return unreadable


@torch.no_grad()
def features_of(encoder: Encoder, images: Tensor, config: EmbedConfig) -> dict[str, Tensor]:
    """Return the columns of features of a batch of images [b, C, H, W] in uint8, or float32 in [0, 1]."""
    batch = normalise(images.to(encoder.device), encoder.mean, encoder.std)
    values: dict[str, Tensor] = {}
    if len(config.features) == 2 and isinstance(encoder, BranchEncoder) and not config.debias:
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            values["image"], values["patches"] = encoder(batch)  # one pass
    else:
        inside = debiased(in_precision(encoder, config.precision), config.debias)
        values = {name: getattr(inside, name)(batch) for name in config.features}
    columns: dict[str, Tensor] = {}
    for name in config.features:
        features = checked_features(values[name], batch).float()
        if name == "patches":
            features = features.movedim(1, -1)  # [b, h, w, D]
        columns |= _as_stored(name, features, config.dtype)
    return columns


def _as_stored(name: str, features: Tensor, dtype: str) -> dict[str, Tensor]:
    """Return features in the type of the file.

    Raises:
        ValueError: float16 cannot hold them.
    """
    if dtype == "int8":
        scale = features.abs().amax(-1) / 127
        steps = (features / scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round()
        return {name: steps.to(torch.int8), name + SCALE: scale}
    if dtype == "float16":
        largest = float(features.abs().amax())
        if largest > torch.finfo(torch.float16).max:
            raise ValueError(f"a feature has the value {largest:.3g}, too large for float16; use --dtype float32")
        return {name: features.half()}
    return {name: features}


def _load(source: Rows, sides: tuple[int, int], fit: str, channels: int, rows: np.ndarray) -> Loaded:
    images, kept, sizes, unreadable = list[Tensor](), list[int](), list[tuple[int, ...]](), list[tuple[int, str]]()
    for row in map(int, rows):
        try:
            with as_bad_image(source.path(row)):
                picture = source.picture(row, channels)
                images.append(fitted(picture, sides, fit))
        except BadImage as error:
            unreadable.append((row, str(error)))
            continue
        kept.append(row)
        sizes.append(picture.size)
    batch = torch.stack(to_common_dtype(images)) if images else torch.empty(0)
    return Loaded(batch, np.array(kept, np.int64), np.array(sizes, np.int32).reshape(-1, 2), unreadable)


def fitted(picture: Picture, sides: tuple[int, int], fit: str) -> Tensor:
    """Return the pixels [C, H, W] of a picture resized to `sides`: stretched, or covering them and centre-cropped."""
    height, width = sides
    return to_tensor(resize_picture(picture, width, height)) if fit == "stretch" else centre_crop(picture, sides)
