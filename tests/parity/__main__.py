"""`python -m tests.parity FOLDER [FOLDER ...]`: exit code 0 only if every quantity holds."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from tests.parity.report import is_good, replay_all, summary


def main(folders: list[str]) -> int:
    if not folders:
        print("usage: python -m tests.parity FOLDER [FOLDER ...]", file=sys.stderr)
        return 2
    outcomes = replay_all([Path(folder) for folder in folders], partial(print, flush=True))
    print("\n".join(["", *summary(outcomes)]))
    return 0 if is_good(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
