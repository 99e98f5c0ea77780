"""Sizes of a batch that a number of images allows."""

from selfpatch.core.text import counted

MIN_STEPS = 8
"""Steps of an epoch that a batch chosen for the images leaves."""
MIN_BATCH = 16
"""Batch that is chosen for fewer images than that many steps take."""


def check_batch_size(batch_size: int, num_images: int, *, world_size: int, accumulate: int) -> None:
    """Raise ValueError for a batch that is larger than the data or cannot be shared out."""
    shares = world_size * accumulate
    if batch_size < 1 or batch_size % shares:
        raise ValueError(
            f"a batch of {counted(batch_size, 'image')} cannot be shared out over {world_size} processes x "
            f"{accumulate} micro-batches; use a multiple of {shares}"
        )
    if batch_size > num_images:
        largest = num_images // shares * shares
        advice = f"use --batch-size {largest} or less, or more images" if largest else "use more images"
        raise ValueError(
            f"a batch of {batch_size} images is larger than the data, {counted(num_images, 'image')}; {advice}"
        )


def fitting_batch_size(num_images: int) -> int:
    """Return the largest power of two that gives an epoch of eight steps, or 16 where that is less, or all images."""
    wanted = max(MIN_BATCH, num_images // MIN_STEPS)
    return 1 << max(0, min(wanted, num_images).bit_length() - 1)
