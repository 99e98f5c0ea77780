"""Commands of selfpatch in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

PAGES = (
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "studies").glob("*.yaml")),
    *sorted((REPOSITORY / "suites").glob("*.yaml")),
)
"""Files whose commands are tested here; recipes and `docs/reproduce.md` have tests of their own."""

PLACEHOLDERS = {
    "selfpatch COMMAND": "selfpatch evaluate",
    "evaluate NAME": "evaluate davis",
    "--preset P": "--preset dinov3",
    "--objective NAME": "--objective sere",
    "--recipe NAME": "--recipe small-1k",
    "recipes NAME": "recipes samples",
    "--crops.*": "",
    "...": "",
}
"""Words that a person fills in, and some that they could be."""

_PROGRAM = r"(?:torchrun (?:-\S+ (?:\S+ )??)*-m |python -m )?selfpatch"


def commands_of(page: Path) -> list[str]:
    """Return the commands of a page in its order, each once, in one line and without a comment."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        found = re.findall(rf"^# (?:Command:)? *({_PROGRAM} .*)", text.replace("\\\n#", " "), re.MULTILINE)
    else:
        fenced = "".join(re.findall(r"^ *```[\w{}-]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL))
        start = r"^ *(?:.*&& |.*; do |\$ |(?:[A-Z_]+=\S+ )+)?"
        found = re.findall(rf"{start}({_PROGRAM}(?: .*)?)$", fenced.replace("\\\n", " "), re.MULTILINE)
        plain = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        found += re.findall(rf"`({_PROGRAM}\s[^`]+)`", plain)
    return list(dict.fromkeys(" ".join(re.split(r" [#(>]|;|&&", command)[0].split()) for command in found))


def concrete(command: str) -> str:
    """Return a command with words in place of what a person fills in, such as `[--preset P]`, `IMAGE...` and `$lr`."""
    for placeholder, value in PLACEHOLDERS.items():
        command = command.replace(placeholder, value)
    command = re.sub(r"\[([^\]|]*)[^\]]*\]", r"\1", command)
    return re.sub(r"\$\w+", "0.001", command).strip()
