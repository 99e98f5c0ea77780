"""Pairs of crops, and the weights of means over them."""

from __future__ import annotations

import pytest
import torch

from selfpatch.losses.crop_pairs import crop_pairs, mean_weights


def test_each_global_crop_meets_every_other_crop() -> None:
    assert crop_pairs(2, 3, 3, num_global=2) == [(0, 1), (0, 2), (1, 0), (1, 2)]


@pytest.mark.parametrize("numbers", [(1, 3, 3), (2, 3, 2), (2, 1, 1)])
def test_numbers_that_do_not_fit_are_refused(numbers: tuple[int, int, int]) -> None:
    teacher, student, boxes = numbers
    words = f"got {teacher} global crops of the teacher, {student} crops of the student and {boxes} boxes; give 2"
    with pytest.raises(ValueError, match=words):
        crop_pairs(*numbers, num_global=2)


def test_weights_make_a_mean_of_what_is_counted() -> None:
    weights = mean_weights(torch.tensor([[True, False, True], [False, False, False]]))
    assert weights.tolist() == [[0.5, 0, 0.5], [0, 0, 0]]
