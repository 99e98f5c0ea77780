"""Switch of dry runs: everything is checked and built, but no image is read, nothing computed and nothing written.

Networks are built on torch's meta device, where tensors have a shape and a type but no values. Importing this module is
cheap, so that the command line can use it before anything heavy is loaded.
"""

import contextlib
from collections.abc import Iterator

_active = False


def in_dry_run() -> bool:
    """Return whether this is a dry run."""
    return _active


@contextlib.contextmanager
def dry_run(enabled: bool = True) -> Iterator[None]:
    """Make everything inside a dry run if `enabled`, and build networks on the meta device."""
    if not enabled:
        yield
        return
    import torch

    global _active
    before, _active = _active, True
    try:
        with torch.device("meta"):
            yield
    finally:
        _active = before
