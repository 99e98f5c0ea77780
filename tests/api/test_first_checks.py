"""The recipe for a number of images, and what is refused before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from selfpatch.api.first_checks import batch_note, check_run, recipe_for
from selfpatch.config.recipes import load_recipe, recipe_names
from selfpatch.config.run import RunConfig


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 files that are never read."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(60):
        (folder / f"{i}.jpg").touch()
    return folder


@pytest.mark.parametrize("name", ["small-sere-ibot", "small-selfpatch-moby-swin", "selfpatch-dino-vits16", None])
def test_a_batch_fits_sixty_photographs(name: str | None, photos: Path) -> None:
    config = recipe_for(str(photos), name).override({"data": str(photos)})
    assert config.recipe == (name or "small-pairs")
    assert config.batch_size == 16
    check_run(config)
    usual = load_recipe(config.recipe).batch_size
    assert batch_note(config, 54) == [f"note: batch 16 in place of the recipe's {usual}, for 54 images"]


def test_a_named_recipe_keeps_a_batch_that_its_images_fill(photos: Path) -> None:
    config = recipe_for(str(photos), "post-train-patches")
    assert config == load_recipe("post-train-patches")
    assert batch_note(config, 54) == []
    assert recipe_for() == recipe_for("samples") == load_recipe("samples")


@pytest.mark.parametrize("name", recipe_names())
def test_no_recipe_is_refused_by_its_names_or_sizes(name: str) -> None:
    check_run(load_recipe(name))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"method": "dinoo"}, r"unknown method 'dinoo'; did you mean dino\? Else use one of: densecl, dino, .*, none"),
        ({"objective": "selfpatch+seree"}, r"unknown objective 'seree'; did you mean sere\?"),
        ({"model": "vit_smal"}, r"unknown model 'vit_smal'; did you mean vit_small\? .* or a name of timm's"),
        ({"init": "nowhere.pth"}, "no weights at 'nowhere.pth'; use a run directory"),
        ({"teacher": "nowhere.pth"}, "no weights at 'nowhere.pth'"),
        ({"crops": {"global_size": 100}}, "crops.global_size is 100: patch size 16 does not divide the image side 100"),
        ({"data": "nowhere"}, "no folder or file 'nowhere'"),
    ],
)
def test_what_cannot_be_right(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_run(RunConfig().override(settings))


def test_a_batch_larger_than_the_data(photos: Path) -> None:
    with pytest.raises(ValueError, match="a batch of 64 images is larger than the data, 54 images"):
        check_run(RunConfig(data=str(photos), batch_size=64))


def test_a_list_of_misspelt_paths(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{i}.jpg\n" for i in range(20)))
    with pytest.raises(ValueError, match="20 of 20 image files that were tried cannot be found"):
        check_run(RunConfig(data=str(listed), batch_size=4))


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, selfpatch.cli.pretrain; print({'torch', 'timm', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
