"""Finds the directories of checkpoints, checks that their weights are complete, and hashes their content.

Shared by the families that load checkpoints. It imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import require
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.checkpoints.formats import FETCHED, PICKLED, first_line, matches

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_SKIP = ["onnx/*", "openvino/*"]

# Keys in JSON files that say where a checkpoint came from. They do not change what it computes.
_PROVENANCE = {
    "_name_or_path", "name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype"
}  # fmt: skip

_hashes: dict[tuple[str, int, int], str] = {}  # SHA-256 by (path, modification time in ns, size)
_hash_lock = threading.Lock()


def find_directory(
    spec: EncoderSpec, revision: str | None = None, *, option: str = "model", where: str | None = None
) -> Path:
    """Finds the directory of a checkpoint. A gs:// directory or a hub repository is fetched first.

    Args:
        spec: the spec of the encoder that needs the checkpoint.
        revision: a tag, branch or commit of a hub repository. Only a commit always means the same files.
        option: the key below `encoders.<modality>` that the error messages name.
        where: the value of that option: a local directory, a gs:// directory or a hub id. None means `spec.model`.

    Raises:
        JobError: there is no such directory, or it cannot be fetched.
    """
    key, where = f"{spec.key}.{option}", spec.model if where is None else where
    path = Path(where).expanduser()
    remote = where.startswith("gs://")
    if remote or path.is_dir():
        if revision is not None:
            raise JobError(f"{spec.key}.revision: got {revision!r}; {where} is a directory and has none")
        if not remote:
            return path
        require("google.cloud.storage", "gcp", key, where)
        from unisono.transforms.encoders.checkpoints.bucket import fetch_directory

        return fetch_directory(key, where)
    if path.is_file():
        raise JobError(f"{key}: {path} is a file; name a directory saved by save_pretrained")
    if not _HUB_ID.fullmatch(where):
        raise JobError(
            f"{key}: no directory {where}; point it at a directory saved by save_pretrained, "
            "or give a hub id such as sentence-transformers/all-MiniLM-L6-v2"
        )
    require("huggingface_hub", "models", key, where)
    return _fetch_from_hub(key, where, revision)


def _fetch_from_hub(key: str, repository: str, revision: str | None) -> Path:
    """Fetches a hub repository, or finds it in the hub library's cache.

    Raises:
        JobError: the hub does not return it.
    """
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=list(FETCHED), ignore_patterns=_HUB_SKIP
            )
        )
    except Exception as error:  # such as no such repository or revision, no network, offline mode, a gated repository
        raise JobError(
            f"{key}: {repository} is no local directory and cannot be fetched from the hub "
            f"({type(error).__name__}: {first_line(error)}); check name, revision and network, "
            "or give a local directory"
        ) from error


def weight_files(key: str, directory: Path, stem: str = "model") -> list[Path]:
    """Lists the files that hold a checkpoint's weights, after checking that each is complete.

    Args:
        key: the job-file key that the error messages name.
        directory: it holds `<stem>.safetensors`, or `<stem>.safetensors.index.json` and the files that this names.
        stem: the beginning of the file names.

    Raises:
        JobError: there are no weights, or only weights that would have to be unpickled, or a file is incomplete or a
            Git LFS pointer.
    """
    single, index = directory / f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        names = set(read_json(key, index).get("weight_map", {}).values())
        files = [directory / name for name in sorted(names)]
    else:
        if pickled := pickled_files(directory):
            raise JobError(
                f"{key}: {directory} holds {pickled[0]} but no {single.name}; only safetensors are read: where you "
                "trust the file, load it and save it again with save_pretrained(…, safe_serialization=True)"
            )
        raise JobError(f"{key}: no file {single.name} in {directory}; save it with save_pretrained")
    for file in files:
        _check_safetensors(key, file)
    return files


def pickled_files(directory: Path) -> list[str]:
    """Lists the names of the files in a directory that could only be read by unpickling."""
    return sorted(p.name for p in directory.iterdir() if matches(p.name, PICKLED))


def _check_safetensors(key: str, file: Path) -> None:
    """Compares the size that a safetensors header states with the size of the file."""
    if not file.is_file():
        raise JobError(f"{key}: no file {file}, which the index in its directory names; copy the whole checkpoint")
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        if head.startswith(b"version "):
            raise JobError(f"{key}: {file} is a Git LFS pointer, not the weights; run `git lfs pull` there")
        length = int.from_bytes(head, "little")
        try:
            header = json.loads(stream.read(length)) if length <= size - 8 else {}
            end = max(t["data_offsets"][1] for name, t in header.items() if name != "__metadata__")
        except (ValueError, TypeError, KeyError, AttributeError):
            end = -1
    if end < 0 or 8 + length + end != size:
        raise JobError(f"{key}: {file} is incomplete or damaged ({size} bytes); copy it again")


def read_json(key: str, path: Path) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Args:
        key: the job-file key that the error messages name.
        path: the file.

    Raises:
        JobError: there is no such file, or it holds no JSON object.
    """
    value = _parse(key, path)
    if not isinstance(value, dict):
        raise JobError(f"{key}: {path} holds a JSON {type(value).__name__}, not an object")
    return value


def read_json_list(key: str, path: Path) -> list[Any]:
    """Reads a file that holds a JSON list.

    Args:
        key: the job-file key that the error messages name.
        path: the file.

    Raises:
        JobError: there is no such file, or it holds no JSON list.
    """
    value = _parse(key, path)
    if not isinstance(value, list):
        raise JobError(f"{key}: {path} holds a JSON {type(value).__name__}, not a list")
    return value


def _parse(key: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(
            f"{key}: no file {path.name} in {path.parent}; point it at a directory saved by save_pretrained"
        ) from None
    except (OSError, ValueError) as error:
        raise JobError(f"{key}: {path} cannot be read as JSON ({first_line(error)})") from error


def content_hash(files: Iterable[Path], facts: Any) -> str:
    """Hashes everything that an encoder's output depends on: 16 hexadecimal digits.

    Args:
        files: the checkpoint's files. Their order, base names and contents count; the directory does not. In a JSON
            file, neither the layout counts nor the keys that only say where the checkpoint came from.
        facts: everything else, in a form that JSON can hold.
    """
    digests = [(file.name, sha256_of(file)) for file in files]
    text = json.dumps([digests, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """Hashes a file. In a JSON file, only what `content_hash` describes counts. The result is kept until it changes."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
    with _hash_lock:
        if key not in _hashes:
            _hashes[key] = _hash_json(path) if path.suffix == ".json" else _hash_bytes(path)
        return _hashes[key]


def _hash_bytes(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hash_json(path: Path) -> str:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return _hash_bytes(path)
    if isinstance(value, dict):
        value = {name: v for name, v in value.items() if name not in _PROVENANCE}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
