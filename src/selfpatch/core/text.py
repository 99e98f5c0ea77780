"""Text for people: names from disk with what cannot be shown escaped, and commands that can be pasted."""

import math
import os
import shlex
from pathlib import Path

JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need, and that change nothing around them."""


def visible(text: str, keep: str = "") -> str:
    r"""Return a text in which every character that shows nothing, or changes what is shown, is escaped.

    Terminal escapes, line ends, marks of writing direction: as `\x1b`, `\n` and `\u202e`. Bytes of a file name that are
    not UTF-8: as `\xe9`. Characters in `keep` stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in JOINERS or c in keep else _escaped(c) for c in text)


def shown(value: object, length: int = 80) -> str:
    """Return the representation of a value, cut to a length that fits into a sentence."""
    if isinstance(value, str):
        return repr(value) if len(value) <= length else f"{value[:length]!r}..."
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def one_line(error: BaseException, length: int = 200) -> str:
    """Return the message of an error of a library on one line, cut to a length that fits into a sentence."""
    return " ".join(str(error).split())[:length]


def format_number(value: float, form: str) -> str:
    """Return a number as tables show it, e.g. in the form `+.4f`: never as `-0.0`, and a dash for NaN."""
    return "\N{EN DASH}" if math.isnan(value) else format(value, form.replace(".", "z.", 1))


def counted(number: float, noun: str, form: str = "") -> str:
    """Return a number and its noun: `1 image`, `1,000 images`, `2 patches`, `0 entries`.

    Args:
        number: what is counted.
        noun: its singular, with an adjective if there is one.
        form: format of the number, e.g. `,` or `g`.
    """
    text = format(number, form)
    return f"{text} {noun if text == '1' else _plural(noun)}"


def shell(*words: str | Path) -> str:
    r"""Return a command that bash and zsh read as these words; `$'caf\xe9'` for what cannot be shown."""
    return " ".join(map(_quoted, map(str, words)))


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "sh", "tch", "nch")) else f"{noun}s"


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # os.fsdecode of a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _quoted(word: str) -> str:
    if visible(word) == word:
        return shlex.quote(word)
    return "$'" + "".join(_in_quotes(character) for character in word) + "'"


def _in_quotes(character: str) -> str:
    if character in "'\\":
        return f"\\{character}"
    return character if visible(character) == character else "".join(f"\\x{b:02x}" for b in os.fsencode(character))
