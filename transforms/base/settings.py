"""Settings: frozen, validated classes that are both a section of the job file and what a transform takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, PydanticCustomError

from unisono.transforms.base.errors import JobError

T = TypeVar("T")

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's error types for an unknown key


@dataclass_transform(frozen_default=True)
def settings(key: str) -> Callable[[type[T]], type[T]]:
    """Makes a class of settings: a frozen dataclass that pydantic validates.

    Each attribute is declared once, with its type, its limits, its default and a docstring. The job file is validated
    against it, `docs/job-file.md` is generated from it, and a transform takes the object itself. `dataclasses.replace`
    validates again. A check that involves several attributes stands in `__post_init__` and raises ValueError with a
    message that starts with the attribute's name.

    Args:
        key: where the section stands in the job file, such as `privacy.noise`. Error messages start with it.

    Raises:
        JobError: from the class itself, when an object is made with a value that is not allowed.
    """
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def make(cls: type[T]) -> type[T]:
        made = dataclass(frozen=True, config=config)(cls)
        fields = getattr(made, "__pydantic_fields__")  # noqa: B009
        for base in cls.__mro__[1:]:  # pydantic reads only the docstrings in the class itself
            for name, field in getattr(base, "__pydantic_fields__", {}).items():
                fields[name].description = fields[name].description or field.description
        validate: Callable[..., None] = made.__init__
        names = [f.name for f in dataclasses.fields(made)]

        @functools.wraps(validate)
        def init(self: object, *args: Any, **kwargs: Any) -> None:
            given = dict(zip(names, args, strict=False)) | kwargs  # by name, since errors name the key
            try:
                validate(self, **given)
            except ValidationError as e:
                raise JobError(first_error(e, key)) from e

        setattr(made, "__init__", init)  # noqa: B010  # mypy allows no assignment to a method
        return made  # type: ignore[return-value]

    return make


@dataclasses.dataclass(frozen=True)
class _OneOf:
    """The check behind `one_of`."""

    names: Collection[str]

    def __call__(self, value: str) -> str:
        if value not in self.names:
            *some, last = (repr(n) for n in self.names)
            raise PydanticCustomError("one_of", f"Input should be {', '.join(some)} or {last}")
        return value


def one_of(names: Collection[str]) -> AfterValidator:
    """Restricts a string to names, such as those of a registry. The names are read at each check."""
    return AfterValidator(_OneOf(names))


def names_allowed(metadata: object) -> tuple[str, ...]:
    """Returns the names that `one_of` restricts a string to, given an entry of the annotation's metadata.

    For any other entry, it returns an empty tuple.
    """
    check = metadata.func if isinstance(metadata, AfterValidator) else None
    return tuple(check.names) if isinstance(check, _OneOf) else ()


def first_error(
    error: ValidationError, where: str = "", keys_at: Callable[[tuple[str | int, ...]], list[str]] | None = None
) -> str:
    """Describes the first of pydantic's errors in one line: the key, the value it got, and what is allowed.

    Args:
        error: what pydantic raised.
        where: the key of the section that was validated; empty for a whole job file.
        keys_at: returns the keys that are allowed at a place; called for an unknown key. None means that the line
            does not list them.
    """
    # For a value that may have one of two types, pydantic reports an error for each type. An error about a fixed word
    # says less, so it comes last.
    errors = sorted(error.errors(), key=lambda e: any(str(p).startswith("literal[") for p in e["loc"]))
    first = errors[0]
    line = _one_line(first, where)
    if first["type"] in _UNKNOWN and keys_at and (allowed := keys_at(first["loc"][:-1])):
        line += f"; allowed here: {', '.join(allowed)}"
    return line + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _one_line(error: ErrorDetails, where: str) -> str:
    # pydantic's names of alternatives, such as `dict[…]` or `function-after[…]`, are not keys.
    parts = [where, *(str(p) for p in error["loc"] if "[" not in str(p))]
    key = ".".join(p for p in parts if p)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in _UNKNOWN:
        return f"{key}: unknown key"
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: required"
    if error["type"] == "value_error":  # raised by a check of several attributes, which names the attribute itself
        name = message.split(":", 1)[0]
        named = ":" in message and all(part.isidentifier() for part in name.split("."))
        return f"{key}.{message}" if key and named else f"{key}: {message}" if key else message
    got = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
    return f"{key}: {message}{got}"
