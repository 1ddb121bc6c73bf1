"""Writes docs/job-file.md from the job file's own declarations: `python -m unisono.pipelines.job.document`."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from unisono.pipelines.job.job import Job
from unisono.pipelines.job.load import section_fields, section_of
from unisono.transforms.base.settings import names_allowed

_HEAD = """\
# The job file

Generated from the code by `python -m unisono.pipelines.job.document`; a test keeps it current.

A job file is YAML. It is validated as a whole before any work starts. A mistake is reported in one line that names the
key, the value it got and what is allowed. Relative paths are relative to the job file. `gs://` works wherever a path
is taken. Only `true` and `false` are read as booleans, so a column may be named `on` or `no`.

"""
_BOUNDS = {Gt: "above {}", Ge: "at least {}", Lt: "below {}", Le: "at most {}"}
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}


def document_job() -> str:
    """Returns the whole page in Markdown."""
    return _HEAD + "\n".join(_section("", Job))


def _section(key: str, section: Any) -> Iterator[str]:
    """The lines of a section, and after it those of the sections within it."""
    if key:
        yield f"## `{key}`\n"
        yield f"{_line(section.__doc__)}\n"
    yield "| key | allowed | default | meaning |"
    yield "|---|---|---|---|"
    inner = []
    for name, field in section_fields(section).items():
        own = section_of(field.annotation)
        at = f"{key}.{name}" if key else name
        if own and not _is_encoder(own):
            inner.append((at, own))
        yield f"| `{name}` | {_allowed(field, at, own)} | {_default(field, own)} | {_line(field.description)} |"
    yield ""
    for at, own in inner:
        yield from _section(at, own)


def _is_encoder(section: Any) -> bool:
    return "model" in section_fields(section)


def _line(text: str | None) -> str:
    """A docstring as one line of a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


def _allowed(field: FieldInfo, at: str, own: Any) -> str:
    if own and _is_encoder(own):
        return "a model's name, `none`, or a mapping with `model` and the family's own keys"
    if own:
        return f"see [`{at}`](#{re.sub('[^a-z_]', '', at)})"
    return _kind(field.annotation, field.metadata).replace("|", "\\|")


def _kind(annotation: Any, metadata: list[Any]) -> str:
    """Says in words which values a type takes."""
    for entry in metadata:
        if names := names_allowed(entry):
            return ", ".join(f"`{n}`" for n in names)
    bounds = [text.format(f"{_bound(m):,}") for m in metadata for kind, text in _BOUNDS.items() if type(m) is kind]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in args)
    if hasattr(annotation, "__metadata__"):
        return _kind(args[0], list(_flat(annotation.__metadata__)))
    if origin in (Union, types.UnionType):
        return ", or ".join(_kind(a, metadata if a is not type(None) else []) for a in args)
    if origin is tuple:
        least = next((m.min_length for m in metadata if isinstance(m, MinLen)), 0)
        return f"a list of {_kind(args[0], [])}" + (f", {least} or more" if least else "")
    if origin is dict:
        return f"a mapping of {_kind(args[0], [])} to {_kind(args[1], [])}"
    return " ".join([_WORDS[annotation], " and ".join(bounds)]).strip()


def _flat(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for entry in metadata:
        yield from entry.metadata if isinstance(entry, FieldInfo) else (entry,)


def _bound(entry: Any) -> Any:
    return next(iter(dataclasses.asdict(entry).values()))


def _default(field: FieldInfo, own: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "none"
    if own and _is_encoder(own):
        return f"`{value.model}`"
    if own:
        return "as below"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int):
        return f"`{value:,}`".replace(",", "_")
    return f"`{list(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    print(document_job(), end="")
