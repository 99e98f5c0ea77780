"""Discovery of bundles, and choice of the replay for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.parity.check import Check
from tests.parity.contents import DOCUMENTS, contents, entries, has_contents
from tests.parity.kinds import KINDS, MISSING_KINDS, Kind, MissingKind

RECORDS = {"trajectory.json", "expected.json"}
"""Files of which a bundle with subfolders has one."""


def find_bundles(path: Path) -> Iterator[Path]:
    """Return the bundles at or below a path.

    A folder with subfolders and no record of its own is a collection, which is searched. Documents are skipped.
    """
    if path.is_file() and path.suffix in DOCUMENTS:
        return
    found = entries(path) if path.is_dir() else []
    below = [entry for entry in found if entry.is_dir()]
    if below and not {entry.name for entry in found} & RECORDS:
        for folder in below:
            yield from find_bundles(folder)
    else:
        yield path


def kinds_of(bundle: Path) -> list[Kind] | list[MissingKind]:
    """Return the kinds that a bundle's content belongs to; together they read all of its data.

    Raises:
        ValueError: the folder is no bundle, or some of its data belongs to no known kind.
    """
    found = contents(bundle) if bundle.is_dir() else {}
    if not found:
        raise ValueError(f"{bundle} is no golden bundle; give a folder with trajectory.json or expected.json")
    kinds = [kind for kind in KINDS if has_contents(found, kind.contents)]
    missing = [kind for kind in MISSING_KINDS if has_contents(found, kind.contents)]
    read = {file for kind in kinds or missing for file in kind.contents}
    if unread := sorted(found.keys() - read):
        raise ValueError(
            f"{bundle} is no golden bundle of a known kind: nothing reads {', '.join(unread)}; "
            "give a folder with trajectory.json or expected.json, or add its kind to tests/parity/kinds.py"
        )
    return kinds or missing


def replay(bundle: Path) -> Iterator[Check]:
    """Compare everything in a bundle with what the project computes.

    Raises:
        ValueError: the folder is not a bundle, or the project does not have its method.
    """
    for kind in kinds_of(bundle):
        if isinstance(kind, MissingKind):
            raise ValueError(f"selfpatch does not have the method of {bundle} ({kind.name}); it needs {kind.needs}")
        yield from kind.replay(bundle)
