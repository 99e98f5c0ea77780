"""Names from disk as people see them, and commands that can be pasted."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from selfpatch.core.text import counted, format_number, shell, visible

RAW = b"caf\xe9"  # Latin-1, as Linux allows


@pytest.mark.parametrize(
    ("number", "noun", "form", "expected"),
    [
        (1, "step", "", "1 step"), (1.0, "epoch", "g", "1 epoch"), (1.04, "epoch", ".3g", "1.04 epochs"),
        (0, "image", "", "0 images"), (1234, "image", ",", "1,234 images"), (2, "patch", "", "2 patches"),
        (3, "class", "", "3 classes"), (2, "entry", "", "2 entries"), (2, "key", "", "2 keys"),
        (2, "epoch", "", "2 epochs"),
        (1, "process", "", "1 process"), (5, "test image", "", "5 test images"),
    ],
)  # fmt: skip
def test_a_number_has_its_noun(number: float, noun: str, form: str, expected: str) -> None:
    assert counted(number, noun, form) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("road [wet] caf\u00e9 \u00b1 \u732b", "road [wet] caf\u00e9 \u00b1 \u732b"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nselfpatch: all is well\r\t", "a\\nselfpatch: all is well\\r\\t"),
        ("gpj.\u202eexe\u2066\u200b", "gpj.\\u202eexe\\u2066\\u200b"),
        ("\u2028\u2029\x00\x7f\x9b", "\\u2028\\u2029\\x00\\x7f\\x9b"),
        (os.fsdecode(RAW), "caf\\xe9"),
        ("\ud83d", "\\ud83d"),
        ("\N{WOMAN}\u200d\N{ROCKET}", "\N{WOMAN}\u200d\N{ROCKET}"),
    ],
)
def test_what_cannot_be_shown_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown
    shown.encode()


def test_line_ends_can_be_kept() -> None:
    assert visible("a\nb\tc", keep="\n") == "a\nb\\tc"


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        (-0.0, ".4f", "0.0000"), (-1e-9, ".1f", "0.0"), (-1e-9, "+.1f", "+0.0"), (-0.0, ".4g", "0"),
        (-0.25, "+.3f", "-0.250"), (0.5, "+.1f", "+0.5"), (1e-9, ".4g", "1e-09"), (float("nan"), ".4f", "–"),
    ],
)  # fmt: skip
def test_numbers_have_no_negative_zero_and_nan_is_a_dash(value: float, form: str, shown: str) -> None:
    assert format_number(value, form) == shown


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_reads_the_words_of_a_command() -> None:
    words = ["run [a]", "it's", os.fsdecode(RAW), "a'\\\nb\x1b", "$HOME", "\u202e", "", "caf\u00e9"]
    line = shell("printf", "%s\\0", *words)
    assert visible(line) == line
    printed = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert printed.split(b"\0")[:-1] == [os.fsencode(word) for word in words]
    assert shell("selfpatch", "resume", "runs/photos-2") == "selfpatch resume runs/photos-2"
