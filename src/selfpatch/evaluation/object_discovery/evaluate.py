"""One object box an image, without labels, and CorLoc: LOST (arXiv 2109.14279), TokenCut (arXiv 2202.11539)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.data.augment.pillow import to_tensor
from selfpatch.data.decode.pillow import read_picture
from selfpatch.evaluation.object_discovery.dataset import Box, LabelledImage, open_images
from selfpatch.evaluation.object_discovery.features import Facet, PatchView
from selfpatch.evaluation.object_discovery.metrics import best_iou, centre_box, is_right, method_rows, whole_image
from selfpatch.evaluation.object_discovery.visualize import draw_boxes
from selfpatch.evaluation.result import Progress, Provenance, Result
from selfpatch.ops.discovery import ImageEntry, attended, lost, pixel_box, tokencut

METHODS = ("lost", "tokencut", "attention")
FLOORS = {"baseline:whole-image": whole_image, "baseline:centre": centre_box}


@dataclass(frozen=True)
class Discovery:
    """How an image becomes a box.

    Attributes:
        view: the features that LOST and TokenCut look at.
        num_patches: of lowest degree, from which LOST expands its seed.
        tau: cosine above which patches are alike to TokenCut.
        mass: share of the attention that attention boxes keep.
        head: of the attention, counted from 0; None: the mean of all.
    """

    view: PatchView
    num_patches: int = 100
    tau: float = 0.2
    mass: float = 0.6
    head: int | None = None

    def boxes(self, image: Tensor, methods: Sequence[str]) -> dict[str, Box]:
        """The box of each method in an image [C, H, W], uint8 or float32."""
        padded = self.view.padded(image)
        features = self.view.features(padded) if {"lost", "tokencut"} & set(methods) else None
        return {name: self._box(self._find(name, padded, features), padded, image) for name in methods}

    def _find(self, method: str, padded: Tensor, features: Tensor | None) -> ImageEntry:
        if method == "attention":
            return attended(self._attention(padded), mass=self.mass)
        assert features is not None
        if method == "lost":
            return lost(features, num_patches=self.num_patches)
        return tokencut(features, tau=self.tau)

    def _attention(self, padded: Tensor) -> Tensor:
        heads = self.view.class_attention(padded)
        if self.head is None:
            return heads.mean(0)
        if not 0 <= self.head < len(heads):
            raise ValueError(f"head {self.head} is asked for, but the network has 0 to {len(heads) - 1}")
        return heads[self.head]

    def _box(self, found: ImageEntry, padded: Tensor, image: Tensor) -> Box:
        cell = padded.shape[2] / found.mask.shape[0], padded.shape[3] / found.mask.shape[1]
        return pixel_box(found.mask, cell, (image.shape[1], image.shape[2]))


def evaluate(
    encoder: Encoder,
    data: str | Path,
    *,
    out: str | Path | None = None,
    methods: Sequence[str] = ("lost", "tokencut"),
    facet: Facet | None = None,
    block: int | None = None,
    num_patches: int = 100,
    tau: float = 0.2,
    mass: float = 0.6,
    head: int | None = None,
    split: str | None = None,
    image_list: str | Path | None = None,
    hard: bool = True,
    max_pictures: int = 8,
    weights: Provenance | None = None,
    progress: Progress | None = None,
) -> Result:
    """CorLoc: the share of images whose box has an IoU of at least 0.5 with any object's::

        for each image, at its own resolution, zero-padded to a multiple of the patch:
            for each method: a box from its patch features
            right if IoU >= 0.5 with any true box

    Images without a box are left out. The floors `baseline:whole-image` and `baseline:centre` (the middle, half the
    area) are scored beside the methods, on the same images.

    Args:
        encoder: the network.
        data: folder in the layout of VOC or COCO, see `layout`.
        out: folder for pictures/ and result.json; None writes nothing.
        methods: any of lost, tokencut, attention.
        facet, block: which features, see `PatchView`.
        num_patches, tau, mass, head: see `Discovery`.
        split, image_list, hard: see `open_images`.
        max_pictures: images whose boxes are drawn.
        weights: what the encoder was made of, for the record.
        progress: called with the images done.

    Raises:
        ValueError: an unknown method, one that the network cannot serve, or data that are not as they should be.
    """
    _check_methods(methods)
    view = PatchView(encoder, facet, block)
    if "attention" in methods:
        view.require_class_token()
    discovery = Discovery(view, num_patches, tau, mass, head)
    everything = open_images(data, split=split, image_list=image_list, hard=hard)
    images = [image for image in everything if image.boxes]
    if not images:
        raise ValueError(f"none of the {len(everything)} images of {data} has a box; there is nothing to score")
    per_image: dict[str, dict[str, float]] = {}
    ious: dict[str, list[float]] = {name: [] for name in (*methods, *FLOORS)}
    pictures: list[str] = []
    for done, image in enumerate(images, start=1):
        pixels = to_tensor(read_picture(image.path, len(encoder.mean)))
        found = discovery.boxes(pixels, methods)
        floors = {name: floor(*pixels.shape[1:]) for name, floor in FLOORS.items()}
        best = {name: best_iou(box, image.boxes) for name, box in {**found, **floors}.items()}
        for name, iou in best.items():
            ious[name].append(iou)
        per_image[image.name] = {f"CorLoc {name}": float(is_right(best[name])) for name in methods}
        if out is not None and done <= max_pictures:
            pictures.append(_save_picture(Path(out), image, pixels, found))
        if progress is not None:
            progress("images", done, len(images))
    rows = method_rows(ious)
    metrics = {f"CorLoc {row['method']}": float(row["CorLoc"]) for row in rows}
    settings = {
        "methods": list(methods), "features": _described(view), "block": block or "last", "num_patches": num_patches,
        "tau": tau, "mass": mass, "head": "mean" if head is None else head, "split": split,
        "image_list": None if image_list is None else str(image_list), "hard": hard,
        "patch_size": encoder.patch_size, "data": str(data), "images": len(images),
        "images_without_boxes": len(everything) - len(images),
    }  # fmt: skip
    result = Result("discover", metrics, rows, settings, weights, pictures=pictures, per_image=per_image)
    if out is not None:
        result.save(Path(out) / "result.json")
    return result


def _check_methods(methods: Sequence[str]) -> None:
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods or len(set(methods)) < len(methods):
        raise ValueError(f"methods are {list(methods)}; use one or more of {', '.join(METHODS)}, each once")


def _described(view: PatchView) -> str:
    return f"{view.resolved}, standardised over the map" if view.standardised else view.resolved


def _save_picture(out: Path, image: LabelledImage, pixels: Tensor, found: dict[str, Box]) -> str:
    """Its path, relative to `out`."""
    relative = f"pictures/{image.name}.jpg"
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    draw_boxes(pixels, image.boxes, found).save(out / relative, quality=90)
    return relative
