"""Core data types."""

from __future__ import annotations

import pytest
import torch

from selfpatch.core.types import Needs, Views


def views(num_global: int = 2, masks: bool = False) -> Views:
    return Views(
        global_crops=torch.zeros(num_global, 3, 1, 4, 4, dtype=torch.uint8),
        local_crops=None,
        boxes=torch.zeros(num_global, 3, 5),
        samples=torch.arange(3),
        masks=torch.ones(num_global, 3, 2, 2, dtype=torch.bool) if masks else None,
    )


def test_views_know_their_sizes() -> None:
    assert (views().num_global, views().batch_size) == (2, 3)


@pytest.mark.parametrize("masks", [False, True])
def test_views_move_to_a_device_with_all_that_is_there(masks: bool) -> None:
    moved = views(masks=masks).to("meta")
    tensors = [moved.global_crops, moved.boxes, moved.samples, *([moved.masks] if moved.masks is not None else [])]
    assert len(tensors) == 3 + masks
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.local_crops is None


def test_a_method_of_pairs_refuses_another_number_of_crops() -> None:
    views().require_pair("moby")
    with pytest.raises(ValueError, match="moby compares 2 global crops of an image, but there are 3; make 2"):
        views(num_global=3).require_pair("moby")


def test_needs_unite() -> None:
    assert Needs(local_crops=True) | Needs(masks=True) == Needs(local_crops=True, masks=True)
    assert Needs() | Needs() == Needs()
