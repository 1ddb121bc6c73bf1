"""`unisono tune`: chooses settings of the learned ranking on earlier moments of the job's own log."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from unisono.pipelines.ask.hidden import read_hidden
from unisono.pipelines.ask.trial import read_embeddings, read_events
from unisono.pipelines.job.job import Job
from unisono.pipelines.tune.bench import Bench, K
from unisono.pipelines.tune.cuts import SPLITS, Catalogue, Cut, make_cuts
from unisono.pipelines.tune.journal import Journal, Values, fingerprint
from unisono.pipelines.tune.search import OutOfTime, Row, Search, Yardstick
from unisono.pipelines.tune.settings import GRIDS, Settings, Value, name_of, settings_of, spec_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import same_id_kind
from unisono.transforms.rank.model import WEEK_US

LEAST_USERS = 20  # with fewer users, a bootstrap over users promises too much
MINUTES = 10.0


@dataclass(frozen=True, eq=False)
class Tuned:
    """What came out.

    Attributes:
        before: the job's own settings.
        settings: the chosen settings.
        rows: what was found about each setting, in the order of the search.
        cuts: for each cut its name and its number of users.
        users: the number of all users that were measured.
        validation: the validation NDCG@10 of the job's own settings and of the chosen ones; see `Yardstick`.
        gain: the difference: mean, low and high (99%, paired bootstrap over users).
        ndcg: for each cut, the mean NDCG@10 with the job's own settings and with the chosen ones.
        ageing: whether the log spans at least a week. If not, settings of ageing are not tried.
        whole: whether the search came to its end before the time was over.
        earlier: how many points earlier calls had scored.
        points: how many points are scored now.
        journal: the file of the points.
    """

    before: Settings
    settings: Settings
    rows: tuple[Row, ...]
    cuts: tuple[tuple[str, int], ...]
    users: int
    validation: tuple[float, float] | None
    gain: tuple[float, float, float] | None
    ndcg: tuple[tuple[float, float], ...]
    ageing: bool
    whole: bool
    earlier: int
    points: int
    journal: str

    @property
    def changes(self) -> dict[str, Value]:
        """The settings that differ from the job's own."""
        return {k: v for k, v in self.settings.items() if v != self.before[k]}


def tune(job: Job, minutes: float = MINUTES, split: str = "both", console: Console | None = None) -> Tuned:
    """Chooses settings of `ranking.method: learned`, on validation cuts made of the job's log.

    The embeddings are those of the published run. Nothing but a file of scored points, `tune/<name>.jsonl` in the
    store, is written.

    Args:
        job: a job with a log, `ranking`, and a published run.
        minutes: no new point is begun after this time.
        split: one of `SPLITS`: whether lists shall be good from one moment on for all users, or for the next item of
            each user, or both.
        console: where progress is said. None means standard error.

    Raises:
        JobError: the job does not learn its ranking, it has no log, nothing is published, or nobody can be measured.

    Guarantees:
        The same log, embeddings and settings give the same points. Only where the search stops depends on the clock.
    """
    started = time.monotonic()
    check_job(job)
    if not minutes > 0:
        raise JobError(f"--minutes: {minutes:g} is not above 0; give the minutes that the search may take")
    if split not in SPLITS:
        raise JobError(f"--split: {split!r} is none of {', '.join(SPLITS)}; choose one of them")
    embeddings, (events, _) = read_embeddings(job.store_at), read_events(job)
    return tune_events(
        job, embeddings, events, read_hidden(job), deadline=started + 60 * minutes, split=split, console=console
    )


def check_job(job: Job) -> None:
    """Checks that a job learns its ranking from a log.

    Raises:
        JobError: it does not.
    """
    if job.interactions is None:
        raise JobError("interactions: missing; `unisono tune` chooses settings by the log (path, user, item, time)")
    if job.privacy.noise:
        raise JobError("privacy.noise: figures of the log as it is would break its guarantee; leave out one of the two")
    if job.ranking is None:
        raise JobError("ranking: missing; there is nothing to choose settings for; give `ranking: {}`")
    if not job.ranks.learned:
        raise JobError(
            "ranking.method: vectors; `unisono tune` chooses settings of `learned`; set method: learned, and leave out "
            "`interests`, `weights` and `fusion: late`"
        )


def tune_events(
    job: Job,
    embeddings: pa.Table,
    events: pa.Table,
    hidden: pa.Array | None,
    *,
    deadline: float,
    split: str = "both",
    console: Console | None = None,
) -> Tuned:
    """Chooses settings by some events, see `tune`.

    Args:
        job: the job.
        embeddings: `item_id` and `<m>_embedding`, in ascending order of the ids.
        events: the events, as `clean_interactions` returns them.
        hidden: ids of the items that may not be recommended. None means that every item may be.
        deadline: no new point is begun after this time of `time.monotonic`.
        split: see `tune`.
        console: where progress is said. None means standard error.
    """
    of_log, of_items = (t.schema.field("item_id").type for t in (events, embeddings))
    if not same_id_kind(of_log, of_items):
        raise JobError(f"interactions.item: ids are {of_log}, those of the items {of_items}")
    ends = pc.min_max(events["time"].cast(pa.int64())).as_py()
    ageing = events.num_rows > 0 and ends["max"] - ends["min"] >= WEEK_US
    with tempfile.TemporaryDirectory(prefix="unisono-tune-") as home:
        catalogue = Catalogue.of(job, embeddings, hidden, home)
        cuts = make_cuts(catalogue, events, job, split)
        journal = Journal.open(job.store_at, fingerprint(job, events, hidden, cuts), cuts)
        scorer = _Scorer(
            job, catalogue, cuts, journal, settings_of(job, ageing),
            deadline=deadline, console=console or Console(stderr=True),
        )  # fmt: skip
        return _search(job, cuts, journal, scorer, ageing)


def _search(job: Job, cuts: Sequence[Cut], journal: Journal, scorer: _Scorer, ageing: bool) -> Tuned:
    users = len(pa.chunked_array([cut.users for cut in cuts]).unique()) if cuts else 0
    found = Tuned(
        before=scorer.own,
        settings=scorer.own,
        rows=(),
        cuts=tuple((cut.name, len(cut.users)) for cut in cuts),
        users=users,
        validation=None,
        gain=None,
        ndcg=(),
        ageing=ageing,
        whole=True,
        earlier=journal.earlier,
        points=len(journal.points),
        journal=journal.path,
    )
    if users < LEAST_USERS:
        return found
    own = scorer(scorer.own)
    if own is None:
        raise JobError(scorer.why)
    yardstick = Yardstick.of(cuts, own)
    scorer.score = yardstick.score
    grids = [grid for grid in GRIDS if ageing or not grid.ageing]
    search = Search(job, grids, scorer, yardstick, before=scorer.own, own=own, settings=scorer.own)
    search.run()
    best = journal.points[name_of(search.settings)]
    assert best is not None  # what is chosen has been scored
    return replace(
        found,
        settings=search.settings,
        rows=tuple(search.rows.values()),
        validation=(yardstick.score(own), yardstick.score(best)),
        gain=yardstick.gain(best, own),
        ndcg=tuple((float(a.mean()), float(b.mean())) for a, b in zip(own, best, strict=True)),
        whole=search.whole,
        points=len(journal.points),
    )


class _Scorer:
    """Scores settings on all cuts, unless an earlier call did.

    Args:
        job: the job.
        catalogue: the items.
        cuts: the cuts.
        journal: where points are looked up and written down.
        own: the job's own settings.
        deadline: see `tune_events`.
        console: where progress is said.
    """

    def __init__(
        self,
        job: Job,
        catalogue: Catalogue,
        cuts: list[Cut],
        journal: Journal,
        own: Settings,
        *,
        deadline: float,
        console: Console,
    ) -> None:
        self._job, self._catalogue, self._cuts, self._journal = job, catalogue, cuts, journal
        self.own, self._deadline, self._console = own, deadline, console
        if journal.earlier:
            console.print(
                f"going on from {journal.earlier} points of an earlier call in {journal.path}", highlight=False
            )
        self._benches: list[Bench] = []
        self._seconds: dict[bool, float] = {}  # what a point took last, with new factors and without
        self._fitted: set[str] = set()
        self.why = ""  # the last points could not be scored
        self.score: Callable[[Values], float] | None = None

    def __call__(self, settings: Settings) -> Values | None:
        name = name_of(settings)
        if name in self._journal.points:
            return self._journal.points[name]
        factors = name_of({key: settings[key] for grid in GRIDS if grid.fits for key in grid.keys})
        fits = factors not in self._fitted
        started = time.monotonic()
        if self.score is not None and started + self._seconds.get(fits, 0.0) > self._deadline:
            raise OutOfTime
        values, self.why = self._measure(settings)
        self._fitted.add(factors)
        self._seconds[fits] = time.monotonic() - started
        self._journal.add(settings, values, self._seconds[fits])
        self._say(settings, values, self._seconds[fits])
        return values

    def _measure(self, settings: Settings) -> tuple[Values | None, str]:
        if not self._benches:
            self._benches = [Bench(self._catalogue, cut, i, self._job) for i, cut in enumerate(self._cuts)]
        spec = spec_of(self._job, settings)
        try:
            return tuple(bench.ndcg(spec).astype("float32") for bench in self._benches), ""
        except JobError as e:  # a regularization that is too small for float32: the other values are still tried
            return None, str(e)

    def _say(self, settings: Settings, values: Values | None, seconds: float) -> None:
        changed = ", ".join(f"{k} {_text(v)}" for k, v in settings.items() if v != self.own[k]) or "the job's settings"
        found = self.why
        if values is not None:
            found = f"NDCG@{K} " + (f"{self.score(values):.4f}" if self.score else _means(values))
        self._console.print(f"{changed}: {found}, {seconds:.1f} s", highlight=False, soft_wrap=True)


def _means(values: Values) -> str:
    return " ".join(f"{v.mean():.4f}" for v in values)


def _text(value: Value) -> str:
    return "null" if value is None else f"{value:g}"
