"""Writes chosen settings into a job file, with its comments, order and relative paths kept."""

from __future__ import annotations

import copy
import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unisono.pipelines.tune.settings import Value
from unisono.pipelines.tune.tune import Tuned
from unisono.transforms.base import files
from unisono.transforms.base.files import is_remote


@dataclass(frozen=True)
class Written:
    """A job file that was written.

    Attributes:
        path: where it is.
        comments: whether it has the comments of the job file.
    """

    path: str
    comments: bool


def write_tuned(path: str, found: Tuned, in_place: bool = False) -> Written:
    """Writes a job file with the chosen settings.

    Args:
        path: the job file, local or in an object store.
        found: what was found.
        in_place: whether to change the job file itself. Otherwise, and where the text cannot be changed without losing
            comments, `<job>.tuned.yaml` is written beside it.
    """
    text = (files.read_bytes(path) if is_remote(path) else Path(path).read_bytes()).decode()
    changed = changed_text(text, found.changes)
    if changed is not None and in_place:
        _write(path, changed)
        return Written(path, True)
    beside, body = tuned_path(path), changed
    if body is None:
        body = yaml.safe_dump(_changed(yaml.safe_load(text), found.changes), sort_keys=False, allow_unicode=True)
    keys = ", ".join(found.changes)
    now = datetime.datetime.now(datetime.UTC)
    head = f"# {path.rpartition('/')[2]} with {keys} chosen by `unisono tune` on {now:%Y-%m-%d %H:%M} UTC"
    _write(beside, f"{head}, {found.users} users of {len(found.cuts)} cuts\n{body}")
    return Written(beside, changed is not None)


def tuned_path(path: str) -> str:
    """Returns the name of the file beside a job file: `job.tuned.yaml` for `job.yaml`."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{os.path.splitext(name)[0]}.tuned.yaml"


def _write(path: str, text: str) -> None:
    if is_remote(path):
        files.write_bytes(path, text.encode())
    else:
        files.write_bytes(os.path.abspath(path), text.encode())


def changed_text(text: str, changes: Mapping[str, Value]) -> str | None:
    """Changes values in the text of a job file, and nothing else.

    Returns:
        The new text. None if it would not mean the same as the old one with other values, as with an anchor that
        several sections share.
    """
    wanted = _changed(yaml.safe_load(text), changes)
    try:
        for key, value in changes.items():
            section, name = key.split(".")
            text = _set(text, section, name, "null" if value is None else repr(value))
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return text if found == wanted else None


def _changed(body: dict[str, Any], changes: Mapping[str, Value]) -> dict[str, Any]:
    out = copy.deepcopy(body)
    for key, value in changes.items():
        section, name = key.split(".")
        out[section] = {**(out.get(section) or {}), name: value}
    return out


def _set(text: str, section: str, name: str, value: str) -> str:
    """Sets one value, where the marks of the YAML parser say that it stands."""
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)  # as every job file that was read
    inside = _child(root, section)
    if isinstance(inside, yaml.MappingNode) and inside.value:
        old = _child(inside, name)
        return _insert(text, inside, f"{name}: {value}") if old is None else _replace(text, old, value)
    if inside is not None:  # `ranking:` or `ranking: {}`
        return _replace(text, inside, f"{{{name}: {value}}}")
    pair = f"{section}: {{{name}: {value}}}"
    return _insert(text, root, pair) if root.flow_style else text.rstrip("\n") + f"\n{pair}\n"


def _child(node: yaml.MappingNode, name: str) -> yaml.Node | None:
    return next((value for key, value in node.value if key.value == name), None)


def _replace(text: str, node: yaml.Node, value: str) -> str:
    before = text[: node.start_mark.index]
    gap = " " if before.endswith(":") else ""  # a value that is not there begins right after its key
    return before + gap + value + text[node.end_mark.index :]


def _insert(text: str, node: yaml.MappingNode, pair: str) -> str:
    """Inserts a pair before the first key of a mapping that is not empty."""
    at = node.value[0][0].start_mark
    gap = ", " if node.flow_style else "\n" + " " * at.column
    return text[: at.index] + pair + gap + text[at.index :]
