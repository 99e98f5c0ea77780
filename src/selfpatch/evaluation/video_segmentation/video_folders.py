"""Videos in folders, as YouTube-VOS and MOSE come: objects may start late, and masks may be those of starts alone.

::

    JPEGImages/<video>/00000.jpg         frames, numbered with gaps; all frames of a video, or those that are scored
    Annotations/<video>/00000.png        masks of all frames (training sets), or of those in which objects start
    meta.json                            YouTube-VOS: class and frames of each object
    ../train/meta.json                   YouTube-VOS: classes of the training set, which are the seen ones

Source: Xu et al., "YouTube-VOS" (arXiv 1809.03327); Ding et al., "MOSE" (arXiv 2302.01872).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, NotRequired

import numpy as np
from annotated_types import Len
from typing_extensions import TypedDict

from selfpatch.config.json_schema import check_json
from selfpatch.core.folders import stems_in, subfolders
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text_files import read_json
from selfpatch.evaluation.result import Cell
from selfpatch.evaluation.video_segmentation.clip import MAX_SHADES, VOID, Clip, ObjectValues, is_black_and_white


class Listed(TypedDict):
    """An object of `meta.json`."""

    category: NotRequired[str]
    frames: Annotated[list[str], Len(1)]
    """Frames that are scored, the first of which has the object's given mask."""


class _Video(TypedDict):
    objects: dict[str, Listed]


class _Meta(TypedDict):
    videos: dict[str, _Video]


@dataclass(frozen=True)
class VideoClip(Clip):
    """One video, whose objects are given in one frame each, not all in the first.

    An object is given in the first of its listed frames whose mask holds it; without a list, in the first frame whose
    mask holds it. It is scored in its listed frames (else in all) after that one, the last included, if all of the
    clip's masks are there. Frames before the first object hold none.
    """

    listed: Mapping[int, Listed] | None = None
    """Objects of the video by their values in the files; None without `meta.json`."""
    seen: frozenset[str] | None = None
    """Classes of the training set; None if they are not known."""
    late_objects: bool = True
    """Follow objects that start after the first one too."""

    def layout(self) -> dict[str, int | str]:
        """Return what a result records of the layout."""
        layout = "folders" if self.listed is None else "folders with meta.json"
        return {"layout": layout, "late_objects": self.late_objects}

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Index of the frame in which each object is given."""
        return tuple(self._starts_by_value.values())

    @cached_property
    def has_truth(self) -> bool:
        """True if every frame in which an object is scored has a mask."""
        scored = frozenset[int]().union(*self._scored.values())
        return bool(scored) and all(self.frames[frame] in self._masked for frame in scored)

    def given(self, frame: int) -> np.ndarray | None:
        """Return the mask of the objects that are given in a frame, or None if none is."""
        started = [number for number, start in enumerate(self.starts, start=1) if start == frame]
        if not started:
            return None
        mask = self.mask(frame)  # where others than the given objects have no label, or one that is not to be seen
        return np.where(np.isin(mask, started), mask, 0).astype(np.uint8)

    def scored_objects(self, frame: int) -> tuple[int, ...]:
        """Return the numbers of the objects that are scored in a frame."""
        if not self.has_truth:
            return ()
        return tuple(number for number, value in enumerate(self.objects, start=1) if frame in self._scored[value])

    def is_written(self, frame: int) -> bool:
        """Return whether a server scores the mask of a frame: those of `meta.json`."""
        return self.listed is None or frame in self._listed_frames

    def columns(self, number: int) -> dict[str, Cell]:
        """Return what the row of an object says in addition."""
        if self.listed is None:
            return {}
        category = self.listed[self.objects[number - 1]].get("category", "")
        if self.seen is None:
            return {"class": category}
        return {"class": category, "classes": category and ("seen" if category in self.seen else "unseen")}

    @property
    def has_gaps(self) -> bool:
        """False: numbers with gaps are usual, and listed."""
        return False

    @property
    def num_missing(self) -> int:
        """Number of listed objects that no mask of their frames holds."""
        return len(self.listed) - len(self._all_starts) if self.listed is not None and self.late_objects else 0

    @property
    def _all_starts(self) -> dict[int, int]:
        """Index of the first frame whose mask holds each object, by the object's value, ascending."""
        return self._starts_and_binary[0]

    @cached_property
    def _starts_and_binary(self) -> tuple[dict[int, int], bool]:
        """Frames of `_all_starts`, and True if the masks are black and white, so that white is the object 1."""
        starts: dict[int, int] = {}
        first_white: int | None = None
        for frame, name in enumerate(self.frames):
            waiting = (
                None
                if self.listed is None
                else {value for value, one in self.listed.items() if value not in starts and name in one["frames"]}
            )
            if name not in self._masked or waiting == set():
                continue
            values, grey = self._values(self._mask_file(frame))
            held = np.unique(values).tolist()
            if first_white is None and self.listed is None and VOID in held and is_black_and_white(values, grey):
                first_white = frame
            found = set(held) - {0, VOID} if waiting is None else waiting & set(held)
            starts |= {value: frame for value in found if value not in starts}
            if starts and not self.late_objects:
                break
        if not starts and first_white is not None:
            return {1: first_white}, True
        return dict(sorted(starts.items())), False

    @cached_property
    def _starts_by_value(self) -> dict[int, int]:
        starts = self._all_starts
        first = min(starts.values(), default=0)
        return {value: start for value, start in starts.items() if self.late_objects or start == first}

    @cached_property
    def _scored(self) -> dict[int, frozenset[int]]:
        """Indices of the frames in which each object is scored if there are masks, by the object's value."""
        scored = {}
        for value, start in self._starts_by_value.items():
            names = self.frames if self.listed is None else self.listed[value]["frames"]
            scored[value] = frozenset(index for index in map(self._indices.__getitem__, names) if index > start)
        return scored

    @cached_property
    def _listed_frames(self) -> frozenset[int]:
        return frozenset(self._indices[name] for one in (self.listed or {}).values() for name in one["frames"])

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.frames)}

    @cached_property
    def _masked(self) -> frozenset[str]:
        return frozenset(stems_in(self.masks_dir, ".png"))

    @cached_property
    def _found(self) -> ObjectValues:
        return ObjectValues(tuple(self._starts_by_value), binary=self._starts_and_binary[1])

    @property
    def _known_values(self) -> tuple[int, ...]:
        return self.objects if self.listed is None else tuple(self.listed)

    def require_files(self, *, frames: bool) -> None:
        """Raise ValueError if the clip has no mask, or lacks a listed frame, or, with `frames`, an image."""
        if not self._masked:
            raise ValueError(
                f"{self.name} has no mask in {self.masks_dir}; add those of the frames where objects start"
            )
        images = frozenset(stems_in(self.frames_dir, ".jpg"))
        for value, one in (self.listed or {}).items():
            for name in one["frames"]:
                if name not in self._indices or (frames and name not in images):
                    raise ValueError(
                        f"{self.name} has no image {name}.jpg, which meta.json lists for object {value}; add it"
                    )
        for name in self.frames if frames else ():
            if name not in images:
                raise ValueError(f"{self.name} has no image {self.frames_dir / name}.jpg; every mask needs one")

    def require_masks(self) -> None:
        """Raise ValueError if no object is given, or one of the masks that are needed is unusable."""
        if self.num_objects == 0:
            raise ValueError(
                f"no mask of {self.name} holds an object, a number from 1 to {VOID - 1}; there is nothing to propagate"
            )
        if self.listed is None and self.num_objects > MAX_SHADES and super().has_gaps:
            raise ValueError(
                f"the masks of {self.name} have {self.num_objects} values with gaps between them; these look like "
                "shades, not like objects"
            )
        needed = {*self.starts, *(frame for frame in range(len(self.frames)) if self.scored_objects(frame))}
        for frame in sorted(needed):
            self.require_size(frame)


def open_video_folders(root: Path, names: list[tuple[str, str]] | None, *, late_objects: bool) -> list[VideoClip]:
    """Return the clips of a folder, all of them or those that are named, each name behind the place that it stands in.

    Raises:
        ValueError: `meta.json` is damaged, or a video has no folder of masks.
    """
    meta = _read_meta(root / "meta.json")
    training = root.parent / "train" / "meta.json"
    seen = None
    if meta is not None and training.is_file() and training.parent.resolve() != root.resolve():
        objects = [one for video in (_read_meta(training) or {}).values() for one in video.values()]
        seen = frozenset(one["category"] for one in objects if "category" in one)
    if names is None:
        videos = list(meta) if meta is not None else [path.name for path in subfolders(root / "Annotations")]
        names = [(str(root / "meta.json" if meta is not None else root / "Annotations"), name) for name in videos]
    clips = []
    for named_by, name in names:
        masks = path_below(root / "Annotations", name, named_by, nested=False)  # the name of a folder of results too
        if not masks.is_dir():
            raise ValueError(f"video {name!r} has no folder {masks}; check {named_by}, or the download")
        if meta is not None and name not in meta:
            raise ValueError(f"{named_by} names {name!r}, which {root / 'meta.json'} has not; check the name")
        listed = None if meta is None else meta[name]
        frames = root / "JPEGImages" / name
        clips.append(VideoClip(name, frames, masks, 2017, listed, seen, late_objects))
    return clips


def _read_meta(path: Path) -> dict[str, dict[int, Listed]] | None:
    """Return the objects of each video, by their values in the files; None if there is no file."""
    if not path.is_file():
        return None
    videos = check_json(read_json(path), _Meta, str(path))["videos"]
    for name, video in videos.items():
        for number in video["objects"]:
            if not (re.fullmatch("[1-9][0-9]{0,2}", number) and int(number) < VOID):
                raise ValueError(
                    f"{path} has the object {number!r} of {name}; objects have numbers from 1 to {VOID - 1}"
                )
    return {name: {int(key): one for key, one in video["objects"].items()} for name, video in videos.items()}
