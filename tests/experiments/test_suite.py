"""Suites: what a file may say, what is run and what is not run again, failures, and the reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from selfpatch.api.evaluate import measure
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.registry import EVALUATIONS
from selfpatch.evaluation.result import Provenance, Result
from selfpatch.evaluation.video_segmentation.config import FIRST_MASK, DAVISConfig
from selfpatch.evaluation.video_segmentation.evaluate import evaluate as evaluate_davis
from selfpatch.experiments.entries import Entry, Outcome, limited, read_suite, suite_names
from selfpatch.experiments.scorecard import read_network
from selfpatch.experiments.suite import evaluate_suite, identity, run_suite
from tests.helpers.command_line import write_davis
from tests.helpers.labelled_images import coloured_folder, tiny_encoder
from tests.helpers.workers import WorkerPool

SUITES = Path(__file__).parents[2] / "suites"

WEIGHTS = {"sha256": "abc", "side": "teacher"}


class Runner:
    """Stands for the evaluations: notes what it is asked to run, and raises what it is told to."""

    def __init__(self, **errors: Exception) -> None:
        self.ran: list[str] = []
        self.errors = errors

    def __call__(self, name: str, data: str, out: Path, settings: Mapping[str, Any]) -> Result:
        self.ran.append(out.name)
        if name in self.errors:
            raise self.errors[name]
        (out / "strip.png").write_bytes(b"not looked into")
        rows = [{"kind": "a|b", "score": 0.25}, {"kind": "c", "score": 0.75}]
        return Result(name, {"score": 0.5}, rows, dict(settings), Provenance("w", "abc"), pictures=["strip.png"],
                      costs={"seconds": 1.5})  # fmt: skip


def suite(tmp_path: Path, text: str) -> list[Entry]:
    (tmp_path / "suite.yaml").write_text(text)
    return read_suite(tmp_path / "suite.yaml")


def run(entries: list[Entry], runner: Runner, out: Path, weights: dict | None = WEIGHTS) -> list[Outcome]:
    return list(run_suite(entries, runner, out, weights=weights))


TWO = """
- davis: {data: DAVIS, resolution: 240, sequences: [dog, cow], std: encoder}
- knn:
    data: pets
    ks: [1, 2]
    temperature: 1e-2
"""


def test_a_file(tmp_path: Path) -> None:
    """Values are converted as the arguments take them; what is not given is at its default."""
    first, second = suite(tmp_path, TWO)
    assert (first.folder, second.folder) == ("1-davis", "2-knn")
    assert (first.evaluation, first.data, second.data) == ("davis", "DAVIS", "pets")
    assert first.settings.items() >= {
        "resolution": 240, "sequences": ["dog", "cow"], "std": "encoder", "radius": 12, "year": None
    }.items()  # fmt: skip
    assert second.settings["ks"] == [1, 2]
    assert second.settings["temperature"] == 0.01
    assert not {"out", "weights", "progress", "encoder", "data"} & {*first.settings, *second.settings}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_can_be_listed(tmp_path: Path, name: str) -> None:
    (entry,) = suite(tmp_path, f"- {name}: {{data: d}}")
    assert (entry.evaluation, entry.data) == (name, "d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- flight: {data: d}", r"entry 1 of .*suite.yaml: there is no evaluation 'flight'; use one of: .*davis"),
        (
            "- knn: {data: d}\n- davis: {data: d, colour: 1}",
            r"entry 2 of .*: davis.colour is not a setting; known are: limit, precision, debias, .*results, resolution",
        ),
        ("- davis: {data: d, out: there}", r"davis\.out is not a setting"),
        ("- davis: {data: d, weights: other}", r"davis\.weights is not a setting"),
        ("- davis: {resolution: 240}", "davis needs data, the path of its data set"),
        ("- davis: {data: [d]}", "davis needs data"),
        ("- davis: {data: d, resolution: high}", r"davis.resolution is 'high'; use a whole number"),
        ("- davis: {data: d, sequences: dog}", r"davis.sequences is 'dog'; use a list of values"),
        ("- davis: {data: d, std: mine}", r"davis.std is 'mine'; use one of: released, encoder"),
        ("- davis: {data: d, year: 2020}", r"davis.year is 2020; use one of: 2016, 2017"),
        ("- davis", "entry 1 of .* is 'davis'; one evaluation with its settings is needed"),
        ("- davis:", "one evaluation with its settings is needed"),
        ("- {davis: {data: d}, knn: {data: d}}", "one evaluation with its settings is needed"),
        ("davis: {data: d}", "holds no list of evaluations"),
        ("", "holds no list of evaluations"),
        ("- {", "is not valid YAML"),
    ],
)
def test_files_that_are_no_suite(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite(tmp_path, text)


@pytest.mark.parametrize("file", sorted(SUITES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_suites_of_ours_name_data_below_the_current_folder(file: Path, data_dir: Path) -> None:
    entries = read_suite(file)
    requests = [(entry.evaluation, entry.data, str(entry.settings)) for entry in entries]
    assert len(set(requests)) == len(entries) > 1, "no evaluation is listed twice"
    assert all((data_dir / entry.data).is_dir() for entry in entries)


@pytest.mark.parametrize("name", ["dense", "classification", "papers"])
def test_built_in_suites(name: str) -> None:
    entries = read_suite(name)
    requests = [(entry.evaluation, entry.data, str(entry.settings)) for entry in entries]
    assert len(set(requests)) == len(entries) > 5
    assert [Path("sets", entry.data) for entry in entries] == [Path(e.data) for e in read_suite(name, "sets")]
    assert suite_names() == ["classification", "dense", "papers"]


def test_lists_are_looked_for_below_the_root_of_the_data_first(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    for name in ("mine.txt", "elsewhere.txt"):
        (tmp_path / "suite.yaml").write_text(
            f"- discover: {{data: VOC, image_list: {name}}}\n- linear: {{data: photos, labels: 1%}}\n"
        )
        discover, linear = read_suite(tmp_path / "suite.yaml", tmp_path)
        assert discover.settings["image_list"] == (str(tmp_path / name) if name == "mine.txt" else name)
        assert linear.settings["labels"] == "1%"


def test_what_is_refused_is_told_before_anything_runs(tmp_path: Path) -> None:
    """Missing data, settings that do not fit the network: known at once; the others run, and the report says so."""
    write_davis(tmp_path / "davis")
    lines = (
        "davis: {data: davis, resolution: 48}",
        "knn: {data: pets}",
        "davis: {data: davis, block: 3}",
        "knn: {data: /pets}",
    )
    (tmp_path / "suite.yaml").write_text("".join(f"- {line}\n" for line in lines))
    told: list[Outcome] = []
    outcomes = evaluate_suite(
        tmp_path / "suite.yaml", MeanColour(8), tmp_path / "out", notify=told.append, data_root=tmp_path
    )
    assert [outcome.entry.number for outcome in told] == [2, 3, 4, 1]
    assert [outcome.was_refused for outcome in outcomes] == [False, True, True, True]
    assert outcomes[0].result is not None
    for outcome, reason in zip(outcomes[1:], (f"{tmp_path}/pets", "block is 3", " /pets"), strict=True):
        assert reason in f" {outcome.error}"
        assert not (tmp_path / "out" / outcome.entry.folder).exists()
    assert (tmp_path / "out" / "report.md").read_text().count("Left out: ") == 3
    scorecard = (tmp_path / "out" / "scorecard.md").read_text()
    assert [scorecard.count(f"| – | {state} |") for state in ("data missing", "refused")] == [2, 1]
    assert "refused: block is 3" in scorecard
    (tmp_path / "suite.yaml").write_text("- knn: {data: pets}\n- davis: {data: pets}")
    with pytest.raises(ValueError, match=r"no evaluation can run: 1-knn: .*pets.*; 2-davis: no DAVIS at"):
        evaluate_suite(tmp_path / "suite.yaml", MeanColour(8), tmp_path / "other", data_root=tmp_path)


def test_a_limit_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller one counts where an entry has a limit too; a quick look does not stand in the way of a full run."""
    entries = suite(tmp_path, "- davis: {data: a}\n- knn: {data: b, limit: 3}\n- segment: {data: c, limit: 50}")
    assert [limited(entry, 8).settings["limit"] for entry in entries] == [8, 3, 8]
    trained = suite(tmp_path, "- depth: {data: a}\n- depth: {data: a, steps: 3}\n- segment: {data: c}")
    assert [limited(entry, 8).settings["steps"] for entry in trained] == [8, 3, None]
    with pytest.raises(ValueError, match=r"1-davis with a limit of 0\.limit is 0"):
        limited(entries[0], 0)
    monkeypatch.chdir(tmp_path)
    write_davis(tmp_path / "davis")
    (tmp_path / "suite.yaml").write_text("- davis: {data: davis, resolution: 48}")
    for limit, sequences in ((1, 1), (None, 2)):
        (outcome,) = evaluate_suite("suite.yaml", MeanColour(8), limit=limit)
        assert outcome.result is not None
        assert len(outcome.result.per_image) == sequences
    assert {path.name for path in (tmp_path / "evaluations").iterdir()} == {"suite-encoder", "suite-encoder-limit-1"}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_has_a_limit(name: str) -> None:
    kind = EVALUATIONS[name]
    assert all(hasattr(one, "limit") for one in ([kind] if kind.variants is None else kind.variants[1].values()))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"there is no file .*none.yaml; use a built-in suite .* or a YAML file like `- davis"
    ):
        read_suite(tmp_path / "none.yaml")


def test_a_suite_that_was_stopped_goes_on(tmp_path: Path) -> None:
    entries, out, runner = suite(tmp_path, TWO), tmp_path / "out", Runner()
    first = next(iter(run_suite(entries, runner, out, weights=WEIGHTS)))
    assert runner.ran == ["1-davis"]
    assert "2-knn | not run yet" in (out / "report.md").read_text()
    outcomes = run(entries, runner, out)
    assert runner.ran == ["1-davis", "2-knn"]
    assert [outcome.was_done for outcome in outcomes] == [True, False]
    assert first.result is not None
    assert outcomes[0].result == Result.load(out / "1-davis" / "result.json")
    assert run(entries, runner, out)[1].was_done
    assert len(runner.ran) == 2


def test_a_suite_that_is_stopped_again_keeps_what_is_finished(tmp_path: Path) -> None:
    """Its scorecard would call evaluations after the present one not run yet, and leave out their results."""
    entries, out, runner = suite(tmp_path, TWO), tmp_path / "out", Runner()
    run(entries, runner, out)
    (out / "1-davis" / "entry.json").unlink()
    next(iter(run_suite(entries, runner, out, weights=WEIGHTS)))
    assert runner.ran == ["1-davis", "2-knn", "1-davis"]
    assert [result.name for result in read_network(out).results] == ["davis", "knn"]
    assert "not run yet" not in (out / "report.md").read_text()


@pytest.mark.parametrize("file", ["entry.json", "result.json"])
def test_what_was_cut_off_is_run_again(tmp_path: Path, file: str) -> None:
    entries, out, runner = suite(tmp_path, TWO), tmp_path / "out", Runner()
    run(entries, runner, out)
    for spoil in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        spoil(out / "1-davis" / file)
        assert not run(entries, runner, out)[0].was_done
    assert runner.ran == ["1-davis", "2-knn", "1-davis", "1-davis"]


@pytest.mark.parametrize(
    ("text", "weights", "message"),
    [
        (TWO.replace("[1, 2]", "[1, 3]"), WEIGHTS, r"2-knn holds another result \(ks is \[1, 2\] there and \[1, 3\]"),
        (TWO.replace("pets", "cars"), WEIGHTS, r"data is pets there and cars now\); name another folder with --out"),
        (TWO, {"sha256": "def", "side": "teacher"}, r"weights.sha256 is abc there and def now"),
        (TWO, {"sha256": "abc", "side": "student"}, r"weights.side is teacher there and student now"),
        (TWO, {"source": "timm:x"}, r"weights.source is None there and timm:x now"),
    ],
)
def test_no_result_is_overwritten(tmp_path: Path, text: str, weights: dict, message: str) -> None:
    """Whatever entry it is, it is found before anything runs."""
    runner = Runner()
    run(suite(tmp_path, TWO), runner, tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        run_suite([*suite(tmp_path, text)], runner, tmp_path / "out", weights=weights)
    assert runner.ran == ["1-davis", "2-knn"]


def test_a_setting_that_is_newer_than_the_result_has_its_default(tmp_path: Path) -> None:
    entries, out, runner = suite(tmp_path, TWO), tmp_path / "out", Runner()
    run(entries, runner, out)
    path = out / "1-davis" / "entry.json"
    request = json.loads(path.read_text())
    del request["settings"]["debias"]
    path.write_text(json.dumps(request))
    assert [outcome.was_done for outcome in run(entries, runner, out)] == [True, True]
    request["settings"]["debias"] = 3
    path.write_text(json.dumps(request))
    with pytest.raises(ValueError, match="debias is 3 there and 0 now"):
        run(entries, runner, out)


def test_a_network_that_cannot_be_told_from_others_is_measured_again(tmp_path: Path) -> None:
    runner = Runner()
    for _ in range(2):
        run(suite(tmp_path, TWO), runner, tmp_path / "out", weights=None)
    assert runner.ran == ["1-davis", "2-knn"] * 2


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("no DAVIS at d; give the folder"), "no DAVIS at d; give the folder"),
        (FileNotFoundError(2, "No such file or directory", "d/x"), "No such file or directory: d/x"),
        (RuntimeError("out of memory\nlong story"), r"RuntimeError: out of memory (all of it is in "),
    ],
)
def test_after_a_failure_the_others_go_on(tmp_path: Path, error: Exception, sentence: str) -> None:
    out, runner = tmp_path / "out", Runner(davis=error)
    failed, other = run(suite(tmp_path, TWO), runner, out)
    assert failed.result is None
    assert failed.error is not None
    assert failed.error.startswith(sentence)
    assert other.result is not None
    for report in ("report.md", "report.html"):
        assert f"Failed: {sentence}" in (out / report).read_text()
    assert (out / "1-davis" / "error.txt").exists() == isinstance(error, RuntimeError)
    runner.errors = {}
    assert [o.was_done for o in run(suite(tmp_path, TWO), runner, out)] == [False, True]


def test_being_stopped_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(suite(tmp_path, TWO), Runner(davis=KeyboardInterrupt()), tmp_path / "out")  # type: ignore[arg-type]


def test_the_reports(tmp_path: Path) -> None:
    out = tmp_path / "out"
    entries = suite(tmp_path, TWO)
    list(run_suite(entries, Runner(), out, weights=WEIGHTS, title="Of W"))
    text = (out / "report.md").read_text()
    for part in (
        "# Of W", "| 1-davis | score | 0.5000 |", "## 2. knn on pets", "| kind | score |", r"| a\|b | 0.2500 |",
        "resolution 240", "sha256 abc", "torch ", "seconds 1.5",
        "![strip](<1-davis/strip.png>)",
    ):  # fmt: skip
        assert part in text, part
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "Of W" in page


def test_davis_as_it_is_run(tmp_path: Path) -> None:
    """The evaluation itself in place of the stand-in, alone and in a suite."""
    tree = write_davis(tmp_path / "davis")

    def evaluate(name: str, data: str, out: Path, settings: Mapping[str, Any]) -> Result:
        return measure(name, MeanColour(8), None, data, out=out, **settings)

    entries = suite(tmp_path, f"- davis: {{data: {tree}, resolution: 48}}\n- davis: {{data: nowhere}}")
    outcomes = list(run_suite(entries, evaluate, tmp_path / "out", weights=None))
    alone = evaluate_davis(MeanColour(8), tree, DAVISConfig(resolution=48))
    assert outcomes[0].result is not None
    assert outcomes[0].result.metrics == alone.metrics
    assert outcomes[1].error is not None
    assert outcomes[1].error.startswith("no DAVIS at nowhere")
    assert "![second](<1-davis/pictures/second.jpg>)" in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out/1-davis/entry.json").read_text())["settings"]["resolution"] == 48


@pytest.mark.slow
def test_a_baseline_and_ready_made_masks_need_no_network(tmp_path: Path) -> None:
    """A suite of the first mask's baseline: davis runs, what encodes images fails and keeps nothing from running."""
    tree = write_davis(tmp_path / "davis")
    masks = tree / "Annotations" / "480p"
    (tmp_path / "suite.yaml").write_text(
        f"- davis: {{data: {tree}}}\n- knn: {{data: pets}}\n- davis: {{data: {tree}, results: {masks}}}"
    )
    first, failed, scored = evaluate_suite(tmp_path / "suite.yaml", FIRST_MASK, tmp_path / "out")
    assert first.result is not None
    assert first.result.metrics == evaluate_davis(None, tree, DAVISConfig()).metrics
    assert failed.error is not None
    assert failed.error.startswith("knn measures a network, but baseline:first-mask was named")
    assert scored.result is not None
    assert scored.result.metrics["J-Mean"] == 1
    assert evaluate_suite(tmp_path / "suite.yaml", FIRST_MASK, tmp_path / "out")[0].was_done


def test_what_tells_networks_apart() -> None:
    network = tiny_encoder("vit")
    assert identity(network, Provenance("w", "abc"), {"side": "teacher"}) == {"sha256": "abc", "side": "teacher"}
    before = identity(network, None, {})
    assert before == identity(tiny_encoder("vit"), None, {})
    network.normed_patches = not network.normed_patches  # no tensor changes
    assert identity(network, None, {}) != before
    assert identity(MeanColour(8), Provenance("baseline:mean-colour:8"), {}) == {"source": "baseline:mean-colour:8"}
    assert identity(MeanColour(8), None, {}) is None


@pytest.mark.slow
def test_a_suite_finds_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_davis(Path("davis"))
    Path("every-one.yaml").write_text("- davis: {data: davis, resolution: 48}")
    (outcome,) = evaluate_suite("every-one.yaml", "baseline:mean-colour:8")
    assert outcome.result is not None
    assert Path("evaluations/every-one-baseline-mean-colour-8/report.html").is_file()
    (again,) = evaluate_suite("every-one.yaml", "baseline:mean-colour:8")
    assert again.was_done
    with pytest.raises(ValueError, match=r"weights\.source is baseline:mean-colour:8 there"):
        evaluate_suite("every-one.yaml", "baseline:raw-patch:8", next(Path("evaluations").iterdir()))


def evaluate_together(rank: int, file: str, out: str) -> list[Outcome]:
    told: list[Outcome] = []
    outcomes = evaluate_suite(file, "baseline:mean-colour:8", out, device="cpu", notify=told.append)
    assert told == (outcomes if rank == 0 else [])
    return outcomes


@pytest.mark.slow
def test_processes_share_a_suite(pool: WorkerPool, tmp_path: Path) -> None:
    davis = write_davis(tmp_path / "davis")
    data = coloured_folder(tmp_path / "folder", train=2, test=2)
    file = tmp_path / "suite.yaml"
    lines = [f"- davis: {{data: {davis}, resolution: 48}}", f"- knn: {{data: {data}, resize: 16, crop: 16, ks: [1]}}"]
    file.write_text("\n".join(lines))
    alone = evaluate_suite(file, "baseline:mean-colour:8", tmp_path / "one", device="cpu")
    for outcomes in pool.run(evaluate_together, str(file), str(tmp_path / "two")):
        assert [outcome.result for outcome in outcomes] == [outcome.result for outcome in alone]
    files = [sorted(p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n).rglob("*")) for n in ("one", "two")]
    assert files[0] == files[1]
    for outcomes in pool.run(evaluate_together, str(file), str(tmp_path / "two")):
        assert all(outcome.was_done for outcome in outcomes)
