"""Tables of implementations by name. The module of an implementation is imported when it is first used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from unisono.transforms.base.errors import JobError


@dataclass(frozen=True)
class Lazy:
    """The address of a class or function. Listing addresses imports nothing.

    Attributes:
        place: "module:attribute", such as "unisono.transforms.space.fit.canonical:solve_gcca".
    """

    place: str

    def load(self) -> Any:
        """Imports the module and returns the class or function."""
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name)


Entry = TypeVar("Entry", bound=Lazy)


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name, in the order in which a user sees them.

    Args:
        key: the job-file key that takes one of the names, such as `space.method`. Error messages start with it.
        entries: the entry of each name.
    """

    def __init__(self, key: str, entries: Mapping[str, Entry]) -> None:
        self.key = key
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, name: str) -> str:
        """Returns `name` if it has an entry.

        Raises:
            JobError: there is no entry of this name.
        """
        if name not in self._entries:
            raise JobError(f"{self.key}: {name!r} is none of {', '.join(self)}; choose one of them")
        return name
