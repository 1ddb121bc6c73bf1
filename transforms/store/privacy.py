"""What a manifest says about the protection of the users in the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class PseudonymsStatement:
    """How user ids were replaced.

    Attributes:
        hash: the hash function, for a person to read.
        key_fingerprint: hexadecimal; tells keys apart and does not reveal them.
    """

    hash: str
    key_fingerprint: str


@dataclass(frozen=True)
class ForgetStatement:
    """Which users were left out.

    Attributes:
        files: paths of the lists of users to forget.
        removed: how many distinct users were found and left out. None means that they are not counted yet.
    """

    files: tuple[str, ...]
    removed: int | None = None


@dataclass(frozen=True)
class NoiseStatement:
    """Which noise was added to user profiles, and what it guarantees.

    Attributes:
        mechanism: the noise mechanism, for a person to read.
        epsilon: ε of one release.
        delta: δ of one release.
        clip: the longest L2 norm of a vector before noise is added.
        sensitivity: the largest L2 distance between two clipped vectors.
        sigma: the standard deviation of the noise on each value.
        covers: what the guarantee covers, for a person to read.
        does_not_cover: what the guarantee does not cover, for a person to read.
        composition: how the guarantees of several releases add up, for a person to read.
        releases: how many times this store has published profiles with noise, this run included.
        epsilon_of_releases: ε of all these releases together, at the same δ. None means that nothing was released.
    """

    mechanism: str
    epsilon: float
    delta: float
    clip: float
    sensitivity: float
    sigma: float
    covers: str
    does_not_cover: str
    composition: str
    releases: int
    epsilon_of_releases: float | None = None


@dataclass(frozen=True)
class PrivacyStatement:
    """What a run did to protect the users in the log.

    Attributes:
        pseudonyms: how user ids were replaced. None means that they were not replaced.
        forget: which users were left out. None means that no list of users to forget was given.
        noise: which noise was added to user profiles. None means that there is no noise.
    """

    pseudonyms: PseudonymsStatement | None = None
    forget: ForgetStatement | None = None
    noise: NoiseStatement | None = None

    def with_removed(self, users: int) -> PrivacyStatement:
        """Fills in how many users were left out, if there was a list of users to forget."""
        return replace(self, forget=replace(self.forget, removed=users)) if self.forget else self

    def to_json(self) -> dict[str, Any]:
        """Returns the statement as JSON values, without the parts and values that are None."""
        parts = ((name, part) for name, part in vars(self).items() if part is not None)
        return {name: {k: v for k, v in asdict(part).items() if v is not None} for name, part in parts}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> PrivacyStatement:
        """Reads what `to_json` returned.

        Raises:
            KeyError: a part is unknown.
            TypeError: a part lacks a value, or has an unknown one.
        """
        kinds = {"pseudonyms": PseudonymsStatement, "forget": ForgetStatement, "noise": NoiseStatement}
        return cls(**{name: kinds[name](**_with_tuples(part)) for name, part in body.items()})


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
