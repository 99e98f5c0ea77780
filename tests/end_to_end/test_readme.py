"""The code of the README runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_loop_with_selfpatch_loss_trains() -> None:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "SelfPatchLoss" in block)
    after_model = code.split("requires_grad_(False)\n")[1].strip().splitlines()
    assert len(after_model) <= 12
    torch.manual_seed(0)
    names: dict[str, object] = {"loader": [torch.randn(1, 3, 224, 224) for _ in range(2)]}
    exec(code, names)
    loss = names["loss"]
    assert isinstance(loss, torch.Tensor)
    assert 0 < float(loss) < 20
