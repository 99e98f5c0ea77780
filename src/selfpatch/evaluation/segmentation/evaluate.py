"""Semantic segmentation with a network's patch features: by retrieval, by a linear head, by clusters, by a trained
decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from selfpatch.core.types import Encoder
from selfpatch.evaluation.result import Progress, Provenance, Result
from selfpatch.evaluation.segmentation import kmeans, knn, linear, logistic, trained
from selfpatch.evaluation.segmentation.scoring import check_at_least

PRESETS: dict[str, Mapping[str, Any]] = {
    "linear": linear.PRESETS,
    "fpn": trained.PRESETS["fpn"],
    "upernet": trained.PRESETS["upernet"],
}
"""By method."""

Method = Literal["knn", "linear", "logistic", "kmeans", "fpn", "upernet"]

_TRAINING = ("train_split", "workers", "preset", "steps", "batch_size", "crop", "lr", "weight_decay", "warmup", "test")
_DECODER = (
    *_TRAINING,
    "short_side",
    "stride",
    "layer_decay",
    "drop_path",
    "blocks",
    "precision",
    "rescale",
    "normed",
    "channels",
    "auxiliary_channels",
)
READS: dict[str, tuple[str, ...]] = {
    "knn": ("train_split", "resolution", "memory_patches", "k", "temperature", "max_memory"),
    "kmeans": ("resolution", "memory_patches", "iterations", "restarts"),
    "linear": _TRAINING,
    "logistic": ("train_split", "resolution", "memory_patches", "weight_decay", "iterations"),
    "fpn": _DECODER,
    "upernet": _DECODER,
}
"""Settings of `evaluate` that a method reads beside those that all do."""

_RUN: dict[Method, Callable[..., Result]] = {
    "knn": knn.evaluate_knn,
    "linear": linear.evaluate_linear,
    "logistic": logistic.evaluate_logistic,
    "kmeans": kmeans.evaluate_kmeans,
    "fpn": partial(trained.evaluate_trained, head="fpn"),
    "upernet": partial(trained.evaluate_trained, head="upernet"),
}


def evaluate(
    encoder: Encoder,
    data: str | Path,
    *,
    method: Method = "linear",
    preset: str | None = None,
    out: str | Path | None = None,
    kind: str | None = None,
    test_split: str = "val",
    limit: int | None = None,
    seed: int = 0,
    max_pictures: int = 4,
    weights: Provenance | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """mIoU, aAcc and mAcc over the pixels of the test images that are not void.

    Args:
        encoder: the network; `fpn` and `upernet` train a copy of it, and need one of ours.
        data: a labelled set, as `datasets.open_dataset` reads it.
        method: `knn` (retrieval of training patches), `linear` (a 1x1 convolution on frozen features),
            `logistic` (the same by L-BFGS), `kmeans` (clusters of the test images' patches,
            matched to classes; no training), `fpn`, `upernet` (decoders trained with the network).
        preset: of `linear`, `fpn` and `upernet`: the published setting that fills in what is not given; None: the first
            of the method's PRESETS.
        out: folder for result.json, pictures and the checkpoint of what is trained, which a second call goes on from.
        kind: of the data; None: told from the layout.
        test_split: name of the split that is scored.
        limit: images of each split, evenly spread; None: all.
        seed: of all that is random.
        max_pictures: test images to draw.
        weights: what the encoder was made of, for the record.
        progress: called with what is worked on, done and total.
        settings: those in `READS` of the method, as `options.segment.Segment` describes them; None: as the method or
            its preset has it.

    Raises:
        ValueError: an unknown method, preset or kind, a setting that is out of range or that the method does not read,
            data that cannot be read, or an encoder that does not fit.
    """
    if method not in get_args(Method):
        raise ValueError(f"there is no method {method!r} of segmentation; use one of: {', '.join(get_args(Method))}")
    if len(encoder.mean) != 3:
        raise ValueError(f"the network takes images of {len(encoder.mean)} channels; segmentation sets are RGB, use 3")
    given = {name: value for name, value in {"preset": preset, **settings}.items() if value is not None}
    unread = sorted(given.keys() - set(READS[method]))
    if unread:
        raise ValueError(f"{method} does not read {', '.join(unread)}; it reads {', '.join(READS[method])}")
    check_at_least(0, seed=seed, max_pictures=max_pictures, workers=settings.get("workers"))
    result = _RUN[method](
        encoder,
        data,
        out=out,
        kind=kind,
        test_split=test_split,
        limit=limit,
        seed=seed,
        max_pictures=max_pictures,
        weights=weights,
        progress=progress,
        **given,
    )
    if out is not None:
        result.save(Path(out) / "result.json")
    return result
