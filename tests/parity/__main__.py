"""`python -m tests.parity BUNDLE [BUNDLE ...]`: exit code 0 only if every quantity holds."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.parity import replay
from tests.parity.check import all_hold


def main(bundles: list[str]) -> int:
    if not bundles:
        print("usage: python -m tests.parity BUNDLE [BUNDLE ...]", file=sys.stderr)
        return 2
    good = True
    for bundle in bundles:
        print(f"{bundle}:")
        checks = []
        try:
            for check in replay(Path(bundle)):
                print(f"  {check}", flush=True)
                checks.append(check)
        except ValueError as error:
            print(f"  FAIL {error}")
            good = False
        good &= all_hold(checks)
    print("parity holds" if good else "parity does NOT hold")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
