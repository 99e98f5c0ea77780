"""Upload to a hub on this machine: what goes wrong is said in one sentence, without the token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from selfpatch.checkpoints.hub_upload import check_repository, require_login, upload
from tests.helpers.upload_hub import TOKEN, UploadHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    found = UploadHub()
    found.use(monkeypatch)
    yield found
    found.stop()


@pytest.mark.parametrize("name", ["net", "a/b/c", "so me/net", "https://huggingface.co/a/b"])
def test_a_name_that_is_no_repository(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a repository of the Hugging Face Hub; use OWNER/NAME"):
        check_repository(name)
    check_repository("someone/net")


@pytest.mark.parametrize(
    ("token", "sentence"),
    [(None, "you are not logged in to the Hugging Face Hub; log in"), ("hf_wrong", "does not know your token; log in")],
)
def test_without_a_valid_token(
    hub: UploadHub, monkeypatch: pytest.MonkeyPatch, token: str | None, sentence: str
) -> None:
    require_login("someone/net")
    hub.use(monkeypatch, token)
    with pytest.raises(ValueError, match=sentence) as refused:
        require_login("someone/net")
    assert TOKEN not in str(refused.value)
    assert "hf_wrong" not in str(refused.value)


def test_the_folder_can_be_sent_later(hub: UploadHub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"may not write to other/net; .* `hf upload other/net .*` later"):
        upload(tmp_path, "other/net", private=True)
    assert not hub.repositories
