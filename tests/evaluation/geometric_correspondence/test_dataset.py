"""Pairs of views, and the sentence for everything that can be wrong with annotations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfpatch.evaluation.geometric_correspondence.config import NAVIConfig
from selfpatch.evaluation.geometric_correspondence.dataset import open_pairs
from tests.evaluation.geometric_correspondence.conftest import ANGLES, DISTANCE, FOCAL, SIZE, rotation


def test_cameras_and_pairs(navi: Path) -> None:
    pairs = open_pairs(navi, NAVIConfig(every=1))
    assert [first.name for first, _ in pairs] == ["000", "001", "002", "003"]
    for first, second in pairs:
        angle = ANGLES[int(first.name)]
        np.testing.assert_allclose(first.rotation, rotation(angle), atol=1e-12)
        assert first.translation.tolist() == [0, 0, DISTANCE / 1000]
        assert first.focal == FOCAL / min(SIZE)
        difference = abs(angle - ANGLES[int(second.name)])
        assert first.angle_to(second) == pytest.approx(min(difference, 360 - difference))
        assert 0 < difference <= 120
    names = [(first.name, second.name) for first, second in pairs]
    assert names == [(first.name, second.name) for first, second in open_pairs(navi, NAVIConfig(every=1))]
    seeds = {tuple(b.name for _, b in open_pairs(navi, NAVIConfig(every=1, seed=seed))) for seed in range(8)}
    assert len(seeds) > 1
    assert [first.name for first, _ in open_pairs(navi, NAVIConfig(every=2))] == ["000", "002"]
    assert [first.name for first, _ in open_pairs(navi, NAVIConfig(every=1, max_angle=30))] == ["000", "001"]
    with pytest.raises(ValueError, match=r"no two views of .* are within 10 degrees; use a larger max_angle"):
        open_pairs(navi, NAVIConfig(every=1, max_angle=10))


def test_objects_are_chosen_by_name(navi: Path, tmp_path: Path) -> None:
    for name in ("ball", "cube"):
        shutil.copytree(navi / "ball", tmp_path / name)
    (tmp_path / "custom_splits").mkdir()
    assert len(open_pairs(tmp_path, NAVIConfig(every=1))) == 8
    assert {a.subject for a, _ in open_pairs(tmp_path, NAVIConfig(every=1, objects=("cube",)))} == {"cube"}
    assert all(a.subject == b.subject for a, b in open_pairs(tmp_path, NAVIConfig(every=1)))
    with pytest.raises(ValueError, match="has no object fish; the objects are: ball, cube"):
        open_pairs(tmp_path, NAVIConfig(objects=("fish",)))
    with pytest.raises(ValueError, match="nowhere is no folder; give the one of NAVI"):
        open_pairs(tmp_path / "nowhere", NAVIConfig())
    with pytest.raises(ValueError, match="has no OBJECT/wild_set/ as NAVI has"):
        open_pairs(tmp_path / "custom_splits", NAVIConfig())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"filename": "009.png"}, r"there is no file .*images/009\.png, which .*annotations\.json names"),
        ({"filename": "../../x.png"}, "which leads out of its folder"),
        ({"filename": "001.png"}, "lists an image twice"),
        ({"image_size": [0, 5]}, r"image_size\[0\] 0"),
        ({"camera": {"q": [0, 0, 0, 0], "t": [0, 0, 1], "focal_length": 9}}, "a rotation of length 0"),
        ({"camera": {"q": [1, 0, 0], "t": [0, 0, 1], "focal_length": 9}}, r"camera\.q"),
        ({"camera": {"q": [1, 0, 0, 0], "t": [0, 0, float("nan")], "focal_length": 9}}, r"camera\.t\[2\]"),
        ({"camera": {"q": [1, 0, 0, 0], "t": [0, 0, 1], "focal_length": 0}}, r"camera\.focal_length 0"),
        ({"camera": None}, "has the"),
    ],
)
def test_words_for_bad_annotations(navi: Path, tmp_path: Path, values: dict[str, Any], words: str) -> None:
    shutil.copytree(navi / "ball", tmp_path / "ball")
    file = tmp_path / "ball" / "wild_set" / "annotations.json"
    content = json.loads(file.read_text())
    content[0] |= values
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        open_pairs(tmp_path, NAVIConfig())
    (tmp_path / "ball" / "wild_set" / "depth" / "001.png").unlink()
    file.write_text(json.dumps(content[1:]))
    with pytest.raises(ValueError, match=r"there is no file .*depth/001\.png"):
        open_pairs(tmp_path, NAVIConfig())
    file.unlink()
    with pytest.raises(ValueError, match=r"there is no file .*annotations\.json; every object of NAVI has it"):
        open_pairs(tmp_path, NAVIConfig())


def test_a_part_of_the_pairs(navi: Path) -> None:
    whole, part = (open_pairs(navi, NAVIConfig(every=1, limit=limit)) for limit in (None, 2))
    assert [first.name for first, _ in part] == [whole[0][0].name, whole[-1][0].name]
