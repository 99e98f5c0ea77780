"""Folder of this program's caches."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/selfpatch`, or `~/.cache/selfpatch`; without a home, a folder that nobody can make."""
    try:
        home = Path("~").expanduser()
    except RuntimeError:
        home = Path(os.devnull)
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "selfpatch"
