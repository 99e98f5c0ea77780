"""Fine-tuning of the whole network.

for each step:
    crops, augmented by the sample's own random numbers -> mixup or cutmix of the batch
    logits = network(crops) -> cross-entropy with smoothed labels -> AdamW, each layer at its own learning rate
top-1 and top-5 of centre crops of the test set
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from selfpatch.checkpoints.export.safetensors import FILE, export_state, write_safetensors
from selfpatch.core.distributed import gather_rows, is_main_process
from selfpatch.core.schedules import cosine_factor, epoch_factor
from selfpatch.core.transfer import to_device
from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import ViewRecipe
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.classification.dataset import (
    LabelledImages,
    check_crop,
    map_centre_crops,
    open_splits,
    split_sizes,
)
from selfpatch.evaluation.classification.degenerate import check_classes, check_scores
from selfpatch.evaluation.classification.finetune.augmentation import AugmentedImages, Mixing
from selfpatch.evaluation.classification.finetune.config import FinetuneConfig
from selfpatch.evaluation.classification.finetune.network import Classifier
from selfpatch.evaluation.classification.metrics import top_hits, trained_result
from selfpatch.evaluation.finetuning import layer_groups, require_network
from selfpatch.evaluation.identity import encoder_identity, network_sha256
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import NO_OUTPUT, Output, Result
from selfpatch.evaluation.workload import Training, Workload
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.images import normalise

SAMPLED_SCORES = 8
"""Number of images of a batch whose scores are compared; a batch of one class alone may well have equal ones."""
WARMUP_LR = 1e-6
"""Learning rate of the head in the first epoch, where it changes by epoch (DeiT's `--warmup-lr`)."""


def evaluate(encoder: Encoder, data: str | Path, config: FinetuneConfig, output: Output = NO_OUTPUT) -> Result:
    """Measure the accuracy of a fine-tuned copy of the network, on the test set and on as many training images.

    `registry.Evaluate` explains the arguments. The folder also receives the fine-tuned network without its classifier,
    as weights for other evaluations.

    Raises:
        ValueError: data or settings do not fit, a training image cannot be read, or the folder holds another training.
    """
    encoder = require_network(encoder)
    if config.rand_augment and len(encoder.mean) != 3:
        raise ValueError(f"RandAugment is for 3 channels, not {len(encoder.mean)}; set rand_augment to 0")
    check_crop(encoder, config)
    train, test = open_splits(Path(data).expanduser(), config.limit, config.labels, config.seed)
    config = replace(config, batch_size=min(config.batch_size, len(train)))
    settings = config.recorded()
    recorded = settings | {"data": str(data)}
    classifier = Classifier(encoder, len(train.classes), config).to(encoder.device)
    learned = {**settings, "train": train.fingerprint, "network": encoder_identity(encoder)}
    del learned["limit"]  # told by the fingerprint, so that trainings of versions without the setting go on
    if config.head_layers:
        learned["projection"] = network_sha256(classifier.head)
    shape = (config.encode_batch, len(encoder.mean), config.crop, config.crop)
    encoded = len(test) + min(len(train), len(test))
    workload = Workload(recorded, split_sizes(train, test), classifier, shape, encoded)
    _train(classifier, encoder, train, config, learned, workload, output)
    if output.folder is not None and is_main_process():
        tuned = BranchEncoder(classifier.backbone, classifier.pool)
        write_safetensors(output.folder / FILE, *export_state(tuned))

    sampled: list[Tensor] = []

    @torch.no_grad()
    def hits(crops: Tensor, labels: Tensor) -> Tensor:
        normal = normalise(crops.to(encoder.device), encoder.mean, encoder.std)
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = classifier(normal)
        sampled.append(logits[:: max(1, len(logits) // SAMPLED_SCORES)].float().cpu())
        return top_hits(logits.float().cpu(), labels)

    classifier.eval()
    check_classes(train, test)
    resampling = Image.Resampling[config.resampling.upper()]
    tested, of_train = (
        map_centre_crops(hits, images, config, len(encoder.mean), what, output.progress, resampling=resampling)
        for images, what in ((test, "test images"), (train.limited(len(test)), "training images"))
    )
    check_scores(gather_rows(sampled))
    return trained_result(
        "finetune", train, test, tested, of_train.values, per_class=config.per_class, settings=recorded
    )


def _train(
    classifier: Classifier,
    encoder: BranchEncoder,
    images: LabelledImages,
    config: FinetuneConfig,
    learned: dict[str, Any],
    workload: Workload,
    output: Output,
) -> None:
    """Train the classifier in place; `learned` holds the values that decide the weights. A dry run ends in here."""
    recipe = ViewRecipe(config.crop, scale=(0.08, 1.0), flip=0.5)
    load = AugmentedImages(images, recipe, encoder.mean, encoder.std, config.rand_augment, config.erasing)
    batches = Batches(
        len(images),
        load,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        repeats=config.repeats,
    )
    lr = config.lr * config.batch_size / 256
    steps, warmup = (round(epochs * batches.steps_per_epoch) for epochs in (config.epochs, config.warmup_epochs))
    groups = layer_groups(
        classifier,
        classifier.backbone,
        lr=lr,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
        weight_decay_on=config.weight_decay_on,
    )
    optimizer = torch.optim.AdamW(groups, fused=encoder.device.type in ("cpu", "cuda"))
    end = min(1.0, config.min_lr / lr)
    schedule = cosine_factor(steps, warmup=warmup, end=end)
    if config.schedule == "epoch":
        warmup, start = round(config.warmup_epochs), min(1.0, WARMUP_LR / lr)
        schedule = epoch_factor(batches.steps_per_epoch, config.epochs, warmup=warmup, start=start, end=end)
    plan = TrainingPlan(steps, schedule, seed=config.seed, precision=config.precision)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, labels = (to_device(part, encoder.device) for part in batch)
        return mixed_loss(*mixing(pixels, labels))

    def mixed_loss(pixels: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(classifier(pixels).float(), targets, label_smoothing=config.smoothing)

    def dummy_loss(num_images: int) -> Tensor:
        pixels = torch.zeros(num_images, len(encoder.mean), config.crop, config.crop)
        return mixed_loss(pixels, torch.zeros(num_images, len(images.classes)))

    training = Training(classifier, optimizer, dummy_loss, config.batch_size, steps, config.precision)
    output.announce(replace(workload, training=training))
    mixing = Mixing(len(images.classes), mixup=config.mixup, cutmix=config.cutmix)
    fit(classifier.train(), loss, batches, optimizer, plan, settings=learned, output=output)
