"""Distillation of patches from a frozen encoder, by matching features or similarities."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from selfpatch.config.schema import settings
from selfpatch.losses.feature_queue import FeatureQueue
from selfpatch.ops.contrast import l2_normalize


@settings
class PatchDistillationConfig:
    """Settings of patch matching; the weights are Theia's (arXiv 2407.20179)."""

    cosine: NonNegativeFloat = 0.9
    """Weight of 1 - cosine."""
    smooth_l1: NonNegativeFloat = 0.1
    """Weight of the smooth L1 distance with beta 1."""
    mse: NonNegativeFloat = 0.0
    """Weight of the mean squared error."""
    cosine_over: Literal["patch", "image"] = "patch"
    """Vectors whose cosine is taken: each `patch`, or all patches of an `image` as one vector (Theia's code)."""

    def __post_init__(self) -> None:
        if not self.cosine + self.smooth_l1 + self.mse:
            raise ValueError("all weights of patch distillation are 0; give cosine, smooth_l1 or mse a positive weight")


class PatchDistillationLoss(nn.Module):
    """Distance of the student's patches, projected to the teacher's width and resized to its grid, to the teacher's.

        x = resize(Linear(student))                          bilinear
        for each image, for each patch i of the teacher t:
            loss += cosine * (1 - cos(x_i, t_i)) + smooth_l1 * mean over channels of smooth L1(x_i - t_i)

    It is the mean over patches and images. With the weight `mse` alone, it is the mean squared error. Theia's targets
    are standardised per channel with statistics of the data set; the caller does so.

    Example:
        >>> criterion = PatchDistillationLoss(384, 1024)    # train its parameters with the student
        >>> loss = criterion(student_map, teacher_map)      # [B, h, w, 384], [B, h', w', 1024]

    Args:
        student_dim: width of the student's patches.
        teacher_dim: width of the teacher's.
        config: weights of the distances.
    """

    def __init__(
        self, student_dim: int, teacher_dim: int, config: PatchDistillationConfig = PatchDistillationConfig()
    ) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Linear(student_dim, teacher_dim)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            student: [B, h, w, D] patches.
            teacher: [B, h', w', D'] patches of the same image, which take no gradient.
        """
        return patch_distance(resize_bilinear(self.projection(student), teacher.shape[1:3]), teacher, self.config)


def patch_distance(x: Tensor, teacher: Tensor, config: PatchDistillationConfig) -> Tensor:
    """Compute the weighted distance of patches [B, h, w, D] in float32 to the teacher's, which take no gradient."""
    target, loss = teacher.detach().float(), x.new_zeros(())
    if config.cosine:
        x_rows, target_rows = (m.flatten(1 if config.cosine_over == "image" else -1) for m in (x, target))
        loss = loss + config.cosine * (1 - F.cosine_similarity(x_rows, target_rows, dim=-1)).mean()
    if config.smooth_l1:
        loss = loss + config.smooth_l1 * F.smooth_l1_loss(x, target)
    if config.mse:
        loss = loss + config.mse * F.mse_loss(x, target)
    return loss


class PatchSimilarityLoss(nn.Module):
    """Divergence between the similarities of patches within an image, of teacher and student (lightly-train).

        x = resize(Linear(student))                          bilinear
        for each image, for each patch i:
            loss += KL( softmax over j of cos(t_i, t_j) / temp  ||  softmax over j of cos(x_i, x_j) / temp )

    It is the mean over patches and images; a patch counts among its own j.

    Args:
        student_dim: width of the student's patches.
        teacher_dim: width of the teacher's.
        temp: softmax temperature of both.
    """

    def __init__(self, student_dim: int, teacher_dim: int, temp: float = 0.07) -> None:
        super().__init__()
        self.temp = temp
        self.projection = nn.Linear(student_dim, teacher_dim)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar; arguments as for `PatchDistillationLoss`."""
        x = resize_bilinear(self.projection(student), teacher.shape[1:3])
        x, target = (l2_normalize(m.flatten(1, 2)) for m in (x, teacher.detach()))  # [B, N, D']
        return similarity_divergence(x, target, (x, target), self.temp).mean()


class ImageSimilarityLoss(nn.Module):
    """Divergence between the similarities of an image to a queue of images, of teacher and student (lightly-train).

        x = Linear(student)
        queue takes in the teacher's features t of this batch
        for each image i:
            loss += KL( softmax over rows q of cos(t_i, q) / temp  ||  softmax over rows q of cos(x_i, q) / temp )

    It is the mean over images. Published with `PatchSimilarityLoss`, both with weight 1, on images mixed with one
    another (mixup, one share per batch from U(0, 1)). Without an earlier step, the queue holds the batch alone.

    Example:
        >>> images, patches = ImageSimilarityLoss(384, 1024), PatchSimilarityLoss(384, 1024)
        >>> loss = images(student_image, teacher_image) + patches(student_map, teacher_map)
        >>> loss.backward(), optimizer.step(), images.update()

    Args:
        student_dim: width of the student's image features.
        teacher_dim: width of the teacher's.
        queue_size: number of the teacher's latest features, less than the number of images in the data set.
        temp: softmax temperature of both.
    """

    def __init__(self, student_dim: int, teacher_dim: int, queue_size: int = 8192, temp: float = 0.07) -> None:
        super().__init__()
        if queue_size < 1:
            raise ValueError(f"queue_size is {queue_size}, but images are compared with those of the queue; use 8192")
        self.temp = temp
        self.projection = nn.Linear(student_dim, teacher_dim)
        self.queue = FeatureQueue(queue_size, teacher_dim)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            student: [B, D] image features.
            teacher: [B, D'] of the same images, which take no gradient.
        """
        x, target = l2_normalize(self.projection(student)), l2_normalize(teacher.detach())
        keys, num_filled = self.queue.push(target)
        empty = torch.arange(len(keys), device=keys.device) >= num_filled
        return similarity_divergence(x, target, (keys, keys), self.temp, empty).mean()

    def update(self) -> None:
        """Finish a step: the queue keeps what it took in."""
        self.queue.update()


def similarity_divergence(
    student: Tensor,
    teacher: Tensor,
    keys: tuple[Tensor, Tensor],
    temp: float,
    left_out: Tensor | None = None,
) -> Tensor:
    """Compute KL(softmax(t . k_t / temp) || softmax(s . k_s / temp)) of each row, [..., N] float32.

    Args:
        student: [..., N, D] normalised rows.
        teacher: [..., N, D'] normalised rows, which take no gradient.
        keys: [..., K, D] and [..., K, D'], normalised, that student and teacher are compared with.
        temp: softmax temperature of both.
        left_out: [K] bool, True for keys that do not count.
    """
    with torch.autocast(student.device.type, enabled=False):
        logits, target = (x @ k.mT / temp for x, k in zip((student, teacher), keys, strict=True))  # [..., N, K]
    if left_out is not None:
        logits, target = (x.masked_fill(left_out, torch.finfo(x.dtype).min) for x in (logits, target))
    log_target = target.detach().log_softmax(-1)
    return (log_target.exp() * (log_target - logits.log_softmax(-1))).sum(-1)


def resize_bilinear(patches: Tensor, grid: tuple[int, int] | torch.Size) -> Tensor:
    """Resize maps of patches [B, h, w, D] to another grid, bilinear without antialias; float32."""
    resized = F.interpolate(patches.permute(0, 3, 1, 2).float(), tuple(grid), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)
