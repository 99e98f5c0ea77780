"""Parity with the methods' released code: golden bundles are replayed and each quantity is compared.

`python -m tests.parity BUNDLE [BUNDLE ...]` prints one line for each quantity; the same checks run in pytest.
"""

from tests.parity.check import Check
from tests.parity.replay import replay

__all__ = ["Check", "replay"]
