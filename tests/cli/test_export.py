"""`selfpatch export`: files and how to load them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import selfpatch
from selfpatch.checkpoints.load import load_encoder
from selfpatch.cli.main import main
from selfpatch.training.report import MEASURES
from tests.helpers.upload_hub import TOKEN, UploadHub


def test_export(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert main(f"export --weights {run} --to timm --out {out}".split()) == 0
    shown = capsys.readouterr().out
    assert f"{out}/model.safetensors" in shown
    assert f"local-dir:{out}" in shown
    assert main(f"export --weights {run} --to timm --out {out}".split()) == 2
    assert "is no empty folder; name another one with --out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no export to 'tf'; use one of timm, safetensors, hf, onnx, torch"):
        selfpatch.export(str(run), "tf", tmp_path / "other")


def test_push_to_hub(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, out = UploadHub(), tmp_path / "exported"
    hub.use(monkeypatch)
    command = f"export --weights {run} --to timm --out {out} --push-to-hub someone/net --private --license mit".split()
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not out.exists()
    assert not hub.tokens
    assert main(command) == 0
    printed = "".join(capsys.readouterr())
    hub.stop()
    assert f"sent to {hub.url}/someone/net" in printed
    assert hub.repositories[0]["visibility"] == "private"
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir() if path.name != "README.txt"}
    card = hub.files["README.md"].decode()
    assert card in shown
    assert "model.safetensors: " in shown
    _, front, body = card.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert (fields["license"], fields["library_name"]) == ("mit", "timm")
    assert {"selfpatch", "dino"} <= {*fields["tags"]}
    assert 'timm.create_model("hf-hub:someone/net", pretrained=True)' in body
    assert "| training images | 24 |" in body
    assert f"| {MEASURES['view_matching']} | " in body
    assert str(run.parent) not in card
    assert not any(TOKEN.encode() in content for content in hub.files.values())
    assert TOKEN not in shown + printed
    (tmp_path / "received").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "received" / name).write_bytes(content)
    assert load_encoder(str(tmp_path / "received"))[0].dim == load_encoder(str(run))[0].dim


def test_options_of_a_repository_need_one(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    assert main(f"export --weights {run} --to timm --out {tmp_path / 'out'} --license mit".split()) == 2
    assert "give --push-to-hub too" in capsys.readouterr().err
