"""Reads over a network: tried again after errors that may pass, in bounded time, with one sentence at the end."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selfpatch.data.sources import remote
from selfpatch.data.sources.remote import PATIENCE_VARIABLE, RemoteError, RemoteFile, is_url, read, read_all
from selfpatch.data.sources.zips import zip_images
from tests.helpers.range_server import RangeServer, serving

pytest.importorskip("aiohttp")

CONTENT = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RangeServer]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "a.bin").write_bytes(CONTENT)
    with serving(folder) as started:
        yield started


@pytest.fixture(autouse=True)
def impatient(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    server.fault = None
    server.requests.clear()


def test_what_is_a_url() -> None:
    assert all(map(is_url, ["https://host/a", "s3://bucket/a", "hf://datasets/a", "gs://b", "memory://a"]))
    assert not any(map(is_url, ["photos", "/a//b", "C:/a", "c://a", "a/b://c", "timm:x"]))


def test_a_range_and_a_whole_file(server: RangeServer) -> None:
    assert read(f"{server.url}/a.bin", 100, 50) == CONTENT[100:150]
    assert read(f"{server.url}/a.bin", 100, 0) == b""
    assert read_all(f"{server.url}/a.bin") == CONTENT
    assert [part for _, _, part in server.requests] == ["bytes=100-149", None]


@pytest.mark.parametrize("fault", ["500", "503", "429", "truncated", "cut"])
def test_errors_that_pass_are_tried_again(server: RangeServer, fault: str) -> None:
    server.fault = lambda path, number: fault if number < 4 else None
    assert read(f"{server.url}/a.bin", 1000, 2000) == CONTENT[1000:3000]
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("500", "500"), ("truncated", "1000"), ("cut", "1000 of 2000 bytes arrived")],
)
def test_errors_that_stay_end_in_one_sentence_in_bounded_time(server: RangeServer, fault: str, reason: str) -> None:
    server.fault = lambda path, number: fault
    with pytest.raises(
        RemoteError, match=rf"cannot read {server.url}/a\.bin: .*{reason}.* \(\d tries in . s\); check the"
    ):
        read(f"{server.url}/a.bin", 1000, 2000)
    assert 3 < len(server.requests) < 10


def test_errors_that_cannot_pass_are_not_tried_again(server: RangeServer) -> None:
    with pytest.raises(FileNotFoundError):
        read_all(f"{server.url}/gone.bin")
    server.fault = lambda path, number: "403"
    with pytest.raises(RemoteError, match=r"cannot read .*a\.bin: 403"):
        read_all(f"{server.url}/a.bin")
    assert len(server.requests) == 2
    with pytest.raises(RemoteError, match=r"cannot read nowhere://x/a: .*nowhere"):
        read_all("nowhere://x/a")


def test_a_server_that_is_not_there(server: RangeServer) -> None:
    with pytest.raises(RemoteError, match=r"cannot read http://127\.0\.0\.1:1/a: .* tries in"):
        read_all("http://127.0.0.1:1/a")


def test_a_server_that_ignores_ranges(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ranges", False)
    with pytest.raises(RemoteError, match="the server ignores byte ranges; copy the data"):
        read(f"{server.url}/a.bin", 10, 20)
    assert len(server.requests) == 1


def test_a_remote_file_seeks(server: RangeServer) -> None:
    file = io.BufferedReader(RemoteFile(f"{server.url}/a.bin"), 1000)
    assert file.seek(-10, io.SEEK_END) == len(CONTENT) - 10
    assert file.read() == CONTENT[-10:]
    file.seek(5000)
    assert file.read(3) == CONTENT[5000:5003]
    file.seek(2, io.SEEK_CUR)
    assert file.read(3) == CONTENT[5005:5008]


@pytest.mark.parametrize("value", ["0", "-1", "soon"])
def test_a_wrong_patience_is_refused(monkeypatch: pytest.MonkeyPatch, value: str, tmp_path: Path) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, value)
    with pytest.raises(ValueError, match=f"SELFPATCH_REMOTE_SECONDS is '{value}'; set it to a number of seconds"):
        remote.patience()


@pytest.mark.parametrize("read_file", [read_all, RemoteFile])
def test_redirections_without_end(server: RangeServer, read_file: Callable[[str], object]) -> None:
    server.fault = lambda path, number: "redirect"
    with pytest.raises(RemoteError, match=r"cannot read .*a\.bin: the server redirects without end; check the URL"):
        read_file(f"{server.url}/a.bin")
    assert len(server.requests) <= 20  # one try


@pytest.mark.slow
def test_a_server_that_hangs(server: RangeServer) -> None:
    server.fault = lambda path, number: "hang"
    with pytest.raises(RemoteError, match=r"cannot read .*a\.bin: the server does not answer in time \(1 tries"):
        read_all(f"{server.url}/a.bin")


def test_a_page_that_links_to_itself_ends(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fault = lambda path, number: "page"
    monkeypatch.setattr(remote, "MAX_DEPTH", 3)
    with pytest.raises(ValueError, match=r"/loop/b/b/b/b is more than 3 folders deep; give a URL further down"):
        remote.list_below(f"{server.url}/loop")


def test_an_archive_on_a_server_that_fails_is_not_called_damaged(server: RangeServer) -> None:
    server.fault = lambda path, number: None if number == 1 else "500"
    with RemoteFile(f"{server.url}/a.bin") as file, pytest.raises(RemoteError, match=r"cannot read .*500"):
        zip_images(io.BufferedReader(file), "a.zip", bool)
