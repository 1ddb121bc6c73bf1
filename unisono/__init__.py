"""Unisono: item vectors, user profiles and recommendations from a catalogue and its interaction log.

Run a job, or open a store that a job has written:

    import unisono

    run = unisono.run("job.yaml")                 # or: run = unisono.open("out/store")
    run.items().slice(0, 5)                       # an Arrow table: item_id, title, vector, …
    ids, vectors = run.vectors()                  # the item vectors as one float32 matrix
    run.search(text="red lamp", k=5)
    run.similar(["item-00042", "item-00007"])
    run.recommend(events=[{"item_id": "item-00042", "event": "cart"}])
    run.explain("user-00003", "item-00042").modalities

Whatever is wrong with a job, a store or an argument raises `JobError`, whose message is one line that says what to do.

Terms: an item vector is an item's fused vector, for search and neighbours; a user profile is one vector per user in
the same space. Both have unit length, except profiles published with `privacy.noise`. Items and users have ranking
vectors too: the inner product of an item's and a user's is the score by which lists are sorted.
"""

# This file runs before any other module of the package, also on workers: it imports nothing but `typing`. Functions
# import what they need.
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

    from unisono.pipelines.ask.explain import Explanation
    from unisono.pipelines.ask.published import PublishedRun
    from unisono.pipelines.ask.ranker import Ranker
    from unisono.pipelines.ask.search import Searcher
    from unisono.pipelines.job.job import Job
    from unisono.transforms.base.errors import JobError as JobError
    from unisono.transforms.space.space import Space
    from unisono.transforms.store.runs import Manifest

__all__ = ["JobError", "Run", "load_job", "open", "run"]


def __getattr__(name: str) -> Any:
    """Imports `JobError` when it is first used."""
    if name == "JobError":
        from unisono.transforms.base.errors import JobError

        return JobError
    raise AttributeError(f"module 'unisono' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists the names of this module, with `JobError`."""
    return [*globals(), "JobError"]


def open(store: str | Path, run: str | None = None) -> Run:
    """Opens the published run of a store, or an earlier run.

    Args:
        store: The directory or gs:// prefix that a job writes to (the job file's key `store`).
        run: The id of a finished run. None means the published run.

    Raises:
        JobError: The store has no published run, or no finished run of that id.
    """
    opened = Run(_place(store), run)
    opened._opened()
    return opened


def load_job(path: str | Path) -> Job:
    """Reads and validates a job file. Relative paths in it are relative to the file.

    Args:
        path: The file, local or gs://.

    Raises:
        JobError: The file cannot be read or is not a valid job; the line names the key, its value and what is allowed.
    """
    from unisono.pipelines.job.load import load_job as load

    return load(str(path))


def run(
    job: Job | str | Path,
    run_id: str | None = None,
    *,
    items: bool = True,
    users: bool | None = None,
    recommend: bool | None = None,
    beam_options: Sequence[str] = (),
) -> Run:
    """Runs a job: checks it whole, makes the parts that are asked for, and publishes the run.

    The defaults make what `unisono nightly` makes. Progress goes to standard error, a summary to standard output.

    Args:
        job: A job file, or a job that `load_job` returned.
        run_id: The name of the run. None means the time of launch. The id of a run that was cut short resumes that run.
        items: Encode the catalogue, fit the joint space and make item vectors. False uses the published items.
        users: Make user profiles from the interaction log. None means True if the job has `interactions`.
        recommend: Rank items for users. None means True if the run makes profiles and the job has `ranking`.
        beam_options: Options for Beam, as on the command line: `["--runner", "DataflowRunner", …]`.

    Returns:
        The published run. If the job was only submitted, using the run raises `JobError` until it has finished.

    Raises:
        JobError: The job or an input cannot be used, or the run is not fit to be published.
    """
    from unisono.pipelines.job.job import Job
    from unisono.pipelines.job.plan import default_run_id
    from unisono.pipelines.launch import run_job

    if not isinstance(job, Job):
        job = load_job(job)
    users = job.interactions is not None if users is None else users
    recommend = users and job.ranking is not None if recommend is None else recommend
    run_id = run_id or default_run_id()
    run_job(job, run_id, list(beam_options), items=items, users=users, recommend=recommend)
    return Run(job.store, run_id)


class Run:
    """A finished run of a store. Get one from `unisono.open` or `unisono.run`.

    A table is read from the store at each call. Item vectors that a search or a recommendation has read stay in memory
    for the next one.
    """

    def __init__(self, store: str, run: str | None = None) -> None:
        self._store, self._run = store, run
        self._published: PublishedRun | None = None
        self._searcher_: Searcher | None = None
        self._ranker_: Ranker | None = None

    def __repr__(self) -> str:
        # Reads nothing: a run that was only submitted has no manifest yet.
        name = self._published.manifest.run_id if self._published else self._run
        return f"<unisono.Run {name} of {self._store}>"

    # --- what the run is ---

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._opened().manifest.run_id

    @property
    def manifest(self) -> Manifest:
        """Every file of the run with its part, path, rows, bytes and sha256, and when the run was launched."""
        return self._opened().manifest

    @property
    def job(self) -> Job:
        """The job file of the run, with every default filled in and every path absolute."""
        return self._opened().job

    @property
    def space(self) -> Space:
        """The joint space: `project(modality, embeddings)` maps embeddings [n, d] to vectors float32 [n, dim]."""
        return self._opened().space

    @property
    def metrics(self) -> dict[str, int]:
        """The counts of the run by name, such as `items.rows`, `users.cold` and `dead.encode.image.not_found`."""
        return self._json("metrics")

    @property
    def quality(self) -> dict[str, Any]:
        """What quality.json says of the joint space: how well modalities find each other, and what small vectors cost.

        Raises:
            JobError: The run has no item vectors.
        """
        return self._json("quality")

    # --- its parts, as Arrow tables ---

    def items(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads the item vectors.

        Args:
            columns: The columns to read. None means all columns.

        Returns:
            A row per item: item_id, title, vector fixed_size_list[dim] of unit length, modalities (those in the
            vector), imputed (those that were predicted; only with `fusion.impute`), and per modality `<m>_vector` and
            `<m>_weight`, null where the item has no such vector. Vectors have the job's `output.dtype`; `vectors`
            decodes them. Shards in order; rows sorted by id within a shard.

        Raises:
            JobError: The run has no items, or no such column.
        """
        return self._opened().table("items", columns)

    def users(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads the user profiles.

        Args:
            columns: The columns to read. None means all columns.

        Returns:
            A row per user: user_id (a pseudonym with `privacy.pseudonyms`), vector fixed_size_list<float32>[dim],
            interests (a list of vector, weight, item_id), `<m>_affinity` float32, events int64 (how many count),
            last_event timestamp[us, UTC], cold bool. Shards in order; rows sorted by id within a shard.

        Raises:
            JobError: The run has no profiles, or no such column.
        """
        return self._opened().table("users", columns)

    def embeddings(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads the embeddings that the item vectors were made of.

        Args:
            columns: The columns to read. None means all columns.

        Returns:
            A row per item: item_id, title, and per encoded modality `<m>_hash`, `<m>_encoder` and `<m>_embedding`
            fixed_size_list[d], null where missing. Shards in order; rows sorted by id within a shard.

        Raises:
            JobError: The run has no embeddings, or no such column.
        """
        return self._opened().table("embeddings", columns)

    def recommendations(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads the recommendations that the run made.

        Args:
            columns: The columns to read. None means all columns.

        Returns:
            A row per user: user_id, item_ids and scores (list<float32>), best first. Shards in order; rows sorted by
            id within a shard.

        Raises:
            JobError: The run has no recommendations, or no such column.
        """
        return self._opened().table("recommendations", columns)

    def dead_letters(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads the inputs that could not be used.

        Args:
            columns: The columns to read. None means all columns.

        Returns:
            A row per input: item_id (as a string), modality, stage, reason (a code), detail, uri.

        Raises:
            JobError: There is no such column.
        """
        return self._opened().table("dead_letters", columns)

    def vectors(self, modality: str | None = None) -> tuple[pa.Array, np.ndarray]:
        """Reads the item vectors as one matrix.

        Args:
            modality: None means the fused vectors. A name such as `text` means the vectors of this modality alone, of
                the items that have one.

        Returns:
            The item ids [n], and the vectors float32 [n, dim], C-contiguous, unit rows, in the order of `items`.
            Vectors stored as float16 or int8 are decoded.

        Raises:
            JobError: The run has no items, or no such modality.
        """
        return self._opened().vectors(modality)

    # --- questions ---

    def search(
        self,
        *,
        text: str | None = None,
        image: str | Path | bytes | None = None,
        audio: str | Path | bytes | None = None,
        item: str | int | None = None,
        k: int = 10,
    ) -> pa.Table:
        """Finds the items nearest to one query. Give exactly one of `text`, `image`, `audio` and `item`.

        Args:
            text: Words. Every modality whose encoder takes text is asked.
            image: A picture: its path, local or gs://, or the bytes of the file.
            audio: A sound: its path, local or gs://, or the bytes of the file.
            item: The id of an item, which is not found itself.
            k: The most items to find, at least 1.

        Returns:
            A row per found item, best first: rank int64 from 1, score float32 (the cosine), item_id, title, modalities.

        Raises:
            JobError: There is not exactly one query, the query cannot be used, the run has no such modality or item,
                or this machine has another version of the encoder.
        """
        media = {m: v if v is None or isinstance(v, bytes) else str(v) for m, v in (("image", image), ("audio", audio))}
        return self._searcher().search(text=text, image=media["image"], audio=media["audio"], item=item, k=k)

    def similar(self, item_ids: str | int | Iterable[Any], k: int = 10) -> pa.Table:
        """Finds the items nearest to each of some items, which are not found themselves.

        Args:
            item_ids: One id, or a list, NumPy array or Arrow array of ids.
            k: The most items to find for each of them, at least 1.

        Returns:
            Rows in the order of `item_ids`, best first: query_item_id, rank int64 from 1, item_id, score float32 (the
            cosine).

        Raises:
            JobError: An item is not in the run, or `k` is below 1.
        """
        return self._searcher().similar(item_ids, k)

    def recommend(
        self,
        *,
        users: str | int | Iterable[Any] | None = None,
        events: object = None,
        k: int | None = None,
        use_log: bool = True,
    ) -> pa.Table:
        """Ranks items for users with a stored profile, or for sessions of recent events. Give one of the two.

        Profiles and lists are made as a nightly run makes them, with `profiles` and `ranking` of the run's job file.
        The store does not say what was seen, so the log that the job file names is read: whole, once per `Run`, and
        only if needed. `users` need it for `ranking.exclude_seen`. Cold sessions need it if ranking vectors are not
        learned, for what everybody likes.

        Args:
            users: User ids in the run's users/: one id, or a list, NumPy array or Arrow array. With
                `privacy.pseudonyms`, raw ids; the key must be in the environment.
            events: An Arrow table, a list of dictionaries, a dictionary of columns, or a data frame, of these columns:
                item_id; user_id (a label; without it all events are of one session, `session`); time (timestamps,
                dates, or integers in the job's `time_unit`; without it the order counts, and nothing decays); event (a
                type that the job's `weights` name) or weight (a number; without either, 1). No user needs to be stored.
                Events of unknown items do not count. With `exclude_seen`, a session's own items are not recommended.
            k: The length of the lists. None means the job's `ranking.k`.
            use_log: False never reads the log. Then `users` can be recommended what they have seen, and cold sessions
                have no list unless ranking vectors are learned.

        Returns:
            user_id, item_ids (a list), scores (list<float32>), best first. `users`: a row per id, in their order.
            `events`: a row per session, sorted by user_id; the lists are empty if a session has no profile.

        Raises:
            JobError: Not exactly one of `users` and `events` is given, a user has no profile, an event cannot be used,
                or the log cannot be read.
        """
        if (users is None) == (events is None):
            from unisono.transforms.base.errors import JobError

            raise JobError("recommend: give either users or events")
        if users is not None:
            return self._ranker().for_users(users, k, use_log)
        return self._ranker().for_sessions(events, k, use_log)

    def explain(self, user: str | int, item: str | int) -> Explanation:
        """Splits the score of a user and an item into parts, by modality and by the user's events.

        The score is that of the published lists. Reads the state of incremental profiles, or the log that the job file
        of the profiles names.

        Args:
            user: A user id. With `privacy.pseudonyms`, the raw id; the key must be in the environment.
            item: An item id.

        Returns:
            score; query (what of the user was compared); modalities, (name, part) pairs that add up to the score;
            events, (item_id, time, weight, part), largest part first; rest, what no event accounts for; note, what
            cannot be told, such as the events after the log was replaced.

        Raises:
            JobError: The run has no such user or item, its profiles carry noise, or the log cannot be read.
        """
        from unisono.pipelines.ask.explain import explain

        return explain(self._opened(), user, item)

    # --- opened when first needed ---

    def _opened(self) -> PublishedRun:
        if self._published is None:
            from unisono.pipelines.ask.published import PublishedRun
            from unisono.transforms.store.runs import Store

            self._published = PublishedRun.open(Store(self._store), self._run)
        return self._published

    def _searcher(self) -> Searcher:
        if self._searcher_ is None:
            from unisono.pipelines.ask.search import Searcher

            self._searcher_ = Searcher(self._opened())
        return self._searcher_

    def _ranker(self) -> Ranker:
        if self._ranker_ is None:
            from unisono.pipelines.ask.ranker import Ranker

            self._ranker_ = Ranker(self._opened())
        return self._ranker_

    def _json(self, part: str) -> dict[str, Any]:
        from unisono.transforms.store.runs import read_json

        run = self._opened()
        found: Mapping[str, Any] = read_json(run.store, run.records(part)[0].path)
        return dict(found)


def _place(store: str | Path) -> str:
    """Makes a local path absolute, and leaves a gs:// prefix as it is."""
    from os.path import abspath

    return str(store) if "://" in str(store) else abspath(store)
