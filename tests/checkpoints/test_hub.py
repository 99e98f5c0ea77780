"""`hf:OWNER/NAME`, fetched by the library's own client from a small hub on this machine."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import save_file

from selfpatch.checkpoints.load import load_encoder
from selfpatch.checkpoints.read import read_weights
from tests.checkpoints.test_folders import ODD_HEADS, write_settings, write_shards
from tests.helpers.released_forms import assert_same_features, hugging_face, random_backbone, trunk_state

COMMIT = "0123456789" * 4
REFUSALS = {"gated": (403, "GatedRepo"), "missing": (404, "RepoNotFound")}


class Hub:
    """Serve the files of a folder as every repository of the Hub, and note the names that were asked for."""

    def __init__(self, folder: Path) -> None:
        hub, self.asked = self, list[str]()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/":  # whether there is a hub
                    self.send_response(200)
                    return self.end_headers()
                owner, _, _, revision, file = self.path.strip("/").split("/")
                hub.asked += [file] if self.command == "GET" else []
                status, code = REFUSALS.get(owner, (200, ""))
                if status == 200 and revision not in ("main", COMMIT):
                    status, code = 404, "RevisionNotFound"
                if status == 200 and not (folder / file).is_file():
                    status, code = 404, "EntryNotFound"
                content = (folder / file).read_bytes() if status == 200 else b""
                self.send_response(status)
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{file}"', "Content-Length": str(len(content))}
                for header, value in (headers | ({"X-Error-Code": code} if code else {})).items():
                    self.send_header(header, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Start a hub of one folder, with a cache of its own."""
    from huggingface_hub import constants

    (tmp_path / "files").mkdir()
    found = Hub(tmp_path / "files")
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield found
    found.stop()


@pytest.mark.parametrize("form", ["whole", "shards"])
def test_a_repository_is_fetched_once_and_then_read_from_the_cache(hub: Hub, tmp_path: Path, form: str) -> None:
    backbone, folder = random_backbone(ODD_HEADS), tmp_path / "files"
    state = {key: tensor.contiguous() for key, tensor in hugging_face(trunk_state(backbone)).items()}
    if form == "whole":
        save_file(state, folder / "model.safetensors")
    else:
        write_shards(state, folder)
    write_settings(folder, ODD_HEADS)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    encoder, report = load_encoder("hf:someone/a-vit")
    assert_same_features(encoder, backbone)
    assert (encoder.mean, encoder.std) == (backbone.mean, backbone.std)
    assert report.source == "hf:someone/a-vit"
    assert "pytorch_model.bin" not in hub.asked
    assert report.sha256 == read_weights(str(folder)).sha256
    hub.asked.clear()
    hub.stop()
    again, _ = load_encoder("hf:someone/a-vit")
    assert_same_features(again, backbone)
    assert not hub.asked


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:gated/vit", "hf:gated/vit asks for permission; accept its terms"),
        ("hf:missing/vit", "there is no hf:missing/vit on the Hugging Face Hub, or it is private; check the name"),
        ("hf:someone/vit@old", "hf:someone/vit@old has no such branch, tag or commit; use hf:someone/vit"),
        ("hf:someone/vit", "hf:someone/vit holds none of model.safetensors"),
        ("hf:a/b/c", "'hf:a/b/c' is no name of the Hugging Face Hub; use hf:OWNER/NAME"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_one_sentence(hub: Hub, source: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        read_weights(source)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_connection_nothing_is_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    from huggingface_hub import constants

    def wait(seconds: float) -> None:
        raise AssertionError("the library tries again")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("time.sleep", wait)
    if not offline:
        hub.stop()
    with pytest.raises(ValueError, match=r"hf:someone/vit is not in the cache, .* cannot be reached \(.*hf download"):
        read_weights("hf:someone/vit")
