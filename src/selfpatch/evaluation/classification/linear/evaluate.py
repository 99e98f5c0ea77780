"""Linear probing: a linear layer trained on frozen features.

    train some heads, one a learning rate, on most of the training images      only where there are several rates
        choose the rate whose head is the best on those held out
    train one head on all training images, then test it

The test set never chooses anything. (DINO's and iBOT's code report the best epoch, and iBOT's the best rate, on it.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfpatch.core.schedules import cosine_factor
from selfpatch.core.types import Encoder
from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.classification.dataset import (
    LabelledImages,
    Precision,
    check_settings,
    hold_out,
    open_splits,
    with_labels,
)
from selfpatch.evaluation.classification.linear.features import (
    CachedFeatures,
    CentreCrops,
    FreshCrops,
    FrozenFeatures,
    Source,
)
from selfpatch.evaluation.classification.linear.heads import LinearHeads
from selfpatch.evaluation.classification.metrics import Tested, top_hits, trained_result
from selfpatch.evaluation.presets import resolve_preset
from selfpatch.evaluation.probe_training import Fit, fit
from selfpatch.evaluation.result import Cell, Progress, Provenance, Result, encoder_identity
from selfpatch.models.features import evaluating


@dataclass(frozen=True)
class Preset:
    """What a preset fills in.

    Attributes:
        crops: `random`: random resized crops and flips, encoded at each step; `cached`: centre crops and their mirror
            images, encoded once and standardised.
        lrs: learning rates for a batch of 256; of several the best on held-out training images is taken.
        epochs: over the training images.
        batch_size: images a step; at most those there are.
    """

    crops: Literal["random", "cached"]
    lrs: tuple[float, ...]
    epochs: int
    batch_size: int

    def __post_init__(self) -> None:
        if not self.lrs or min(self.lrs) <= 0:
            raise ValueError(f"lrs are {list(self.lrs)}; use one or more learning rates above 0")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs is {self.epochs} and batch_size {self.batch_size}; use 1 or more of both")


PRESETS: dict[str, Preset] = {
    "dino": Preset("random", lrs=(1e-3,), epochs=100, batch_size=1024),
    "sweep": Preset(
        "cached", lrs=(*(m * 10.0**e for e in range(-4, 1) for m in (1, 2, 5)), 10.0), epochs=50, batch_size=256
    ),
}
"""`dino`: the released code of DINO (arXiv 2104.14294), 8 processes of 128 images. `sweep`: ours, quick."""


class _Training(NamedTuple):
    """What trains heads, whatever their rates and images are."""

    source: Source
    dim: int
    num_classes: int
    preset: Preset
    seed: int
    settings: Mapping[str, Any]
    out: Path | None
    progress: Progress | None

    def heads(self, numbers: np.ndarray, lrs: Sequence[float], name: str, device: torch.device) -> LinearHeads:
        """Heads trained on some of the images; the checkpoint lies in the folder `name`."""
        batch_size = min(self.preset.batch_size, len(numbers))
        heads = LinearHeads(self.dim, self.num_classes, [lr * batch_size / 256 for lr in lrs], seed=self.seed)
        steps_per_epoch = len(numbers) // batch_size
        fit(
            heads.to(device).train(),
            lambda batch: heads.loss(*self.source.seen(batch)),
            self.source.batches(numbers, batch_size=batch_size, seed=self.seed),
            torch.optim.SGD(heads.parameters(), lr=1.0, momentum=0.9),
            Fit(
                self.preset.epochs * steps_per_epoch,
                _epoch_wise(cosine_factor(self.preset.epochs), steps_per_epoch),
                seed=self.seed,
            ),
            settings={**self.settings, "rates": list(lrs), "images": len(numbers), "part": name},
            out=None if self.out is None else self.out / name,
            progress=self.progress,
        )
        return heads.eval()


def _epoch_wise(factor: Callable[[int], float], steps_per_epoch: int) -> Callable[[int], float]:
    """A schedule that stands still within an epoch, as DINO's does."""
    return lambda step: factor(step // steps_per_epoch)


@torch.no_grad()
def _hits(heads: LinearHeads, features: Tensor, labels: Tensor) -> Tensor:
    """[R, n, 2] `top_hits` of each head, on the CPU."""
    device = heads.weight.device
    parts = []
    for some, truth in zip(features.split(1024), labels.split(1024), strict=True):
        logits = heads(some.to(device)).transpose(0, 1)  # [R, b, K]
        parts.append(torch.stack([top_hits(of_head, truth.to(device)) for of_head in logits]).cpu())
    return torch.cat(parts, dim=1)


def _choose(training: _Training, train: LabelledImages, held_out: float, device: torch.device) -> list[dict[str, Cell]]:
    """A row for each learning rate: its accuracy on training images that were held out."""
    kept, held = hold_out(train, held_out, training.seed)
    heads = training.heads(kept, training.preset.lrs, "choosing", device)
    top1 = _hits(heads, *training.source.plain(held))[..., 0].float().mean(1).tolist()
    return [{"lr": lr, "held-out top-1": value} for lr, value in zip(training.preset.lrs, top1, strict=True)]


def evaluate(
    encoder: Encoder,
    data: str | Path,
    *,
    out: str | Path | None = None,
    preset: Literal["dino", "sweep"] = "dino",
    labels: str | None = None,
    blocks: int | None = None,
    mean_patch: bool | None = None,
    crops: Literal["random", "cached"] | None = None,
    lrs: Sequence[float] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    held_out: float = 0.1,
    resize: int = 256,
    crop: int = 224,
    precision: Precision = "float32",
    seed: int = 0,
    per_class: bool = False,
    encode_batch: int = 128,
    workers: int = 4,
    weights: Provenance | None = None,
    progress: Progress | None = None,
) -> Result:
    """Top-1 and top-5 accuracy of a linear layer on frozen features.

    Args:
        encoder: the network; it is neither trained nor left in another mode.
        data: folder with train/ and val/ (or test/), each with a sub-folder a class.
        out: folder for result.json and the checkpoints from which a stopped training goes on; None writes nothing.
        preset: fills in `crops`, `lrs`, `epochs` and `batch_size` where they are None: see `PRESETS`.
        labels: a share of the training images such as `1%`, or a text file of their names; None: all.
        blocks, mean_patch: as `FrozenFeatures` takes them.
        held_out: share of each class that the learning rate is chosen by, where there are several.
        resize, crop: shorter side of test images (bicubic), and side of all crops, in pixels.
        precision: that the network runs in; bf16: under autocast. The linear layer runs in float32.
        seed: of the first weights, the order, the crops, and of which labels and which images are held out.
        per_class: give a row for each class.
        encode_batch: centre crops that are encoded at once; speed and memory only.
        workers: processes that load random crops; speed only.
        weights: what the encoder was made of, for the record.
        progress: called with what is done and how far it is.

    Returns:
        Accuracies on the test set, and on as many training images (centre crops).

    Raises:
        ValueError: data or settings do not fit, a training image cannot be read, or `out` holds another training.
    """
    chosen = resolve_preset(PRESETS, preset, crops=crops, lrs=lrs, epochs=epochs, batch_size=batch_size)
    least = {"encode_batch": (encode_batch, 1), "workers": (workers, 0)}
    check_settings(encoder, resize=resize, crop=crop, precision=precision, **least)
    if len(chosen.lrs) > 1 and not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; use a share between 0 and 1")
    train, test = open_splits(Path(data).expanduser())
    train = with_labels(train, labels, seed)
    chosen = replace(chosen, batch_size=min(chosen.batch_size, len(train)))
    features = FrozenFeatures(encoder, blocks=blocks, mean_patch=mean_patch, precision=precision)
    settings: dict[str, Any] = {"preset": preset, **asdict(chosen), "labels": labels, "blocks": features.blocks}
    settings |= {"mean_patch": features.mean_patch, "held_out": held_out if len(chosen.lrs) > 1 else None}
    settings |= {"resize": resize, "crop": crop, "precision": precision, "seed": seed}
    plain = CentreCrops(features, resize, crop, encode_batch, progress)
    with evaluating(encoder):
        source: Source = (
            FreshCrops(train, plain, workers=workers) if chosen.crops == "random" else CachedFeatures(train, plain)
        )
        decisive = {**settings, "train": train.fingerprint, "network": encoder_identity(encoder)}
        folder = None if out is None else Path(out)
        training = _Training(source, features.dim, len(train.classes), chosen, seed, decisive, folder, progress)
        rows = _choose(training, train, held_out, encoder.device) if len(chosen.lrs) > 1 else []
        lr = float(max(rows, key=lambda row: row["held-out top-1"])["lr"]) if rows else chosen.lrs[0]
        everything = np.arange(len(train))
        heads = training.heads(everything, [lr], "final", encoder.device)
        encoded, truth, names = plain.encode(test, "test images")
        tested = Tested(_hits(heads, source.prepared(encoded[:, 0]), truth)[0], truth, names)
        train_hits = _hits(heads, *source.plain(evenly_spread(everything, len(test))))[0]
    settings |= {"lr": lr, "data": str(data)}
    result = trained_result(
        "linear", train, test, tested, train_hits, settings=settings, weights=weights, rows=rows, per_class=per_class
    )
    if out is not None:
        result.save(Path(out) / "result.json")
    return result
