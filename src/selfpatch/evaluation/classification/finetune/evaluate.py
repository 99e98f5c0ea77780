"""Fine-tuning:

for each step:
    crops, augmented by the sample's own random numbers -> mixup or cutmix of the batch
    logits = network(crops) -> cross-entropy with smoothed labels -> AdamW, each layer at its own learning rate
top-1 and top-5 of centre crops of the test set
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.core.schedules import cosine_factor
from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import ViewRecipe
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.classification.dataset import (
    LabelledImages,
    Precision,
    centre_crops,
    check_settings,
    open_splits,
    with_labels,
)
from selfpatch.evaluation.classification.finetune.augmentation import AugmentedImages, Mixing
from selfpatch.evaluation.classification.finetune.config import PRESETS, Preset, Token
from selfpatch.evaluation.classification.finetune.network import Classifier
from selfpatch.evaluation.classification.metrics import Tested, top_hits, trained_result
from selfpatch.evaluation.finetuning import layer_groups
from selfpatch.evaluation.presets import resolve_preset
from selfpatch.evaluation.probe_training import Fit, fit
from selfpatch.evaluation.result import Progress, Provenance, Result, encoder_identity
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.images import normalise


def evaluate(
    encoder: Encoder,
    data: str | Path,
    *,
    out: str | Path | None = None,
    preset: Literal["mae", "ibot", "ibot_small", "cifar", "flowers", "cars", "inaturalist", "small"] = "mae",
    labels: str | None = None,
    token: Token | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    min_lr: float | None = None,
    warmup_epochs: float | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    drop_path: float | None = None,
    mixup: float | None = None,
    cutmix: float | None = None,
    smoothing: float | None = None,
    rand_augment: float | None = None,
    erasing: float | None = None,
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
    """Top-1 and top-5 accuracy of a network that is fine-tuned on labelled images.

    Args:
        encoder: a `BranchEncoder`; a copy is trained.
        data: folder with train/ and val/ (or test/), each with a sub-folder a class.
        out: folder for result.json and the checkpoint from which a stopped training goes on; None writes nothing.
        preset: fills in the settings that are None: see `presets.PRESETS`.
        labels: a share of the training images such as `1%`, or a text file of their names; None: all.
        token, ..., erasing: see `presets.Preset`.
        resize, crop: shorter side of test images (bicubic), and side of all crops, in pixels.
        precision: that the network runs in; bf16: under autocast, parameters and loss stay float32.
        seed: of head, order, augmentation, drop path, and of which labels are used.
        per_class: give a row for each class.
        encode_batch: centre crops that are classified at once; speed and memory only.
        workers: processes that load training images; speed only.
        weights: what the encoder was made of, for the record.
        progress: called with what is done and how far it is.

    Returns:
        Accuracies on the test set, and on as many training images (centre crops).

    Raises:
        ValueError: data or settings do not fit, a training image cannot be read, or `out` holds another training.
    """
    chosen = resolve_preset(
        PRESETS,
        preset,
        token=token,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        min_lr=min_lr,
        warmup_epochs=warmup_epochs,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        drop_path=drop_path,
        mixup=mixup,
        cutmix=cutmix,
        smoothing=smoothing,
        rand_augment=rand_augment,
        erasing=erasing,
    )
    network = _trainable(encoder, chosen)
    least = {"encode_batch": (encode_batch, 1), "workers": (workers, 0)}
    check_settings(encoder, resize=resize, crop=crop, precision=precision, **least)
    train, test = open_splits(Path(data).expanduser())
    train = with_labels(train, labels, seed)
    chosen = replace(chosen, batch_size=min(chosen.batch_size, len(train)))
    settings: dict[str, Any] = {"preset": preset, **asdict(chosen), "labels": labels}
    settings |= {"resize": resize, "crop": crop, "precision": precision, "seed": seed}
    classifier = Classifier(
        network,
        len(train.classes),
        token=chosen.token,
        drop_path=chosen.drop_path,
        head_std=chosen.head_std,
        seed=seed,
    ).to(network.device)
    tuning = _Tuning(classifier, network, chosen, resize, crop, precision, seed, encode_batch, workers, progress)
    decisive = {**settings, "train": train.fingerprint, "network": encoder_identity(network)}
    tuning.train(train, decisive, None if out is None else Path(out))
    tested = tuning.test(test, "test images")
    train_hits = tuning.test(train.some(len(test)), "training images").hits
    settings |= {"data": str(data)}
    result = trained_result(
        "finetune", train, test, tested, train_hits, settings=settings, weights=weights, per_class=per_class
    )
    if out is not None:
        result.save(Path(out) / "result.json")
    return result


def _trainable(encoder: Encoder, chosen: Preset) -> BranchEncoder:
    if not isinstance(encoder, BranchEncoder):
        raise ValueError(
            f"a {type(encoder).__name__} cannot be fine-tuned; give a run directory, a checkpoint or timm:NAME"
        )
    if chosen.rand_augment and len(encoder.mean) != 3:
        raise ValueError(f"RandAugment is for 3 channels, not {len(encoder.mean)}; set rand_augment to 0")
    return encoder


@dataclass(frozen=True)
class _Tuning:
    """The classifier, how it is trained, and how it is tested."""

    classifier: Classifier
    encoder: BranchEncoder
    preset: Preset
    resize: int
    crop: int
    precision: Precision
    seed: int
    encode_batch: int
    workers: int
    progress: Progress | None

    def train(self, images: LabelledImages, settings: dict[str, Any], out: Path | None) -> None:
        p, encoder = self.preset, self.encoder
        recipe = ViewRecipe(self.crop, scale=(0.08, 1.0), flip=0.5)
        load = AugmentedImages(images, recipe, encoder.mean, encoder.std, p.rand_augment, p.erasing)
        batches = Batches(len(images), load, batch_size=p.batch_size, seed=self.seed, workers=self.workers)
        lr = p.lr * p.batch_size / 256
        steps, warmup = (round(n * batches.steps_per_epoch) for n in (p.epochs, p.warmup_epochs))
        groups = layer_groups(
            self.classifier, self.classifier.backbone, lr=lr, layer_decay=p.layer_decay, weight_decay=p.weight_decay
        )
        optimizer = torch.optim.AdamW(groups, fused=encoder.device.type in ("cpu", "cuda"))
        schedule = cosine_factor(steps, warmup=warmup, end=min(1.0, p.min_lr / lr))
        how = Fit(steps, schedule, seed=self.seed, autocast=torch.bfloat16 if self.precision == "bf16" else None)
        loss = partial(self._loss, Mixing(len(images.classes), mixup=p.mixup, cutmix=p.cutmix))
        self.classifier.train()
        fit(self.classifier, loss, batches, optimizer, how, settings=settings, out=out, progress=self.progress)

    def _loss(self, mixing: Mixing, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = (part.to(self.encoder.device, non_blocking=True) for part in batch)
        images, targets = mixing(images, labels)
        return F.cross_entropy(self.classifier(images).float(), targets, label_smoothing=self.preset.smoothing)

    @torch.no_grad()
    def test(self, images: LabelledImages, what: str) -> Tested:
        """On the CPU."""
        self.classifier.eval()
        encoder, hits, labels, names = self.encoder, [], [], []
        for batch in centre_crops(
            images,
            resize=self.resize,
            crop=self.crop,
            channels=len(encoder.mean),
            batch_size=self.encode_batch,
            what=what,
            progress=self.progress,
        ):
            normal = normalise(batch.images.to(encoder.device), encoder.mean, encoder.std)
            with torch.autocast(encoder.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                logits = self.classifier(normal)
            hits.append(top_hits(logits.float().cpu(), batch.labels))
            labels.append(batch.labels)
            names += batch.names
        return Tested(torch.cat(hits), torch.cat(labels), names)
