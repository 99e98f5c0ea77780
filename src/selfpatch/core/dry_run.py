"""Switch of dry runs: everything is checked and built, but no image is read, nothing computed and nothing written.

Networks are built on torch's meta device, where tensors have a shape and a type but no values. Importing this module is
cheap, so that the command line can use it before anything heavy is loaded.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

Module = TypeVar("Module", bound="nn.Module")
_active = False


def in_dry_run() -> bool:
    """Return whether this is a dry run."""
    return _active


def on_device(module: Module, device: "torch.device") -> Module:
    """Return the module on a device; in a dry run it has no values and stays on the meta device."""
    return module if _active else module.to(device)


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
