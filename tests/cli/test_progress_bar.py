"""The progress bar is for terminals."""

from __future__ import annotations

import pytest

from selfpatch.cli.progress_bar import progress_bar


def test_a_file_gets_nothing_of_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("work") as progress:
        progress("half", 1, 2)
    assert capsys.readouterr().out == ""
