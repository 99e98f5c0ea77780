"""Largest image that is read, by pixels and by bytes; one limit for all commands, processes and sources."""

import os

LIMIT_VARIABLE = "SELFPATCH_MAX_PIXELS"
"""Environment variable with the largest number of pixels of an image."""
DEFAULT_LIMIT = 100_000_000
BYTES_PER_PIXEL = 4
"""Bytes of a decoded pixel that the limit allows for; images whose pixels take more may have fewer of them."""
LARGEST_VALUES = 4
"""Bytes of a stored value by those of a decoded one: complex numbers become single precision."""
BYTES_OF_HEADERS = 2**16
"""Bytes that a file may have besides its values."""


def max_pixels() -> int:
    """Return the largest number of pixels that is decoded: `SELFPATCH_MAX_PIXELS`, or 100 million.

    Raises:
        ValueError: the variable holds no positive whole number.
    """
    value = os.environ.get(LIMIT_VARIABLE)
    if not value:
        return DEFAULT_LIMIT
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{LIMIT_VARIABLE} is {value!r}; set it to a number of pixels, e.g. {DEFAULT_LIMIT}")
    return int(value)


def max_file_bytes() -> int:
    """Return the largest number of bytes of an encoded image."""
    return max_pixels() * BYTES_PER_PIXEL * LARGEST_VALUES + BYTES_OF_HEADERS
