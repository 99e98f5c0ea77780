"""Connection to the Hugging Face Hub, for which its library waits long."""

import contextlib
import functools
from collections.abc import Iterator


def require_connection() -> None:
    """Raise LocalEntryNotFoundError if the Hub does not answer one request.

    The library tries six times to fetch a file, each time longer: 24 s without a network, minutes behind a firewall.
    """
    from huggingface_hub import constants

    _require_answer(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT)


@functools.cache
def _require_answer(endpoint: str, seconds: float) -> None:
    from huggingface_hub import get_session
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        get_session().head(endpoint, timeout=seconds)
    except Exception as error:  # of the library's HTTP client, which differs between its versions
        raise LocalEntryNotFoundError("the Hub does not answer") from error


@contextlib.contextmanager
def reading_cache_without_connection() -> Iterator[None]:
    """Let the library read its cache alone inside, as with HF_HUB_OFFLINE=1, if the Hub does not answer."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    before = constants.HF_HUB_OFFLINE
    try:
        require_connection()
    except LocalEntryNotFoundError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
