"""Objects without labels, CorLoc and AP: LOST (arXiv 2109.14279), TokenCut (2202.11539) and MaskCut (2301.11320)."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from selfpatch.core.distributed import gather
from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.data.augment.pillow import to_tensor
from selfpatch.data.decode.pillow import read_picture
from selfpatch.data.images import limited
from selfpatch.evaluation.degenerate import check_patches
from selfpatch.evaluation.object_discovery.config import ObjectDiscoveryConfig
from selfpatch.evaluation.object_discovery.dataset import Box, LabelledImage, open_images
from selfpatch.evaluation.object_discovery.degenerate import check_object
from selfpatch.evaluation.object_discovery.features import PatchView
from selfpatch.evaluation.object_discovery.metrics import (
    MIN_IOU,
    best_iou,
    centre_box,
    method_row,
    whole_image,
)
from selfpatch.evaluation.object_discovery.visualize import draw_boxes
from selfpatch.evaluation.pictures import numbered, save_picture
from selfpatch.evaluation.result import NO_OUTPUT, Output, Result, first_names
from selfpatch.evaluation.sharding import share_of
from selfpatch.evaluation.workload import Workload
from selfpatch.ops.discovery import (
    MAX_PATCHES,
    TooManyPatches,
    attended,
    lost,
    maskcut,
    pixel_box,
    tau_of_quantile,
    tokencut,
)

BASELINES = {"baseline:whole-image": whole_image, "baseline:centre": centre_box}
TOO_LARGE = f"more than {MAX_PATCHES} patches, which a normalised cut cannot compare"
SMALLER = "use smaller images, or --methods lost"


def find_boxes(view: PatchView, image: Tensor, name: str = "") -> dict[str, list[Box]]:
    """Return the boxes of each method in an image [C, H, W], uint8 or float32; `name` stands in warnings.

    There is one box, or more of MaskCut, in the order in which it finds them.
    """
    config, padded = view.config, view.padded(image)
    features = view.features(padded) if {*config.methods} - {"attention"} else None
    if features is not None:
        check_patches(features, name)
    boxes: dict[str, list[Box]] = {}
    for method in config.methods:
        if features is None or method == "attention":
            found = [attended(_attention(view, padded, config.head), mass=config.mass)]
        elif method == "lost":
            found = [lost(features, num_patches=config.num_patches)]
        elif method == "tokencut":
            found = [tokencut(features, tau=_tau(features, config.tau, config))]
        else:
            tau = _tau(features, config.maskcut_tau, config)
            found = maskcut(features, tau=tau, max_objects=config.max_objects)
        check_object(method, found[0], name)
        size, grid = (image.shape[1], image.shape[2]), found[0].mask.shape
        cell = padded.shape[2] / grid[0], padded.shape[3] / grid[1]
        boxes[method] = [pixel_box(one.mask, cell, size) for one in found]
    return boxes


def _tau(features: Tensor, tau: float, config: ObjectDiscoveryConfig) -> float:
    return tau if config.tau_quantile is None else tau_of_quantile(features.flatten(0, 1), config.tau_quantile)


def _attention(view: PatchView, padded: Tensor, head: int | None) -> Tensor:
    heads = view.class_attention(padded)
    if head is None:
        return heads.mean(0)
    if head >= len(heads):
        raise ValueError(
            f"head is {head}, but the network has {counted(len(heads), 'head')}; use 0 to {len(heads) - 1}"
        )
    return heads[head]


def _workload(view: PatchView, images: Sequence[LabelledImage], config: ObjectDiscoveryConfig, data: str) -> Workload:
    """Return the workload of encoding each image; images, which keep their size, are taken as 500 x 375 pixels."""
    layer = view.layer
    height, width = (-(-side // layer.patch_size) * layer.patch_size for side in (375, 500))
    note = "Images are taken as 500 x 375 pixels; the search for objects is not in the estimate."
    settings = config.recorded() | layer.recorded() | {"facet": view.facet, "data": data}
    shape = (1, len(layer.mean), height, width)
    return Workload(settings, {"images": len(images)}, view.features, shape, encoded=len(images), notes=(note,))


def evaluate(encoder: Encoder, data: str | Path, config: ObjectDiscoveryConfig, output: Output = NO_OUTPUT) -> Result:
    """Measure CorLoc, the share of images whose box has an IoU of at least 0.5 with the box of any object, and AP.

    ::

        for each image, in its own resolution, zero-padded to a multiple of the layer's stride:
            for each method:
                boxes = the objects found in the patch features
                correct = IoU >= 0.5 of the first box with any true box
        AP50, AP and AR of all boxes of a method, as `metrics.class_agnostic` says

    Images without a box are left out, and those of more patches than a cut can compare, which a note names. The
    baselines `baseline:whole-image` and `baseline:centre` (a box in the middle with half the area) are scored on the
    same images.

    `registry.Evaluate` explains the arguments.

    Raises:
        ValueError: the network cannot serve a method, or the data cannot be used.
    """
    view = PatchView(encoder, config)
    if "attention" in config.methods:
        view.class_token_vit()
    all_images = open_images(data, config, output.progress)
    images: Sequence[LabelledImage] = [image for image in all_images if image.boxes]
    num_without = len(all_images) - len(images)
    if not images:
        raise ValueError(
            f"no image of {data} has a box ({counted(len(all_images), 'image')} read); there is nothing to score"
        )
    images = limited(images, config.limit)
    output.announce(_workload(view, images, config, str(data)))
    scored, pictures, too_large = _find_all(view, images, output)
    if not scored:
        raise ValueError(f"no image of {data} can be used: each has {TOO_LARGE}; {SMALLER}")
    truth = [image.boxes for image, _ in scored]
    rows = [method_row(name, [found[name] for _, found in scored], truth) for name in (*config.methods, *BASELINES)]
    metrics = {f"CorLoc {row['method']}": float(row["CorLoc"]) for row in rows}
    for row in rows[: len(config.methods)]:
        metrics |= {f"{metric} {row['method']}": float(row[metric]) for metric in ("AP50", "AP", "AR")}
    per_image = {
        image.name: {
            f"CorLoc {name}": float(best_iou(found[name][0], image.boxes) >= MIN_IOU) for name in config.methods
        }
        for image, found in scored
    }
    settings = config.recorded() | view.layer.recorded() | {
        "facet": view.facet,
        "head": "mean" if config.head is None else config.head, "patch_size": encoder.patch_size, "data": str(data),
        "images": len(scored), "images_without_boxes": num_without,
    }  # fmt: skip
    return Result(
        "discover", metrics, rows, settings, pictures=pictures, per_image=per_image, notes=_too_large_note(too_large)
    )


def _find_all(
    view: PatchView, images: Sequence[LabelledImage], output: Output
) -> tuple[list[tuple[LabelledImage, dict[str, list[Box]]]], list[str], list[str]]:
    """Return the images with the boxes of each method and baseline, the pictures, and the names of too large images.

    Each process takes its share of the images, and all return everything.
    """
    scored: list[tuple[LabelledImage, dict[str, list[Box]]]] = []
    pictures, too_large = list[str](), list[str]()
    share = share_of(len(images))
    for done, number in enumerate(share, start=1):
        image = images[number]
        pixels = to_tensor(read_picture(image.path, len(view.encoder.mean)))
        try:
            found = find_boxes(view, pixels, image.name)
        except TooManyPatches:
            too_large.append(image.name)
        else:
            baselines = {name: [baseline(*pixels.shape[1:])] for name, baseline in BASELINES.items()}
            scored.append((image, {**found, **baselines}))
            if output.folder is not None and number < view.config.max_pictures:
                picture = draw_boxes(pixels, image.boxes, found)
                pictures.append(save_picture(output.folder, numbered(number, image.name), picture))
        output.progress("images", done, len(share))
    return gather(scored), gather(pictures), gather(too_large)


def _too_large_note(names: list[str]) -> list[str]:
    """Return the note on images of too many patches; it is empty where there are none."""
    if not names:
        return []
    have = f"{counted(len(names), 'image')} {'has' if len(names) == 1 else 'have'}"
    return [f"{have} {TOO_LARGE}, left out: {first_names(names)}; {SMALLER}"]
