"""DAVIS scores of an encoder, of ready-made masks, and of the baseline that repeats the first mask."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.core.distributed import gather
from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.evaluation.encoders import dense_encoder, require_rgb
from selfpatch.evaluation.pictures import save_picture
from selfpatch.evaluation.result import NO_OUTPUT, NUM_NAMED, Cell, Output, Result
from selfpatch.evaluation.sharding import share_of
from selfpatch.evaluation.video_segmentation.clip import Clip, write_mask
from selfpatch.evaluation.video_segmentation.config import DEFAULT_STRIDE, DAVISConfig
from selfpatch.evaluation.video_segmentation.dataset import open_clips
from selfpatch.evaluation.video_segmentation.metrics import (
    frame_scores,
    means_over_objects,
    object_rows,
    seen_and_unseen,
)
from selfpatch.evaluation.video_segmentation.propagation import (
    Stopwatch,
    check_network_size,
    network_size,
    propagate_masks,
    repeat_given_masks,
)
from selfpatch.evaluation.video_segmentation.visualize import Frame, shown_frames, strip
from selfpatch.evaluation.workload import Workload
from selfpatch.models.layer_encoder import LayerEncoder

Rows = list[dict[str, Cell]]


def evaluate(encoder: Encoder | None, data: str | Path, config: DAVISConfig, output: Output = NO_OUTPUT) -> Result:
    """Propagate the first mask of each object through the encoder's patch features, and score the masks.

    Features are the encoder's own for a ViT. For another network, whose last stage has a stride of 32 pixels, they
    are those of the stage with stride 16 unless `config` names another layer; `settings` record stage, stride and grid.

    Clips may have any length and frames any size. DAVIS' first and last frames are not scored, so a clip of one or two
    frames has masks but no scores, and so has a video whose truth is secret. `per_image` holds the means over the
    objects of each sequence. `costs` holds the throughput of propagation in `frames/s`, which excludes reading
    pictures, and writing and scoring masks.

    `registry.Evaluate` explains the arguments. Without an encoder, the baseline repeats the given masks in every frame.
    The folder receives results/<sequence>/00000.png and pictures/<sequence>.jpg. Each of several processes has a share
    of the clips, and writes their masks.

    Raises:
        ValueError: the encoder is not one of RGB images or has no such layer, or the tree or one of its clips cannot be
            used; raised before the first frame is processed.
    """
    layer = None
    if encoder is not None and config.results is None:
        require_rgb(encoder, "davis")
        layer = LayerEncoder(encoder, near_stride=DEFAULT_STRIDE, **config.layer())
    clips = open_clips(data, config)
    used: dict[str, Any] = {"data": str(data), **clips[0].layout(), "sequences": [clip.name for clip in clips]}
    for clip in clips:
        clip.require_files(frames=config.results is None)
    if config.results is not None:
        return _score_results(config.results, clips, used, output)
    output.announce(_workload(layer, clips, config, used))
    mine = [clips[i] for i in share_of(len(clips))]
    for clip in mine:
        clip.require_masks()
        clip.require_frames()
        if layer is not None:
            check_network_size(clip, config, layer.patch_size)
    if output.folder is None and not any(gather([clip.has_truth for clip in mine])):
        raise ValueError(f"{data} has no masks to score with; name a folder (--out) for the masks that a server scores")
    dense = None if layer is None else dense_encoder(layer, config)
    clock = Stopwatch()
    rows: dict[str, Rows] = {}
    pictures: list[str] = []
    total, done = sum(len(clip.frames) for clip in mine), 0
    for clip in mine:
        predicted = propagate_masks(dense, clip, config, clock) if dense is not None else repeat_given_masks(clip)
        rows[clip.name], of_clip = _score_clip(clip, predicted, output, done, total)
        pictures += of_clip
        done += len(clip.frames)
    rows, pictures = dict(gather([*rows.items()])), gather(pictures)
    frames, seconds = sum(gather([clock.frames])), max(gather([clock.seconds]))
    costs = {"frames/s": frames / seconds} if frames else {}
    notes = _notes(mine)
    if encoder is None or layer is None:
        return _result(rows, {"baseline": "repeat first mask", **used}, pictures=pictures, notes=notes)
    grids = _grids(mine, layer, config)
    settings = {**config.recorded(), "patch_size": encoder.patch_size, **layer.recorded(), "grid": grids, **used}
    del settings["results"], settings["sequence_list"]
    if layer.is_staged:
        notes = [f"features of stage {layer.layer}, stride {layer.patch_size}: {grids}", *notes]
    return _result(rows, settings, pictures=pictures, costs=costs, notes=notes)


def _score_clip(
    clip: Clip, predicted: Iterable[np.ndarray], output: Output, done: int, total: int
) -> tuple[Rows, list[str]]:
    """Score the masks of a clip, and write them and a strip of a few frames if there is a folder.

    Args:
        clip: the clip.
        predicted: object numbers of each frame in turn, uint8 [H, W].
        output: folder, and progress that is told after each frame.
        done: number of frames of this process's earlier clips.
        total: number of frames of all of this process's clips.

    Returns:
        the rows of the objects, and the paths of the pictures in the folder.

    Raises:
        ValueError: a mask has another size than the truth.
        OSError: a file cannot be written.
    """
    scores, shown = list[np.ndarray](), list[Frame]()
    of_strip = shown_frames(len(clip.frames))
    for frame, mask in enumerate(predicted):
        name = clip.frames[frame]
        if clip.scored_objects(frame):
            scores.append(frame_scores(clip, frame, mask))
        if output.folder is not None and clip.is_written(frame):
            write_mask(output.folder / "results" / clip.name / f"{name}.png", clip.stored(mask))
        if output.folder is not None and frame in of_strip:
            shown.append(Frame(f"frame {name}" + " (given)" * (frame in clip.starts), clip.image(frame), mask))
        output.progress(clip.name, done + frame + 1, total)
    pictures = [] if output.folder is None else [save_picture(output.folder, clip.name, strip(shown))]
    return object_rows(clip, scores), pictures


def _notes(clips: Sequence[Clip]) -> list[str]:
    """Return what the clips of all processes have that a reader of the numbers should know."""
    notes = [
        f"{clip.name} has {counted(clip.num_objects, 'object')}: {', '.join(map(str, clip.objects))}"
        for clip in clips
        if clip.has_gaps
    ]
    notes += [
        f"left out: {counted(clip.num_missing, 'object')} that {clip.name} lists and none of its masks shows"
        for clip in clips
        if clip.num_missing
    ]
    notes, unscored = gather(notes), gather([clip.name for clip in clips if not clip.has_truth])
    if unscored:
        shown = ", ".join(unscored[:NUM_NAMED]) + (", ..." if len(unscored) > NUM_NAMED else "")
        notes.append(f"sequences without masks to score with, which are not in the numbers: {len(unscored)} ({shown})")
    return notes


def _grids(clips: Sequence[Clip], layer: LayerEncoder, config: DAVISConfig) -> str:
    """Return the sizes of the feature maps in rows x columns, e.g. `30 x 52`, each once."""
    shapes = gather([clip.size for clip in clips])
    sizes = [
        network_size(height, width, config.resolution, layer.patch_size, config.rounding) for height, width in shapes
    ]
    return ", ".join(dict.fromkeys(" x ".join(str(side // layer.patch_size) for side in size) for size in sizes))


def _workload(layer: LayerEncoder | None, clips: Sequence[Clip], config: DAVISConfig, used: dict[str, Any]) -> Workload:
    """Return the workload of encoding each frame once; frames are taken as 16:9, as most of DAVIS' are."""
    frames = sum(len(clip.frames) for clip in clips)  # those before the first object are not encoded
    sizes = {"sequences": len(clips), "frames": frames}
    if layer is None:
        return Workload(used, sizes)
    height, width = network_size(9, 16, config.resolution, layer.patch_size, config.rounding)
    grid = f"{height // layer.patch_size} x {width // layer.patch_size}"
    note = f"Frames are taken as {width} x {height} pixels, {grid} patches; propagation is not in the estimate."
    settings = {**config.recorded(), **layer.recorded(), **used}
    forward = dense_encoder(layer, config).patches
    return Workload(settings, sizes, forward, (1, len(layer.mean), height, width), frames, notes=(note,))


def _score_results(results: str, clips: Sequence[Clip], used: dict[str, Any], output: Output) -> Result:
    """Score a folder of ready-made masks, <sequence>/00000.png, from any method.

    Masks of the first and the last frame are not needed, nor are the images of the DAVIS tree.

    Raises:
        ValueError: a sequence or mask is missing, a mask's size or objects do not fit the truth, or no frame is scored.
    """
    missing = [clip.name for clip in clips if not (Path(results) / clip.name).is_dir()]
    if missing:
        raise ValueError(f"{results} has no results for {', '.join(missing)}; add them, or name the sequences to score")
    output.announce(Workload({"results": results, **used}, {"sequences": len(clips)}))
    rows: dict[str, Rows] = {}
    mine = [clips[i] for i in share_of(len(clips))]
    for clip in mine:
        clip.require_masks()
        folder, frames = Path(results) / clip.name, [i for i in range(len(clip.frames)) if clip.scored_objects(i)]
        rows[clip.name] = object_rows(
            clip, [frame_scores(clip, frame, clip.read_result(folder, frame)) for frame in frames]
        )
    rows, scorable = dict(gather([*rows.items()])), any(gather([clip.has_truth for clip in mine]))
    if not any(rows.values()):
        reason = "has 3 frames: the first and the last are not scored" if scorable else "has masks to score with"
        raise ValueError(f"no sequence of {', '.join(rows)} {reason}")
    return _result(rows, {"results": results, **used}, notes=_notes(mine))


def _result(rows: dict[str, Rows], settings: dict[str, Any], **others: Any) -> Result:
    """Return the result of all clips, from the rows of the objects of each; a clip of fewer than three frames has none.

    `settings` decide the numbers, and `others` are further fields of the result.
    """
    per_sequence = {name: means_over_objects(objects) for name, objects in rows.items() if objects}
    all_rows = [row for objects in rows.values() for row in objects]
    metrics = {**seen_and_unseen(all_rows), **means_over_objects(all_rows)} if all_rows else {}
    return Result("davis", metrics, all_rows, settings, per_image=per_sequence, **others)
