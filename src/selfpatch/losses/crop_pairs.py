"""Pairs of a global crop of the teacher and another crop of the student, and means over them."""

from torch import Tensor

from selfpatch.core.distributed import all_reduce_sum, world_size


def crop_pairs(num_teacher: int, num_student: int, num_boxes: int, num_global: int) -> list[tuple[int, int]]:
    """Return the pairs (c, v) of different crops, c of the teacher's global ones and v of all of the student's.

    Args:
        num_teacher: number of the teacher's crops.
        num_student: number of the student's crops, global ones first.
        num_boxes: number of boxes, one for each crop of the student.
        num_global: number of global crops that the loss is made for.

    Raises:
        ValueError: the numbers do not fit, or there is no pair.
    """
    if num_teacher != num_global or num_boxes != num_student or num_student < 2:
        raise ValueError(
            f"got {num_teacher} global crops of the teacher, {num_student} crops of the student and {num_boxes} boxes; "
            f"give {num_global} (num_global) of the teacher, 2 or more of the student, and their boxes"
        )
    return [(c, v) for c in range(num_teacher) for v in range(num_student) if v != c]


def mean_weights(counted: Tensor) -> Tensor:
    """Return the weights [..., n] of n entries in a mean over those that are counted, on all processes together.

    Sums of the weighted entries are a process's parts, whose mean over the processes is the mean over all entries.
    """
    counted = counted.float()
    return counted * world_size() / all_reduce_sum(counted.sum(-1, keepdim=True)).clamp(min=1)
