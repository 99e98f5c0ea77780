"""`selfpatch completion`: print a script that completes commands and options in a shell."""

import contextlib
import io
from dataclasses import make_dataclass
from typing import Annotated, Any, Literal, Union

import tyro

from selfpatch.cli.embed import EmbedOptions
from selfpatch.cli.evaluate import SuiteOptions, options_class
from selfpatch.cli.explore import ExploreOptions
from selfpatch.cli.export import ExportOptions
from selfpatch.cli.launch import LaunchOptions
from selfpatch.cli.parsing import Flat, read_options
from selfpatch.cli.prepare import PrepareOptions
from selfpatch.cli.pretrain import PretrainOptions
from selfpatch.cli.recipes import RecipesOptions
from selfpatch.cli.resume import ResumeOptions
from selfpatch.cli.show import ShowOptions
from selfpatch.cli.study import StudyOptions
from selfpatch.config.names import METHODS, MODELS, OBJECTIVES
from selfpatch.config.recipes import recipe_names
from selfpatch.config.run import FROM_INIT, NO_METHOD, NO_OBJECTIVE
from selfpatch.config.schema import settings
from selfpatch.evaluation.registry import EVALUATIONS

COMMANDS = {
    "recipes": RecipesOptions,
    "resume": ResumeOptions,
    "show": ShowOptions,
    "explore": ExploreOptions,
    "embed": EmbedOptions,
    "prepare": PrepareOptions,
    "export": ExportOptions,
    "study": StudyOptions,
    "launch": LaunchOptions,
}
"""Options of the commands that need no preparation."""

FILES = {
    "complete -F ": "complete -o default -F ",
    'COMPREPLY=($(compgen -f -- "$cur"))': "COMPREPLY=()",
    '[[ "$completions" == "__TYRO_COMPLETE_FILES__" ]]': '[[ -z "$completions" || "$completions" == __TYRO_* ]]',
}
"""Parts of tyro's scripts, and what lets the shell complete paths where they know nothing: `selfpatch resume runs/`."""


@settings
class CompletionOptions:
    """Print a script that completes commands, options and their values with the Tab key; see docs/start.md."""

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]
    """Shell to write the script for; tyro writes none for others without further packages."""


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    shell = read_options(CompletionOptions, "completion", arguments).shell
    evaluations = {name: options_class(kind.from_settings({})) for name, kind in EVALUATIONS.items()}
    names: Any = _any_of({**evaluations, "all": SuiteOptions})
    evaluate = make_dataclass("Evaluate", [("name", Annotated[names, Flat])])
    kinds = {"pretrain": _pretrain_options(), "evaluate": evaluate, **COMMANDS}
    script = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(script):
        tyro.cli(_any_of(kinds), prog="selfpatch", args=["--tyro-print-completion", shell])
    text = script.getvalue()
    for tyros, with_files in FILES.items():
        text = text.replace(tyros, with_files)
    print(text)
    return 0


def _any_of(kinds: dict[str, type]) -> Any:
    """Return the type of one of some dataclasses by the name of a command."""
    return Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items())]  # noqa: UP007


def _pretrain_options() -> type:
    """Return the options of `pretrain`, in which names that are known are choices."""
    names = {
        "recipe": (*recipe_names(),),
        "method": (*METHODS, NO_METHOD),
        "objective": (*OBJECTIVES, NO_OBJECTIVE),
        "model": (*MODELS, FROM_INIT),
    }
    annotations = {field: Literal[choices] | None for field, choices in names.items()}
    defaults = dict.fromkeys(names)
    return settings(type("PretrainOptions", (PretrainOptions,), {"__annotations__": annotations, **defaults}))
