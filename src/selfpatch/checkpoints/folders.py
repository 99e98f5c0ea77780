"""Folders as weights: run directories, exports, and folders of Hugging Face and timm."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Gt

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.json_schema import shown
from selfpatch.config.schema import checked
from selfpatch.core.folders import visible_entries
from selfpatch.core.text_files import read_json
from selfpatch.models.backbones.config import AnyBackboneConfig, ViTConfig

Config = TypeVar("Config", bound=AnyBackboneConfig)

FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "backbone.safetensors",
)
"""Files of weights in a folder, the first that is there counts."""
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
_ACTIVATIONS = ("gelu", "silu", "relu")
"""Activations of the networks that are built here, as transformers calls them; each family has one."""


def is_run(path: Path) -> bool:
    """Return whether a folder is a run directory."""
    return (path / "config.yaml").is_file()


def weights_file(path: Path) -> Path:
    """Return the file itself, or the one that a folder holds: the newest checkpoint of a run, else its export.

    Raises:
        ValueError: a run has no checkpoint yet, or the folder holds no weights, or several.
    """
    if not path.is_dir():
        return path
    if is_run(path):
        run = RunDirectory.open(path)
        file = run.checkpoints.newest() or run.exported_backbone
        if not file.is_file():
            raise ValueError(f"{run.path} has no checkpoint yet; wait for the first one, or start the run again")
        return file
    found = [path / name for name in FILES if (path / name).is_file()][:1]
    found = found or [file for file in visible_entries(path) if file.name.endswith(_ENDINGS) and file.is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        names = f"{found[0].name} and {found[1].name}" + " and others" * (len(found) > 2)
        raise ValueError(f"{path} is no run, and holds {len(found)} files of weights, {names}; name one of them")
    snapshots = sorted(path.glob("snapshots/*/"))  # the cache of Hugging Face
    if len(snapshots) == 1:
        return weights_file(snapshots[0])
    raise ValueError(f"{path} is no run: it has no config.yaml, and no weights either; {_advice(path)}")


def _advice(path: Path) -> str:
    if (path / "model.onnx").is_file():
        return "model.onnx is a graph; give the weights that it was exported from"
    if (path / ".metadata").is_file():
        return "convert this distributed checkpoint: python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
    return f"name the --out of a `selfpatch pretrain`, or a folder with {FILES[0]}"


def described(config: Config, folder: Path) -> Config:
    """Return a configuration told from tensors, completed by the JSON files of a folder of transformers or timm.

    These are the number of heads of a ViT, and the normalisation of images.

    Raises:
        ValueError: the files describe another network than one that is built here.
    """
    content, preprocessor = (_json(folder / name) for name in ("config.json", "preprocessor_config.json"))
    activation = content.get("hidden_act", _ACTIVATIONS[0])
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"{folder} holds a network with the activation {shown(activation)}, which is not built here; give another"
        )
    arguments, pretrained = (content.get(name) for name in ("model_args", "pretrained_cfg"))
    arguments, pretrained = (x if isinstance(x, Mapping) else {} for x in (arguments, pretrained))
    changes: dict[str, Any] = {}
    heads = content.get("num_attention_heads", arguments.get("num_heads"))
    if isinstance(config, ViTConfig) and heads is not None:
        changes["num_heads"] = checked(heads, Annotated[int, Gt(0)], f"num_attention_heads in {folder / 'config.json'}")
    mean = preprocessor.get("image_mean", pretrained.get("mean"))
    std = preprocessor.get("image_std", pretrained.get("std"))
    if mean is not None and std is not None:
        changes["mean"] = checked(mean, tuple[float, ...], f"the mean in {folder}")
        changes["std"] = checked(std, tuple[Annotated[float, Gt(0)], ...], f"the standard deviation in {folder}")
        if not len(changes["mean"]) == len(changes["std"]) == config.in_channels:
            raise ValueError(
                f"{folder} describes {len(changes['mean'])} channels, but its network takes {config.in_channels}; "
                "correct mean and standard deviation there"
            )
    return replace(config, **changes)


def _json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} does not describe a network in JSON; download it again, or name the file of weights")
    return content
