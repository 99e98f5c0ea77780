"""Folders as weights: run directories, exports, and folders of Hugging Face and timm."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Gt

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.checkpoints.sharded import is_sharded_checkpoint
from selfpatch.config.json_schema import shown
from selfpatch.config.schema import checked
from selfpatch.core.folders import visible_entries
from selfpatch.core.text import counted
from selfpatch.core.text_files import read_json
from selfpatch.models.backbones.build import timm_activation
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
DESCRIPTIONS = ("config.json", "preprocessor_config.json")
"""Files of transformers that describe a network and its images; timm's config.json describes both."""
_EPS = {"layer_norm_eps": ("norm_eps", Annotated[float, Gt(0)])}
_SETTINGS: dict[str, dict[str, tuple[str, Any]]] = {
    "vit": {
        "num_attention_heads": ("num_heads", Annotated[int, Gt(0)]),
        "rope_theta": ("rope_base", Annotated[float, Gt(1)]),
        **_EPS,
    },
    "convnext": _EPS,
}
"""Settings in config.json that no tensor shows, by family: field of its configuration, and type."""
_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "vit, gelu": {"hidden_act": ("gelu",)},
    "vit, swiglu": {"hidden_act": ("silu", "gelu")},  # DINOv2's config.json names the one of its plain MLP
    "swin": {"hidden_act": ("gelu",), "layer_norm_eps": (1e-5,)},
    "convnext": {"hidden_act": ("gelu",)},
    "resnet": {"hidden_act": ("relu",), "downsample_in_bottleneck": (False,)},
}
"""Settings in config.json that cannot be chosen here, by family, and the values that they may have."""
_TIMM_ARGUMENTS = {"img_size", "dynamic_img_size", "strict_img_size", "in_chans", "num_classes", "global_pool"}
"""Arguments of timm's models that change no tensor but positions and first layer."""


def is_run(path: Path) -> bool:
    """Return whether a folder is a run directory."""
    return (path / "config.yaml").is_file()


def run_of(path: Path) -> RunDirectory | None:
    """Return the run that a path of weights belongs to: its folder, one of its checkpoints or its export."""
    return next((RunDirectory.open(folder) for folder in (path, path.parent.parent) if is_run(folder)), None)


def weights_file(path: Path) -> Path:
    """Return the file itself, or the one that a folder holds: the newest checkpoint of a run, else its export.

    Raises:
        ValueError: a run has no checkpoint yet, or the folder holds no weights, or several.
    """
    if not path.is_dir() or is_sharded_checkpoint(path):
        return path
    if is_run(path):
        run = RunDirectory.open(path)
        file = run.checkpoints.newest() or run.exported_backbone
        if not file.exists():
            raise ValueError(f"{run.path} has no checkpoint yet; wait for the first one, or start the run again")
        return file
    found = [path / name for name in FILES if (path / name).is_file()][:1]
    found = found or [file for file in visible_entries(path) if file.name.endswith(_ENDINGS) and file.is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        names = f"{found[0].name} and {found[1].name}" + " and others" * (len(found) > 2)
        raise ValueError(
            f"{path} is no run, and holds {counted(len(found), 'file')} of weights, {names}; name one of them"
        )
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

    Tensors show the sizes of a network; these files tell what no shape shows: the number of heads, the epsilon of the
    norms and the base of the rotations of a ViT, and the normalisation of images.

    Raises:
        ValueError: the files describe another network than one that is built here.
    """
    content, preprocessor = (_json(folder / name) for name in DESCRIPTIONS)
    _check_fixed(config, content, folder)
    arguments, pretrained = (content.get(name) for name in ("model_args", "pretrained_cfg"))
    arguments, pretrained = (x if isinstance(x, Mapping) else {} for x in (arguments, pretrained))
    changes: dict[str, Any] = {}
    # transformers builds the first ConvNeXts with an epsilon of 1e-6 whatever their config.json says.
    if isinstance(config, ViTConfig) or content.get("model_type") == "dinov3_convnext":
        for name, (field, kind) in _SETTINGS[config.family].items():
            value = content.get(name, arguments.get(field))
            if value is not None:
                changes[field] = checked(value, kind, f"{name} in {folder / DESCRIPTIONS[0]}")
    mean = preprocessor.get("image_mean", pretrained.get("mean"))
    std = preprocessor.get("image_std", pretrained.get("std"))
    if mean is not None and std is not None:
        changes["mean"] = checked(mean, tuple[float, ...], f"the mean in {folder}")
        changes["std"] = checked(std, tuple[Annotated[float, Gt(0)], ...], f"the standard deviation in {folder}")
        if not len(changes["mean"]) == len(changes["std"]) == config.in_channels:
            raise ValueError(
                f"{folder} describes {counted(len(changes['mean']), 'channel')}, but its network takes "
                f"{config.in_channels}; correct mean and standard deviation there"
            )
    return replace(config, **changes)


def _check_fixed(config: AnyBackboneConfig, content: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError if a folder describes a variant of a network that is not built here."""
    family = f"{config.family}, {config.mlp}" if isinstance(config, ViTConfig) else config.family
    for name, allowed in _FIXED.get(family, {}).items():
        if content.get(name, allowed[0]) not in allowed:
            what = "the activation" if name == "hidden_act" else f"{name} being"
            raise ValueError(
                f"{folder} holds a network with {what} {shown(content[name])}, which is not built here; give another"
            )
    architecture, arguments = content.get("architecture"), content.get("model_args")
    if config.timm_model is not None or not isinstance(architecture, str):
        return
    given = arguments.get("act_layer") if isinstance(arguments, Mapping) else None
    activation = timm_activation(architecture) if given is None else given
    if activation is not None and activation not in _FIXED[family]["hidden_act"]:
        raise ValueError(
            f"{folder} holds a network with the activation {shown(activation)}, which is not built here; give another"
        )


def timm_architecture(folder: Path) -> str | None:
    """Return the name of timm's model whose weights a folder holds as timm saves them, or None.

    A model with arguments that change its sizes is none of that name; it is told from its tensors.
    """
    content = _json(folder / DESCRIPTIONS[0])
    name, arguments = content.get("architecture"), content.get("model_args")
    harmless = not arguments or (isinstance(arguments, Mapping) and set(arguments) <= _TIMM_ARGUMENTS)
    return name if isinstance(name, str) and harmless else None


def _json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} does not describe a network in JSON; download it again, or remove it")
    return content
