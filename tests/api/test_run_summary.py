"""Lines that describe a run before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selfpatch.api.pretrain import pretrain
from selfpatch.api.run_summary import run_summary
from selfpatch.config.recipes import load_recipe
from selfpatch.training.factory import make_schedule, open_training_data
from tests.helpers.command_line import write_photos
from tests.helpers.tiny import tiny_config, tiny_student_teacher


def test_settings_that_nothing_reads_are_told(tmp_path: Path) -> None:
    data = {"data": str(write_photos(tmp_path / "photos", 6, size=16))}

    def notes(**settings: object) -> list[str]:
        config = tiny_config(**data, **settings)
        network, images = tiny_student_teacher(**settings), open_training_data(config)
        lines = run_summary(config, images, network, make_schedule(config, 1), torch.device("cpu"))
        return [line for line in lines if "reads the settings" in line]

    changed = {"masks": {"ratio": [0.2, 0.3]}, "lora": {"alpha": 8}}
    (line,) = notes(method="ibot", **changed)
    assert line.endswith("lora")
    (line,) = notes(method="dino", **changed)
    assert line.endswith("masks and lora")


def test_a_recipe_next_to_a_config_is_refused() -> None:
    """The run would record a recipe that it does not follow."""
    with pytest.raises(ValueError, match="recipe is 'samples', whose settings a run starts from, but config is given"):
        pretrain(tiny_config(), recipe="samples")
    with pytest.raises(ValueError, match="epochs is 0"):
        pretrain(load_recipe("samples"), recipe="samples", epochs=0)
