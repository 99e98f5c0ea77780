"""Weights of the Hugging Face Hub by name: `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`.

Only the files that are read are fetched: the first of `folders.FILES` that the repository has, the shards of an index,
and the JSON files beside them. They stay in the cache of the Hub, from which they are read without a connection.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfpatch.checkpoints.folders import DESCRIPTIONS, FILES
from selfpatch.checkpoints.names import HUB
from selfpatch.checkpoints.read_file import shards_of
from selfpatch.core.hub_connection import require_connection
from selfpatch.core.text import one_line


def hub_name(source: str) -> str | None:
    """Return the name on the Hub of weights that are given as `hf:OWNER/NAME` or `timm:NAME.TAG`, else None."""
    kind, _, name = source.partition(":")
    if kind == "hf":
        return name.partition("@")[0]
    return f"timm/{name}" if kind == "timm" and "." in name else None


def hub_folder(source: str) -> Path:
    """Return the folder of the cache that holds the weights of a repository, fetched if they are not there yet.

    Args:
        source: `hf:OWNER/NAME`, with `@` and a branch, tag or commit if it is not the main one.

    Raises:
        ValueError: there is no such repository, it holds no weights, needs permission, or cannot be reached.
    """
    repository, _, revision = source.removeprefix(HUB).partition("@")
    with _errors_in_one_sentence(source):
        found = (path for name in FILES if (path := _file(repository, name, revision or "main")) is not None)
        weights = next(found, None)
        if weights is None:
            raise ValueError(
                f"{source} holds none of {', '.join(FILES)}; name another repository, or download a file and name that"
            )
        commit = weights.parent.name  # so that all files are of one commit
        shards = shards_of(weights) if weights.name.endswith(".index.json") else ()
        for name in (*DESCRIPTIONS, *(shard.name for shard in shards)):
            _file(repository, name, commit)
    return weights.parent


def _file(repository: str, name: str, revision: str) -> Path | None:
    """Return a file of a repository, from the cache if it is there, or None if the repository has no such file."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(repository, name, revision=revision)
    if cached is not None:
        return Path(cached) if isinstance(cached, str) else None
    require_connection()
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except LocalEntryNotFoundError:
        raise  # there is no connection
    except EntryNotFoundError:
        return None


@contextmanager
def _errors_in_one_sentence(source: str) -> Iterator[None]:
    """Say in one sentence why a repository cannot be read and what to do; keep the library's retries silent."""
    from huggingface_hub import errors

    repository = source.removeprefix(HUB).partition("@")[0]
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    by_hand = f"`hf download {repository} --local-dir FOLDER` where there is one, and name the FOLDER"
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except errors.HFValidationError:
        raise ValueError(f"{source!r} is no name of the Hugging Face Hub; use {HUB}OWNER/NAME") from None
    except errors.GatedRepoError:
        raise ValueError(
            f"{source} asks for permission; accept its terms on its page on the Hugging Face Hub, then {log_in}"
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{source} has no such branch, tag or commit; use {HUB}{repository}") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"there is no {source} on the Hugging Face Hub, or it is private; check the name, or {log_in}"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise ValueError(
            f"{source} is not in the cache, and the Hugging Face Hub cannot be reached "
            f"({one_line(error.__cause__ or error)}); connect, or run {by_hand}"
        ) from None
    except OSError as error:
        raise ValueError(f"{source} cannot be fetched ({one_line(error)}); try again, or run {by_hand}") from None
    finally:
        logger.setLevel(level)
