"""Python functions that measure a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import selfpatch
from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from tests.helpers.block_images import write_blocks
from tests.helpers.command_line import write_davis


def test_a_function_is_evaluated(tmp_path: Path) -> None:
    davis, settings = write_davis(tmp_path / "davis"), {"resolution": 48, "device": "cpu"}
    how = {"patch_size": 8, "load_options": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}}
    pool = torch.nn.AvgPool2d(8)
    result = selfpatch.evaluate("davis", pool, davis, **how, **settings)
    assert result.metrics == selfpatch.evaluate("davis", "baseline:mean-colour:8", davis, **settings).metrics
    with pytest.raises(ValueError, match=r"function of images; say how large its patches are, e\.g\. patch_size=16"):
        selfpatch.evaluate("davis", pool, davis)
    with pytest.raises(ValueError, match="patch_size is 8, but only a function of images needs one"):
        selfpatch.evaluate("davis", "baseline:mean-colour:8", davis, patch_size=8)


def test_a_batch_has_no_more_images_than_there_are_and_the_result_says_so(tmp_path: Path) -> None:
    settings = {"preset": "small", "crop": 16, "steps": 2, "limit": 2, "device": "cpu"}
    result = selfpatch.evaluate("segment", "baseline:mean-colour:4", write_blocks(tmp_path / "blocks"), **settings)
    assert result.settings["batch_size"] == 2
    assert result.notes == ["A batch has 2 images, all that there are to train on, and not 8."]


def test_a_preset_next_to_a_config_is_refused() -> None:
    """It would name the protocol of the other settings, which it does not change, in the result."""
    config = DAVISConfig(preset="dinov3", resolution=240)
    assert (config.resolution, config.window) == (240, "circle"), "the preset decides what is not given"
    with pytest.raises(ValueError, match=r"davis\.preset is 'dinov3', which decides other settings, but config"):
        selfpatch.evaluate("davis", "baseline:mean-colour:8", "nowhere", DAVISConfig(), preset="dinov3")
    with pytest.raises(ValueError, match="nowhere"):
        selfpatch.evaluate("davis", "baseline:mean-colour:8", "nowhere", config, preset="dinov3", device="cpu")
