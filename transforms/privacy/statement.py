"""What a run does to protect the users in the log, and what its manifest says about it."""

from __future__ import annotations

from dataclasses import dataclass

from unisono.transforms.base.errors import JobError
from unisono.transforms.privacy.forget import Forget
from unisono.transforms.privacy.noise import NoiseSpec, epsilon_of_releases
from unisono.transforms.privacy.pseudonyms import Pseudonyms
from unisono.transforms.store.privacy import ForgetStatement, NoiseStatement, PrivacyStatement, PseudonymsStatement

_COVERS = (
    "one release, for any two histories of one user: everything that this run publishes about a user, except the user "
    "id itself and the fact that the log has a usable event of the user; recommendations use the noised vector"
)
_NOT_COVERED = (
    "the totals in metrics.json and dead_letters/; anything shown by runs without noise, by other programs or by the "
    "log itself"
)
_COMPOSITION = (
    "every run is a release with fresh noise, also a run that was cut short and whose files were kept; k releases are "
    "one Gaussian mechanism with sqrt(k) times the sensitivity; epsilon_of_releases holds, at the same delta, for the "
    "releases that this store has published one after another, if all of them had these settings"
)


@dataclass(frozen=True)
class People:
    """What a run does to protect the users in the log.

    Attributes:
        pseudonyms: what replaces user ids. None means that they are not replaced.
        forget: the users whose rows are left out. None means that all rows are kept.
        noise: the noise on published user profiles. None means no noise.
    """

    pseudonyms: Pseudonyms | None = None
    forget: Forget | None = None
    noise: NoiseSpec | None = None

    def statement(self, before: PrivacyStatement | None, release: bool) -> PrivacyStatement:
        """Returns what the manifest will say, except how many users were left out: only the finished run knows that.

        Args:
            before: the published run's statement; None means that there is no published run.
            release: True if this run publishes user profiles.
        """
        pseudonyms, forget = self.pseudonyms, self.forget
        return PrivacyStatement(
            PseudonymsStatement("HMAC-SHA256, 16 bytes, hex", pseudonyms.fingerprint) if pseudonyms else None,
            ForgetStatement(tuple(f.path for f in forget.files)) if forget else None,
            _noise_statement(self.noise, before, release) if self.noise else None,
        )

    def check_same(self, before: PrivacyStatement, what: str, remedy: str) -> None:
        """Checks that this run protects users in the same way as the published run whose files it uses.

        Args:
            before: the published run's statement.
            what: the published files that this run uses, such as `users/`.
            remedy: what a person can do instead, for the error message.

        Raises:
            JobError: the pseudonyms have another key, or the noise has other settings.
        """
        mine = self.statement(None, False)
        keys = [s.pseudonyms.key_fingerprint if s.pseudonyms else None for s in (mine, before)]
        if keys[0] != keys[1]:
            named = ["of the key with fingerprint " + key if key else "of no key" for key in keys]
            raise JobError(
                f"privacy.pseudonyms: this job's are {named[0]}, those in the published {what} are {named[1]}; "
                f"bring the setting and the key back, or {remedy}"
            )
        noise = [(s.noise.epsilon, s.noise.delta, s.noise.clip) if s.noise else None for s in (mine, before)]
        if noise[0] != noise[1]:
            named = ["epsilon {:g}, delta {:g}, clip {:g}".format(*n) if n else "none" for n in noise]
            raise JobError(
                f"privacy.noise: this job has {named[0]}, the published {what} have {named[1]}; "
                f"bring the setting back, or {remedy}"
            )


def _noise_statement(noise: NoiseSpec, before: PrivacyStatement | None, release: bool) -> NoiseStatement:
    earlier = before.noise.releases if before and before.noise else 0
    releases = earlier + release
    return NoiseStatement(
        mechanism="Gaussian, calibrated after Balle and Wang 2018",
        epsilon=noise.epsilon,
        delta=noise.delta,
        clip=noise.clip,
        sensitivity=noise.sensitivity,
        sigma=noise.sigma,
        covers=_COVERS,
        does_not_cover=_NOT_COVERED,
        composition=_COMPOSITION,
        releases=releases,
        epsilon_of_releases=epsilon_of_releases(noise, releases) if releases else None,
    )
