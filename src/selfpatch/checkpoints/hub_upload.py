"""Upload of an exported folder to the Hugging Face Hub, with the token that `hf auth login` or HF_TOKEN provides.

The token is read by huggingface_hub alone: it is neither written nor printed here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfpatch.core.hub_connection import require_connection
from selfpatch.core.text import one_line, shell

LEFT_HERE = ("README.txt",)
"""Files of an export that are not sent: README.md takes their place."""


def check_repository(repository: str) -> None:
    """Raise ValueError if a text is no name of a repository, `OWNER/NAME`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        valid = repository.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(f"{repository!r} is no name of a repository of the Hugging Face Hub; use OWNER/NAME")


def require_login(repository: str) -> None:
    """Raise ValueError if the Hub cannot be reached, or nobody is logged in; `repository` is where to send files."""
    from huggingface_hub import HfApi

    with _errors_in_one_sentence(repository, "nothing was written or sent"):
        require_connection()
        HfApi().whoami()


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Send the files of a folder as one commit, to a repository that is made if it does not exist; return its address.

    Raises:
        ValueError: the Hub does not take them.
    """
    from huggingface_hub import HfApi

    again = f"send the folder with `{shell('hf', 'upload', repository, folder)}` later"
    with _errors_in_one_sentence(repository, again):
        api = HfApi()
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Add the network", ignore_patterns=[*LEFT_HERE]
        )
    return address


@contextmanager
def _errors_in_one_sentence(repository: str, then: str) -> Iterator[None]:
    from huggingface_hub import errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise ValueError(f"you are not logged in to the Hugging Face Hub; {log_in}; {then}") from None
    except errors.LocalEntryNotFoundError as error:
        reason = one_line(error.__cause__ or error)
        raise ValueError(f"the Hugging Face Hub cannot be reached ({reason}); connect first; {then}") from None
    except errors.HfHubHTTPError as error:
        status = None if error.response is None else error.response.status_code
        if status == 401:
            raise ValueError(f"the Hugging Face Hub does not know your token; {log_in}; {then}") from None
        if status == 403:
            raise ValueError(
                f"your token may not write to {repository}; use one with that permission, or another name; {then}"
            ) from None
        raise ValueError(f"the Hugging Face Hub refuses {repository} ({one_line(error)}); {then}") from None
    except Exception as error:  # of the library's HTTP client and its threads, which differ between its versions
        raise ValueError(f"{repository} could not be sent ({one_line(error)}); {then}") from None
