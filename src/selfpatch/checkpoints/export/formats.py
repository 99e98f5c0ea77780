"""Records and rules that all export formats share."""

from dataclasses import dataclass

from selfpatch.models.backbones.config import AnyBackboneConfig, ConvNeXtConfig, ResNetConfig, ViTConfig


@dataclass(frozen=True)
class ExportSummary:
    """Description of the files that a format's `write` has put in its folder."""

    usage: str
    """Lines of code that load them, with `{folder}` in place of the folder's name."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of images whose features have to agree."""
    notes: tuple[str, ...] = ()
    """Caveats for the user."""
    has_image: bool = True
    """True if the exported model's image feature is the trained network's."""


@dataclass(frozen=True)
class OnHub:
    """Use of a format's files from the Hugging Face Hub."""

    library: str
    """Name of the library there."""
    usage: str
    """Lines of code that load them, with `{repository}` in place of the repository's name."""


def native_size(config: AnyBackboneConfig) -> int:
    """Return the image side in pixels that fits a network: its grid of positions, or one window in the last stage."""
    if isinstance(config, ResNetConfig | ConvNeXtConfig):
        return 2 * config.patch_size
    return config.patch_size * (config.grid if isinstance(config, ViTConfig) else config.window)
