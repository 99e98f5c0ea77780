"""`selfpatch evaluate`: one evaluation, a suite, and results side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import selfpatch
from selfpatch.checkpoints.load import load_encoder
from selfpatch.cli.main import main
from selfpatch.core.signals import Terminated
from selfpatch.evaluation.result import Result
from selfpatch.experiments import suite
from tests.helpers.command_line import write_davis


@pytest.mark.slow
def test_davis(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    davis, out = write_davis(tmp_path / "davis"), tmp_path / "out"
    assert main(f"evaluate davis --weights {run} --data {davis} --out {out} --resolution 48 --device cpu".split()) == 0
    assert "J&F-Mean" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert [(row["sequence"], row["object"]) for row in result["rows"]] == [
        ("first", 1), ("first", 2), ("second", 1), ("second", 2),
    ]  # fmt: skip
    assert result["weights"]["source"] == str(run)
    assert result["settings"]["resolution"] == 48
    for name in ("first", "second"):
        assert sorted(path.name for path in (out / "results" / name).iterdir()) == [f"{i:05d}.png" for i in range(4)]
        assert Image.open(out / "results" / name / "00003.png").size == (64, 48)
        assert (out / "pictures" / f"{name}.jpg").is_file()

    again = tmp_path / "again"
    assert main(f"evaluate davis --results {out / 'results'} --data {davis} --out {again}".split()) == 0
    assert json.loads((again / "result.json").read_text())["metrics"] == result["metrics"]


def test_the_truth_scores_one(tmp_path: Path) -> None:
    davis, out = write_davis(tmp_path / "davis"), tmp_path / "out"
    truth = davis / "Annotations" / "480p"
    assert main(f"evaluate davis --results {truth} --data {davis} --out {out}".split()) == 0
    assert json.loads((out / "result.json").read_text())["metrics"]["J&F-Mean"] == 1


@pytest.mark.slow
def test_knn(capsys: pytest.CaptureFixture[str], run: Path, photos: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for split in ("train", "val"):  # the same images, so that each one's nearest neighbour is itself
        (data / split).symlink_to(photos)
    sizes = "--resize 48 --crop 32 --ks 1 3 100 --device cpu"
    assert main(f"evaluate knn --weights {run} --data {data} --out {out} {sizes}".split()) == 0
    assert "top-1" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert (result["settings"]["ks"], result["settings"]["classes"]) == ([1, 3], 2)
    assert result["metrics"].keys() == {"top-1 k=1", "top-5 k=1", "top-1 k=3", "top-5 k=3"}


@pytest.mark.slow
def test_a_suite(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    """One evaluation succeeds and one fails; the second time only what failed is run again."""
    davis, out = write_davis(tmp_path / "davis"), tmp_path / "out"
    lines = [f"- davis: {{data: {davis}, resolution: 48}}", "- knn: {data: nowhere}"]
    (tmp_path / "suite.yaml").write_text("\n".join(lines))
    command = f"evaluate all --suite {tmp_path}/suite.yaml --weights {run} --out {out} --device cpu".split()
    assert main(command) == 2
    shown = capsys.readouterr()
    assert "J&F-Mean" in shown.out
    assert "selfpatch: 2-knn: nowhere has no train/" in shown.err
    result = json.loads((out / "1-davis" / "result.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", result["weights"]["sha256"])
    assert result["device"]
    assert result["costs"].keys() == {"seconds", "frames/s"}
    assert "| 1-davis | J&F-Mean |" in (out / "report.md").read_text()
    assert main(command) == 2
    assert "1. davis on" in (again := capsys.readouterr().out)
    assert "was done before" in again
    assert json.loads((out / "1-davis" / "result.json").read_text()) == result
    (tmp_path / "suite.yaml").write_text(lines[0])
    assert main(command) == 0
    outcomes = selfpatch.evaluate_suite(tmp_path / "suite.yaml", str(run), out, device="cpu")
    assert [outcome.was_done for outcome in outcomes] == [True]
    assert main([*command, "--side", "student"]) == 2
    assert "holds another result (weights.side is teacher there and student now)" in capsys.readouterr().err


def test_a_suite_has_a_dry_run(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def opening(*args: Any, **options: Any) -> Any:
        opened.append(args)
        return load_encoder(*args, **options)

    monkeypatch.setattr("selfpatch.api.encoder.load_encoder", opening)
    davis = write_davis(tmp_path / "davis")
    lines = [f"- davis: {{data: {davis}, resolution: 48}}", "- knn: {data: nowhere}"]
    (tmp_path / "suite.yaml").write_text("\n".join(lines))
    command = f"evaluate all --suite {tmp_path}/suite.yaml --weights {run} --device cpu --dry-run".split()
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert "encoding all images" in shown.out
    assert "selfpatch: 2-knn: nowhere has no train/" in shown.err
    assert len(opened) == 1, "one network for all entries"
    assert not (tmp_path / "out").exists()
    (tmp_path / "suite.yaml").write_text(lines[0])
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--out", f"{tmp_path}/suite.yaml"]) == 2
    assert "suite.yaml (File exists); name another folder with --out" in capsys.readouterr().err


@pytest.mark.slow
def test_results_side_by_side(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    davis = write_davis(tmp_path / "davis")
    for weights, out in [(run, "a"), ("baseline:mean-colour:8", "b")]:
        options = f"--data {davis} --out {tmp_path / out} --resolution 48 --device cpu"
        assert main(f"evaluate davis --weights {weights} {options}".split()) == 0
    files = [str(tmp_path / "a"), str(tmp_path / "b" / "result.json")]
    capsys.readouterr()
    assert main(["evaluate", "--compare", *files]) == 0
    shown = capsys.readouterr().out
    assert "baseline:mean-colour:8" in shown.replace("\n", "")
    assert "J-Mean, mean of 2" in shown
    assert selfpatch.compare(files).columns == [str(run), "baseline:mean-colour:8"]
    assert main(f"evaluate davis --results {tmp_path}/a/results --data {davis} --out {tmp_path}/c".split()) == 0
    other = [*files, str(tmp_path / "c" / "result.json")]
    assert main(["evaluate", "--compare", *other]) == 2
    error = capsys.readouterr().err
    assert f"results is not given in result 1 and {tmp_path}/a/results in result 3; allow it with --all" in error
    assert main(["evaluate", "--compare", *other, "--allow-different"]) == 0


@pytest.mark.slow
def test_a_suite_that_is_stopped_writes_its_scorecard_and_says_how_it_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(name: str, *arguments: Any, resolution: int, **settings: Any) -> Result:
        if resolution == 32:
            raise Terminated
        return real(name, *arguments, resolution=resolution, **settings)

    write_davis(tmp_path / "davis")
    (tmp_path / "suite.yaml").write_text("".join(f"- davis: {{data: davis, resolution: {n}}}\n" for n in (24, 32)))
    monkeypatch.chdir(tmp_path)
    real = suite.measure
    monkeypatch.setattr(suite, "measure", measure)
    words = "evaluate all --suite suite.yaml --weights baseline:mean-colour:8 --out out --device cpu".split()
    assert main(words) == 143
    sentence = "stopped after 1 of 2 evaluations, which out/scorecard.html shows; go on with: selfpatch"
    assert f"selfpatch: {sentence} {' '.join(words)}\n" in capsys.readouterr().err
    scorecard = (tmp_path / "out" / "scorecard.md").read_text()
    assert [scorecard.count(state) for state in ("| not run yet |", "J&F-Mean |")] == [2, 1]


def test_a_dry_run_of_a_built_in_suite_lists_what_is_missing(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"evaluate all --suite papers --data-root {tmp_path} --weights {run} --device cpu --dry-run".split()
    assert main(command) == 2
    assert f"selfpatch: no evaluation can run; {tmp_path} holds none of their data" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main([*command[:4], *command[6:]]) == 2
    assert "selfpatch: no evaluation can run; name the folder of the data with --data" in capsys.readouterr().err
    (tmp_path / "coco").mkdir()
    assert main(command) == 2
    assert "selfpatch: no evaluation can run; the lines above say why" in capsys.readouterr().err
    write_davis(tmp_path / "DAVIS")
    assert main(command) == 0
    shown = capsys.readouterr()
    assert f"2-correspond on {tmp_path}/SPair-71k: would be left out, " in shown.out
    assert shown.err.count("selfpatch:") == 0
