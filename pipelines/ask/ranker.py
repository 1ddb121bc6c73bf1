"""Ranks a run's items for stored users and for sessions, with the functions that the nightly graph uses."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.pipelines.ask.hidden import read_hidden
from unisono.pipelines.ask.log import LogTotals, pseudonyms_of, total_log
from unisono.pipelines.ask.published import PublishedRun, id_array
from unisono.pipelines.ask.sessions import session_events
from unisono.transforms.base.columns import RANKING_VECTOR, TASTE
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import one_chunk, to_vector_column, with_column
from unisono.transforms.rank.lists import diversify, recommendation_schema
from unisono.transforms.rank.ranking import Shelf, distinct_pairs, make_shelf, rank_items
from unisono.transforms.rank.spec import RankingSpec
from unisono.transforms.rank.user_vectors import add_ranking_vectors, queries_of, read_ranking, taste_spec
from unisono.transforms.store.item_matrix import ItemMatrix, first_schema, modality_vectors, per_process
from unisono.transforms.users.history import leave_out_repeats_and_robots, order_history
from unisono.transforms.users.profiles import Surroundings, build_profiles, popular_direction
from unisono.transforms.users.tastes import read_tastes, tastes_of


class Ranker:
    """The items of a run, ready to be ranked. What a request needs first is read once and kept.

    Args:
        run: The run. Its own job file says how items are ranked; the job file of the run that made the profiles
            says how a profile is made.

    Raises:
        JobError: The run has no items.
    """

    def __init__(self, run: PublishedRun) -> None:
        self.run = run
        self.job = run.job
        self.profile_job = run.job_of("users") if run.manifest.part("users") else run.job
        # The lists do not depend on the slices.
        self.spec: RankingSpec = replace(self.job.ranks, slices=1)
        schema = first_schema(run.records("items"), run.store.root)
        self.about = read_ranking(schema)
        if not self.about:  # the run was made without `ranking`: item vectors are ranked by profiles
            self.spec = replace(self.spec, method="vectors", fusion="early", weights={})
        column = RANKING_VECTOR if self.about else "vector"
        self.items: ItemMatrix = per_process(run.records("items"), run.store.root, vector_column=column)

    # --- requests ---

    def for_users(self, users: object, k: int | None = None, use_log: bool = True) -> pa.Table:
        """Ranks items for users with a stored profile; see `unisono.Run.recommend`.

        Returns:
            `recommendation_schema`: one row per asked user, in the order of `users`.

        Raises:
            JobError: A user has no profile, or the log cannot be read.
        """
        spec = self._spec(k)
        pseudonyms = pseudonyms_of(self.run, self.profile_job)
        asked = id_array(users, "user") if pseudonyms else self.run.ids_of("users", users, "user")
        known = pseudonyms.of(asked) if pseudonyms else asked
        distinct = known.unique()
        profiles = self._as_queries(self.run.rows("users", distinct, "user", asked.unique().to_pylist()))
        seen = self.totals.of_users(distinct) if self.spec.exclude_seen and use_log else None
        ranked = self._rank(profiles, seen, spec)
        ranked = ranked.take(pc.index_in(known, value_set=one_chunk(ranked["user_id"])))
        return ranked.set_column(0, "user_id", asked)

    def for_sessions(self, events: object, k: int | None = None, use_log: bool = True) -> pa.Table:
        """Ranks items for sessions of recent events; see `unisono.Run.recommend`.

        Returns:
            `recommendation_schema`: one row per session, by user_id. A session without a profile has empty lists.

        Raises:
            JobError: An event cannot be used, or the log cannot be read.
        """
        spec = self._spec(k)
        table = session_events(events, self.profile_job, self.items.id_type)
        profiles = self.session_profiles(table, use_log)
        seen = distinct_pairs(table) if self.spec.exclude_seen else None
        ranked = self._rank(profiles, seen, spec)
        everybody = one_chunk(table["user_id"]).unique()
        without = everybody.filter(pc.invert(pc.is_in(everybody, value_set=one_chunk(ranked["user_id"]))))
        nothing: list[list[object]] = [[]] * len(without)
        schema = recommendation_schema(ranked["user_id"].type, self.items.id_type)
        empty = pa.table([without, nothing, nothing], schema=schema)
        return pa.concat_tables([ranked.cast(schema), empty]).sort_by("user_id").combine_chunks()

    def session_profiles(self, events: pa.Table, use_log: bool = True) -> pa.Table:
        """Builds the profiles of sessions as the nightly graph builds those of users.

        Args:
            events: user_id, item_id, time, weight, as `session_events` returns them.
            use_log: For ranking vectors that are not learned: cold sessions get a profile that leans on what everybody
                likes, which is read from the log.

        Returns:
            `user_id` and `ranking_vector`, by user_id. A session that leaves no direction, and no log to lean on, has
            no row.
        """
        job = self.profile_job
        records, root = self.run.records("items"), self.run.store.root
        if self.spec.learned:
            at = job.profiles
            spec = taste_spec(self.spec, half_life_days=at.half_life_days, min_events=at.min_events)
            tastes = read_tastes(records, spec, root)
            history, _ = order_history(events, self.items)
            history, _ = leave_out_repeats_and_robots(
                history, at.session_minutes, at.max_events_per_day, at.robots == "drop"
            )
            own = to_vector_column(tastes_of(history, tastes, at.recent_events))
            return self._as_queries(pa.table({"user_id": history.user_ids, TASTE: own}))
        modalities = {m: self._modality(m) for m in job.space_modalities}
        around = Surroundings(per_process(records, root), modalities, with_vectors=self.spec.fusion == "late")
        built = build_profiles(events, around, job.profiles)
        leans = job.interactions is not None and not job.privacy.noise  # with noise, no profile may lean on others
        if built.counts["users.without_profile"] and use_log and leans:
            built = build_profiles(events, replace(around, prior=self._prior), job.profiles)
        return self._as_queries(built.users)

    # --- what requests share ---

    @cached_property
    def totals(self) -> LogTotals:
        """What ranking needs to know of everybody's events: reads the whole log once."""
        return total_log(self.run, self.job if self.job.interactions else self.profile_job)

    @cached_property
    def _prior(self) -> np.ndarray | None:
        return popular_direction(self.totals.counts, per_process(self.run.records("items"), self.run.store.root))

    def _modality(self, name: str) -> np.ndarray:
        return modality_vectors(self.run.records("items"), name, self.run.store.root)

    def _spec(self, k: int | None) -> RankingSpec:
        if k is not None and k < 1:
            raise JobError(f"k: {k}; give 1 or more")
        return self.spec if k is None else replace(self.spec, k=k)

    @cached_property
    def _shelf(self) -> Shelf:
        hidden = read_hidden(self.job)
        return make_shelf(self.items, [] if hidden is None else [pa.table({"item_id": hidden})])

    def _as_queries(self, profiles: pa.Table) -> pa.Table:
        """Gives profiles their ranking vectors, if they have none yet."""
        if RANKING_VECTOR in profiles.column_names and self.about:
            return profiles
        if self.about:
            return add_ranking_vectors(profiles, self.spec, self.about)
        return with_column(profiles, RANKING_VECTOR, to_vector_column(queries_of(profiles, self.spec)))

    def _rank(self, profiles: pa.Table, seen: pa.Table | None, spec: RankingSpec) -> pa.Table:
        ranked = rank_items(profiles, seen, self._shelf, spec)
        if not spec.diversity:
            return ranked
        vectors = per_process(self.run.records("items"), self.run.store.root)
        return diversify(ranked, vectors, spec.k, spec.diversity)
