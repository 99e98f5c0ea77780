"""Damaged image files of every format that is read, and a run of all readers over them in child processes.

`python -m tests.helpers.damaged_images --count 10000` reads so many damaged files of each format and prints a table.
A child that is killed by a signal, or that takes too long for one file, is reported with that file and replaced.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import signal
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile
from PIL import Image

from selfpatch.data.decode.deep_png import SIGNATURE
from selfpatch.data.decode.fast import read_fast
from selfpatch.data.decode.pillow import BadImage, read_image, read_picture, stored_image
from tests.helpers.raster_files import bands, png16

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
SECONDS = 60
"""Longest time for one file; a second is usual for the largest that are allowed, on a machine that is not busy."""


def read_stored(file: Path) -> None:
    with stored_image(file) as image:
        image.load()


READERS: dict[str, Callable[[Path], object]] = {
    "plain": read_image,
    "fast": read_fast,
    "stored": read_stored,
    **{f"{channels} channels": lambda file, c=channels: read_picture(file, c) for channels in (1, 2, 4, 13)},
}


def originals() -> dict[str, list[bytes]]:
    """Return undamaged files by format: small photographs in every encoding that the format is common in."""
    y, x = np.mgrid[:40, :56]
    noise = np.random.default_rng(0).integers(0, 40, (40, 56, 4))
    pixels = np.clip(np.stack([4 * x, 5 * y, 2 * (x + y), 255 - 3 * x], 2) + noise, 0, 255).astype(np.uint8)
    rgb = Image.fromarray(pixels[..., :3])
    grey, palette, alpha = rgb.convert("L"), rgb.quantize(32), Image.fromarray(pixels)
    deep = Image.fromarray((pixels[..., 0].astype("<u2") << 8) + pixels[..., 1])
    exif = Image.Exif()
    exif[274] = 6
    frames = {"save_all": True, "append_images": [rgb.rotate(90)]}
    return {
        "jpeg": [
            encoded(rgb, "JPEG", exif=exif), encoded(rgb, "JPEG", progressive=True, quality=90), encoded(grey, "JPEG"),
            encoded(rgb.convert("CMYK"), "JPEG"), encoded(rgb, "JPEG", subsampling=0, restart_marker_blocks=2),
        ],
        "png": [
            encoded(rgb, "PNG", exif=exif), encoded(palette, "PNG", transparency=bytes(range(32))),
            encoded(deep, "PNG"), encoded(alpha, "PNG"), encoded(grey.convert("1"), "PNG"),
            encoded(rgb, "PNG", **frames),
        ],
        "deep png": [
            *(png16(bands(channels, high=65536, size=(20, 24))) for channels in (1, 2, 3, 4)),
            *(png16(bands(channels, high=65536, size=(20, 24)), interlaced=True) for channels in (1, 4)),
        ],
        "webp": [
            encoded(rgb, "WEBP"), encoded(alpha, "WEBP", lossless=True), encoded(rgb, "WEBP", **frames),
            encoded(rgb, "WEBP", exif=exif),
        ],
        "avif": [encoded(rgb, "AVIF", speed=10), encoded(alpha, "AVIF", speed=10)],
        "bmp": [encoded(rgb, "BMP"), encoded(palette, "BMP"), encoded(grey.convert("1"), "BMP"), encoded(rgb, "DIB")],
        "gif": [encoded(palette, "GIF"), encoded(rgb, "GIF", **frames), encoded(palette, "GIF", interlace=True)],
        "tiff": [
            *(encoded(rgb, "TIFF", compression=name) for name in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
            *(encoded(grey.convert("1"), "TIFF", compression=name) for name in ("group3", "group4", "packbits")),
            encoded(deep, "TIFF"), encoded(palette, "TIFF"), encoded(rgb.convert("CMYK"), "TIFF", compression="zstd"),
            encoded(rgb, "TIFF", **frames), encoded(rgb, "TIFF", compression="tiff_lzw", exif=exif),
        ],
        "tiff of 13 channels": [
            *(bands_tiff(compression=name) for name in (None, "zlib", "lzw", "zstd", "packbits", "jpeg2000", "lzma")),
            bands_tiff(compression="zlib", tile=(16, 16)), bands_tiff(bigtiff=True), bands_tiff(byteorder=">"),
            bands_tiff(compression="zlib", predictor=True), bands_tiff(dtype=np.float32, compression="lzw"),
            bands_tiff(dtype=np.uint8, compression="webp", channels=4),
            bands_tiff(dtype=np.uint8, compression="jpeg", channels=1),
        ],
        "ppm": [encoded(rgb, "PPM"), encoded(grey, "PPM"), encoded(grey.convert("1"), "PPM"), encoded(deep, "PPM")],
        "jpeg 2000": [encoded(rgb, "JPEG2000"), encoded(grey, "JPEG2000", no_jp2=True), encoded(alpha, "JPEG2000")],
        "tga": [encoded(rgb, "TGA"), encoded(palette, "TGA"), encoded(alpha, "TGA", compression="tga_rle")],
    }  # fmt: skip


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def bands_tiff(*, dtype: type = np.uint16, channels: int = 13, **options: object) -> bytes:
    stream, pixels = io.BytesIO(), bands(channels, dtype, high=200, size=(40, 56))
    planes = {"planarconfig": "contig"} if channels == 4 else {"planarconfig": "separate"} if channels > 1 else {}
    photometric = "rgb" if channels == 4 else "minisblack"
    stored = pixels if channels == 4 else pixels.transpose(2, 0, 1) if channels > 1 else pixels[..., 0]
    tifffile.imwrite(stream, stored, photometric=photometric, **planes, **options)
    return stream.getvalue()


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a file with a random damage.

    Of a PNG, the pixels are damaged before they are compressed, or the check sums mended afterwards, in most cases: its
    readers would see little else than wrong sums.
    """
    is_png = content.startswith(SIGNATURE)
    if is_png and rng.integers(3) == 0:
        return _with_damaged_pixels(content, rng)
    data, kind = bytearray(content), rng.integers(7)
    head = min(len(data), 400)
    if kind == 0:
        del data[int(rng.integers(len(data))) :]
    elif kind == 1:
        start = int(rng.integers(len(data)))
        del data[start : start + int(rng.integers(1, 64))]
    elif kind == 2:
        start = int(rng.integers(len(data)))
        data[start:start] = rng.bytes(int(rng.integers(1, 64)))
    elif kind == 3:
        _change_bytes(data, len(data), rng)
    elif kind == 4:
        for position in rng.integers(head, size=int(rng.integers(1, 4))):
            data[position] ^= 1 << int(rng.integers(8))
    else:  # sizes and offsets
        for position in rng.integers(head - 4, size=int(rng.integers(1, 3))):
            width, order = ("H", "I")[rng.integers(2)], ("<", ">")[rng.integers(2)]
            number = int(EXTREMES[rng.integers(len(EXTREMES))]) & (0xFFFF if width == "H" else 0xFFFFFFFF)
            struct.pack_into(order + width, data, position, number)
    if not is_png or rng.integers(4) == 0:
        return bytes(data)
    return SIGNATURE + b"".join(_chunk(*chunk) for chunk in _chunks(bytes(data)))


def _change_bytes(data: bytearray, end: int, rng: np.random.Generator) -> None:
    for position in rng.integers(end, size=int(rng.integers(1, 12))):
        data[position] = rng.integers(256)


def _with_damaged_pixels(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a PNG whose compressed stream is whole, but has too few or too many bytes, or wrong ones."""
    chunks = [*_chunks(content)]
    pixels = bytearray(zlib.decompress(b"".join(data for name, data in chunks if name == b"IDAT")))
    kind = rng.integers(3)
    if kind == 0:
        del pixels[int(rng.integers(len(pixels))) :]
    elif kind == 1:
        pixels += bytes(int(rng.integers(1, 10_000)))
    else:
        _change_bytes(pixels, len(pixels), rng)
    others = [(name, data) for name, data in chunks if name != b"IDAT"]
    others.insert(-1, (b"IDAT", zlib.compress(bytes(pixels))))
    return SIGNATURE + b"".join(_chunk(name, data) for name, data in others)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and data of each chunk of a PNG, whatever its check sum; the last may be cut off."""
    start = len(SIGNATURE)
    while start + 12 <= len(content):
        length = int.from_bytes(content[start : start + 4])
        yield content[start + 4 : start + 8], content[start + 8 : start + 8 + length]
        start += 12 + length


def _chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)


def read_all(file: Path) -> Iterator[tuple[str, str]]:
    """Yield for each reader whether a file is `read`, a `BadImage`, or an error of another type, which is a fault."""
    for name, reader in READERS.items():
        try:
            reader(file)
            yield name, "read"
        except BadImage:
            yield name, "BadImage"
        except BaseException as error:
            yield name, f"{type(error).__name__}: {error}"


def _child(name: str, first: int, last: int, seed: int, folder: Path, pipe) -> None:
    """Read files `first` to `last` of a format; announce each before it is read, and report what came of it."""
    files = originals()[name]
    for number in range(first, last):
        rng = np.random.default_rng([seed, number])
        (folder / "image").write_bytes(damaged(files[number % len(files)], rng))
        pipe.send((number, None, 0))
        outcomes = Counter(outcome for _, outcome in read_all(folder / "image"))
        pipe.send((number, outcomes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


def run(name: str, first: int, last: int, seed: int) -> tuple[Counter[str], list[str], int]:
    """Return the outcomes of reading damaged files of one format, the faults, and the memory of a child in MB."""
    outcomes, faults, memory, number = Counter[str](), [], 0, first
    fork = multiprocessing.get_context("fork")
    with TemporaryDirectory() as folder:
        while number < last:
            ours, theirs = fork.Pipe(duplex=False)
            child = fork.Process(target=_child, args=(name, number, last, seed, Path(folder), theirs))
            child.start()
            theirs.close()
            try:
                while ours.poll(SECONDS):
                    number, found, peak = ours.recv()
                    memory = max(memory, peak)
                    for outcome, count in (found or {}).items():
                        outcomes[outcome if outcome in ("read", "BadImage") else "other error"] += count
                        if outcome not in ("read", "BadImage"):
                            faults.append(f"{name} {number}: {outcome}")
                faults.append(f"{name} {number}: took more than {SECONDS} s")
                outcomes["too long"] += 1
            except EOFError:
                child.join()
                if child.exitcode:
                    ended = signal.Signals(-child.exitcode).name if child.exitcode < 0 else f"code {child.exitcode}"
                    faults.append(f"{name} {number}: the process ended with {ended}")
                    outcomes["crash"] += 1
            child.kill()
            child.join()
            number += 1
    return outcomes, faults, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="files of each format")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="*", default=[*originals()])
    options = parser.parse_args()
    print(f"{len(READERS)} readers, files {options.first} to {options.first + options.count - 1}, seed {options.seed}")
    for name in options.formats:
        started = time.monotonic()
        outcomes, faults, memory = run(name, options.first, options.first + options.count, options.seed)
        seconds = time.monotonic() - started
        print(f"{name}: {dict(outcomes)}, at most {memory} MB, {seconds:.0f} s", *faults, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
