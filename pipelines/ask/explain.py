"""Explains why a run matches a user with an item: the score as a sum of parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unisono.pipelines.ask.log import open_log, pseudonyms_of, read_events
from unisono.pipelines.ask.published import PublishedRun, id_array
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.rank.ranking import RankingSpec, late_matrix, queries_of
from unisono.transforms.store.item_matrix import ItemMatrix, modality_vectors
from unisono.transforms.store.small_vectors import read_vectors
from unisono.transforms.users.explain import interest_parts, modality_parts, profile_parts
from unisono.transforms.users.history import History, leave_out_repeats_and_robots, order_history
from unisono.transforms.users.profiles import ProfileSpec

_ROUNDING = 1e-5  # a larger difference does not come from float32, but from vectors stored in fewer bytes


@dataclass(frozen=True)
class Explanation:
    """A score and its parts.

    Attributes:
        score: The score of the user and the item, without any popularity bonus or penalty.
        query: The vector of the user that was compared with the item: `profile`, `interest 2 (item-7)`,
            `all interests` or `modalities`.
        modalities: (modality, part) pairs. The parts add up to the score.
        events: (item_id, time, weight, part) of each of the user's events, the largest part first.
        rest: The part of the score that no event accounts for: the prior of a cold user, the older logs of incremental
            profiles, and rounding. The parts of `events` and `rest` add up to the score.
    """

    score: float
    query: str
    modalities: tuple[tuple[str, float], ...]
    events: tuple[tuple[Any, str, float, float], ...]
    rest: float


@dataclass(frozen=True, eq=False)
class _Match:
    """A user and an item of a run, with everything that an explanation is computed from.

    Attributes:
        user: The user's row of users/.
        item: The item's row of items/.
        items: The matrix of all fused item vectors.
        modalities: For each modality of the items, its vectors, float32 [items, dim].
        history: The user's events that count.
        profiles: How the run made profiles.
        ranking: How the run ranks.
        space_modalities: The modalities of the joint space, in the order of the job file.
    """

    user: pa.Table
    item: pa.Table
    items: ItemMatrix
    modalities: Mapping[str, np.ndarray]
    history: History
    profiles: ProfileSpec
    ranking: RankingSpec
    space_modalities: tuple[str, ...]


def explain(run: PublishedRun, user: str | int, item: str | int) -> Explanation:
    """Splits the score of a user and an item of a run; see `unisono.Run.explain`.

    Raises:
        JobError: The run has no such user or item, its profiles carry noise, or its log cannot be read.
    """
    job = run.job_of("users")
    of_item = run.rows("items", run.ids_of("items", item, "item"), "item")
    if job.privacy.noise:
        raise JobError(
            "explain: the published profiles are noised (privacy.noise), and an explanation shows the events as they "
            "are; explain a run without privacy.noise"
        )
    pseudonyms = pseudonyms_of(run, job)
    known = pseudonyms.of(id_array(user, "user")) if pseudonyms else run.ids_of("users", user, "user")
    of_user = run.rows("users", known, "user", [user])
    records, root = run.records("items"), run.store.root
    items = ItemMatrix.open(records, root)
    names = [c.removesuffix("_vector") for c in of_item.column_names if c.endswith("_vector")]
    log = open_log(run, job)
    events = pa.concat_tables([log.schema.empty_table(), *read_events(log, known.cast(log.user_type))])
    match = _Match(
        user=of_user,
        item=of_item,
        items=items,
        modalities={m: modality_vectors(records, m, root) for m in names},
        history=_history_of(events, items, job.profiles),
        profiles=job.profiles,
        ranking=run.job.ranking or RankingSpec(),
        space_modalities=job.space_modalities,
    )
    return _explain_late(match) if match.ranking.fusion == "late" else _explain_early(match)


def _history_of(events: pa.Table, items: ItemMatrix, spec: ProfileSpec) -> History:
    """Orders one user's events and leaves out what the profile leaves out: repeats and the excess of robots."""
    history, _ = order_history(events, items)
    drop = spec.robots == "drop"
    return leave_out_repeats_and_robots(history, spec.session_minutes, spec.max_events_per_day, drop)[0]


# --- early fusion: one vector of the user against the fused vector of the item -----------------------------


def _explain_early(match: _Match) -> Explanation:
    vector = read_vectors(match.item)[0][0].astype(np.float64)
    queries = queries_of(match.user, match.ranking)[0].astype(np.float64)
    best = int(np.argmax(queries @ vector))
    query, score = queries[best], float(queries[best] @ vector)
    name, parts = _query_parts(match, best)
    return _explanation(match, score, name, _modality_parts(match, query, score), parts @ vector)


def _query_parts(match: _Match, best: int) -> tuple[str, np.ndarray]:
    """Splits one query of the user into what each event adds to it.

    Args:
        match: The user and the item.
        best: The place of the query among the user's queries.

    Returns:
        The name of the query, and float64 [events, dim].
    """
    history, items, spec = match.history, match.items, match.profiles
    cold = bool(match.user["cold"][0].as_py())
    profile = from_vector_column(match.user["vector"])[0][0].astype(np.float64)
    interests = match.user["interests"][0].as_py() or []
    modalities = {m: match.modalities[m] for m in match.space_modalities if m in match.modalities}
    parts = profile_parts(history, items, modalities, spec, cold)
    if cold:  # the published profile has unit length: divide by the length it had before
        parts = parts / _cold_length(profile, parts, spec.min_events)
    if interests and match.ranking.interests == "maximum":
        own = np.asarray(interests[best]["vector"], np.float64)
        mixed = (parts + interest_parts(history, items, spec, best)) / np.linalg.norm(own + profile)
        return f"interest {best + 1} ({interests[best]['item_id']})", mixed
    if interests and match.ranking.interests == "weighted":
        weighted = [i["weight"] * interest_parts(history, items, spec, n) for n, i in enumerate(interests)]
        return "all interests", sum(weighted, np.zeros_like(parts))
    return "profile", parts


def _cold_length(profile: np.ndarray, parts: np.ndarray, min_events: int) -> float:
    """Finds the length that a cold user's profile had before it was scaled to unit length.

    It is the L that makes L · profile − Σ parts, the share of the prior, as long as `min_events`. This is a quadratic
    equation: ‖L·p − s‖² = k² with ‖p‖ = 1.

    Args:
        profile: float64 [dim], unit length.
        parts: float64 [events, dim].
        min_events: The job's `profiles.min_events`.
    """
    s = parts.sum(0)
    along = float(profile @ s)
    return along + float(np.sqrt(max(along**2 - float(s @ s) + min_events**2, 0.0)))


def _modality_parts(match: _Match, query: np.ndarray, score: float) -> list[tuple[str, float]]:
    """Splits a score by the modalities of the item's vector. A rounding difference gets a part of its own."""
    item = match.item
    imputed = item["imputed"][0].as_py() if "imputed" in item.column_names else []
    parts = []
    for m in match.modalities:
        if weight := item[f"{m}_weight"][0].as_py():
            part = float(weight * (query @ read_vectors(item, f"{m}_vector")[0][0]))
            parts.append((f"{m} (predicted)" if m in imputed else m, part))
    rest = score - sum(part for _, part in parts)
    return parts if abs(rest) < _ROUNDING else [*parts, ("rounding of stored vectors", rest)]


# --- late fusion: the score is a sum over modalities already -----------------------------------------------


def _explain_late(match: _Match) -> Explanation:
    history, items, weights = match.history, match.items, dict(match.ranking.weights)
    names = [m for m in match.space_modalities if weights.get(m, 1.0) > 0 and m in match.modalities]
    row = int(items.lookup(match.item["item_id"])[0])
    query = queries_of(match.user, match.ranking, names)[0][0].astype(np.float64)
    of_item = {m: match.modalities[m][row : row + 1] for m in names}
    vector = late_matrix(of_item, weights)[0].astype(np.float64)
    by_modality, by_event = [], np.zeros(len(history.time))
    for i, m in enumerate(names):
        where = slice(i * items.dim, (i + 1) * items.dim)
        if vector[where].any():
            by_modality.append((m, float(query[where] @ vector[where])))
            parts = modality_parts(history, match.modalities[m], match.profiles)
            by_event += weights.get(m, 1.0) * (parts @ vector[where])
    return _explanation(match, float(query @ vector), "modalities", by_modality, by_event)


def _explanation(
    match: _Match, score: float, query: str, by_modality: list[tuple[str, float]], by_event: np.ndarray
) -> Explanation:
    """Lays an explanation out.

    Args:
        match: The user and the item.
        score: The score.
        query: The name of the query.
        by_modality: (modality, part) pairs.
        by_event: float64 [events], the part of each event of the history.
    """
    history = match.history
    order = np.argsort(-np.abs(by_event), kind="stable")
    ids = match.items.ids(history.rows[order]).to_pylist()
    when = [f"{t}Z" for t in history.time[order].astype("datetime64[us]").astype("datetime64[s]").tolist()]
    events = zip(ids, when, history.weight[order].tolist(), by_event[order].tolist(), strict=True)
    return Explanation(score, query, tuple(by_modality), tuple(events), score - float(by_event.sum()))


# --- printing ----------------------------------------------------------------------------------------------


def print_explanation(console: Console, found: Explanation, most: int) -> None:
    """Prints an explanation: every modality, and the events with the largest parts.

    Args:
        console: Where to print.
        found: The explanation.
        most: The number of events to print; the others are added up in one line.
    """
    console.print(Text(f"score {found.score:.4f} by {found.query}"))
    by_modality = Table("part", "modality", box=None, padding=(0, 2))
    for modality, part in found.modalities:
        by_modality.add_row(_signed(part), modality)
    by_event = Table("part", "event", box=None, padding=(0, 2))
    for item_id, when, weight, part in found.events[:most]:
        by_event.add_row(_signed(part), Text(f"{item_id}  {when}  weight {weight:g}"))
    if more := found.events[most:]:
        by_event.add_row(_signed(sum(part for *_, part in more)), f"{len(more)} more events")
    by_event.add_row(_signed(found.rest), "no event of the log (what everybody likes, older logs, rounding)")
    console.print(by_modality, "", by_event, sep="\n")


def _signed(part: float) -> str:
    return f"{round(part, 4) + 0.0:+.4f}"  # + 0.0 turns −0 into 0
