"""Files that may hold images but are no source, and what to do with them."""

from collections.abc import Iterable

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".ogv", ".wmv", ".flv")
"""Endings, in lower case, of files that count as videos."""
_TO_FILES = "write its images to files of a folder, or to a .tar shard or .zip archive"
CONVERSIONS = {
    VIDEOS: ("a video", "write its frames to files, e.g. with `ffmpeg -i VIDEO -vf fps=1 FRAMES/%05d.jpg`"),
    (".mdb", ".lmdb"): ("an LMDB database", _TO_FILES),
    (".h5", ".hdf5"): ("an HDF5 file", _TO_FILES),
    (".npy", ".npz"): ("a file of NumPy arrays", _TO_FILES),
    (".tfrecord", ".tfrecords"): ("a TFRecord file", _TO_FILES),
    (".arrow", ".feather"): ("an Arrow file", "save the table as .parquet"),
    (".7z", ".rar"): ("an archive that is not read", "unpack it, or pack it as .zip or .tar"),
    (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".heic", ".heif"): (
        "a photograph of a format that is not read",
        "convert it to JPEG or PNG",
    ),
}
"""Kind of a file, and how to get at its images, by its endings in lower case."""


def conversion_of(names: Iterable[str]) -> tuple[str, str, str] | None:
    """Return the first of some file names whose images can be had by a conversion, what it is, and what to do."""
    for name in names:
        for endings, (kind, advice) in CONVERSIONS.items():
            if name.lower().endswith(endings):
                return name, kind, advice
    return None
