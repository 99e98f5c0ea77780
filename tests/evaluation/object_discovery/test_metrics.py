"""Intersection over union and the centre box."""

from __future__ import annotations

import pytest

from selfpatch.evaluation.object_discovery.metrics import best_iou, centre_box


def test_iou_in_pixels() -> None:
    """VOC's box 1 .. 10 is ten pixels wide; nothing is added to sides."""
    assert best_iou((0, 0, 10, 10), [(0, 0, 10, 20), (5, 0, 15, 10)]) == pytest.approx(0.5)
    assert best_iou((0, 0, 2, 2), [(1, 1, 3, 3)]) == pytest.approx(1 / 7)
    left, top, right, bottom = centre_box(100, 200)
    assert (right - left) * (bottom - top) == pytest.approx(100 * 200 / 2)
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((100, 50))
