"""Directories of checkpoints: where they are found, whether their weights are complete, and hashes of their content."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.checkpoints.local import (
    content_hash,
    find_directory,
    read_json,
    read_json_list,
    sha256_of,
    weight_files,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def spec_of(model: str) -> EncoderSpec:
    return EncoderSpec("text", model)


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": np.arange(6.0), "b": np.ones((2, 3), np.float16)}, path)
    return path


# --- finding -----------------------------------------------------------------------------------------------


def test_a_local_directory_is_found_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_directory(spec_of(str(tmp_path))) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert find_directory(spec_of(f"~/{tmp_path.name}")) == tmp_path


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param("/nowhere/at/all", r"no directory /nowhere/at/all; point it", id="directory"),
        pytest.param(__file__, r"is a file; name a directory", id="file"),
        pytest.param("unisono-test/absent", r"cannot be fetched from the hub", id="hub"),
    ],
)
def test_a_missing_checkpoint_is_refused(model: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(JobError, match=r"^encoders\.text\.model: .*" + message):
        find_directory(spec_of(model))


def test_a_directory_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^encoders\.text\.revision: got 'main'; .* is a directory and has none"):
        find_directory(spec_of(str(tmp_path)), "main")


def test_a_hub_snapshot_in_the_cache_is_found_by_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--shop--tiny"
    weights = save(repository / "snapshots" / COMMIT / "model.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(COMMIT)
    assert find_directory(spec_of("shop/tiny"), "v1") == weights.parent
    with pytest.raises(JobError, match="cannot be fetched from the hub"):
        find_directory(spec_of("shop/tiny"), "v2")


# --- weights -----------------------------------------------------------------------------------------------


def test_weights_in_one_file_and_in_several(tmp_path: Path) -> None:
    single = save(tmp_path / "one" / "model.safetensors")
    assert weight_files("k", single.parent) == [single]
    several = [save(tmp_path / "two" / f"model-0000{i}-of-00002.safetensors") for i in (1, 2)]
    index = {"weight_map": {"b": several[1].name, "a": several[0].name, "c": several[1].name}}
    (tmp_path / "two" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files("k", tmp_path / "two") == several
    several[1].unlink()
    with pytest.raises(JobError, match=r"no file .*00002-of-00002\.safetensors, which the index in its dir"):
        weight_files("k", tmp_path / "two")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _break_the_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:12] = b"oops"
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def _pickle(path: Path) -> None:
    path.rename(path.with_name("pytorch_model.bin"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_cut, "incomplete or damaged", id="cut"),
        pytest.param(_lengthen, "incomplete or damaged", id="longer"),
        pytest.param(_break_the_header, "incomplete or damaged", id="header"),
        pytest.param(_empty, "incomplete or damaged", id="empty"),
        pytest.param(_lfs, "Git LFS pointer, not the weights; run `git lfs pull`", id="lfs"),
        pytest.param(_pickle, r"holds pytorch_model\.bin but no model\.safetensors; only safetensors", id="pickled"),
        pytest.param(Path.unlink, r"no file model\.safetensors in .*; save it with save_pretrained", id="missing"),
    ],
)
def test_weights_that_are_not_complete_are_refused(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    damage(save(tmp_path / "model.safetensors"))
    with pytest.raises(JobError, match=r"^key\.model: .*" + message):
        weight_files("key.model", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(None, r"no file a\.json in ", id="missing"),
        pytest.param("{", r"cannot be read as JSON", id="broken"),
        pytest.param("3", r"holds a JSON int, not a", id="number"),
    ],
)
def test_json_files_that_are_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    for read in (read_json, read_json_list):
        with pytest.raises(JobError, match=r"^key\.model: .*" + message):
            read("key.model", path)


# --- hashes ------------------------------------------------------------------------------------------------


def files_in(directory: Path, config: str = '{"width": 3}', weights: bytes = b"w") -> list[Path]:
    directory.mkdir()
    (directory / "config.json").write_text(config)
    (directory / "model.safetensors").write_bytes(weights)
    return [directory / "config.json", directory / "model.safetensors"]


@pytest.mark.parametrize(
    ("changed", "facts", "equal"),
    [
        pytest.param({}, {"a": 1, "b": 2}, True, id="another-directory"),
        pytest.param({"config": '{ "width":3 }\n'}, {"b": 2, "a": 1}, True, id="layout"),
        pytest.param({"config": '{"width": 3, "_name_or_path": "x"}'}, {"a": 1, "b": 2}, True, id="provenance"),
        pytest.param({"config": '{"width": 4}'}, {"a": 1, "b": 2}, False, id="configuration"),
        pytest.param({"weights": b"v"}, {"a": 1, "b": 2}, False, id="weights"),
        pytest.param({}, {"a": 1, "b": 3}, False, id="facts"),
    ],
)
def test_the_hash_changes_with_the_content_only(
    changed: dict, facts: dict[str, int], equal: bool, tmp_path: Path
) -> None:
    before = content_hash(files_in(tmp_path / "a"), {"a": 1, "b": 2})
    assert (content_hash(files_in(tmp_path / "b", **changed), facts) == before) is equal
    assert len(before) == 16


def test_a_file_that_changes_is_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    before = sha256_of(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert sha256_of(path) != before
