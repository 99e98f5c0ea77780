"""State that changes once per step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfpatch.losses.center import Center
from selfpatch.models.layers.deferred_state import deferred_states


@pytest.mark.parametrize("ok", [True, False])
def test_a_step_is_taken_in_where_it_was_finite(ok: bool) -> None:
    center = Center(2, momentum=0.5)
    center.accumulate(torch.tensor([2.0, 4.0]))
    center.update_where(torch.tensor(ok))
    assert center.center.tolist() == ([1.0, 2.0] if ok else [0.0, 0.0])
    center.update()  # nothing was accumulated since
    assert center.center.tolist() == ([1.0, 2.0] if ok else [0.0, 0.0])


def test_all_states_of_a_module_are_found() -> None:
    center = Center(2)
    assert list(deferred_states(nn.ModuleList([nn.Linear(1, 1), nn.Sequential(center)]))) == [center]
    assert list(deferred_states(center)) == [center]
