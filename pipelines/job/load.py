"""Reads a job file and validates it whole, before any work."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from unisono.pipelines.job.job import Job
from unisono.transforms.base import files
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.files import is_remote, join
from unisono.transforms.base.modalities import ENCODED
from unisono.transforms.base.settings import first_error
from unisono.transforms.encoders.registry import FAMILIES

_FAMILIES = tuple(f"{name}/" for name in FAMILIES)
_PATHS = {"catalog": ("path", "media_root"), "interactions": ("path",), "privacy": ("forget",)}


class _Loader(yaml.SafeLoader):
    """Reads only `true` and `false` as booleans, as YAML 1.2 does.

    By YAML 1.1, a column or event type with the name on, off, yes or no would be a boolean. In a setting that is true
    or false, pydantic takes these words as well.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML reads it from the class
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), [*"tTfF"])


def load_job(path: str) -> Job:
    """Reads and validates a job file.

    Raises:
        JobError: the file is missing, is not YAML, or is not a valid job.
    """
    try:
        text = files.read_bytes(path) if is_remote(path) else Path(path).read_bytes()
    except (OSError, ImportError, ValueError) as e:
        raise JobError(f"--config: cannot read {path} ({getattr(e, 'strerror', None) or e})") from e
    try:
        raw = yaml.load(text, _Loader)
    except yaml.YAMLError as e:
        raise JobError(f"{path}: not YAML: {' '.join(str(e).split())}") from e
    return parse_job(raw, path)


def parse_job(raw: Any, path: str) -> Job:
    """Validates the content of a job file. Its relative paths are relative to the directory of `path`.

    Raises:
        JobError: the content is not a valid job; one line names the file, the key, what it got and what is allowed.
    """
    if not isinstance(raw, dict):
        raise JobError(f"{path}: a job file is a mapping of keys such as store and catalog, got {type(raw).__name__}")
    base = path.rsplit("/", 1)[0] if is_remote(path) else os.path.dirname(os.path.abspath(path))
    try:
        return Job.model_validate(_resolve_paths(raw, base))
    except ValidationError as e:
        raise JobError(f"{path}: {first_error(e, keys_at=keys_at)}") from e


def section_fields(section: Any) -> dict[str, Any]:
    """The pydantic fields of a section by key: of a model or of a settings class; {} for anything else."""
    fields: dict[str, Any] = getattr(section, "model_fields", None) or getattr(section, "__pydantic_fields__", {})
    return fields


def section_of(annotation: Any) -> Any:
    """The section among the alternatives of an annotation such as `RankingSpec | None`; None if there is none."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind)):
            return kind
    return None


def keys_at(place: tuple[str | int, ...]) -> list[str]:
    """The keys that are allowed at a place in the job file, such as ("privacy", "noise")."""
    section: Any = Job
    for part in place:
        field = section_fields(section).get(str(part))
        section = section_of(field.annotation) if field else None
    return list(section_fields(section))


# --- paths -------------------------------------------------------------------------------------------------


def _absolute(path: str, base: str) -> str:
    if is_remote(path) or os.path.isabs(path):
        return path
    return join(base, path) if is_remote(base) else os.path.normpath(os.path.join(base, path))


def _resolve_paths(raw: dict[str, Any], base: str) -> dict[str, Any]:
    """Makes the paths of a job file absolute. Values of a wrong type are left for validation."""
    out = dict(raw)
    for section, keys in _PATHS.items():
        if isinstance(raw.get(section), dict):
            out[section] = dict(raw[section])
            for key in keys:
                if isinstance(value := raw[section].get(key), str) and value:
                    out[section][key] = _absolute(value, base)
    if isinstance(raw.get("catalog"), dict) and isinstance(allow := raw["catalog"].get("allow"), list):
        out["catalog"]["allow"] = [_absolute(p, base) if isinstance(p, str) else p for p in allow]
    if isinstance(raw.get("store"), str):
        out["store"] = _absolute(raw["store"], base)
    encoders = raw.get("encoders")
    if isinstance(encoders, dict):
        out["encoders"] = {m: _absolute_model(e, base) if m in ENCODED else e for m, e in encoders.items()}
    return out


def _absolute_model(encoder: Any, base: str) -> Any:
    """Makes the path of a model absolute.

    A model that starts with ./ or ../, itself or after the name of a family, is a directory beside the job file.
    Anything else is a name.
    """
    if isinstance(encoder, str):
        family, at, path = encoder.partition("/") if encoder.startswith(_FAMILIES) else ("", "", encoder)
        return f"{family}{at}{_absolute(path, base)}" if path.startswith(("./", "../")) else encoder
    if isinstance(encoder, dict):
        return {k: _absolute_model(v, base) if k in ("model", "weights") else v for k, v in encoder.items()}
    return encoder
