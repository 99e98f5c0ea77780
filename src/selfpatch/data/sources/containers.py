"""Files that hold images: tar shards, zip archives and Parquet files; each counts as a folder of what is in it."""

import os
from collections.abc import Callable

from selfpatch.data.sources import parquet, remote, shards, zips
from selfpatch.data.sources.image_files import ShardMember, StoredImage
from selfpatch.data.sources.ranges import open_location
from selfpatch.data.sources.shards import Extent

ENDINGS = (shards.SHARD, zips.ZIP, parquet.PARQUET)
"""Endings, in lower case, of files that hold images."""


def is_container(name: str) -> bool:
    """Return whether a file name has the ending of a file that holds images."""
    return name.lower().endswith(ENDINGS)


def images_in(location: str, is_image: Callable[[str], bool]) -> dict[str, Extent]:
    """Return the images in a container by name, with two numbers that tell where each is.

    Raises:
        ValueError: the container is damaged, or of a kind that is not read.
        OSError: it cannot be opened.
    """
    if location.lower().endswith(zips.ZIP):
        with open_location(location) as stream:
            return zips.zip_images(stream, location, is_image)
    if location.lower().endswith(parquet.PARQUET):
        return parquet.parquet_images(location)
    return shards.shard_images(location, is_image)


def stored_image(container: str, name: str, first: int, second: int, version: int) -> StoredImage:
    """Return an image in a container, from the two numbers of `images_in` and the version of a remote container."""
    if container.lower().endswith(zips.ZIP):
        return zips.ZipMember(container, name, first, second, version)
    if container.lower().endswith(parquet.PARQUET):
        if not remote.is_url(container):
            status = os.stat(container)
            version = hash((status.st_mtime_ns, status.st_size))
        return parquet.ParquetImage(container, name, first, second, version)
    return ShardMember(container, name, first, second, version)
