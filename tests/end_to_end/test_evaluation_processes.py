"""Two processes measure what one does: the same numbers for every image, from the same trained weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfpatch.api.evaluate import evaluate
from selfpatch.evaluation.batches import Batches
from selfpatch.evaluation.classification.dataset import open_splits
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.probe_training import CHECKPOINT
from selfpatch.evaluation.result import Result
from tests.evaluation.depth.conftest import write_depth
from tests.evaluation.geometric_correspondence.conftest import write_navi
from tests.evaluation.object_discovery.conftest import square, write_voc
from tests.evaluation.retrieval.conftest import write_retrieval
from tests.evaluation.video_segmentation.conftest import write_videos
from tests.evaluation.view_matching.conftest import write_pictures
from tests.helpers.block_images import write_blocks
from tests.helpers.command_line import run, run_cold, write_davis
from tests.helpers.labelled_images import coloured_folder, tiny_encoder
from tests.helpers.spair_data import write_spair
from tests.helpers.workers import WorkerPool

pytestmark = pytest.mark.slow
CROPS: dict[str, Any] = {"resize": 16, "crop": 16}


def measure(rank: int, name: str, data: str, out: str | None, settings: dict[str, Any]) -> Result:
    reported: list[str] = []
    result = evaluate(
        name, tiny_encoder("vit"), data, out=out, progress=lambda what, *_: reported.append(what), **settings
    )
    assert bool(reported) == (rank == 0), "the main process alone reports"
    return result


def same_as_one(
    pool: WorkerPool, name: str, data: Path, out: Path, *, tolerance: float = 1e-6, **settings: Any
) -> Result:
    """Measure on one process and on two, compare all that the results hold, and return the one process's."""
    expected = measure(0, name, str(data), str(out / "one"), settings)
    results = pool.run(measure, name, str(data), str(out / "two"), settings)
    assert Result.load(out / "two" / "result.json").metrics == results[0].metrics
    files = [sorted(p.relative_to(out / n).as_posix() for p in (out / n).rglob("*")) for n in ("one", "two")]
    assert files[0] == files[1]
    for result in results:
        assert result.metrics == pytest.approx(expected.metrics, abs=tolerance, nan_ok=True)
        assert result.settings == expected.settings
        assert list(result.per_image) == list(expected.per_image)
        for image, values in expected.per_image.items():
            assert result.per_image[image] == pytest.approx(values, abs=tolerance), image
        assert len(result.rows) == len(expected.rows)
        for row, expected_row in zip(result.rows, expected.rows, strict=True):
            assert row == pytest.approx(expected_row, abs=tolerance, nan_ok=True)
        assert (result.pictures, result.notes) == (expected.pictures, expected.notes)
    return expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 12 test images; one of each set cannot be read."""
    root = coloured_folder(tmp_path_factory.mktemp("data"), test=5)
    (root / "val" / "green" / "green_1.png").write_bytes(b"no image")
    return root


def test_knn(pool: WorkerPool, folder: Path, tmp_path: Path) -> None:
    result = same_as_one(pool, "knn", folder, tmp_path, ks=(1, 5), encode_batch=5, **CROPS)
    assert result.settings["unreadable"] == 1


def test_knn_of_fewer_batches_than_processes(pool: WorkerPool, folder: Path, tmp_path: Path) -> None:
    same_as_one(pool, "knn", folder, tmp_path, ks=(3,), **CROPS)


@pytest.mark.parametrize("settings", [{"lrs": (0.5,)}, {"preset": "sweep", "lrs": (0.1, 0.5), "held_out": 0.25}])
def test_linear(pool: WorkerPool, folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    more = {"epochs": 3, "batch_size": 6, "workers": 0, "encode_batch": 5}
    same_as_one(pool, "linear", folder, tmp_path, **settings, **more, **CROPS)
    same_training(tmp_path, "final", tolerance=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"mixup": 0.8, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0, "repeats": 2}, {"mixup": 0.8, "cutmix": 1.0}],
    ids=str,
)
def test_finetune(pool: WorkerPool, folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    more = {"epochs": 2, "warmup_epochs": 1.0, "batch_size": 8, "drop_path": 0.3, "head_std": 0.02, "lr": 0.01}
    same_as_one(pool, "finetune", folder, tmp_path, workers=0, encode_batch=5, **more, **settings, **CROPS)
    same_training(tmp_path)


def test_davis(pool: WorkerPool, tmp_path: Path) -> None:
    data = write_davis(tmp_path / "data", ("first", "second", "third"))
    same_as_one(pool, "davis", data, tmp_path, resolution=48)


def test_videos_with_late_objects(pool: WorkerPool, tmp_path: Path) -> None:
    """One of them has no masks to score with."""
    data = write_videos(tmp_path / "data") / "valid"
    (data / "Annotations" / "other" / "00010.png").unlink()
    result = same_as_one(pool, "davis", data, tmp_path, resolution=48)
    assert "1 (other)" in result.notes[0]


def test_correspond(pool: WorkerPool, tmp_path: Path) -> None:
    images = {name: np.random.default_rng(i).integers(0, 256, (64, 96, 3), np.uint8) for i, name in enumerate("abc")}
    points = {"src_kps": [[3.5, 3.5], [43.5, 27.5]], "trg_kps": [[3.5, 60.0], [40.0, 30.0]]}
    pairs = {f"00000{i}-{pair}": points for i, pair in enumerate(("a-b:cat", "b-c:cat", "c-a:dog"))}
    data = write_spair(tmp_path / "data", pairs, images)
    same_as_one(pool, "correspond", data, tmp_path, preset="small", max_pictures=2)


def test_depth(pool: WorkerPool, tmp_path: Path) -> None:
    """The pixels with a depth differ between the processes' parts of a batch."""
    data = write_depth(tmp_path / "data", train=5)
    (tmp_path / "data" / "train" / "depth" / "0.png").write_bytes(
        (tmp_path / "data" / "test" / "depth" / "0.png").read_bytes()
    )
    settings = {"region": "whole", "crop": (32, 48), "bins": 16, "batch_size": 4, "steps": 6, "lr": 0.01, "workers": 0}
    same_as_one(pool, "depth", data, tmp_path, tolerance=1e-4, gradient_weight=0.5, max_pictures=2, **settings)
    same_training(tmp_path)


def test_retrieval(pool: WorkerPool, tmp_path: Path) -> None:
    same_as_one(pool, "retrieval", write_retrieval(tmp_path / "data"), tmp_path, crop_queries=True, max_pictures=2)


def test_navi(pool: WorkerPool, tmp_path: Path) -> None:
    settings = {"resolution": 64, "every": 1, "num_matches": 20, "max_pictures": 2}
    same_as_one(pool, "navi", write_navi(tmp_path / "data", ("ball", "globe")), tmp_path, **settings)


def test_match(pool: WorkerPool, tmp_path: Path) -> None:
    """Each process notes an image that cannot be read."""
    data = write_pictures(tmp_path / "data")
    for name in ("1.png", "4.png"):
        (data / name).write_bytes(b"no image")
    settings = {"resolution": 32, "global_scale": (0.6, 1.0), "encode_batch": 1, "max_pictures": 3}
    result = same_as_one(pool, "match", data, tmp_path, **settings)
    assert (result.settings["unreadable"], len(result.per_image)) == (2, 4)


@pytest.mark.parametrize("num_images", [3, 1])
def test_discover(pool: WorkerPool, tmp_path: Path, num_images: int) -> None:
    boxes = [(8 * i, 16, 40 + 8 * i, 48) for i in range(num_images)]
    images = {f"image{i}": (square(*box), [((25, 17, 64, 48), "")]) for i, box in enumerate(boxes)}
    data = write_voc(tmp_path / "data", {**images, "empty": (square(8, 8, 9, 9), [])})
    same_as_one(pool, "discover", data, tmp_path, methods=("lost", "tokencut", "maskcut"), max_pictures=2)


FROZEN = {"resolution": 32, "memory_patches": 60}
TRAINED = {"crop": 32, "batch_size": 4, "epochs": None, "steps": 4, "test": "whole"}
DECODER = {"preset": "small", "crop": 32, "batch_size": 4, "steps": 3, "drop_path": 0.2, "precision": "float32"}


@pytest.mark.parametrize("val", [3, 1])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("knn", {**FROZEN, "k": 3}),
        ("logistic", FROZEN),
        ("kmeans", FROZEN),
        ("linear", {**TRAINED, "preset": "full", "mask_side": 16}),
        ("linear", {**TRAINED, "preset": "dinov3"}),
        ("knn", {"preset": "hummingbird", "resolution": 32, "k": 3, "memory_patches": 90}),
        ("kmeans", {"preset": "overclustering", "resolution": 32, "num_clusters": 4, "components": 3, "seeds": 2}),
        ("finetune", {"preset": "small", "crop": 32, "batch_size": 4, "epochs": 3, "drop_path": 0.2}),
        ("fpn", DECODER),
        ("upernet", DECODER),
    ],
)
def test_segment(pool: WorkerPool, tmp_path: Path, method: str, settings: dict[str, Any], val: int) -> None:
    """One process of two has no image to score if there is one."""
    data = write_blocks(tmp_path / "data", train=5, val=val)
    same_as_one(pool, "segment", data, tmp_path, method=method, tolerance=1e-3, **settings)
    if method in ("linear", "finetune", "fpn", "upernet"):
        same_training(tmp_path)


def same_training(out: Path, part: str = ".", tolerance: float = 1e-3) -> None:
    """Compare the checkpoints below `one` and `two`: the mean gradients of the optimizer, and weights and statistics.

    Adam divides by the size of a gradient, so that weights whose gradient is nothing but rounding move differently.
    """
    first, second = (torch.load(out / name / part / CHECKPOINT, weights_only=True) for name in ("one", "two"))
    gradients = [
        torch.cat(
            [
                state[name].flatten()
                for state in checkpoint["optimizer"]["state"].values()
                for name in state
                if name in ("exp_avg", "momentum_buffer")
            ]
        )
        for checkpoint in (first, second)
    ]
    assert (gradients[1] - gradients[0]).norm() < tolerance * gradients[0].norm()
    assert first["trained"].keys() == second["trained"].keys()
    weights = [torch.cat([w.double().flatten() for w in one["trained"].values()]) for one in (first, second)]
    assert (weights[1] - weights[0]).norm() < tolerance * weights[0].norm()


def refuse_a_batch(rank: int, data: str) -> str:
    with pytest.raises(ValueError, match="divided among") as error:
        evaluate("linear", tiny_encoder("vit"), data, batch_size=5, workers=0, epochs=1, **CROPS)
    return str(error.value)


def test_a_batch_that_the_processes_do_not_divide_is_refused(pool: WorkerPool, folder: Path) -> None:
    sentence = (
        "a batch of 5 images cannot be divided among 2 processes; use a multiple of 2 such as 4, or another number of "
        "processes"
    )
    assert pool.run(refuse_a_batch, str(folder)) == [sentence] * 2


LINEAR = "evaluate linear --weights baseline:mean-colour:8 --resize 16 --crop 16 --workers 0 --batch-size 6".split()


def test_torchrun_prints_one_table(tmp_path: Path) -> None:
    data = coloured_folder(tmp_path / "data")
    alone = evaluate("linear", MeanColour(8), data, epochs=2, batch_size=6, workers=0, **CROPS)
    done = run(tmp_path, *LINEAR, "--data", str(data), "--epochs", "2", "--out", str(tmp_path / "out"), processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1") == 2, "top-1 and train top-1, once each"
    result = Result.load(tmp_path / "out" / "result.json")
    assert result.metrics == pytest.approx(alone.metrics)
    assert result.device is not None
    assert result.device.startswith("2 x ")


def test_an_error_on_one_process_ends_all_with_one_sentence(tmp_path: Path) -> None:
    """The image is read by the second process alone, while the first one waits for its gradients."""
    data = coloured_folder(tmp_path / "data")
    order = Batches(24, lambda i, rng: i, batch_size=6, seed=0, collate=list)
    train, _ = open_splits(data)
    damaged = data / "train" / train.name(next(iter(order.steps(0, 1)))[-1])
    damaged.write_bytes(b"no image")
    done = run_cold(tmp_path, *LINEAR, "--data", str(data), "--epochs", "2", processes=2)
    (sentence,) = (line for line in done.stderr.splitlines() if line.startswith("selfpatch: "))
    assert f"cannot read {damaged}" in sentence
    assert re.search(r"exitcode *: 2 ", done.stderr), done.stderr
    assert "Traceback" not in done.stderr.partition("ChildFailedError")[0].partition("torch/distributed/elastic")[0]
