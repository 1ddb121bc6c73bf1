"""Whole small files, on disk and in a bucket."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

import pytest
from apache_beam.io.filesystems import FileSystems

from tests.object_store import object_store
from unisono.transforms.base import files


@pytest.mark.parametrize(
    ("path", "remote"), [("gs://b/x", True), ("s3://b/x", True), ("/a/b", False), ("a/b", False), ("a:/b", False)]
)
def test_remote_paths_have_a_scheme(path: str, remote: bool) -> None:
    assert files.is_remote(path) == remote


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("/store", "runs", "r"), "/store/runs/r"),
        (("/store/", "/runs/", "r/"), "/store/runs/r"),
        (("gs://bucket/", "runs/r", "x.json"), "gs://bucket/runs/r/x.json"),
        (("/store",), "/store"),
    ],
)
def test_paths_join_with_one_slash(parts: tuple[str, ...], joined: str) -> None:
    assert files.join(*parts) == joined


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path):
    if request.param == "disk":
        yield str(tmp_path)
    else:
        with object_store("files"):
            yield "gs://files"


def test_bytes_come_back_as_they_were_written(root: str) -> None:
    path = files.join(root, "folder", "name.bin")
    assert not files.exists(path)
    for data in (b"", b"\0\xff" * 1000, b"the third time"):
        files.write_bytes(path, data)
        assert files.exists(path)
        assert files.read_bytes(path) == data
    (found,) = FileSystems.match([files.join(root, "folder", "*")])
    assert [m.path.rpartition("/")[2] for m in found.metadata_list] == ["name.bin"]  # no temporary file is left


def test_a_view_of_bytes_is_written_too(tmp_path: Path) -> None:
    files.write_bytes(str(tmp_path / "x"), memoryview(b"0123456789")[2:5])
    assert (tmp_path / "x").read_bytes() == b"234"


def test_a_missing_file_is_the_same_error_everywhere(root: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        files.read_bytes(files.join(root, "nothing.json"))


def test_a_file_is_never_decompressed_by_its_name(tmp_path: Path) -> None:
    packed = gzip.compress(b"content")
    (tmp_path / "x.gz").write_bytes(packed)
    assert files.read_bytes(str(tmp_path / "x.gz")) == packed
    files.write_bytes(str(tmp_path / "y.gz"), b"content")
    assert (tmp_path / "y.gz").read_bytes() == b"content"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "LATEST"
    files.write_bytes(str(path), b"monday")

    def killed(*_: object) -> None:
        raise OSError("killed before the file got its name")

    monkeypatch.setattr(FileSystems, "rename", killed)
    with pytest.raises(OSError, match="killed"):
        files.write_bytes(str(path), b"tuesday")
    assert path.read_bytes() == b"monday"


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    versions = [bytes([i]) * 200_000 for i in range(20)]
    files.write_bytes(path, versions[0])
    done = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not done.is_set():
            seen.append(files.read_bytes(path))

    reader = threading.Thread(target=read)
    reader.start()
    for data in versions:
        files.write_bytes(path, data)
    done.set()
    reader.join()
    assert seen
    assert all(data in versions for data in seen)
