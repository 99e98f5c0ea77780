"""A hub on this machine that takes what huggingface_hub's own client sends it."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from typing import Any

import pytest

TOKEN = "hf_a_secret_of_the_tests"


class UploadHub:
    """Keep the files of each commit, as the Hub does: large ones by themselves, small ones within the commit."""

    def __init__(self, user: str = "someone") -> None:
        hub, self.user = self, user
        self.files: dict[str, bytes] = {}
        self.repositories: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self._large: dict[str, bytes] = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path.startswith("/api/"):
                    hub.tokens.add(self.headers.get("Authorization"))
                status, reply = hub.reply(self.path, body, self.headers.get("Authorization"))
                content = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def reply(self, path: str, body: bytes, authorization: str | None) -> tuple[int, Any]:
        """Return status and content for a request."""
        path = path.partition("?")[0]
        if path.startswith("/large/"):
            self._large[path.rpartition("/")[2]] = body
            return 200, {}
        if path == "/":
            return 200, {}
        if authorization != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"name": self.user}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            if wanted["organization"] != self.user:
                return 403, {"error": "You don't have the rights to create a model under this namespace"}
            self.repositories.append(wanted)
            return 200, {"url": f"{self.url}/{self.user}/{wanted['name']}"}
        if path.endswith("/preupload/main"):
            return 200, {"files": [self._mode(file["path"]) for file in json.loads(body)["files"]]}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return 200, {"transfer": "basic", "objects": [self._action(x["oid"], x["size"]) for x in objects]}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self._large[value["oid"]]
            repository, commit = "/".join(path.split("/")[3:5]), "0" * 40
            return 200, {"commitOid": commit, "commitUrl": f"{self.url}/{repository}/commit/{commit}"}
        return 404, {"error": path}

    def _mode(self, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith((".safetensors", ".onnx", ".pt2")) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _action(self, oid: str, size: int) -> dict[str, Any]:
        return {"oid": oid, "size": size, "actions": {"upload": {"href": f"{self.url}/large/{oid}"}}}

    def use(self, monkeypatch: pytest.MonkeyPatch, token: str | None = TOKEN) -> None:
        """Let huggingface_hub talk to this hub."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        monkeypatch.setenv("HF_TOKEN", token or "")

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
