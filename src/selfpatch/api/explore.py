"""Write a page that compares patches of images by their features."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfpatch.api.encoder import load
from selfpatch.checkpoints.folders import is_run, weights_file
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.run import RunConfig
from selfpatch.config.schema import override
from selfpatch.core.atomic_io import make_folder
from selfpatch.core.types import Encoder
from selfpatch.data.decode.pillow import Picture
from selfpatch.data.images import evenly_spread, read_each
from selfpatch.models.debiased import debiased
from selfpatch.training.factory import open_training_data
from selfpatch.visualization.encoded import EncodedPicture, check_resolution, encode_picture, read_file
from selfpatch.visualization.explorer.config import ExploreConfig
from selfpatch.visualization.explorer.page import write_explorer

Weights = str | Path | Encoder
EARLY = 0.5
"""Largest share of a run's steps after which a checkpoint still shows the beginning; otherwise an untrained network
does."""


def explore(
    weights: Weights | Sequence[str | Path] | Mapping[str, Weights] | None,
    images: str | Path | Sequence[str | Path],
    out: str | Path = "explore.html",
    config: ExploreConfig | None = None,
    *,
    device: str = "auto",
    load_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Write one HTML file in which a click on a patch shows the similar patches of all images, and return its path.

    Args:
        weights: weights as `selfpatch.load` takes them with `device` and `load_options`, or an encoder; several ones,
            also by the names that the page shows, stand side by side. If None, `images` is a run, of which the first
            checkpoint (or the untrained network, if that is gone) and the last one are shown.
        images: image files, or a run, which stands for its held-out images.
        out: HTML file.
        config: resolution, size of the page, and how positives are picked; if None, the defaults. `settings` overrides
            its fields.
        device: device to run on.
        load_options: options of `selfpatch.load`.
        settings: fields of `ExploreConfig`; they override `config`.

    Raises:
        ValueError: weights or an image cannot be read, a setting is unknown or out of range, or the page would be too
            large.
    """
    config = override(config or ExploreConfig(), settings)
    if Path(out).is_dir():
        raise ValueError(f"{out} is a folder; name an HTML file with --out, e.g. {Path(out) / 'explore.html'}")
    make_folder(Path(out).parent)
    run = RunDirectory.open(images) if isinstance(images, str | Path) and is_run(Path(images)) else None
    if weights is None:
        if run is None:
            raise ValueError("no weights were named; give --weights, or a run directory in place of images")
        weights = _first_and_last(run)
    options = {"device": device, **(load_options or {})}
    encoders = {
        name: debiased(load(network, **options) if isinstance(network, str | Path) else network, config.debias)
        for name, network in _named(weights).items()
    }
    for encoder in encoders.values():
        check_resolution(encoder, config.resolution)
    if run is not None:
        title = f"Held-out images of {run.path.resolve().name}"
        names, encoded = _encode_run(run, encoders, config)
    else:
        title, files = "Patch features", [images] if isinstance(images, str | Path) else list(images)
        names, encoded = _encode_files(files, encoders, config)
    return write_explorer(out, title, names, encoded, config)


def _first_and_last(run: RunDirectory) -> dict[str, Weights]:
    """Return the weights at the beginning and at the end of a run, by their names on the page."""
    last = weights_file(run.path)
    steps = {file: step for step, file in run.checkpoints.all()}
    first = next((file for file, step in steps.items() if last in steps and step <= EARLY * steps[last]), None)
    name = f"step {steps[last]}" if last in steps else "trained"
    if first is None:
        return {"untrained": f"untrained:{run.path}", name: str(last)}
    return {f"step {steps[first]}": str(first), name: str(last)}


def _named(weights: Weights | Sequence[str | Path] | Mapping[str, Weights]) -> dict[str, Weights]:
    """Return networks by the names that the page shows, the last part of a path if these differ."""
    if isinstance(weights, Mapping):
        return dict(weights)
    if not isinstance(weights, str | Path | Sequence):
        return {type(weights).__name__: weights}
    sources = [str(weights)] if isinstance(weights, str | Path) else list(dict.fromkeys(map(str, weights)))
    short = [_short(source) for source in sources]
    return dict(zip(short if len(set(short)) == len(short) else sources, sources, strict=True))


def _short(source: str) -> str:
    """Return `untrained:weights.pth` of `untrained:some/folder/weights.pth`."""
    kind, colon, path = source.rpartition(":")
    return kind + colon + (path if kind in ("hf", "timm") else Path(path).name or path)


def _encode_files(
    files: Sequence[str | Path], encoders: Mapping[str, Encoder], config: ExploreConfig
) -> tuple[list[str], dict[str, list[EncodedPicture]]]:
    encoded = {
        name: [encode_picture(encoder, read_file(encoder, file), config.resolution, file) for file in files]
        for name, encoder in encoders.items()
    }
    return _distinct_names(list(map(Path, files))), encoded


def _distinct_names(files: Sequence[Path]) -> list[str]:
    """Return the names of files, with the folder where several have one name, as frames of videos do."""
    counts = Counter(file.name for file in files)
    return [file.name if counts[file.name] == 1 else f"{file.parent.name}/{file.name}" for file in files]


def _encode_run(
    run: RunDirectory, encoders: Mapping[str, Encoder], config: ExploreConfig
) -> tuple[list[str], dict[str, list[EncodedPicture]]]:
    """Encode held-out images of a run, or training images if none were held out; unreadable ones are left out."""
    run_config = RunConfig.from_saved(run.settings, run.settings_file)
    data = open_training_data(run_config)
    index, indices = data.held_out_index, data.held_out_indices
    if not len(indices):
        index, indices = data.index, data.indices

    def keep(picture: Picture, _: int) -> Picture:
        return picture

    readable, pictures = read_each(index, evenly_spread(indices, config.limit), run_config.channels, keep)
    names = [index.name(i) for i in readable]
    encoded = {
        network: [
            encode_picture(encoder, picture, config.resolution, name)
            for picture, name in zip(pictures, names, strict=True)
        ]
        for network, encoder in encoders.items()
    }
    return names, encoded
