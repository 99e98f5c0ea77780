"""A truth value that a device computes and the host reads later."""

import torch
from torch import Tensor


class DeferredFlag:
    """A bool of the device that is read later.

    On CUDA, reading it waits for the work that computed it and not for later work.

    Args:
        flag: bool scalar.
    """

    def __init__(self, flag: Tensor) -> None:
        self._flag = flag.to("cpu", non_blocking=True) if flag.is_cuda else flag
        self._copied = torch.cuda.current_stream(flag.device).record_event() if flag.is_cuda else None

    def __bool__(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._flag)
