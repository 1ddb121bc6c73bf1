"""What a run does for the people in its log, and what its manifest says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unisono.transforms.base.errors import JobError
from unisono.transforms.privacy.forget import Forget
from unisono.transforms.privacy.noise import NoiseSpec, epsilon_of_releases
from unisono.transforms.privacy.pseudonyms import Pseudonyms

_COVERS = (
    "one release, for any two histories of one user: all that this run publishes of a user, but for the id itself and "
    "that the log has a usable event of it; recommendations are made of the noised vector"
)
_NOT_COVERED = "the totals in metrics.json and dead_letters/; what runs without noise, other programs or the log show"
_COMPOSITION = (
    "every run, also one cut short whose files stay, is a release with fresh noise; k of them are Gaussian with "
    "sqrt(k) times the sensitivity; epsilon_of_releases, at the same delta, is for those this store has published "
    "one after another, if all had these settings"
)


@dataclass(frozen=True)
class People:
    """What is done for the people in the log; None: nothing of the kind."""

    pseudonyms: Pseudonyms | None = None
    forget: Forget | None = None
    noise: NoiseSpec | None = None

    def statement(self, before: Mapping[str, Any] | None, release: bool) -> dict[str, Any]:
        """Gives what the manifest says; {} where nothing is done.

        Args:
            before: the published run's statement.
            release: this run publishes profiles.
        """
        said: dict[str, Any] = {}
        if self.pseudonyms:
            said["pseudonyms"] = {"hash": "HMAC-SHA256, 16 bytes, hex", "key_fingerprint": self.pseudonyms.fingerprint}
        if self.forget:
            said["forget"] = {"files": [f.path for f in self.forget.files]}
        releases = ((before or {}).get("noise") or {}).get("releases", 0) + release
        if self.noise:
            said["noise"] = {
                "mechanism": "Gaussian, calibrated after Balle and Wang 2018",
                "epsilon": self.noise.epsilon,
                "delta": self.noise.delta,
                "clip": self.noise.clip,
                "sensitivity": self.noise.sensitivity,
                "sigma": self.noise.sigma,
                "covers": _COVERS,
                "does_not_cover": _NOT_COVERED,
                "composition": _COMPOSITION,
                "releases": releases,
            }
            if releases:
                said["noise"]["epsilon_of_releases"] = epsilon_of_releases(self.noise, releases)
        return said

    def check_same(self, before: Mapping[str, Any] | None, what: str, remedy: str) -> None:
        """Refuses to put this run's people beside the published run's, hidden in another way.

        Args:
            before: the published run's statement.
            what: of the published run is used.

        Raises:
            JobError: other pseudonyms or another noise.
        """
        mine, theirs = self.statement(None, False), before or {}
        keys = [(s.get("pseudonyms") or {}).get("key_fingerprint") for s in (mine, theirs)]
        if keys[0] != keys[1]:
            named = ["of the key with fingerprint " + k if k else "of no key" for k in keys]
            raise JobError(
                f"privacy.pseudonyms: this job's are {named[0]}, the published {what} {named[1]}; "
                f"bring the setting and the key back, or {remedy}"
            )
        noise = [{k: (s.get("noise") or {}).get(k) for k in ("epsilon", "delta", "clip")} for s in (mine, theirs)]
        if noise[0] != noise[1]:
            named = [", ".join(f"{k} {v:g}" for k, v in n.items()) if n["epsilon"] else "none" for n in noise]
            raise JobError(
                f"privacy.noise: this job has {named[0]}, the published {what} {named[1]}; "
                f"bring the setting back, or {remedy}"
            )


