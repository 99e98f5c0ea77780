"""Discovery of bundles by their content, and the summary and exit code of several."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.parity.__main__ import main
from tests.parity.kinds import KINDS, MISSING_KINDS, MissingKind
from tests.parity.replay import find_bundles, kinds_of


def write_bundle(folder: Path, expected: dict[str, object], **tensors: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    (folder / "expected.json").write_text(json.dumps(expected))
    save_file(tensors or {"x": torch.zeros(1)}, folder / "tensors.safetensors")
    return folder


@pytest.fixture(autouse=True)
def missing_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a kind that the package cannot replay: nearly all that exist are replayed."""
    planted = MissingKind("planted", {"expected.json": ("planted",), "tensors.safetensors": ()}, "a planted method")
    monkeypatch.setattr(importlib.import_module("tests.parity.replay"), "MISSING_KINDS", (planted,))


def missing_bundle(folder: Path) -> Path:
    """A bundle of the planted kind."""
    return write_bundle(folder, {"planted": []})


def test_collections_are_searched_and_documents_are_skipped(golden_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about the bundles")
    missing_bundle(tmp_path / "inner" / "some name")
    found = list(find_bundles(tmp_path)) + list(find_bundles(tmp_path / "README.md"))
    assert found == [tmp_path / "inner" / "some name"]
    names = ["mini/dino", "mini/selfpatch", "mini/sere", "pieces", "released/ibot_head_facts", "released/schedules"]
    found = list(find_bundles(golden_dir))
    assert {golden_dir / name for name in names} <= set(found)
    assert all(kinds_of(bundle) for bundle in found)


def test_the_kind_is_told_from_the_content(golden_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(golden_dir / "mini" / "dino", tmp_path / "pieces")
    assert [kind.name for kind in kinds_of(tmp_path / "pieces")] == ["trajectory"]


def test_kinds_have_names_of_their_own() -> None:
    names = [kind.name for kind in (*KINDS, *MISSING_KINDS)]
    assert len(set(names)) == len(names)


def test_data_that_nothing_reads_is_refused(golden_dir: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(golden_dir / "mini" / "dino", tmp_path / "copy")
    (bundle / "more.json").write_text("{}")
    with pytest.raises(ValueError, match=r"of a known kind: nothing reads more\.json"):
        kinds_of(bundle)


def test_the_exit_code_and_the_summary(golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundles = [str(golden_dir / "mini" / "dino"), str(missing_bundle(tmp_path / "missing"))]
    assert main(bundles) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["1 bundles hold, 0 do not, 1 of methods that selfpatch does not have", "parity holds"]
    assert f"  planted ({bundles[1]}): needs a planted method" in lines
    unknown = str(write_bundle(tmp_path / "unknown", {"what": 1}))
    assert main([*bundles, unknown]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["1 bundles hold, 1 do not, 1 of methods that selfpatch does not have", "parity does NOT hold"]
    assert any(line.startswith(f"FAIL {unknown}: ") for line in lines)


def test_a_damaged_bundle_does_not_hide_the_others(
    golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(golden_dir / "newer" / "koleo", tmp_path / "damaged")
    save_file({"x": torch.zeros(2, 2), "neighbours": torch.zeros(2)}, damaged / "tensors.safetensors")
    assert main([str(damaged), str(golden_dir / "newer" / "koleo")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "1 bundles hold, 1 do not, 0 of methods that selfpatch does not have"
    assert f"FAIL {damaged}: the replay failed with KeyError: 'grad'" in lines


def test_nothing_compared_is_nothing_shown(tmp_path: Path) -> None:
    assert main([str(missing_bundle(tmp_path / "missing"))]) == 1
    assert main([str(tmp_path / "nowhere")]) == 1
    assert main([]) == 2
