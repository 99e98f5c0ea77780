"""Tar shards that somebody made to harm: chains of headers, devices, links and names out of the shard."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.sources.shards import shard_images


def test_thousands_of_chained_headers_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 10
    (tmp_path / "s.tar").write_bytes((header.tobuf(tarfile.GNU_FORMAT) + b"name".ljust(512, b"\0")) * 5000)
    with pytest.raises(ValueError, match=r"cannot read .*s\.tar as an uncompressed tar: its headers never end"):
        shard_images(str(tmp_path / "s.tar"), lambda name: True)


def test_members_that_are_no_files_are_passed_over(tmp_path: Path) -> None:
    kinds = {
        "pipe.jpg": tarfile.FIFOTYPE, "device.jpg": tarfile.CHRTYPE, "disk.jpg": tarfile.BLKTYPE,
        "folder.jpg": tarfile.DIRTYPE, "link.jpg": tarfile.SYMTYPE, "hard.jpg": tarfile.LNKTYPE,
    }  # fmt: skip
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, kind in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("/abs/../../up.jpg"))
    assert list(shard_images(str(tmp_path / "s.tar"), lambda name: name.endswith(".jpg"))) == ["up.jpg"]


def test_a_pipe_called_tar_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.tar")
    (tmp_path / "list.txt").write_text("s.tar\n")
    with pytest.raises(ValueError, match=r"s\.tar is no regular file"):
        ImageIndex.open(tmp_path / "list.txt", tmp_path / "cache")


def test_a_link_that_leads_to_itself_does_not_refuse_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "loop").symlink_to("loop")
    index = ImageIndex.open(tmp_path, tmp_path / "cache")
    assert [index.name(i) for i in range(len(index))] == ["a.jpg"]
