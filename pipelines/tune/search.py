"""A search along a few settings at a time, in a fixed order, that keeps what gains for certain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from unisono.pipelines.job.job import Job
from unisono.pipelines.tune.cuts import Cut
from unisono.pipelines.tune.journal import Values
from unisono.pipelines.tune.settings import Grid, Settings, points_to_try
from unisono.transforms.base.tables import one_chunk
from unisono.transforms.measure.rank_metrics import bootstrap_interval

MOST_ROUNDS = 3
LEVEL = 0.99  # of intervals: some sixty values are tried, and of 95% intervals one in forty lies above 0 by chance
ENOUGH = 600  # users of one kind of cut, a user counted in each cut
_LEAST_SHARE = 0.1  # of the larger of both kinds' NDCG: no kind of cut counts more than ten times as much


class OutOfTime(Exception):
    """The time is over."""


Measure = Callable[[Settings], Values | None]


@dataclass(frozen=True, eq=False)
class Yardstick:
    """How the figures of all cuts become one number.

    The NDCG@10 of the cuts by time is the mean over all their users, each counted in each cut. It is divided by what
    the job's own settings reach, and so is that of the last liked items. The mean of both ratios is the validation NDCG
    as a share of what the job's own settings reach. Both ratios count the same, but a kind with fewer than `ENOUGH`
    users counts less, by the square root of their number: otherwise the noise of few users would decide.

    Attributes:
        weights: for each cut, what the NDCG of one user adds to the validation NDCG.
        user: for each cut, the number of each of its users among all users, int64.
        users: the number of all users.
        kinds: the kind of each cut.
    """

    weights: tuple[float, ...]
    user: tuple[np.ndarray, ...]
    users: int
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, cuts: Sequence[Cut], own: Values) -> Yardstick:
        """Makes the yardstick.

        Args:
            cuts: the cuts.
            own: the NDCG that the job's own settings reach.
        """
        kinds = {kind: [i for i, cut in enumerate(cuts) if cut.kind == kind] for kind in ("time", "last")}
        sizes = {kind: sum(len(own[i]) for i in here) for kind, here in kinds.items() if here}
        means = {kind: sum(float(own[i].sum()) for i in kinds[kind]) / sizes[kind] for kind in sizes}
        roots = {kind: min(n, ENOUGH) ** 0.5 for kind, n in sizes.items()}
        shares = {kind: root / sum(roots.values()) for kind, root in roots.items()}
        mean = sum(share * means[kind] for kind, share in shares.items())
        least = _LEAST_SHARE * max(means.values())
        weights = []
        for cut in cuts:
            base = max(means[cut.kind], least)
            weights.append(float((mean / base if base > 0 else 1.0) * shares[cut.kind] / sizes[cut.kind]))
        everybody = pa.concat_arrays([one_chunk(cut.users) for cut in cuts]).dictionary_encode()
        place, ends = everybody.indices.to_numpy().astype(np.int64), np.cumsum([len(cut.users) for cut in cuts])
        user = tuple(place[e - len(cut.users) : e] for cut, e in zip(cuts, ends, strict=True))
        return cls(tuple(weights), user, len(everybody.dictionary), tuple(cut.kind for cut in cuts))

    def score(self, values: Values) -> float:
        """Returns the validation NDCG."""
        return float(sum(w * v.sum(dtype=np.float64) for w, v in zip(self.weights, values, strict=True)))

    def gain(self, values: Values, over: Values, kind: str | None = None) -> tuple[float, float, float]:
        """Returns the gain in validation NDCG, and its 99% interval by bootstrap over users, paired.

        Args:
            values: the NDCG of each cut's users.
            over: the NDCG that it is compared with.
            kind: only the cuts of this kind count. None means all.
        """
        by_user = np.zeros(self.users)
        for i, (w, user) in enumerate(zip(self.weights, self.user, strict=True)):
            if kind is None or kind == self.kinds[i]:
                by_user += np.bincount(user, w * (values[i].astype(np.float64) - over[i]), minlength=self.users)
        return bootstrap_interval(by_user * self.users, LEVEL)

    def loses(self, values: Values, over: Values) -> bool:
        """Says whether the cuts of one kind lose for certain."""
        return any(self.gain(values, over, kind)[2] < 0 for kind in sorted(set(self.kinds)))


@dataclass(frozen=True)
class Row:
    """What was found about the settings of a grid, with all others as they were then.

    Attributes:
        before: their values.
        tried: each point with its validation NDCG; None where it could not be scored.
        best: the best point whose gain is certain, or if there is none, the best one; only of points with which no kind
            of cut loses for certain against the job's own settings.
        over: what the best point is compared with: `before`, or if that is the best one, the job's own values.
        gain: the gain over that: mean, low and high.
        chosen: `best` if its gain is certain, otherwise `before`.
        whole: whether all points were tried before the time was over.
    """

    before: Settings
    tried: tuple[tuple[Settings, float | None], ...]
    best: Settings
    over: Settings
    gain: tuple[float, float, float]
    chosen: Settings
    whole: bool


@dataclass
class Search:
    """The state of a search.

    Attributes:
        job: the job.
        grids: what is tried, in order.
        measure: scores settings; raises `OutOfTime`.
        yardstick: makes one number of a score.
        before: the job's own settings.
        own: the NDCG that they reach.
        settings: the settings chosen so far.
        rows: what was found, by the keys of each grid; the latest round counts.
        whole: whether the search came to its end.
    """

    job: Job
    grids: Sequence[Grid]
    measure: Measure
    yardstick: Yardstick
    before: Settings
    own: Values
    settings: Settings
    rows: dict[tuple[str, ...], Row] = field(default_factory=dict)
    whole: bool = False

    def run(self) -> None:
        """Tries all grids in turn, until a round changes none, or the time is over."""
        for _ in range(MOST_ROUNDS):
            before = dict(self.settings)
            for grid in self.grids:
                points = points_to_try(grid, self.job, self.settings, self.before)
                if len(points) > 1 and not self._try(points):
                    return
            if self.settings == before:
                break
        self.whole = True

    def _try(self, points: Sequence[Settings]) -> bool:
        """Tries the points of a grid; returns False if the time is over."""
        keys = tuple(points[0])
        now = {key: self.settings[key] for key in keys}
        found: list[tuple[Settings, Values | None]] = []
        whole = True
        try:
            for point in points:  # not a list comprehension: what was found before the time was over is kept
                values = self.measure({**self.settings, **point})
                found.append((point, values))
        except OutOfTime:
            whole = False
        here = self.measure(self.settings)
        assert here is not None  # the search begins with settings that could be scored
        best, chosen, gain = self._choose(found, now, here)
        over = now
        if best == now and now != (own := {key: self.before[key] for key in keys}):
            over, base = own, next((v for p, v in found if p == own), None)
            gain = self.yardstick.gain(here, here if base is None else base)
        tried = tuple((p, None if v is None else self.yardstick.score(v)) for p, v in found)
        self.rows[keys] = Row(now, tried, best, over, gain, chosen, whole)
        self.settings = {**self.settings, **chosen}
        return whole

    def _choose(
        self, found: Sequence[tuple[Settings, Values | None]], now: Settings, here: Values
    ) -> tuple[Settings, Settings, tuple[float, float, float]]:
        """Returns the best point, the chosen one, and the gain of the best one over the values so far."""
        score = self.yardstick.score
        better = [(p, v) for p, v in found if v is not None and score(v) > score(here)]
        best, gain = now, (0.0, 0.0, 0.0)
        for point, values in sorted(better, key=lambda x: -score(x[1])):
            if self.yardstick.loses(values, self.own):
                continue
            gained = self.yardstick.gain(values, here)
            if gained[1] > 0:
                return point, point, gained
            if best == now:
                best, gain = point, gained
        return best, now, gain
