"""Contents of a study file, and how files and sizes override one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from selfpatch.config.recipes import load_recipe
from selfpatch.experiments.spec import read_study
from tests.helpers.tiny_study import FROM_WEIGHTS, PLAN, needs_weights, write_study, write_weights

STUDIES = Path(__file__).parents[2] / "studies"


def test_a_file(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path), tmp_path)
    assert [arm.name for arm in study.arms] == ["DINO", "DINO + SelfPatch"]
    assert [arm.slug for arm in study.arms] == ["dino", "dino-selfpatch"]
    assert study.reference == "DINO"
    assert [arm.pretrain for arm in study.arms] == 2 * [{"photos": tmp_path / "photos"}]
    assert [arm.seeds for arm in study.arms] == 2 * [(0, 1)]
    assert [arm.config.objectives for arm in study.arms] == [(), ("selfpatch",)]
    dino, both = (arm.config for arm in study.arms)
    assert both.components["selfpatch"]["num_prototypes"] == 32
    assert both.components["dino"] == dino.components["dino"]
    assert dino.crops.hue == load_recipe("small-cpu").crops.hue != 0.1, "what is not given is the recipe's"
    (measured,) = study.evaluations
    assert measured.columns == {"J&F-Mean": "J&F", "J-Mean": "J"}
    assert (measured.entry.data, measured.entry.settings["resolution"]) == (str(tmp_path / "davis"), 48)


def test_sizes_and_files_are_laid_over_one_another(tmp_path: Path) -> None:
    """Mappings key by key, lists as a whole; the size on top."""
    write_study(tmp_path)
    (tmp_path / "tiny.yaml").rename(tmp_path / "common.yaml")
    above = {
        "extends": "common.yaml",
        "title": "above",
        "settings": {"crops": {"local_size": 24}},
        "sizes": {"large": {"seeds": [5], "settings": {"epochs": 9}}, "small": {}},
    }
    (tmp_path / "above.yaml").write_text(yaml.safe_dump(above))
    study = read_study(tmp_path / "above.yaml", tmp_path, "large")
    assert (study.title, study.seeds, study.arms[0].config.epochs) == ("above", (5,), 9)
    assert (study.arms[0].config.crops.global_size, study.arms[0].config.crops.local_size) == (32, 24)
    assert read_study(tmp_path / "above.yaml", tmp_path, "small").arms[0].config.epochs == 4


def test_arms_may_have_their_own_seeds_and_data(tmp_path: Path) -> None:
    arms = {"A": {"seeds": [3], "pretrain": ["photos", "davis"]}, "B": {}, "C": {"seeds": [1, 4]}}
    study = read_study(write_study(tmp_path, arms=arms), tmp_path)
    assert [arm.seeds for arm in study.arms] == [(3,), (0, 1), (1, 4)]
    assert study.seeds == (3, 0, 1, 4)
    assert [list(arm.pretrain) for arm in study.arms] == [["photos", "davis"], ["photos"], ["photos"]]
    alone = read_study(write_study(tmp_path, arms={"A": {"pretrain": "photos"}}, pretrain=None), tmp_path)
    assert alone.arms[0].pretrain == {"photos": tmp_path / "photos"}


def test_weights_of_the_data_folder_of_the_command_and_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_weights(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    below = f"{tmp_path.name}/weights.safetensors"
    for init, weights in (("weights.safetensors", None), (file, None), ("weights", file), ("weights", below)):
        settings = {**FROM_WEIGHTS["settings"], "init": init}
        path = write_study(tmp_path, **{**FROM_WEIGHTS, "settings": settings})
        study = read_study(path, tmp_path, weights=weights)
        assert {arm.config.init for arm in study.arms} == {file}
        assert study.reference == "as is"
    path = write_study(tmp_path, arms={"A": {"recipe": "distill-vitti16", "teacher": "weights"}}, baselines=["as is"])
    study = read_study(path, tmp_path, weights=file)
    assert (study.arms[0].config.init, study.arms[0].config.teacher, study.weights) == (None, file, (file,))
    path = write_study(tmp_path, **FROM_WEIGHTS, reference="DINO")
    study = read_study(path, tmp_path, weights="timm:vit_tiny_patch16_224")
    assert (study.arms[0].config.init, study.reference) == ("timm:vit_tiny_patch16_224", "DINO")


@pytest.mark.parametrize(
    ("changes", "weights", "message"),
    [
        (FROM_WEIGHTS, None, "arm 'DINO': init is 'weights', .* but none are named; give --weights"),
        (FROM_WEIGHTS, "away.pth", "arm 'DINO': there are no weights at away.pth; name a file, a run directory"),
        ({"arms": {"A": {"init": "away.pth"}}}, None, "arm 'A': there are no weights at .*/away.pth"),
        ({}, "HERE", "weights is '.*', but no arm starts from them; set `init: weights`"),
        ({"baselines": ["as is"]}, None, "'as is' is for arms that start from the same weights, but they start from 0"),
        (
            {"baselines": ["as is"], "arms": {"A": {"init": "weights"}, "B": {"init": "photos"}}},
            "HERE",
            "but they start from 2 different ones",
        ),
        ({**FROM_WEIGHTS, "baselines": [], "reference": "as is"}, "HERE", "reference is 'as is', which is no arm"),
    ],
)
def test_weights_that_cannot_be(tmp_path: Path, changes: dict[str, Any], weights: str | None, message: str) -> None:
    file = write_weights(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_study(write_study(tmp_path, **changes), tmp_path, weights=file if weights == "HERE" else weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": None}, "has no arms; a study needs title, pretrain, arms and evaluations"),
        ({"arm": {}}, "arm is not a setting; did you mean 'arms'?"),
        ({"arms": [1]}, r"arms is \[1\]; use a mapping of names to values"),
        ({"arms": {"A": 3}}, "arms.A is 3; use a mapping of names to values"),
        ({"arms": {"A": None}}, "every arm of the study is null"),
        ({"arms": {3: {}}}, r"arms\[3\] is 3; use text"),
        ({"arms": {"A": {"channels": 4}}}, "arm 'A' has channels 4"),
        ({"arms": {"A": {"components": 5}}}, "arm 'A': components is no mapping"),
        ({"arms": {"A": {"crops": {5: 1}}}}, "arm 'A': crops.5 is not a setting"),
        ({"settings": 5}, "settings is 5; use a mapping"),
        ({"settings": [1]}, r"settings is \[1\]; use a mapping"),
        ({"arms": {"A": {"objective": "sefpatch"}}}, "arm 'A': .*sefpatch"),
        ({"arms": {"A": {"epocs": 3}}}, "arm 'A': epocs is not .*did you mean 'epochs'"),
        ({"arms": {"A": {"objective": "none", "selfpatch": {"k": 2}}}}, "arm 'A': nothing reads .*'selfpatch'"),
        ({"arms": {"A": {"minutes": 3}}}, "arm 'A' sets minutes; give epochs"),
        ({"arms": {"A": {"seed": 3}}}, "arm 'A' sets seed, which the study sets"),
        ({"arms": {"A b": {}, "a-B": {}}}, "the arm 'A b' needs a name that differs"),
        ({"arms": {"A": {"equal_time": "B"}}}, "arm 'A' has equal_time 'B', which is no arm with epochs"),
        ({"reference": "MoBY"}, "reference is 'MoBY', which is no arm; use one of: DINO, DINO"),
        ({"arms": {"A": {"seeds": [2, 2]}}}, r"arm 'A': seeds is \[2, 2\]; name each once"),
        ({"settings": {"seeds": [1]}}, "arm 'DINO': seeds is not a setting"),
        ({"pretrain": None}, "arm 'DINO' has no training data; set pretrain in the study or in the arm"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\]; name each once"),
        ({"seeds": [-1]}, r"seeds\[0\] is -1; use 0 or more"),
        ({"seeds": 3}, "seeds is 3; use a list of values"),
        ({"baselines": ["raw"]}, "the baseline 'raw' is unknown or there twice; use untrained, as is, baseline:"),
        ({"baselines": ["baseline:mean-colour:0"]}, "the baseline 'baseline:mean-colour:0' is unknown"),
        ({"baselines": ["baseline:mean-colour:../.."]}, "is unknown"),
        ({"baselines": ["untrained", "untrained"]}, "the baseline 'untrained' is unknown or there twice"),
        ({"baselines": 5}, "baselines is 5; use a list of values"),
        ({"pretrain": "phots"}, "pretrain: there is no .*phots; name the data folder with --data"),
        ({"evaluations": [{"davis": {"data": "davis"}}]}, "evaluations, entry 1: give columns"),
        (
            {"evaluations": [{"davis": {"data": "davis", "size": 3}, "columns": {"J": "J"}}]},
            "davis.size is not a setting",
        ),
        ({"evaluations": [{"davis": {"data": "away"}, "columns": {"J": "J"}}]}, "entry 1: there is no .*away"),
        ({"evaluations": 2 * PLAN["evaluations"]}, "the column 'J&F' is there twice"),
        ({"evaluations": [{"davis": {"data": "davis"}, "columns": {"J": None}}]}, "columns.J is None; use text"),
        ({"settings": {**PLAN["settings"], "checkpoint": {}}}, "over_time evaluates kept checkpoints"),
        ({"extends": "tiny.yaml"}, "extends itself"),
        ({"extends": "none.yaml"}, r"there is no file .*none.yaml; give the YAML file of a study"),
        ({"sizes": {"cpu": 3}}, "sizes.cpu is 3; use a mapping of names to values"),
        ({"sizes": [1]}, r"sizes is \[1\]; use a mapping"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_study(write_study(tmp_path, **changes), tmp_path, "cpu" if "sizes" in changes else None)
    assert "\n" not in str(caught.value)


def test_a_part_that_is_no_text(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    path.write_text(path.read_text() + "5: 1\n")
    with pytest.raises(ValueError, match="5 is not a setting"):
        read_study(path, tmp_path)


def test_a_size_leaves_out_an_arm_that_is_null(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, sizes={"cpu": {"arms": {"DINO": None}}}), tmp_path, "cpu")
    assert "DINO" not in [arm.name for arm in study.arms]
    assert "DINO" in [arm.name for arm in read_study(write_study(tmp_path), tmp_path).arms]


def test_a_size_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no size 'gpu'; use one of: cpu"):
        read_study(write_study(tmp_path, sizes={"cpu": {}}), tmp_path, "gpu")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("size", ["test", "cpu", "gpu"])
def test_every_study_of_ours_reads(path: Path, size: str, data_dir: Path, tmp_path: Path) -> None:
    """All have the networks before training and colours of patches as baselines."""
    if path.stem != "common":
        from_weights = needs_weights(path)
        study = read_study(path, data_dir, size, write_weights(tmp_path) if from_weights else None)
        patch_sizes = {arm.config.patch_size or (14 if from_weights else 8) for arm in study.arms}
        colours = {f"baseline:{kind}:{side}" for kind in ("raw-patch", "mean-colour") for side in patch_sizes}
        before = {"as is" if from_weights else "untrained"}
        assert before | colours <= set(study.baselines)
        assert study.question
