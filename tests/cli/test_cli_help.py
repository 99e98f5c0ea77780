"""Help pages: every string is there, starts with a noun or a verb, and numbers say their unit and default."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import tyro

from selfpatch.cli import parsing, resume
from selfpatch.cli.main import COMMANDS, main
from selfpatch.config.recipes import recipe_names
from selfpatch.config.schema import settings
from selfpatch.evaluation.registry import EVALUATIONS
from selfpatch.methods.registry import METHODS, OBJECTIVES

BARE_STARTS = {
    "of", "that", "by", "as", "in", "on", "with", "from", "to", "what", "which", "how", "where", "whether", "none",
    "so",
}  # fmt: skip
"""Words that a sentence of help must not start with."""

UNITS = {
    # what is counted
    "number", "numbers", "pixel", "pixels", "px", "patch", "patches", "image", "images", "crops", "epoch", "epochs",
    "step", "steps", "second", "seconds", "minute", "minutes", "mb", "gb", "times", "iterations", "processes", "block",
    "blocks", "head", "heads", "layers", "class", "classes", "index", "level", "levels", "channels", "proposals",
    # what is measured
    "side", "sides", "size", "width", "depth", "length", "radius", "resolution", "area", "memory",
    "degrees", "centimetres",
    # numbers without a unit
    "factor", "factors", "rate", "rates", "probability", "probabilities", "fraction", "share", "ratio", "temperature",
    "temperatures", "momentum", "decay", "deviation", "weight", "weights", "seed", "norm", "threshold", "thresholds",
    "scale", "exponent", "cosine", "magnitude", "parameter", "parameters", "smoothing", "shift", "change", "range",
}  # fmt: skip
"""Words of which the help of a number holds at least one: what it counts or measures."""


@dataclass(frozen=True)
class Option:
    """One option of a help page.

    Attributes:
        page: command line without `--help`.
        name: as it is written.
        values: what it takes, as the page shows it: `INT`, `{None}|FLOAT`, `STR`.
        text: its help with default, as the page shows it.
    """

    page: str
    name: str
    values: str
    text: str

    @property
    def sentence(self) -> str:
        """The help without its default."""
        return re.sub(r"\s*\((default: .*|required|repeatable)\)", "", self.text, flags=re.DOTALL).strip()

    @property
    def is_number(self) -> bool:
        return bool(re.search(r"\b(INT|FLOAT)\b", self.values))


def problems(option: Option) -> Iterator[str]:
    """Everything that is wrong with the help of an option."""
    words = [word.lower() for word in re.findall(r"[A-Za-z]+", option.sentence)]
    where = f"{option.page} {option.name}: {option.text!r}"
    if not words:
        yield f"{where} has no help"
    elif "\n" in option.sentence:
        yield f"{where} keeps the line breaks of the source"
    elif words[0] in BARE_STARTS:
        yield f"{where} starts with {words[0]!r}"
    if option.is_number and words and not UNITS & {*words}:
        yield f"{where} is a number without a unit"
    if option.is_number and not re.search(r"\((default: .+|required)", option.text):
        yield f"{where} is a number without a default"


class _Captured(BaseException):
    """Carries what a command would have shown help of."""


def page(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[Option]]:
    """The description and the options that `selfpatch COMMAND --help` shows."""

    def capture(kind: Any, **tyro_options: Any) -> Any:
        raise _Captured(kind, tyro_options)

    monkeypatch.setattr(parsing.tyro, "cli", capture)
    with pytest.raises(_Captured) as captured:
        main([*command.split(), "--help"])
    kind, tyro_options = captured.value.args
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(
            kind, **{key: tyro_options[key] for key in ("prog", "description", "default") if key in tyro_options}
        )
    options = [
        Option(command, (action.option_strings or [action.dest])[0], str(action.metavar), str(action.help or ""))
        for action in parser._actions
        if "--help" not in action.option_strings
    ]
    return str(parser.description), options


def commands() -> list[str]:
    """Every command, every evaluation, and every variant and preset of each."""
    found = [command for command in COMMANDS if command != "evaluate"] + ["evaluate all", "evaluate --compare"]
    found += [f"pretrain --recipe {name}" for name in recipe_names()]
    found += [f"pretrain --objective {name}" for name in OBJECTIVES] + [f"pretrain --method {name}" for name in METHODS]
    for name, kind in EVALUATIONS.items():
        key, variants = kind.variants or ("", {"": kind})
        for variant, config in variants.items():
            chosen = f"evaluate {name}" + (f" --{key.replace('_', '-')} {variant}" if key else "")
            found += [chosen, *(f"{chosen} --preset {preset}" for preset in config.presets)]
    return found


@pytest.mark.parametrize(
    "command",
    # A recipe changes defaults only.
    [pytest.param(name, marks=[pytest.mark.slow] if " --recipe " in name else []) for name in commands()],
)
def test_every_help_string_is_clear(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    description, options = page(command, monkeypatch)
    assert options
    assert description.split()[0].lower() not in BARE_STARTS
    found = [problem for option in options for problem in problems(option)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("values", "text", "problem"),
    [
        ("INT", "Number of steps. (default: 3)", None),
        ("STR", "Folder of the images. (required)", None),
        ("FLOAT", "Of fpn and upernet: rate of each layer. (default: 0.1)", "starts with 'of'"),
        ("STR", "None: the run's own. (default: None)", "starts with 'none'"),
        ("STR", "what is drawn (default: x)", "starts with 'what'"),
        ("STR", "(default: x)", "has no help"),
        ("STR", "", "has no help"),
        ("STR", "Folder of\nthe images. (required)", "keeps the line breaks"),
        ("FLOAT", "Smaller is better. (default: 0.1)", "without a unit"),
        ("{None}|INT", "Number of steps.", "without a default"),
    ],
)
def test_bad_help_is_noticed(values: str, text: str, problem: str | None) -> None:
    found = list(problems(Option("show", "--planted", values, text)))
    assert (not found) if problem is None else any(problem in each for each in found), found


def test_a_planted_setting_reaches_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    @settings
    class Planted:
        """Options with bad help."""

        rate: float = 1.0
        """By which the others learn."""
        bare: int = 2

    monkeypatch.setattr(resume, "run", lambda arguments: parsing.read_options(Planted, "planted", arguments))
    _, options = page("resume", monkeypatch)
    found = "\n".join(problem for option in options for problem in problems(option))
    assert "--rate" in found
    assert "starts with 'by'" in found
    assert "--bare: '(default: 2)' has no help" in found


@pytest.mark.parametrize("name", [name for name, config in EVALUATIONS.items() if config.presets or config.variants])
def test_presets_stand_in_the_help_and_in_a_table(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", name, "--presets"]) == 0
    table = capsys.readouterr().out
    key, variants = EVALUATIONS[name].variants or ("", {"": EVALUATIONS[name]})
    for variant, config in variants.items():
        _, options = page(f"evaluate {name}" + (f" --{key} {variant}" if key else ""), monkeypatch)
        shown = next((option.values for option in options if option.name == "--preset"), "")
        assert all(preset in table and preset in shown for preset in config.presets)


HEAVY = ("torch", "torchvision", "timm", "numpy", "scipy", "skimage", "PIL", "matplotlib", "tensorboard", "safetensors")


@pytest.mark.slow
def test_help_imports_nothing_heavy() -> None:
    calls = [[], ["--help"], ["--version"], ["evaluate"], *([*command.split(), "--help"] for command in commands())]
    calls = [call for call in calls if not {"--objective", "--method"} & {*call} or "pretrain" not in call]
    calls += [["evaluate", name, "--presets"] for name, config in EVALUATIONS.items() if config.presets]
    program = f"""
import contextlib, io, sys
import selfpatch
for module in {HEAVY}:
    assert module not in sys.modules, f"import selfpatch imports {{module}}"
from selfpatch.cli.main import main
for call in {calls}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(call)
    for module in {HEAVY}:
        assert module not in sys.modules, f"{{call}} imports {{module}}"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


WITH_DRY_RUN = {"pretrain", "evaluate all", *(f"evaluate {name}" for name in EVALUATIONS)}
NETWORK = "weights side num-heads position-embedding allow-partial device"
OPTIONS = {
    "pretrain": """
        data out channels recipe method objective model patch-size init teacher allow-partial epochs minutes batch-size
        accumulate seed device precision compile packing parallel activation-checkpointing loss-weights
        backbone.embed-dim backbone.depth backbone.depths backbone.num-heads backbone.rope backbone.registers
        lora.rank lora.alpha lora.layers lora.last-blocks
        backbone.drop-path backbone.position-embedding backbone.positions backbone.rope-rescale backbone.initialisation
        backbone.freeze-patch-embed backbone.frozen-blocks backbone.keep-class-token backbone.layer-scale
        crops.global-size crops.global-scale crops.num-local crops.local-size crops.local-scale crops.resampling
        crops.flip crops.jitter
        crops.brightness crops.contrast crops.saturation crops.hue crops.grey crops.blur crops.blur-radius
        crops.solarize
        masks.kind masks.ratio masks.share-unmasked masks.schedule masks.smallest-block
        pairs.num-clean pairs.clean-size pairs.clean-scale
        pairs.num-contained pairs.contained-size pairs.contained-scale
        anchor.size anchor.colours anchor.refresh-every anchor.max-refreshes
        optimizer.name optimizer.momentum optimizer.base-lr optimizer.min-lr optimizer.warmup-epochs
        optimizer.warmup-start-lr optimizer.warmup-includes-peak optimizer.cosine-over optimizer.lr-delay
        optimizer.update-interval optimizer.weight-decay optimizer.weight-decay-end
        optimizer.weight-decay-on optimizer.layer-decay optimizer.patch-embed-lr-scale optimizer.head-lr-scale
        optimizer.clip optimizer.clip-mode
        optimizer.freeze-last-layer-epochs optimizer.freeze-backbone-epochs optimizer.teacher-momentum
        optimizer.teacher-momentum-end optimizer.teacher-moves
        optimizer.teacher-temp optimizer.warmup-teacher-temp optimizer.teacher-patch-temp
        optimizer.warmup-teacher-patch-temp optimizer.warmup-teacher-temp-epochs
        optimizer.teacher-temp-interval
        loader.workers loader.render loader.max-pixels loader.max-bad loader.timeout loader.held-out loader.fingerprint
        watch.log-every watch.evaluate-every watch.knn-images watch.picture-images
        logging.loggers logging.project
        checkpoint.every-minutes checkpoint.every-steps checkpoint.keep checkpoint.keep-every-epochs checkpoint.format
        checkpoint.max-nonfinite""",
    "resume": "device workers parallel refuse-changed",
    "evaluate davis": f"""{NETWORK} data out limit debias block stage output-stride dilate preset results resolution
        rounding resampling radius window topk context-frames temperature upsampling upsample-to std precision
        max-memory year sequences sequence-list late-objects""",
    "evaluate knn": f"{NETWORK} data out limit ks temperature resize crop precision encode-batch",
    "evaluate correspond": f"""{NETWORK} data out limit debias block stage output-stride dilate preset facet depth
        stride resolution shape sampling places interpolated alignment alphas threshold split layout categories
        pairs-per-category precision max-pictures""",
    "evaluate detect": f"""{NETWORK} data out preset train-split test-split limit negatives detector pyramid blocks
        heads rpn-depth box-norm mask-norm pyramid-norm train-batch-norms precise-bn width anchor-scale
        min-anchor-iou anchors-inside proposals train-proposals rois rpn-loss box-loss augmentation short-sides
        long-side batch-size epochs decay-at warmup-steps optimizer lr lr-batch weight-decay weight-decay-on layer-decay
        drop-path clip precision seed workers max-pictures""",
    "evaluate discover": f"""{NETWORK} data out limit debias block stage output-stride dilate methods facet centre
        num-patches tau tau-quantile maskcut-tau max-objects mass head split image-list hard precision max-pictures""",
    "evaluate finetune": f"""{NETWORK} data out limit preset labels token epochs batch-size lr min-lr
        warmup-epochs weight-decay layer-decay drop-path mixup cutmix smoothing rand-augment erasing repeats
        head-layers head-std resampling weight-decay-on schedule resize crop precision seed per-class encode-batch
        workers""",
    "evaluate linear": f"""{NETWORK} data out limit preset labels blocks mean-patch crops lrs epochs batch-size
        held-out resize crop precision seed per-class encode-batch workers""",
    "evaluate match": f"""{NETWORK} data out debias resolution global-scale resampling flip jitter brightness contrast
        saturation hue grey blur blur-radius solarize limit seed precision encode-batch max-pictures""",
    "evaluate navi": f"""{NETWORK} data out limit debias block stage output-stride dilate preset resolution every
        max-angle num-matches selection centimetres pixels objects seed precision max-pictures""",
    "evaluate segment": f"""{NETWORK} data out debias method preset kind train-split test-split limit seed max-pictures
        workers steps batch-size crop short-side lr weight-decay weight-decay-on warmup layer-decay drop-path
        blocks rescale normed channels auxiliary-channels test stride precision augmentation batch-norm epochs mask-side
        optimizer resolution memory-patches k temperature
        max-memory num-clusters matching iterations restarts min-scale max-side min-lr warmup-epochs
        train-part absent-as-zero shape passes augment void-as-background std hungarian
        features components init points-per-cluster seeds schedule clip dropout antialias search""",
    "evaluate all": f"{NETWORK} suite data-root limit against out cache-gb keep-cache",
    "evaluate --compare": "compare out allow-different",
    "explore": f"{NETWORK} out resolution limit components megabytes debias k window border",
    "export": "weights side num-heads position-embedding allow-partial to out size debias push-to-hub private license "
    "dry-run",
    "show": f"{NETWORK} out resolution debias k window border",
}
"""Users write these in their scripts: one that goes or is renamed is a change to announce."""


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_of_a_command_are_these(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All methods of an evaluation together."""
    pages = [name for name in commands() if "--preset" not in name and (name == command or f"{command} --" in name)]
    pages = [name for name in pages if not name.startswith(("pretrain --objective", "pretrain --method"))]
    offered = {option.name for name in pages for option in page(name, monkeypatch)[1]}
    listed = {f"--{name}" for name in OPTIONS[command].split()} | ({"--dry-run"} if command in WITH_DRY_RUN else set())
    assert listed == {name for name in offered if name.startswith("--")}
