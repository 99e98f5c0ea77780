"""Built-in recipes and recipe files."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from selfpatch.config.recipes import choose_recipe, load_recipe, recipe_names
from selfpatch.config.run import SAMPLES
from selfpatch.core.types import Needs
from selfpatch.training.factory import make_schedule, make_student_teacher, view_recipes

RECIPES = Path(__file__).parents[2] / "src" / "selfpatch" / "recipes"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_says_where_it_comes_from(name: str) -> None:
    config = load_recipe(name)
    assert config.recipe == name
    header = [line for line in (RECIPES / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert re.match(r"# .*(arXiv \d{4}\.\d{5}|about [\d,]+ images|sample photographs)", header[0])
    assert re.match(rf"# Command: .*selfpatch pretrain( --recipe {re.escape(name)}\b|$)", header[1])
    assert re.match(r"# Expected: .+", header[2])
    make_schedule(config, steps_per_epoch=10)
    assert len(view_recipes(config, Needs(local_crops=True))) == 2 + config.crops.num_local
    assert len(view_recipes(config, Needs())) == 2


def test_the_two_baselines_of_selfpatch_say_which_number_is_whose() -> None:
    matched, released, own = (load_recipe(n) for n in ("dino-vits16", "dino-vits16-vissl", "selfpatch-dino-vits16"))
    assert (matched.crops, matched.optimizer, matched.epochs) == (own.crops, own.optimizer, own.epochs)
    assert (released.epochs, released.crops.global_scale, released.crops.local_scale) == (300, (0.4, 1.0), (0.05, 0.4))
    headers = {n: (RECIPES / f"{n}.yaml").read_text().split("method:")[0] for n in ("dino-vits16", "dino-vits16-vissl")}
    assert "DAVIS-2017 val J&F 60.7" in headers["dino-vits16-vissl"]
    assert "60.7" not in headers["dino-vits16"]
    assert "dino-vits16-vissl" in headers["dino-vits16"]
    assert "--recipe dino-vits16." in headers["dino-vits16-vissl"]


def test_vissls_baseline_changes_its_rate_once_an_epoch() -> None:
    schedule = make_schedule(load_recipe("dino-vits16-vissl"), steps_per_epoch=1251)
    epochs = [schedule(1251 * epoch) for epoch in range(300)]
    assert schedule(1250).lr == epochs[0].lr == 1e-5
    for epoch in (0, 1, 9):  # linear over 0.0333 of the training, by the rules of its scheduler
        assert epochs[epoch].lr == pytest.approx(1e-5 + (0.002 - 1e-5) * epoch / 9.99, rel=1e-4)
    for epoch in (10, 11, 150, 299):
        assert epochs[epoch].lr == pytest.approx(1e-5 + (0.002 - 1e-5) * (1 + math.cos(math.pi * epoch / 300)) / 2)
        assert epochs[epoch].weight_decay == pytest.approx(0.4 - 0.36 * (1 + math.cos(math.pi * epoch / 300)) / 2)


@pytest.mark.parametrize("name", [n for n in recipe_names() if n in ("small-cpu", "small-1k")])
def test_small_recipes_build(name: str) -> None:
    student_teacher, report = make_student_teacher(load_recipe(name))
    assert report is None
    assert set(student_teacher.objectives) == {"dino", "selfpatch"}


def test_the_recipe_grows_with_the_data() -> None:
    chosen = [choose_recipe(n, "photos") for n in (10, 3_000, 3_001, 30_000, 400_000, 1_281_167)]
    assert chosen == ["small-pairs", "small-pairs", "small-10k", "small-10k", "small-100k", "selfpatch-dino-vits16"]
    assert choose_recipe(1_000_000, SAMPLES) == "samples"
    assert choose_recipe(3_000, "photos", composed=True) == "small-1k"
    assert set(chosen) | {"samples"} <= set(recipe_names())


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 3\nselfpatch: {k: 1}\n")
    config = load_recipe(str(file))
    assert (config.epochs, config.components, config.recipe) == (3.0, {"selfpatch": {"k": 1}}, str(file))
    with pytest.raises(
        ValueError, match=r"no recipe 'nothing'; use the path of a .yaml file or one of: .*dino-vits16, "
    ):
        load_recipe("nothing")


def test_a_recipe_extends_itself_by_another_path(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"extends: ../{tmp_path.name}/r.yaml\n")
    with pytest.raises(ValueError, match=r"r\.yaml extends itself by way of .*r\.yaml; leave one extends out"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    (tmp_path / "middle.yaml").write_text("extends: small-cpu\nepochs: 3\nselfpatch: {k: 1}\ncrops: {num_local: 1}\n")
    (tmp_path / "mine.yaml").write_text("extends: middle.yaml\nselfpatch: {window: 5}\n")
    config, base = load_recipe(str(tmp_path / "mine.yaml")), load_recipe("small-cpu")
    assert config.components["selfpatch"] == {**base.components["selfpatch"], "k": 1, "window": 5}
    assert config.recipe == str(tmp_path / "mine.yaml")
    assert config.crops == replace(base.crops, num_local=1)
    assert replace(config, recipe=base.recipe, components=base.components, epochs=base.epochs, crops=base.crops) == base
    (tmp_path / "mine.yaml").write_text("extends: middle.yaml\nobjective: none\n")
    assert load_recipe(str(tmp_path / "mine.yaml")).components.keys() == {"dino"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 1\nepochs: 2", r"r\.yaml gives 'epochs' twice, in lines 1 and 2"),
        ("epochs: 1e300", "epochs is '1e300'; use 1e[+]06 or less"),
        ("epochs: .nan", "epochs is nan; use a finite number"),
        ("seed: 99999999999999999999", "seed is 99999999999999999999; use a number below"),
        ("loss_weights: {image: .nan}", "loss_weights.image is nan; use a finite number"),
        ("loss_weights: {image: .inf}", "loss_weights.image is inf; use a finite number"),
        ("loss_weights: {image: -1}", "loss_weights.image is -1; use 0 or more"),
        ("loss_weights: {image: true}", "loss_weights is {'image': True}; use a number"),
        ("crops: {global_scale: [.nan, 1]}", r"crops.global_scale\[0\] is nan; use a finite number"),
        ("recipe: small-1k", r"r\.yaml names the recipe 'small-1k'; to build on it, write `extends` for `recipe`"),
        ("extends: 3", r"extends in .*r\.yaml is 3; name a recipe or a \.yaml file"),
        ("extends: small-2k", "no recipe 'small-2k'; did you mean small-1"),
        ("extends: xyzzy", "no recipe 'xyzzy'; use the path"),
        ("extends: r.yaml", r"the recipe .*r\.yaml extends itself by way of .*r\.yaml; leave one extends out"),
        ("extends: small-cpu\nobjective: none\nselfpatch: {k: 1}", "nothing reads the settings of 'selfpatch'"),
        ("optimizer: {layer_decay: 0}", "optimizer.layer_decay is 0; use a number above 0"),
        ("pears: {x: 1}", "nothing reads the settings of 'pears': .* did you mean 'pairs'"),
        ("objective: selfpatch+none", r"objective is 'selfpatch\+none'; join names of objectives by '\+'"),
        ("objective: selfpatch+", r"objective is 'selfpatch\+'; join names"),
        ("data: ''", "data is ''; name something, or leave it out"),
        (f"batch_size: 1{'0' * 30}", r"batch_size is 10+; use 1e\+09 or less"),
        (f"watch: {{log_every: 1{'0' * 30}}}", "log_every is 10+.*; use a number of at most 18 digits"),
        ("loader: {workers: 100000}", "loader.workers is 100000; use 1024 or less"),
        ("epochs: !!bool perhaps", r"r\.yaml is not valid YAML: a value does not fit its type"),
    ],
)
def test_recipes_that_could_only_fail_later_are_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_numbers_of_a_component_are_checked_when_the_network_is_made(value: float) -> None:
    config = load_recipe("small-cpu").override({"dino": {"student_temp": value}})
    with pytest.raises(ValueError, match=r"dino\.student_temp is (nan|inf|-1\.0); use a "):
        make_student_teacher(config)


@pytest.mark.parametrize(
    ("text", "message"), [("3: {x: 1}", "nothing reads the settings of 3"), ("3: 1", "3 is not a")]
)
def test_names_that_are_no_text_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(str(tmp_path / "r.yaml"))
