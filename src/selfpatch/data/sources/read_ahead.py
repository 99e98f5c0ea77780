"""Images that are read by threads while others are decoded, because they lie on another machine."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from selfpatch.data.sources.image_files import ImageFile, LoadedImage, StoredImage
from selfpatch.data.sources.remote import RemoteError

THREADS = 16
"""Images that are read at once."""


def read_ahead(files: Sequence[ImageFile]) -> Iterator[ImageFile]:
    """Yield images in order; those on another machine are read meanwhile.

    An image that cannot be read is yielded as it is, so that its reader says why. RemoteError is raised if a server
    cannot be reached.
    """
    if not any(isinstance(file, StoredImage) and file.is_remote for file in files):
        yield from files
        return
    pool = ThreadPoolExecutor(min(THREADS, len(files)))
    try:
        yield from pool.map(_loaded, files)
    finally:
        pool.shutdown(cancel_futures=True)


def _loaded(file: ImageFile) -> ImageFile:
    if not isinstance(file, StoredImage) or not file.is_remote:
        return file
    try:
        return LoadedImage(str(file), file.read())
    except RemoteError:
        raise
    except (OSError, ValueError):
        return file
