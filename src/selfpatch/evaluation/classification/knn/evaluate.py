"""Weighted k-nearest-neighbour classification of image features (Wu et al., arXiv 1805.01978; as in DINO's code)."""

from collections.abc import Sequence
from pathlib import Path

from torch.nn import functional as F

from selfpatch.core.distributed import gather_rows
from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.evaluation.classification.dataset import map_centre_crops, open_splits, split_sizes
from selfpatch.evaluation.classification.degenerate import check_classes
from selfpatch.evaluation.classification.knn.config import KNNConfig
from selfpatch.evaluation.classification.metrics import accuracies, top_hits, unreadable
from selfpatch.evaluation.degenerate import check_images
from selfpatch.evaluation.encoders import in_precision
from selfpatch.evaluation.feature_cache import cached
from selfpatch.evaluation.result import NO_OUTPUT, Cell, Output, Result, unreadable_note
from selfpatch.evaluation.sharding import share_of
from selfpatch.evaluation.workload import Workload
from selfpatch.models.features import image_features
from selfpatch.ops.knn import class_votes, nearest_neighbours, rows_at_once


def evaluate(encoder: Encoder, data: str | Path, config: KNNConfig, output: Output = NO_OUTPUT) -> Result:
    """Measure the k-NN accuracy of image features; `registry.Evaluate` explains the arguments. Nothing is written.

    Raises:
        ValueError: a split or class is missing, or a test class has no training images.
    """
    train, test = open_splits(Path(data).expanduser(), config.limit)
    device, channels = encoder.device, len(encoder.mean)
    encoder = in_precision(encoder, config.precision)
    output.announce(
        Workload(
            config.recorded() | {"ks": usable_ks(config.ks, len(train)), "data": str(data)},
            split_sizes(train, test),
            encoder.image,
            (config.encode_batch, channels, config.crop, config.crop),
            encoded=len(train) + len(test),
        )
    )
    (keys, key_labels, key_names), (queries, labels, names) = (
        map_centre_crops(
            lambda crops, _: cached(encoder, crops.numpy(), "image", lambda: image_features(encoder, [crops])),
            images,
            config,
            channels,
            split,
            output.progress,
        )
        for split, images in (("train", train), ("test", test))
    )
    check_classes(train, test)
    check_images(keys)
    usable = usable_ks(config.ks, len(keys))
    missing = [*unreadable(train, key_names), *unreadable(test, names)]
    share = share_of(len(queries))
    mine = slice(share.start, share.stop)
    similarity, index = nearest_neighbours(queries[mine].to(device), F.normalize(keys.to(device), dim=1), max(usable))
    rows: list[dict[str, Cell]] = []
    per_image: dict[str, dict[str, float]] = {name: {} for name in names}
    num_classes = len(train.classes)
    neighbour_labels = key_labels.to(device)[index]
    parts = [t.split(rows_at_once(num_classes)) for t in (similarity, neighbour_labels, labels[mine].to(device))]
    for k in usable:
        hits_of_share = []
        for near, classes, truth in zip(*parts, strict=True):
            votes = class_votes(near[:, :k], classes[:, :k], temperature=config.temperature, num_classes=num_classes)
            hits_of_share.append(top_hits(votes, truth))
        hits = gather_rows(hits_of_share)
        rows.append({"k": k, **accuracies(hits)})
        for name, hit in zip(names, hits[:, 0].tolist(), strict=True):
            per_image[name][f"top-1 k={k}"] = float(hit)
    metrics = {f"{name} k={row['k']}": float(row[name]) for row in rows for name in ("top-1", "top-5")}
    settings = config.recorded() | {"ks": usable, "data": str(data), "train_images": len(keys)}
    settings |= {"test_images": len(queries), "classes": num_classes, "unreadable": len(missing)}
    notes = unreadable_note(missing)
    if not {*usable} & {*config.ks}:
        notes.append(f"All {counted(len(keys), 'training image')} vote, as ks are {', '.join(map(str, config.ks))}.")
    return Result("knn", metrics, rows, settings, per_image=per_image, notes=notes)


def usable_ks(ks: Sequence[int], num_images: int) -> list[int]:
    """Return the numbers of neighbours of at most the number of training images, or that number if all are larger."""
    return [k for k in ks if k <= num_images] or [num_images]
