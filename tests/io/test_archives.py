"""Zips of strangers: no way out of the folder, no links, no bombs, no half-read archives."""

import contextlib
import stat
import zipfile

import pytest

from monai_attention.errors import Refusal
from monai_attention.io import archives
from monai_attention.io.archives import Limits, extract


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "deep" / "into"
    folder.mkdir(parents=True)
    return folder


def zipped(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return path


def refused(archive, into, **arguments):
    with pytest.raises(Refusal) as caught:
        extract(archive, into, **arguments)
    assert caught.value.code == "E-ARCHIVE"
    assert caught.value.path == archive
    return caught.value.message


def outside(into):
    """Files that came to lie anywhere but in the folder."""
    return [path for path in into.parent.parent.rglob("*") if path.is_file() and into not in path.parents]


def test_an_honest_archive_is_unpacked_whole(tmp_path, into):
    archive = zipped(tmp_path / "a.zip", [("a/ünï b.dcm", b"one"), ("a/c/", b""), ("a/c/two..dcm", b"two")])
    extract(archive, into)
    assert (into / "a/ünï b.dcm").read_bytes() == b"one"
    assert (into / "a/c/two..dcm").read_bytes() == b"two"


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/tmp/evil", "C:/evil", "C:evil", "..\\evil", "\\\\host\\x\\evil"]
)
def test_row_45_paths_that_lead_out_are_refused(tmp_path, into, name):
    archive = zipped(tmp_path / "a.zip", [("good", b"1"), (name, b"2")])
    assert "leads out" in refused(archive, into)
    assert outside(into) == [archive]
    assert not list(into.iterdir())


def test_row_45_links_are_refused(tmp_path, into):
    link = zipfile.ZipInfo("link")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = zipped(tmp_path / "a.zip", [(link, "/etc"), ("link/passwd", b"2")])
    assert "link" in refused(archive, into)


def test_row_46_a_bomb_is_stopped_whatever_its_directory_says(tmp_path, into, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 1000)
    archive = zipped(tmp_path / "a.zip", [("zeros", bytes(5_000_000))])
    assert "unfolds" in refused(archive, into)
    assert sum(path.stat().st_size for path in into.iterdir()) <= 5_000_000 / 2

    raw = bytearray(archive.read_bytes())  # the same with a directory that says 10 bytes
    entry = raw.rindex(b"PK\x01\x02")
    raw[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    liar = tmp_path / "liar.zip"
    liar.write_bytes(raw)
    (into / "zeros").unlink(missing_ok=True)
    refused(liar, into)
    assert sum(path.stat().st_size for path in into.iterdir()) <= 10


def test_row_46_size_and_number_are_limited(tmp_path, into):
    archive = zipped(tmp_path / "a.zip", [(str(k), bytes(range(200))) for k in range(5)], zipfile.ZIP_STORED)
    assert "5 files" in refused(archive, into, limits=Limits(files=4))
    assert "unfolds" in refused(archive, into, limits=Limits(size=999))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("cut", "damaged"),
        ("flipped", "damaged"),
        ("empty", "damaged"),
        ("encrypted", "encrypted"),
        ("twice", "2 times"),
        ("file as folder", "cannot be unpacked"),
    ],
)
def test_row_46_damaged_or_strange_archives_are_refused(tmp_path, into, fault, told):
    files = [("a", bytes(range(256)) * 8)]
    if fault == "file as folder":
        files.append(("a/b", b"1"))
    with pytest.warns(UserWarning, match="Duplicate") if fault == "twice" else contextlib.nullcontext():
        archive = zipped(tmp_path / "a.zip", files * (2 if fault == "twice" else 1), zipfile.ZIP_STORED)
    raw = bytearray(archive.read_bytes())
    if fault == "cut":
        raw = raw[: len(raw) // 2]
    elif fault == "flipped":
        raw[500] ^= 1
    elif fault == "empty":
        raw = b""
    elif fault == "encrypted":
        raw[6] |= 1
        raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(raw)
    assert told in refused(archive, into)


def test_row_51_no_room_is_told_with_figures(tmp_path, into, monkeypatch):
    archive = zipped(tmp_path / "a.zip", [("a", bytes(4000))])
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3000}))
    with pytest.raises(Refusal, match=r"E-DISK-FULL.*4000 bytes.*3000 bytes are free"):
        extract(archive, into)
