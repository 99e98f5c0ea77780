"""Monocular depth from frozen patch features, as DINOv2 (arXiv 2304.07193) and DINOv3 (arXiv 2508.10104) measure it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as tvf

from selfpatch.core.distributed import all_reduce_sum, gather
from selfpatch.core.schedules import cosine_factor
from selfpatch.core.text import counted
from selfpatch.core.transfer import to_device
from selfpatch.core.types import Encoder
from selfpatch.data.decode.pillow import as_bad_image
from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.degenerate import check_degenerate
from selfpatch.evaluation.depth.augmentation import DepthCrop, resized
from selfpatch.evaluation.depth.config import DepthConfig
from selfpatch.evaluation.depth.dataset import DepthSet, open_depth_splits
from selfpatch.evaluation.depth.features import DepthFeatures, predict_depth
from selfpatch.evaluation.depth.head import DepthHead
from selfpatch.evaluation.depth.metrics import METRICS, depth_metrics, eigen_mask, mean_metrics
from selfpatch.evaluation.depth.visualize import draw_depth
from selfpatch.evaluation.encoders import require_rgb
from selfpatch.evaluation.identity import encoder_identity
from selfpatch.evaluation.pictures import numbered, save_picture
from selfpatch.evaluation.probe_training import TrainingPlan, fit
from selfpatch.evaluation.result import NO_OUTPUT, Output, Result
from selfpatch.evaluation.sharding import share_of
from selfpatch.evaluation.workload import Training, Workload
from selfpatch.losses.depth import SigLoss, gradient_log_loss

FLAT = 1e-4
"""Relative range of a predicted depth map that counts as flat."""
FLAT_PREDICTION = (
    "the predicted depth is the same in the whole image, so that its errors are those of a constant; check the "
    "weights, or train longer"
)
NO_DEPTHS = (
    "no pixel of the training crops has a depth up to max_depth, so that nothing was learned; check the depth maps and "
    "--depth-scale"
)


def evaluate(encoder: Encoder, data: str | Path, config: DepthConfig, output: Output = NO_OUTPUT) -> Result:
    """Train a linear head to predict depth, and measure its errors.

    ::

        for each step:
            depth = weighted mean of bins(1x1 convolution(batch norm(frozen patch features))), enlarged
            SigLoss (+ gradient loss) of the pixels with a known depth -> AdamW
        for each test image:
            mean of the prediction and of that of the mirrored image, scored at the size of the depth map
        mean of each metric over images

    `registry.Evaluate` explains the arguments.

    Raises:
        ValueError: the data cannot be used, settings or the encoder do not fit, or the folder holds another training.
    """
    require_rgb(encoder, "depth")
    train, test = (split.limited(config.limit) for split in open_depth_splits(data, config.depth_scale))
    batch_size, warmup = min(config.batch_size, len(train)), min(config.warmup, config.steps // 3)
    config = replace(config, batch_size=batch_size, warmup=warmup)
    features = DepthFeatures(encoder, config)
    settings = config.recorded() | {
        "data": str(data), "train_images": len(train), "test_images": len(test), "patch_size": encoder.patch_size,
        "blocks": features.blocks,
    }  # fmt: skip
    head = _train(features, train, config, output, settings, len(test))
    values, pictures = _score(head, features, test, config, output)
    unscored = [name for name, scores in values if scores is None]
    scored = [(name, scores) for name, scores in values if scores is not None]
    if not scored:
        raise ValueError(f"no test image of {data} has a depth between {config.min_depth:g} and {config.max_depth:g} m")
    metrics = mean_metrics([scores for _, scores in scored])
    notes = []
    if unscored:
        notes.append(f"Left out: {counted(len(unscored), 'test image')} without a valid depth, e.g. {unscored[0]}.")
    per_image = {name: {metric: scores[metric] for metric in METRICS} for name, scores in scored}
    return Result(
        "depth", {name: metrics[name] for name in METRICS}, [], settings,
        pictures=pictures, per_image=per_image, notes=notes,
    )  # fmt: skip


def _train(
    features: DepthFeatures, train: DepthSet, config: DepthConfig, output: Output, settings: dict[str, Any], tests: int
) -> DepthHead:
    """Train a head; a checkpoint of the same training is continued."""
    encoder, (height, width) = features.encoder, config.crop
    crop = DepthCrop(height, width, config.region == "nyu", config.resolution, config.rotation, config.colour)
    batches = Batches(
        len(train), partial(_load, train, crop), batch_size=config.batch_size, seed=config.seed, workers=config.workers
    )
    limits = config.min_depth, config.max_depth
    head = DepthHead(
        features.dim, config.bins, limits, batch_norm=config.batch_norm, upsample=config.upsample, seed=config.seed
    )
    trained = nn.ModuleDict({"head": head, "criterion": SigLoss()}).to(encoder.device).train()
    known = _KnownDepths()
    loss = _loss(trained, features, config, known)
    optimizer = torch.optim.AdamW(trained.parameters(), config.lr, weight_decay=config.weight_decay)

    def dummy_loss(num_images: int) -> Tensor:
        pixels = torch.zeros(num_images, 3, height, width, dtype=torch.uint8)
        return loss((pixels, torch.ones(num_images, 1, height, width)))

    training = Training(trained, optimizer, dummy_loss, config.batch_size, config.steps)
    patch = encoder.patch_size
    shape = (1, 3, -(-height // patch) * patch, -(-width // patch) * patch)
    encoded = tests * (2 if config.flip_test else 1)
    sizes = {"training images": len(train), "test images": tests}
    note = "Test images are taken as large as the training crops."
    output.announce(Workload(settings, sizes, features, shape, encoded, training, (note,)))
    learned = config.learned()
    if output.folder is not None:
        learned |= {"training_data": train.fingerprint(), "network": encoder_identity(encoder)}
    factor = cosine_factor(config.steps, warmup=config.warmup)
    plan = TrainingPlan(config.steps, factor, seed=config.seed, clip=config.clip)
    fit(trained, loss, batches, optimizer, plan, settings=learned, output=output)
    if known.any is not None:  # otherwise the training was finished before
        check_degenerate(NO_DEPTHS, all_reduce_sum(known.any.float()) == 0)
    return head.eval()


class _KnownDepths:
    """Record of whether any pixel of the batches had a depth to learn from; None before the first batch."""

    def __init__(self) -> None:
        self.any: Tensor | None = None

    def add(self, valid: Tensor) -> None:
        """Take in the pixels of a batch, bool."""
        self.any = valid.any() if self.any is None else self.any | valid.any()


def _load(images: DepthSet, crop: DepthCrop, i: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    image, depth = images.read(i)
    with as_bad_image(images.images[i]):  # an image that is too small, or too long
        return crop(image, depth, rng)


def _loss(
    trained: nn.ModuleDict, features: DepthFeatures, config: DepthConfig, known: _KnownDepths
) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    """Return the loss of a batch of images, uint8 [B, 3, H, W], and depths in metres [B, 1, H, W]."""
    head, criterion = trained["head"], trained["criterion"]
    assert isinstance(head, DepthHead)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, depth = batch[0], to_device(batch[1], features.encoder.device)
        prediction, valid = predict_depth(head, features, pixels), (depth > 0) & (depth <= config.max_depth)
        known.add(valid)
        value = criterion(prediction, depth, valid)
        if config.gradient_weight:
            value = value + config.gradient_weight * gradient_log_loss(prediction, depth, valid)
        return value

    return loss


def _score(
    head: DepthHead, features: DepthFeatures, test: DepthSet, config: DepthConfig, output: Output
) -> tuple[list[tuple[str, dict[str, float] | None]], list[str]]:
    """Return the name and the metrics of each test image, and the pictures' paths; processes share the images."""
    limits = config.min_depth, config.max_depth
    drawn = set(evenly_spread(np.arange(len(test)), 0 if output.folder is None else config.max_pictures).tolist())
    values: list[tuple[str, dict[str, float] | None]] = []
    pictures: list[str] = []
    share = share_of(len(test))
    for done, i in enumerate(share, start=1):
        image, metres = test.read(i)
        with as_bad_image(test.images[i]):  # one that would become too long
            small = resized(image, config.resolution)
        prediction = predict_image(head, features, small, image.size, flip_test=config.flip_test, name=test.names[i])
        check_degenerate(FLAT_PREDICTION, prediction.max() - prediction.min() < FLAT * prediction.max(), test.names[i])
        depth = torch.from_numpy(metres)
        mask = eigen_mask(*depth.shape) if config.region == "nyu" else torch.ones(depth.shape, dtype=torch.bool)
        values.append((test.names[i], depth_metrics(prediction, depth, mask, limits=limits, align=config.align)))
        if output.folder is not None and i in drawn:
            picture = draw_depth(image, metres, prediction.numpy(), *limits)
            pictures.append(save_picture(output.folder, numbered(i, test.names[i]), picture))
        output.progress("scoring", done, len(share))
    return gather(values), gather(pictures)


@torch.no_grad()
def predict_image(
    head: DepthHead,
    features: DepthFeatures,
    image: Image.Image,
    size: tuple[int, int],
    *,
    flip_test: bool,
    name: str = "",
) -> Tensor:
    """Return the depth of an RGB image in metres, [h, w] enlarged to `size` (width, height), on the CPU.

    With `flip_test`, it is averaged with that of the mirrored image. `name` is for `predict_depth`.
    """
    pixels = tvf.pil_to_tensor(image)[None]
    depth = predict_depth(head, features, pixels, name)
    if flip_test:
        depth = (depth + predict_depth(head, features, pixels.flip(-1)).flip(-1)) / 2
    return F.interpolate(depth, size[::-1], mode="bilinear")[0, 0].cpu()
