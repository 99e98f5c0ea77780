"""Damaged files of every kind: they are read, or refused in one sentence, in bounded time and memory.

`SELFPATCH_FUZZ=10000 pytest -n 0 tests/fuzz` tries so many inputs of each kind, drawn anew each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.core.failures import sentence_of
from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.classification.published_sets import read_published
from selfpatch.evaluation.compare import compare
from selfpatch.evaluation.correspondence.config import CorrespondenceConfig
from selfpatch.evaluation.correspondence.dataset import open_pairs
from selfpatch.evaluation.depth.dataset import open_depth_splits
from selfpatch.evaluation.detection.dataset import open_split
from selfpatch.evaluation.detection.masks import packed, to_pixels
from selfpatch.evaluation.detection.metrics import GroundTruth
from selfpatch.evaluation.object_discovery.config import ObjectDiscoveryConfig
from selfpatch.evaluation.object_discovery.dataset import open_images
from selfpatch.evaluation.result import Result
from selfpatch.evaluation.retrieval.dataset import open_retrieval
from selfpatch.evaluation.segmentation.class_file import read_class_file
from selfpatch.evaluation.video_segmentation.config import DAVISConfig
from selfpatch.evaluation.video_segmentation.dataset import open_clips
from selfpatch.experiments.entries import read_suite
from selfpatch.experiments.spec import read_study
from selfpatch.training.changed_images import changed_images, record_images
from selfpatch.training.dataset import TrainingData, check_data, record_data
from selfpatch.training.factory import make_schedule
from selfpatch.training.loggers.metrics import read_numbers
from selfpatch.training.report import losses_without_progress, measured_table
from tests.helpers.mutations import damaged_bytes, damaged_json, damaged_values

INPUTS = int(os.environ.get("SELFPATCH_FUZZ", 0))
MAX_SECONDS, MAX_MEMORY = 20, 300_000_000
"""Largest time of one input, far above what any takes, and growth of the memory over all inputs of a kind, in bytes."""


def fuzzed(inputs: int) -> settings:
    """Return how a kind is fuzzed: the suite tries the same inputs each time."""
    return settings(
        max_examples=INPUTS or inputs,
        derandomize=not INPUTS,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def read(function: Callable[[], Any]) -> Any:
    """Return what a function reads from a damaged file, or None if it refuses it in one sentence."""
    with _within_limits(), warnings.catch_warnings(action="ignore"):
        try:
            return function()
        except (ValueError, OSError) as error:
            refusal = error
    assert not isinstance(refusal, UnicodeError | json.JSONDecodeError), "an error of a library, as it came"
    assert 10 < len(sentence_of(refusal)) < 2000
    return None


@contextlib.contextmanager
def _within_limits() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"still at it after {MAX_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SECONDS)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) < MAX_MEMORY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small image, under every name that the annotations below use."""
    root = tmp_path_factory.mktemp("fuzz")
    for name in ("a.jpg", "b.jpg", "x/a.jpg", "JPEGImages/cat/a.jpg", "JPEGImages/cat/b.jpg", "JPEGImages/a.jpg",
                 "rgb.jpg", "depth.png", "photos/a.png", "photos/b.png", "data/a.jpg"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 6)).save(root / name)
    for name in (
        "annotations",
        "Annotations",
        "ImageSets/Main",
        "Layout/small",
        "PairAnnotation/test",
        "run/checkpoints",
    ):
        (root / name).mkdir(parents=True)
    return root


COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 6}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16.0, "iscrowd": 0,
         "segmentation": [[1, 1, 5, 1, 5, 5.5, 1, 5]]},
        {"id": 2, "image_id": 1, "category_id": 5, "bbox": [0, 0, 10, 6], "iscrowd": 1,
         "segmentation": {"size": [6, 10], "counts": [6, 54]}},
        {"id": 3, "image_id": 1, "category_id": 5, "bbox": [0, 0, 10, 6],
         "segmentation": {"size": [6, 10], "counts": "0d1"}},
    ],
}  # fmt: skip


@fuzzed(200)
@given(content=damaged_json(COCO))
def test_annotations_of_coco(folder: Path, content: bytes) -> None:
    (folder / "annotations" / "instances_x.json").write_bytes(content)
    if (split := read(lambda: open_split(folder, "x"))) is not None:
        with _within_limits():  # what was accepted can be used
            truth = GroundTruth(split.annotations, [image.id for image in split.images])
            truth.objects()
            truth.precision([], "segm")
            for image in split.images:
                if image.width * image.height < 1_000_000:
                    masks = [
                        packed(one.segmentation, image.height, image.width)
                        for one in image.instances
                        if one.segmentation
                    ]
                    assert set(np.unique(to_pixels(masks, image.height, image.width))) <= {0, 1}
            split.fingerprint()


@fuzzed(200)
@given(content=damaged_json(COCO))
def test_annotations_of_coco_for_discovery(folder: Path, content: bytes) -> None:
    root = folder / "only-coco"
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "train2014").mkdir(exist_ok=True)
    (root / "train2014" / "a.jpg").touch()
    (root / "annotations" / "instances_train2014.json").write_bytes(content)
    for image in read(lambda: open_images(root, ObjectDiscoveryConfig())) or ():
        assert torch.tensor(image.boxes or [(0.0,) * 4], dtype=torch.float32).isfinite().all()


VOC = (
    b'<?xml version="1.0" encoding="utf-8"?><annotation><object><name>cat</name><difficult>0</difficult><bndbox>'
    b"<xmin>1</xmin><ymin>2</ymin><xmax>8.5</xmax><ymax>6</ymax></bndbox></object></annotation>"
)


@fuzzed(200)
@given(content=damaged_bytes(VOC), names=damaged_bytes(b"a\n"))
def test_annotations_of_voc(folder: Path, content: bytes, names: bytes) -> None:
    (folder / "Annotations" / "a.xml").write_bytes(content)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_bytes(names)
    for image in read(lambda: open_images(folder, ObjectDiscoveryConfig())) or ():
        assert torch.tensor(image.boxes or [(0.0,) * 4], dtype=torch.float32).isfinite().all()


SPAIR: dict[str, Any] = {
    "category": "cat", "src_imname": "a.jpg", "trg_imname": "b.jpg", "src_kps": [[1, 2], [3, 4]],
    "trg_kps": [[1, 2], [3, 4]], "src_bndbox": [0, 0, 8, 5], "trg_bndbox": [0, 0, 8, 5],
}  # fmt: skip


@fuzzed(200)
@given(content=damaged_json(SPAIR), names=damaged_bytes(b"1-a-b:cat\n"))
def test_annotations_of_spair(folder: Path, content: bytes, names: bytes) -> None:
    (folder / "PairAnnotation" / "test" / "1-a-b:cat.json").write_bytes(content)
    (folder / "Layout" / "small" / "test.txt").write_bytes(names)
    for pair in read(lambda: open_pairs(folder, CorrespondenceConfig())) or ():
        for values in (pair.source_points, pair.target_points, pair.source_box, pair.target_box):
            assert np.isfinite(values.astype(np.float32)).all()


RETRIEVAL: dict[str, Any] = {
    "imlist": ["a", "b"], "qimlist": ["a"],
    "gnd": [{"bbx": [0.0, 0.0, 5.0, 5.0], "easy": [0], "hard": [1], "junk": []}],
}  # fmt: skip


@fuzzed(200)
@given(content=damaged_json(RETRIEVAL))
def test_ground_truth_of_retrieval(folder: Path, content: bytes) -> None:
    (folder / "gnd.json").write_bytes(content)
    found = read(lambda: open_retrieval(folder))
    (folder / "gnd.json").unlink()
    for query in () if found is None else found.queries:
        assert all(0 <= number < len(found.database) for number in (*query.easy, *query.hard, *query.junk))
        assert query.box is None or np.isfinite(np.float32(query.box)).all()


INATURALIST: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "x/a.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 3}, {"image_id": 2, "category_id": 5}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
}  # fmt: skip


@fuzzed(200)
@given(train=damaged_json(INATURALIST), test=damaged_json(INATURALIST))
def test_annotations_of_inaturalist(folder: Path, train: bytes, test: bytes) -> None:
    (folder / "train2019.json").write_bytes(train)
    (folder / "val2019.json").write_bytes(test)
    found = read(lambda: read_published(folder))
    for file in folder.glob("*2019.json"):
        file.unlink()
    for split in () if found is None else (found.train, found.test):
        assert all((folder / name).is_file() for name in split)


@fuzzed(200)
@given(
    train=damaged_bytes(b"rgb.jpg depth.png 518.8\n/rgb.jpg None 518.8\n"), test=damaged_bytes(b"rgb.jpg depth.png 1\n")
)
def test_lists_of_depth(folder: Path, train: bytes, test: bytes) -> None:
    (folder / "nyu_train.txt").write_bytes(train)
    (folder / "nyu_test.txt").write_bytes(test)
    for split in read(lambda: open_depth_splits(folder, 1000.0)) or ():
        split.fingerprint()


YOUTUBE_VOS: dict[str, Any] = {
    "videos": {
        "x": {"objects": {"1": {"category": "cat", "frames": ["a", "b"]}, "12": {"category": "dog", "frames": ["b"]}}},
        "cat": {"objects": {"3": {"frames": ["a"]}}},
    }
}


@fuzzed(200)
@given(content=damaged_json(YOUTUBE_VOS))
def test_objects_of_videos(folder: Path, content: bytes) -> None:
    root = folder / "videos"
    for name in ("x", "cat"):
        for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
            (root / kind / name).mkdir(parents=True, exist_ok=True)
            (root / kind / name / f"a.{suffix}").touch()
    (root / "meta.json").write_bytes(content)
    for clip in read(lambda: open_clips(root, DAVISConfig())) or ():
        assert clip.masks_dir.parent == root / "Annotations"
        read(lambda clip=clip: clip.require_files(frames=True))


@fuzzed(200)
@given(content=damaged_bytes("0: void\n1: road sign\n255 - unlabelled\n2: Größe\n".encode()))
def test_class_files(folder: Path, content: bytes) -> None:
    (folder / "classes.txt").write_bytes(content)
    read(lambda: read_class_file(folder / "classes.txt"))


RECIPE: dict[str, Any] = {
    "method": "dino", "objective": "selfpatch", "model": "vit_small", "epochs": 3, "seed": 1, "batch_size": 64,
    "loss_weights": {"patch": 0.1, "image": 1}, "crops": {"global_size": 224, "global_scale": [0.25, 1.0]},
    "optimizer": {"base_lr": 5e-4, "warmup_epochs": 1, "clip": 3.0}, "loader": {"workers": 2, "render": "auto"},
    "selfpatch": {"k": 4, "window": 3}, "dino": {"num_prototypes": 64, "student_temp": 0.1}, "watch": {"log_every": 10},
}  # fmt: skip
SUITE: list[dict[str, Any]] = [
    {"davis": {"data": "davis", "resolution": 240}}, {"knn": {"data": "photos", "ks": [10, 20]}},
    {"segment": {"data": "voc", "method": "linear", "epochs": 3, "lr": 1e-3}},
]  # fmt: skip
STUDY: dict[str, Any] = {
    "title": "T", "question": "Q", "pretrain": ["photos"], "seeds": [0, 1],
    "settings": {"recipe": "small-cpu", "epochs": 2},
    "arms": {"A": {"objective": "none"}, "B": {"objective": "selfpatch", "seeds": [1]}}, "baselines": ["untrained"],
    "evaluations": [{"davis": {"data": "photos"}, "columns": {"J&F-Mean": "x"}}], "sizes": {"cpu": {"seeds": [0]}},
}  # fmt: skip


def as_yaml(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Return YAML texts of values, with damaged bytes now and then."""
    texts = values.map(lambda value: _dumped(value).encode("utf-8", "surrogatepass"))
    return st.one_of(texts, texts, texts.flatmap(damaged_bytes))


def _dumped(value: Any) -> str:
    try:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    except ValueError:  # a number of too many digits
        return repr(value)[:1000]


@fuzzed(200)
@given(content=as_yaml(damaged_values(RECIPE)))
def test_recipes(folder: Path, content: bytes) -> None:
    (folder / "r.yaml").write_bytes(content)
    config = read(lambda: load_recipe(str(folder / "r.yaml")))
    if config is not None:
        again = yaml.safe_load(yaml.safe_dump(config.to_dict(), allow_unicode=True))
        assert RunConfig().override(again) == config
        if config.epochs is not None:
            schedule = make_schedule(config, 10)
            assert all(
                np.isfinite(schedule(step).lr) for step in (0, schedule.total_steps // 2, schedule.total_steps - 1)
            )


@fuzzed(200)
@given(content=as_yaml(damaged_values(SUITE)))
def test_suites(folder: Path, content: bytes) -> None:
    (folder / "s.yaml").write_bytes(content)
    read(lambda: read_suite(folder / "s.yaml"))


@fuzzed(200)
@given(content=as_yaml(damaged_values(STUDY)))
def test_studies(folder: Path, content: bytes) -> None:
    (folder / "study.yaml").write_bytes(content)
    read(lambda: read_study(folder / "study.yaml", folder, None))


@pytest.fixture(scope="module")
def run_files(folder: Path) -> dict[str, bytes]:
    """The files of a run directory on two photographs, as a training writes them."""
    config = RunConfig().override({**RECIPE, "data": str(folder / "photos")})
    run = RunDirectory.create(folder / "new-run", config.to_dict())
    data = _training_data(folder)
    record_data(run, data)
    record_images(run, data.index, "time")
    run.checkpoints.save({"step": 3, "pretrainer": {"a": torch.zeros(2)}, "optimizer": {}, "shape": {}}, step=3, keep=1)
    lines = [{"step": 0, "view_matching": 0.5, "view_matching_mean_colour": 0.2}, {"step": 3, "loss": 1.5, "lr": 0.1}]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {str(file.relative_to(run.path)): file.read_bytes() for file in run.path.rglob("*") if file.is_file()}


def _training_data(folder: Path) -> TrainingData:
    index = ImageIndex.open(folder / "photos", folder / "cache")
    return TrainingData(index, np.arange(2), index, np.arange(0))


@fuzzed(60)
@given(data=st.data())
def test_run_directories(folder: Path, run_files: dict[str, bytes], data: st.DataObject) -> None:
    damaged = data.draw(st.sampled_from(sorted(run_files)))
    for name, content in run_files.items():
        (folder / "run" / name).write_bytes(data.draw(damaged_bytes(content)) if name == damaged else content)

    def use() -> None:
        run = RunDirectory.open(folder / "run")
        RunConfig.from_saved(run.settings, run.settings_file)
        images = _training_data(folder)
        check_data(run, images)
        changed_images(run, images.index)
        run.checkpoints.newest()
        measured_table(run)
        losses_without_progress(read_numbers(run.path))

    read(use)


RESULT: dict[str, Any] = {
    "name": "davis", "metrics": {"J&F-Mean": 0.6}, "rows": [{"sequence": "a", "J": 0.5}],
    "settings": {"resolution": 480},
    "weights": {"source": "w.pth", "sha256": None}, "versions": {"torch": "2"}, "pictures": ["a.png"],
    "per_image": {"a": {"J": 0.5}, "b": {"J": 0.7}, "c": {"J": 0.4}}, "notes": [], "device": "cpu",
    "costs": {"seconds": 1.0},
}  # fmt: skip


@fuzzed(200)
@given(first=damaged_json(RESULT), second=damaged_json(RESULT))
def test_results(folder: Path, first: bytes, second: bytes) -> None:
    files = [folder / "1.json", folder / "2.json"]
    for file, content in zip(files, (first, second), strict=True):
        file.write_bytes(content)
        if (result := read(lambda file=file: Result.load(file))) is not None:
            result.table()
    read(lambda: compare(files, draws=2, allow_different=True).table())


@fuzzed(60)
@given(data=st.data())
def test_index_caches(folder: Path, index_cache: tuple[Path, bytes], data: st.DataObject) -> None:
    file, content = index_cache
    file.write_bytes(data.draw(damaged_bytes(content)))
    index = ImageIndex.open(folder / "photos", file.parent)
    assert [index.name(i) for i in range(len(index))] == ["a.png", "b.png"]


@pytest.fixture(scope="module")
def index_cache(folder: Path) -> tuple[Path, bytes]:
    """The cache file of the index of two photographs, and its content."""
    for path in (folder / "photos", *(folder / "photos").iterdir()):
        os.utime(path, (10**9, 10**9))  # what has just changed is not cached
    ImageIndex.open(folder / "photos", folder / "damaged-cache")
    (file,) = (folder / "damaged-cache").glob("*.npz")
    return file, file.read_bytes()


@fuzzed(200)
@given(data=st.data())
def test_tar_shards(folder: Path, shard: bytes, data: st.DataObject) -> None:
    (folder / "s.tar").write_bytes(data.draw(damaged_bytes(shard)))

    def use() -> None:
        index = ImageIndex.open(folder / "s.tar", folder / "no-cache")
        for i in range(len(index)):
            file = index.file(i)
            assert not isinstance(file, Path)
            assert len(file.read()) == file.size

    read(use)


@pytest.fixture(scope="module")
def shard(folder: Path) -> bytes:
    """Headers of every form: pax and GNU, long names, links, a sparse file."""
    with tarfile.open(folder / "whole.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(folder / "a.jpg", "a.jpg")
        tar.add(folder / "a.jpg", "long/" * 40 + "b.jpg")
        link = tarfile.TarInfo("hard.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(link)
    with tarfile.open(folder / "whole.tar", "a", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("Größe/" + "x" * 120 + ".jpg")
        member.pax_headers = {"mtime": "1.5", "comment": "c", "GNU.sparse.major": "9", "path": member.name}
        tar.addfile(member)
    return (folder / "whole.tar").read_bytes()
