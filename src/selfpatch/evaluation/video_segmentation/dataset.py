"""Folders and files of DAVIS, and the choice between its layout and that of YouTube-VOS and MOSE (`video_folders`).

::

    ImageSets/2017/val.txt               or ImageSets/2016/val.txt, or ImageSets/480p/val.txt of the 2016 download
    JPEGImages/480p/<sequence>/00000.jpg
    Annotations/480p/<sequence>/00000.png
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from selfpatch.core.safe_paths import path_below
from selfpatch.core.text_files import numbered_lines
from selfpatch.data.images import limited
from selfpatch.evaluation.video_segmentation.clip import Clip
from selfpatch.evaluation.video_segmentation.config import DAVISConfig, Year
from selfpatch.evaluation.video_segmentation.video_folders import open_video_folders

IMAGE_SETS: dict[Year, tuple[str, ...]] = {2017: ("2017/val.txt",), 2016: ("2016/val.txt", "480p/val.txt")}


def open_clips(data: str | Path, config: DAVISConfig) -> Sequence[Clip]:
    """Return the clips of a folder: those that `config` names, or the validation set of DAVIS, or all videos.

    Raises:
        ValueError: the folder has no layout that is known, a file of it is missing, or `config` does not fit.
    """
    root, named = Path(data).expanduser(), _named(config)
    if (root / "Annotations" / "480p").is_dir():
        clips: Sequence[Clip] = _open_davis(root, config.year, named)
    elif all((root / folder).is_dir() for folder in ("Annotations", "JPEGImages")):
        if config.year is not None:
            raise ValueError(f"year is {config.year}, but {root} is no DAVIS: it has no Annotations/480p; leave it out")
        clips = open_video_folders(root, named, late_objects=config.late_objects)
    else:
        splits = [split for split in ("valid", "train", "test") if (root / split / "Annotations").is_dir()]
        advice = f"the folder of a split, e.g. {root / splits[0]}" if splits else "the folder that holds it"
        raise ValueError(
            f"no DAVIS at {root}: it has no folder Annotations/480p, nor Annotations/ and JPEGImages/ as YouTube-VOS "
            f"and MOSE; give {advice}"
        )
    if not clips:
        raise ValueError(f"no sequences to evaluate in {root}; the image set is empty")
    return limited([*{clip.name: clip for clip in clips}.values()], config.limit)


def _named(config: DAVISConfig) -> list[tuple[str, str]] | None:
    """Return the names that the settings give, each behind the place that it stands in; None if they give none."""
    if config.sequence_list is not None:
        path = Path(config.sequence_list).expanduser()
        return [(f"line {number} of {path}", name) for number, name in numbered_lines(path)]
    if config.sequences is not None:
        return [("the setting `sequences`", name) for name in config.sequences]
    return None


def _open_davis(root: Path, year: Year | None, named: list[tuple[str, str]] | None) -> list[Clip]:
    years: tuple[Year, ...] = (2017, 2016) if year is None else (year,)
    candidates = [(y, root / "ImageSets" / name) for y in years for name in IMAGE_SETS[y]]
    year, image_set = next(((y, path) for y, path in candidates if path.is_file()), (years[0], None))
    if named is None:
        if image_set is None:
            looked_for = " or ".join(str(path.relative_to(root)) for _, path in candidates)
            raise ValueError(f"the DAVIS at {root} has no {looked_for}; add it, or name the sequences")
        named = _read_image_set(image_set)
    frames, masks = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
    clips = []
    for named_by, name in named:
        # The name is that of a folder of results too.
        clip = Clip(name, frames / name, path_below(masks, name, named_by, nested=False), year)
        if not clip.masks_dir.is_dir():
            raise ValueError(f"sequence {name!r} has no folder {clip.masks_dir}; check {named_by}, or the download")
        clips.append(clip)
    return clips


def _read_image_set(path: Path) -> list[tuple[str, str]]:
    """Return the names of an image set, each behind the line that it stands in.

    A line is a name or, in the 2016 download, a frame: `/JPEGImages/480p/<name>/00000.jpg /Annotations/...`.
    """
    found = []
    for number, line in numbered_lines(path):
        frame = PurePosixPath(line.split()[0])
        found.append((f"line {number} of {path}", frame.parent.name if frame.suffix == ".jpg" else line))
    return found
