"""Semantic segmentation with patch features: by retrieval, a linear head, clusters, or a trained decoder."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfpatch.core.distributed import all_reduce_sum, gather, is_main_process
from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.config import DenseConfig
from selfpatch.evaluation.degenerate import check_degenerate, check_patches, is_collecting
from selfpatch.evaluation.encoders import dense_encoder, require_rgb
from selfpatch.evaluation.result import NO_OUTPUT, Output, Result, silent
from selfpatch.evaluation.segmentation import decoder_training, finetune, kmeans, knn, linear, logistic
from selfpatch.evaluation.segmentation.base_config import PatchConfig, SupervisedConfig, TrainedConfig
from selfpatch.evaluation.segmentation.config import (
    KMeansSegmentationConfig,
    KNNSegmentationConfig,
    SegmentationConfig,
)
from selfpatch.evaluation.segmentation.dataset import SegmentationSet, open_dataset
from selfpatch.evaluation.segmentation.inference import FittedMethod
from selfpatch.evaluation.segmentation.matching import classes_of_clusters
from selfpatch.evaluation.segmentation.metrics import Scores, confusion, constant_prediction, mean_scores
from selfpatch.evaluation.segmentation.patches import PatchView
from selfpatch.evaluation.segmentation.training_part import training_part
from selfpatch.evaluation.segmentation.visualize import OverlayRow, overlay_row, save_rows
from selfpatch.evaluation.workload import Workload
from selfpatch.models.features import evaluating

ONE_CLASS_PREDICTED = (
    "every pixel is predicted as one class although the labels have several, so that the scores tell nothing about "
    "patches; check the weights, and train longer or with other rates if the method trains"
)
ONE_CLASS_LABELLED = (
    "the labels of the test images have one class only, so that predicting it everywhere is perfect; score images of "
    "several classes"
)
NUM_CHECKED = 8
"""Number of training images whose features are checked where a method trains on random crops."""
METHODS: dict[str, Callable[..., FittedMethod]] = {
    "knn": knn.fit_knn,
    "linear": linear.fit_linear,
    "logistic": logistic.fit_logistic,
    "kmeans": kmeans.fit_kmeans,
    "finetune": finetune.fit_network,
    "fpn": decoder_training.fit_decoder,
    "upernet": decoder_training.fit_decoder,
}
"""Function of (encoder, images to learn from, config, output) by method."""


def evaluate(encoder: Encoder, data: str | Path, config: SegmentationConfig, output: Output = NO_OUTPUT) -> Result:
    """Measure mIoU, aAcc and mAcc over the pixels of the test images that are not void.

        fit the method
        for each test image:
            counts[truth, prediction] += 1 for each pixel
        IoU of a class = counts[c, c] / (counts[c, :] + counts[:, c] - counts[c, c])

    `registry.Evaluate` explains the arguments. `finetune`, `fpn` and `upernet` train a copy of the encoder, which must
    be a network of this package. `mIoU baseline` predicts the most frequent class everywhere, `mIoU std` is the
    standard deviation over several clusterings, and `mIoU unmatched` the mIoU before classes are matched.

    Raises:
        ValueError: data cannot be read, settings or the encoder do not fit, or the folder holds another training.
    """
    require_rgb(encoder, "segment")
    train, test = _open_splits(data, config)
    if isinstance(config, TrainedConfig):
        config = replace(config, batch_size=min(config.batch_size, len(train)))
    if isinstance(config, KMeansSegmentationConfig):  # refused before images are encoded
        kmeans.count_clusters(config, len(test.classes))
    if isinstance(config, PatchConfig):
        output.announce(_workload(encoder, train, test, config))
    method = METHODS[config.method](encoder, train, config, output)
    if isinstance(config, TrainedConfig):
        _check_features(encoder, train, config)
    counts, per_image, pictures = _scored(method, test, config, output)
    several = (counts[0].sum(1) > 0).sum() > 1
    check_degenerate(ONE_CLASS_LABELLED, ~several)
    check_degenerate(ONE_CLASS_PREDICTED, several & ((counts.sum(1) > 0).sum(1) == 1).any())
    score = partial(Scores.of, absent_as_zero=config.absent_as_zero)
    extra = {"mIoU baseline": score(constant_prediction(counts[0])).miou}
    if isinstance(config, KNNSegmentationConfig) and config.hungarian:
        extra["mIoU unmatched"] = score(counts[0]).miou
        counts = torch.stack([_matched(of_run) for of_run in counts])
    of_runs = [score(of_run) for of_run in counts]
    if len(of_runs) > 1:
        extra["mIoU std"] = float(np.std([run.miou for run in of_runs]))
    scores = mean_scores(of_runs)
    settings = method.config.recorded() | {"data": str(data), "kind": test.kind, **method.facts}
    settings |= {"test_images": len(test), "classes": len(test.classes)}
    if isinstance(config, SupervisedConfig):
        settings |= {"train_images": len(train)}
    metrics, rows, notes = scores.metrics() | extra, scores.rows(test.classes), list(method.notes)
    return Result("segment", metrics, rows, settings, pictures=pictures, per_image=per_image, notes=notes)


def _scored(
    method: FittedMethod, test: SegmentationSet, config: SegmentationConfig, output: Output
) -> tuple[Tensor, dict[str, dict[str, float]], list[str]]:
    """Return the counts [R, C, C] of R runs, the mean mIoU of each image over runs, and pictures of the first run."""
    num_classes = len(test.classes)
    counts = torch.zeros(method.runs, num_classes, num_classes, dtype=torch.int64)
    per_image: dict[str, dict[str, float]] = {}
    shown = evenly_spread(np.arange(len(test)), 0 if output.folder is None else config.max_pictures)
    rows: list[OverlayRow] = []
    for i, image, labels in test.labelled_share("scoring", output.progress):
        if method.reduce_labels is not None:
            labels = method.reduce_labels(labels)
        predictions = method.predict(image).cpu().expand(method.runs, *labels.shape)  # [R, h, w]
        of_image = torch.stack([confusion(prediction, labels, num_classes) for prediction in predictions])
        counts += of_image
        if of_image.any():
            mean = float(np.mean([Scores.of(of_run).miou for of_run in of_image]))
            per_image[test.names[i]] = {"mIoU per image": mean}
        if i in shown:
            rows.append(overlay_row(image.rgb, labels, predictions[0].numpy(), test.classes))
    counts, per_image, rows = all_reduce_sum(counts), dict(gather([*per_image.items()])), gather(rows)
    if not counts.any():
        raise ValueError(f"all labels of {test.labels[0].parent} are void; there is nothing to score")
    pictures = gather(save_rows(rows, test.classes, output.folder) if is_main_process() else [])
    return counts, per_image, pictures


def _check_features(encoder: Encoder, images: SegmentationSet, config: TrainedConfig) -> None:
    """Report those of `NUM_CHECKED` training images whose patch features, before any training, are degenerate."""
    if not is_collecting():
        return
    images = images.limited(NUM_CHECKED)
    view = PatchView(max(config.crop, encoder.patch_size), "square")  # decoders pad a crop smaller than a patch
    with evaluating(encoder):
        frozen = dense_encoder(encoder, config) if isinstance(config, DenseConfig) else encoder
        for i, image in images.share("features", silent):
            check_patches(view.features(frozen, image), images.names[i])


def _matched(counts: Tensor) -> Tensor:
    """Return counts [C, C] whose predicted classes are matched one to one to the classes by IoU."""
    class_of = torch.from_numpy(classes_of_clusters(counts.numpy(), "one_to_one_iou"))
    return torch.zeros_like(counts).index_add_(1, class_of, counts)


def _workload(encoder: Encoder, train: SegmentationSet, test: SegmentationSet, config: PatchConfig) -> Workload:
    """Return the workload of a method that learns from patches; those that train declare their own."""
    learned = len(train) if isinstance(config, SupervisedConfig) else 0
    sizes = {"training images": learned, "test images": len(test), "classes": len(test.classes)}
    side = max(1, config.resolution // encoder.patch_size) * encoder.patch_size
    note = f"Images are taken as {side} pixels square; neighbours and clusters are not in the estimate."
    passes = config.passes if isinstance(config, KNNSegmentationConfig) else 1
    encoded = len(test) + (learned * passes or len(test))
    forward = dense_encoder(encoder, config).patches
    return Workload(config.recorded(), sizes, forward, (1, 3, side, side), encoded, notes=(note,))


def _open_splits(data: str | Path, config: SegmentationConfig) -> tuple[SegmentationSet, SegmentationSet]:
    """Open the images to learn from and those to score; a method without training learns from the latter."""
    test = open_dataset(data, config.test_split, config.kind)
    if not isinstance(config, SupervisedConfig):
        return test.limited(config.limit), test.limited(config.limit)
    train = open_dataset(data, config.train_split, config.kind)
    shared = set(train.images) & set(test.images)
    if shared:
        raise ValueError(
            f"{config.test_split!r} shares {counted(len(shared), 'image')} with {config.train_split!r}, e.g. "
            f"{min(shared)}; give two splits"
        )
    if train.classes != test.classes:
        raise ValueError(
            f"{config.train_split} and {config.test_split} of {data} have different classes; use splits of one set"
        )
    train = training_part(train, config.train_part, config.seed)
    if isinstance(config, KNNSegmentationConfig) and config.void_as_background:
        train, test = train.with_void_class(labelled=True), test.with_void_class(labelled=False)
    return train.limited(config.limit), test.limited(config.limit)
