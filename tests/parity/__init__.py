"""Parity with the methods' released code: golden bundles replayed, each quantity compared.

`python -m tests.parity BUNDLE [BUNDLE ...]` prints one line a quantity; the same checks run in pytest.
"""

from tests.parity.check import Check
from tests.parity.replay import replay

__all__ = ["Check", "replay"]
