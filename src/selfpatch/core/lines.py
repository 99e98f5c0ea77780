"""Lines of the text files that data sets and users list names in."""

from pathlib import Path


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty, without spaces around them and without a byte order mark.

    Raises:
        ValueError: the file is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text file in UTF-8; write one name per line") from None
    return [line.strip() for line in text.split("\n") if line.strip()]
