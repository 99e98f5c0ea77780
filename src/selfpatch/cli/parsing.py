"""Options of a command as a dataclass, read by tyro; its error page becomes one sentence."""

import contextlib
import io
import itertools
import re
from typing import Annotated, Any

import tyro

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.names import require_weights
from selfpatch.cli import suggestions
from selfpatch.config.schema import Name, plain, settings
from selfpatch.core.torchrun import announced_rank

Flat = tyro.conf.arg(name="")
"""Metadata of a field whose own fields are options without a prefix: `config: Annotated[KNNConfig, Flat]`."""


@settings
class WeightsOptions:
    """Weights, and how they are read."""

    weights: Name | None = None
    """Run directory, released checkpoint, .safetensors file, folder of Hugging Face or timm, timm:NAME, or
    hf:OWNER/NAME. Evaluations and `show` also take baselines: untrained:WEIGHTS, baseline:mean-colour:P and
    baseline:raw-patch:P, P being the side of a patch in pixels."""
    load: Annotated[LoadConfig, Flat] = LoadConfig()

    def named_weights(self) -> str:
        """Return the weights, or raise ValueError if none are named."""
        if self.weights is None:
            raise ValueError("no weights were named; give --weights with a run directory, a checkpoint or timm:NAME")
        if not self.weights.startswith("baseline:"):
            require_weights(self.weights.removeprefix("untrained:"))
        return self.weights


@settings
class DeviceOptions:
    """Device that a network runs on."""

    device: Name = "auto"
    """Device to run on: `auto` (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps."""


@settings
class NetworkOptions(DeviceOptions, WeightsOptions):
    """Weights, how they are read, and the device they run on."""

    def loading(self) -> dict[str, Any]:
        """Return the arguments `device` and `load_options` of the Python functions."""
        return {"device": self.device, "load_options": plain(self.load)}


@settings
class DryRunOptions:
    """Option of the commands that can be tried out first."""

    dry_run: bool = False
    """Check everything, print the settings and an estimate of memory and FLOPs, and stop: no image is read, nothing is
    written."""


def read_options(kind: Any, command: str, arguments: list[str], **tyro_options: Any) -> Any:
    """Return the options of a command as a record of the dataclass `kind`.

    Raises:
        ValueError: an option is unknown, missing, of the wrong type or out of range.
    """
    page = io.StringIO()
    try:
        with contextlib.redirect_stderr(page):
            return tyro.cli(kind, prog=f"selfpatch {command}", args=_python_words(arguments), **tyro_options)
    except SystemExit as stopped:
        if not stopped.code:  # --help
            raise
        text = re.sub(r"\x1b\[[\d;]*m", "", page.getvalue())  # tyro colours what a terminal shows
        if unknown := re.search(r"Unrecognized options:[\s\u2502]*([^\s,]+)", text):
            raise unknown_option(unknown[1], kind, command) from None
        raise ValueError(f"{_complaint(text)}; `selfpatch {command} --help` lists the options") from None


def unknown_option(word: str, kind: type, command: str) -> ValueError:
    """Return the error on a word that is no option of a command."""
    what = "unknown option" if word.startswith("-") else "unexpected word"
    return ValueError(f"{what} {word!r}; {suggestions.for_option(word, kind, command)}")


def _python_words(arguments: list[str]) -> list[str]:
    """Return the arguments with `true` and `false`, as in recipes, the way tyro reads them: `--backbone.rope true`.

    Only options of a section change, so that a folder may have such a name.
    """
    words, python = list(arguments), {"true": "True", "false": "False"}
    for i, (option, word) in enumerate(itertools.pairwise(arguments), start=1):
        if option.startswith("--") and "." in option and "=" not in option:
            words[i] = python.get(word, word)
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option.startswith("--") and "." in option and equals:
            words[i] = f"{option}={python.get(value, value)}"
    return words


def _complaint(page: str) -> str:
    """Return the first paragraph of tyro's error page, without the frame, the title and the hints below."""
    frame = " \u2500\u2502\u256d\u256e\u256f\u2570-"
    _, *lines = [line.lstrip(frame[:-1]).rstrip(frame) for line in page.splitlines()]
    paragraph = list(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line.strip("-"), lines)))
    if "Missing from" in "".join(paragraph[:1]):  # names the options; the help of each stands further to the right
        missing = re.findall(r"^[\u2502 ] {5}(?!selfpatch )(\S.*?)(?:  .*| )?\u2502?$", page, re.MULTILINE)
        paragraph = [paragraph[0], ", ".join(missing)]
    sentence = _with_values(" ".join(paragraph).rstrip("."))
    if (found := re.match(r"Error parsing ([\w.-]+): ", sentence)) is None:
        return sentence
    # An option, the section of a field that names itself, or the class of the options.
    prefix = f"{found[1]}: " if found[1].startswith("--") else "" if found[1][0].isupper() else f"{found[1]}."
    return prefix + sentence[found.end() :]


def _with_values(sentence: str) -> str:
    """Return a sentence of tyro on values of which there are too few, too many or others than an option takes, plainly.

    `no type matching INT|{INT INT} could be instantiated from ['1', '2', '3']` becomes `got 1 2 3; use INT or INT INT`.
    """
    found = re.search(r"no type matching (\S.*) could be instantiated from \[(.*)\]$", sentence)
    if found is None:
        return sentence
    forms = [form.strip("{}") for form in found[1].split("|")]
    values = " ".join(value.strip("'\"") for value in found[2].split(", ")) or "no value"
    return f"{sentence[: found.start()]}got {values}; use {' or '.join(forms)}"


def peek(arguments: list[str], *names: str) -> dict[str, str]:
    """Return the values of some options, read before all others because they decide the others' defaults."""
    found: dict[str, str] = {}
    for i, argument in enumerate(arguments):
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in names and (equals or i + 1 < len(arguments)):
            found[name] = value if equals else arguments[i + 1]
    return found


def print_report(report: Any) -> None:
    """Print the report of a dry run, on the main process alone."""
    if announced_rank() == 0:
        from selfpatch.core.console import console

        console.print(report)
