"""Directories of pretrained weights: where they are, whether they are whole, what their content's hash is.

Shared by the families that load checkpoints. Imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.checkpoints.formats import FETCHED, PICKLED, first_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_SKIP = ["onnx/*", "openvino/*"]

# Of config and tokenizer files: what says where a checkpoint came from, not what it computes.
_PROVENANCE = {
    "_name_or_path", "name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype"
}  # fmt: skip

_hashes: dict[tuple[str, int, int], str] = {}
_hash_lock = threading.Lock()


def require(spec: EncoderSpec, *libraries: str, extra: str = "models") -> None:
    """Checks that libraries are installed, without importing them; `extra` brings them.

    Raises:
        JobError: one is missing.
    """
    missing = [name for name in libraries if not _is_installed(name)]
    if missing:
        raise JobError(
            f"{spec.key}.model: {spec.model!r} needs {' and '.join(missing)}, not installed here; "
            f"run: pip install 'unisono[{extra}]'"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a package around it is missing
        return False


def find_directory(
    spec: EncoderSpec, revision: str | None = None, *, option: str = "model", where: str | None = None
) -> Path:
    """Finds a checkpoint's directory: a local one, a gs:// one or a hub repository's snapshot, fetched.

    Args:
        spec: whose checkpoint.
        revision: of a hub repository: a tag, a branch or, to pin it, a commit.
        option: the key below `encoders.<modality>` that a message names.
        where: the option's value; None: `spec.model`.

    Raises:
        JobError: no such directory, or the bucket or hub does not give it.
    """
    key, where = f"{spec.key}.{option}", spec.model if where is None else where
    path = Path(where).expanduser()
    remote = where.startswith("gs://")
    if remote or path.is_dir():
        if revision is not None:
            raise JobError(f"{spec.key}.revision: got {revision!r}; {where} is a directory and has none")
        if not remote:
            return path
        require(spec, "google.cloud.storage", extra="gcp")
        from unisono.transforms.encoders.checkpoints.bucket import fetch_directory

        return fetch_directory(key, where)
    if path.is_file():
        raise JobError(f"{key}: {path} is a file; name a directory saved by save_pretrained")
    if not _HUB_ID.fullmatch(where):
        raise JobError(
            f"{key}: no directory {where}; point it at a directory saved by save_pretrained, "
            "or give a hub id such as sentence-transformers/all-MiniLM-L6-v2"
        )
    require(spec, "huggingface_hub")
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                where, revision=revision, allow_patterns=list(FETCHED), ignore_patterns=_HUB_SKIP
            )
        )
    except Exception as error:  # of many kinds: network, no such repository or revision, offline, gated
        raise JobError(
            f"{key}: no directory {where} here, and the hub does not give it "
            f"({type(error).__name__}: {first_line(error)}); check name, revision and network, "
            "or point it at a local directory"
        ) from error


def weight_files(key: str, directory: Path, stem: str = "model") -> list[Path]:
    """Lists the safetensors files of a directory, each checked for being whole.

    Args:
        key: the job-file key that a message names.
        directory: holds `<stem>.safetensors`, or `<stem>.safetensors.index.json` and the files it names.
        stem: of the file names.

    Raises:
        JobError: none, only weights that would have to be unpickled, or a file that is cut or a Git LFS
            pointer.
    """
    single, index = directory / f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        names = set(read_json(key, index).get("weight_map", {}).values())
        files = [directory / name for name in sorted(names)]
    else:
        pickled = sorted(p.name for pattern in PICKLED for p in directory.glob(pattern))
        if pickled:
            raise JobError(
                f"{key}: {directory} holds {pickled[0]} but no {single.name}; only safetensors are read: "
                "load it where you trust it and save it again by save_pretrained(…, safe_serialization=True)"
            )
        raise JobError(f"{key}: no file {single.name} in {directory}; save it with save_pretrained")
    for file in files:
        _check_safetensors(key, file)
    return files


def _check_safetensors(key: str, file: Path) -> None:
    """Holds the size that a safetensors header states against the file's own."""
    if not file.is_file():
        raise JobError(f"{key}: no file {file}, which the index beside it names; copy the checkpoint whole")
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
        raise JobError(f"{key}: {file} is no whole safetensors file ({size} bytes); copy it again")


def read_json(key: str, path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        JobError: no such file, or not a JSON object.
    """
    value = _parse(key, path)
    if not isinstance(value, dict):
        raise JobError(f"{key}: {path} holds a JSON {type(value).__name__}, not an object")
    return value


def read_json_list(key: str, path: Path) -> list[Any]:
    """Reads a JSON list.

    Raises:
        JobError: no such file, or not a JSON list.
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
    """Hashes what determines an encoder's output: 16 hexadecimal digits.

    Args:
        files: by content, in this order, each named by its base name. Of JSON files, keys that only say where
            a checkpoint came from do not count, nor does the layout.
        facts: JSON-ready: everything else.
    """
    digests = [(file.name, sha256_of(file)) for file in files]
    text = json.dumps([digests, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """Hashes a file, once per process for each (path, modification time, size). JSON: see `content_hash`."""
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


