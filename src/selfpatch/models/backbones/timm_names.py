"""Names of timm's models, looked up without importing timm, which takes seconds."""

import re
from importlib.util import find_spec
from pathlib import Path


def may_be_timm_model(name: str) -> bool:
    """Return whether timm's source holds a name without its tag, which follows a dot.

    If not, timm has no such model. If so, it may be the name of something else.
    """
    stem = name.partition(".")[0]
    word = re.compile(rf"\b{re.escape(stem)}\b".encode())
    spec = find_spec("timm")  # which does not import it
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = (file for folder in folders for file in Path(folder, "models").glob("*.py"))
    return stem.isidentifier() and any(word.search(file.read_bytes()) for file in files)
