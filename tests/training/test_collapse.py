"""Warnings about collapsed features."""

from __future__ import annotations

import math
import re

import pytest

from selfpatch.config.run import RunConfig
from selfpatch.training.collapse import CollapseDetector, UniformLossDetector, losses_at_uniform, regression_warning

HEALTHY = {"entropy": 2.0, "mean_entropy": 6.0, "max_entropy": math.log(4096), "effective_rank": 40.0}


class TestCollapseDetector:
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            ({"entropy": 8.31, "mean_entropy": 8.315}, ["uniform", "lower optimizer.teacher_temp"]),
            ({"entropy": 0.001, "mean_entropy": 0.002}, ["same prototype", "higher optimizer.teacher_temp"]),
            ({"effective_rank": 1.02}, ["one direction", "effective rank 1.02", "optimizer.base_lr"]),
        ],
    )
    def test_one_warning_a_kind_after_several_logs_in_a_row(self, bad: dict[str, float], words: list[str]) -> None:
        detector = CollapseDetector(first_step=100, patience=3)
        assert [detector.check(step, HEALTHY | bad) for step in range(0, 100, 10)] == [None] * 10
        assert [detector.check(step, HEALTHY | bad) for step in (100, 110)] == [None, None]
        assert detector.check(120, HEALTHY) is None  # one good log starts the count again
        answers = [detector.check(step, HEALTHY | bad) for step in range(130, 200, 10)]
        warning = answers[2]
        assert warning is not None
        assert all(word in warning for word in words)
        assert [answer for answer in answers if answer] == [warning]

    def test_kinds_warn_apart(self) -> None:
        detector = CollapseDetector(first_step=0, patience=1)
        first = detector.check(0, HEALTHY | {"effective_rank": 1.0})
        second = detector.check(1, HEALTHY | {"effective_rank": 1.0, "mean_entropy": 0.0})
        assert first is not None
        assert "direction" in first
        assert second is not None
        assert "prototype" in second
        assert "direction" not in second

    def test_meters_that_are_missing_or_not_finite_are_no_sign(self) -> None:
        detector = CollapseDetector(first_step=0, patience=1)
        assert detector.check(0, {}) is None
        assert detector.check(1, dict.fromkeys(HEALTHY, math.nan)) is None
        assert detector.check(2, {"loss": 0.0, "effective_rank": 30.0}) is None

    def test_the_settings_it_names_exist(self) -> None:
        detector = CollapseDetector(first_step=0, patience=1)
        bad = {"entropy": 8.3, "mean_entropy": 0.0, "max_entropy": 8.3, "effective_rank": 1.0}
        names = re.findall(r"optimizer\.(\w+)", detector.check(0, bad) or "")
        assert len(names) >= 5
        assert all(hasattr(RunConfig().optimizer, name) for name in names)


def test_features_that_get_worse_are_named() -> None:
    at_start = {"step": 0.0, "knn_top1": 0.5, "view_matching": 0.3}
    assert regression_warning({"knn_top1": 0.49, "view_matching": 0.4}, at_start) is None
    warning = regression_warning({"knn_top1": 0.4, "view_matching": 0.4}, at_start)
    assert warning is not None
    assert "knn_top1 from 0.500 to 0.400" in warning
    assert "view_matching" not in warning


STUCK = {"patch": 6.2, "uniform_patch": 6.24, "image": 3.0, "uniform_image": 8.3, "loss": 6.24}


class TestUniformLossDetector:
    def test_one_warning_after_the_first_step_and_two_logs_in_a_row(self) -> None:
        detector = UniformLossDetector(first_step=50)
        assert [detector.check(step, STUCK) for step in (10, 40)] == [None, None]
        assert detector.check(50, STUCK) is None
        assert detector.check(60, STUCK | {"patch": 6.0}) is None  # a log in between starts the count again
        assert detector.check(70, STUCK) is None
        warning = detector.check(80, STUCK)
        assert warning is not None
        assert "uniform after 80 steps" in warning
        assert "patch 6.20 of 6.24 nats. Raise" in warning
        assert detector.check(90, STUCK) is None
        names = re.findall(r"optimizer\.(\w+)", warning)
        assert len(names) == 2
        assert all(hasattr(RunConfig().optimizer, name) for name in names)

    def test_losses_far_from_it_and_losses_without_it_are_left_out(self) -> None:
        assert losses_at_uniform({"patch": 6.17, "uniform_patch": 6.24, "channel": 5.0}) == {}
        assert losses_at_uniform({"patch": 6.3, "uniform_patch": 6.24}) == {"patch": (6.3, 6.24)}
        assert losses_at_uniform({"patch": 6.31, "uniform_patch": 6.24}) == {}
        assert losses_at_uniform({"contrast": 0.0, "uniform_contrast": 0.0}) == {}, "one key is no choice"
        assert losses_at_uniform({"patch": math.nan, "uniform_patch": 6.24}) == {}
        assert losses_at_uniform({"patch": None, "uniform_patch": 6.24}) == {}
