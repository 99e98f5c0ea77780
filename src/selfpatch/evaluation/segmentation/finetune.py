"""Segmentation with a 1x1 convolution on the last patches, trained with the network: ImageNet-S' protocol.

for each step:
    logits of the patches, enlarged twofold
    cross-entropy of the labelled pixels, reduced to that size -> AdamW, each layer at its own learning rate
mIoU, aAcc, mAcc of the test images at their own size

The released code is ImageNetSegModel (arXiv 2106.03149). Unlike here, it also trains on the incomplete last batch of an
epoch.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as tvf

from selfpatch.core.schedules import cosine_factor
from selfpatch.core.transfer import to_device
from selfpatch.core.types import Encoder
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.finetuning import layer_groups, require_network, trainable_copy
from selfpatch.evaluation.identity import encoder_identity
from selfpatch.evaluation.lazy_image import LazyImage
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.segmentation.augmentation import SimCLRCrop, dummy_batch, training_batches
from selfpatch.evaluation.segmentation.dataset import SegmentationSet
from selfpatch.evaluation.segmentation.decoder_config import FinetuneSegmentationConfig
from selfpatch.evaluation.segmentation.inference import FittedMethod, classes_at
from selfpatch.evaluation.segmentation.linear import segmentation_loss
from selfpatch.evaluation.workload import Training, Workload
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.images import normalise

ENLARGED = 2
"""Logits of a patch along a side that the loss is computed of."""
HEAD_STD = 2e-5
LR_BATCH = 256
"""Images per step that learning rates are given for."""


class PatchSegmenter(nn.Module):
    """A backbone, a fresh norm of its raw patches, and a 1x1 convolution to K classes; the seed is of its weights."""

    def __init__(self, backbone: Backbone, num_classes: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.norm = nn.LayerNorm(backbone.dim, eps=1e-6)
        self.classify = nn.Linear(backbone.dim, num_classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(self.classify.weight, std=HEAD_STD, generator=generator)
        nn.init.uniform_(self.classify.bias, -(backbone.dim**-0.5), backbone.dim**-0.5, generator=generator)
        self.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K, h, w] of normalised images [B, C, H, W], without pixels beyond the last patch."""
        height, width = (side - side % self.backbone.patch_size for side in images.shape[-2:])
        patches = self.backbone(images[..., :height, :width]).raw_patches  # [B, h, w, D]
        return self.classify(self.norm(patches)).movedim(-1, 1)


def fit_network(
    encoder: Encoder, train: SegmentationSet, config: FinetuneSegmentationConfig, output: Output
) -> FittedMethod:
    """Train a copy of the network and its head; a checkpoint of the same training is continued.

    Raises:
        ValueError: the encoder is no network of this package, or settings or data do not fit.
    """
    encoder = require_network(encoder)
    patch = encoder.patch_size
    if config.crop % patch or config.short_side < patch:
        raise ValueError(
            f"crop is {config.crop} and short_side {config.short_side} for patches of {patch} pixels; use a multiple "
            f"of {patch} for the crop, and {patch} or more for the short side"
        )
    batches = training_batches(train, SimCLRCrop(config.crop, config.min_scale), config)
    with torch.random.fork_rng(devices=[]):  # the seed alone decides the fresh weights
        backbone = trainable_copy(encoder.backbone, drop_path=config.drop_path)
        network = PatchSegmenter(backbone, len(train.classes), config.seed).to(encoder.device)
    learned: dict[str, Any] = {}
    if output.folder is not None:
        learned = {**config.learned(), "training_data": train.fingerprint(), "network": encoder_identity(encoder)}
    _train(network, encoder, batches, config, learned, output)
    return _fitted(network.eval(), encoder, config)


def _train(
    network: PatchSegmenter,
    encoder: BranchEncoder,
    batches: Batches,
    config: FinetuneSegmentationConfig,
    learned: dict[str, Any],
    output: Output,
) -> None:
    """Train in place; `learned` holds the values that decide the weights."""
    lr = config.lr * config.batch_size / LR_BATCH
    steps, warmup = (round(epochs * batches.steps_per_epoch) for epochs in (config.epochs, config.warmup_epochs))
    groups = layer_groups(
        network, network.backbone, lr=lr, layer_decay=config.layer_decay, weight_decay=config.weight_decay
    )
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=encoder.device.type in ("cpu", "cuda"))
    mask_side = ENLARGED * (config.crop // encoder.patch_size)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, labels = (to_device(part, encoder.device) for part in batch)
        return segmentation_loss(network(normalise(pixels, encoder.mean, encoder.std)), labels, mask_side)

    schedule = cosine_factor(steps, warmup=warmup, end=min(1.0, config.min_lr / lr))
    plan = TrainingPlan(steps, schedule, seed=config.seed, precision=config.precision)

    def dummy_loss(num_images: int) -> Tensor:
        images, labels = dummy_batch(num_images, config.crop)
        return segmentation_loss(network(images), labels, mask_side)

    training = Training(network, optimizer, dummy_loss, config.batch_size, steps, config.precision)
    sizes = {"training images": batches.num_samples}
    output.announce(Workload(config.recorded(), sizes, network, (1, 3, config.crop, config.crop), 0, training))
    fit(network.train(), loss, batches, optimizer, plan, settings=learned, output=output)


def _fitted(network: PatchSegmenter, encoder: BranchEncoder, config: FinetuneSegmentationConfig) -> FittedMethod:
    @torch.no_grad()
    def predict(image: LazyImage) -> Tensor:
        small = tvf.resize(image.rgb, [config.short_side])  # bilinear, antialiased
        pixels = tvf.pil_to_tensor(small)[None].to(encoder.device)
        logits = network(normalise(pixels, encoder.mean, encoder.std)).float()
        return _classes(logits, (image.height, image.width), config.max_side)

    return FittedMethod(predict, config)


def _classes(logits: Tensor, size: tuple[int, int], max_side: int) -> Tensor:
    """Return the class, int64 [H, W], of each pixel of an image of `size`, from logits [1, K, h, w].

    The classes of an image of more than `max_side`^2 pixels are found at `max_side` pixels along its longer side, then
    enlarged (nearest).
    """
    height, width = size
    if height * width <= max_side**2:
        return classes_at(logits, size)
    if height > width:
        reduced = max_side, int(max_side * width / height)
    else:
        reduced = int(max_side * height / width), max_side
    small = classes_at(logits, (max(1, reduced[0]), max(1, reduced[1])))
    return F.interpolate(small[None, None].float(), size, mode="nearest")[0, 0].long()
