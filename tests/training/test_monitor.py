"""What a training records and shows of its metrics."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.logging import LoggingConfig
from selfpatch.training.factory import make_schedule
from selfpatch.training.monitor import Monitor
from tests.helpers.tiny import tiny_config, tiny_student_teacher


def test_a_metric_without_a_value_at_the_start_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of weights whose features are not finite, or of an image that holds NaN."""
    run, values = RunDirectory.create(tmp_path / "run", {}), iter([math.nan, 0.5])
    monitor = Monitor(
        run, tiny_student_teacher(), make_schedule(tiny_config(epochs=2), 3), LoggingConfig(loggers=()), batch_size=4,
        first=0, evaluate=lambda teacher, step: {"view_matching": next(values)}, evaluated_at={0, 3}, pretrained=True,
    )  # fmt: skip
    monitor.evaluate_at_start(0)
    monitor.evaluate_if_due(3)
    assert capsys.readouterr().out == "step 3: view matching 50.0 %\n"
