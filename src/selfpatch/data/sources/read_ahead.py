"""Images that are read by threads while others are decoded, because they lie on another machine."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from selfpatch.data.sources.image_files import ImageFile, LoadedImage, StoredImage
from selfpatch.data.sources.ranges import read_ranges
from selfpatch.data.sources.remote import RemoteError

TOGETHER = 8
"""Byte ranges that are asked for at once."""
THREADS = 16
"""Requests, each for some ranges or for one file, that are under way at once."""


def read_ahead(files: Sequence[ImageFile]) -> Iterator[ImageFile]:
    """Yield images in order; those on another machine are read meanwhile.

    An image that cannot be read is yielded as it is, so that its reader says why. RemoteError is raised if a server
    cannot be reached.
    """
    remote = {i: file for i, file in enumerate(files) if isinstance(file, StoredImage) and file.is_remote}
    if not remote:
        yield from files
        return
    ranged = [i for i, file in remote.items() if file.byte_range is not None]
    batches = [ranged[start : start + TOGETHER] for start in range(0, len(ranged), TOGETHER)]
    batches += [[i] for i in remote.keys() - set(ranged)]
    pool = ThreadPoolExecutor(THREADS)
    try:
        loaded: dict[int, tuple[Future[list[ImageFile]], int]] = {}
        for batch in sorted(batches):
            future = pool.submit(_loaded, [remote[i] for i in batch])
            loaded |= {i: (future, position) for position, i in enumerate(batch)}
        for i, file in enumerate(files):
            yield loaded[i][0].result()[loaded[i][1]] if i in loaded else file
    finally:
        pool.shutdown(cancel_futures=True)


def _loaded(images: Sequence[StoredImage]) -> list[ImageFile]:
    ranges = [image.byte_range for image in images if image.byte_range is not None]
    spans = read_ranges(ranges) if ranges else [None] * len(images)
    return [_in_memory(image, span) for image, span in zip(images, spans, strict=True)]


def _in_memory(image: StoredImage, span: bytes | None) -> ImageFile:
    try:
        return LoadedImage(str(image), image.read() if span is None else image.content_of(span))
    except RemoteError:
        raise
    except (OSError, ValueError):
        return image
