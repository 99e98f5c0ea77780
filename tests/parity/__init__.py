"""Parity with the methods' released code: golden bundles are replayed and each quantity is compared.

`python -m tests.parity FOLDER [FOLDER ...]` prints one line for each quantity of every bundle at or below the folders,
and a summary; the same checks run in pytest.
"""

from tests.parity.check import Check
from tests.parity.replay import replay

__all__ = ["Check", "replay"]
