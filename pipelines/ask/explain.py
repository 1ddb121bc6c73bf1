"""Explains why a run matches a user with an item: the score of the published lists as a sum of parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unisono.pipelines.ask.history import CHANGED, Known, events_of
from unisono.pipelines.ask.log import pseudonyms_of
from unisono.pipelines.ask.published import PublishedRun, id_array
from unisono.transforms.base import files
from unisono.transforms.base.columns import EMBEDDING, RANKING_VECTOR
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.rank.item_vectors import late_matrix
from unisono.transforms.rank.model import COMMON, RankingModel
from unisono.transforms.rank.spec import RankingSpec
from unisono.transforms.rank.user_vectors import queries_of, read_ranking, taste_spec
from unisono.transforms.store.item_matrix import ItemMatrix, first_schema, modality_vectors
from unisono.transforms.store.small_vectors import read_vectors
from unisono.transforms.users.explain import interest_parts, modality_parts, profile_parts, taste_parts
from unisono.transforms.users.profiles import ProfileSpec
from unisono.transforms.users.tastes import read_tastes

_SAME = 1e-3  # vectors of the same events differ by less; their elements are below 1
_ROUNDING = 1e-5  # a larger difference does not come from float32, but from vectors stored in fewer bytes


@dataclass(frozen=True)
class Explanation:
    """A score and its parts.

    Attributes:
        score: The score of the user and the item: the inner product of their ranking vectors, by which the published
            lists are sorted.
        query: What of the user was compared with the item: `taste`, `profile`, `all interests` or `modalities`.
        modalities: (name, part) pairs: what the item's behaviour or content says, popularity, and what else is the same
            for all users. The parts add up to the score.
        events: (item_id, time, weight, part) of each of the user's events, the largest part first.
        rest: The part of the score that no event accounts for: popularity, the prior of a cold user, older events of
            incremental profiles, and rounding. The parts of `events` and `rest` add up to the score.
        note: What could not be told, in a sentence; empty if nothing is missing.
    """

    score: float
    query: str
    modalities: tuple[tuple[str, float], ...]
    events: tuple[tuple[Any, str, float, float], ...]
    rest: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class _Match:
    """A user and an item of a run, with everything that an explanation is computed from.

    Attributes:
        run: The run.
        user: The user's row of users/.
        item: The item's row of items/.
        items: The matrix of all fused item vectors.
        known: The user's events, as far as they are known.
        profiles: How the run made profiles.
        ranking: How the run ranks.
        space_modalities: The modalities of the joint space, in the order of the job file.
    """

    run: PublishedRun
    user: pa.Table
    item: pa.Table
    items: ItemMatrix
    known: Known
    profiles: ProfileSpec
    ranking: RankingSpec
    space_modalities: tuple[str, ...]

    @cached_property
    def modalities(self) -> Mapping[str, np.ndarray]:
        """For each modality of the items, its vectors, float32 [items, dim]."""
        names = [c.removesuffix("_vector") for c in self.item.column_names if f"{c.removesuffix('_vector')}_weight" in
                 self.item.column_names and c.endswith("_vector")]  # fmt: skip
        records, root = self.run.records("items"), self.run.store.root
        return {m: modality_vectors(records, m, root) for m in names}


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
    items = ItemMatrix.open(run.records("items"), run.store.root)
    match = _Match(
        run=run,
        user=of_user,
        item=of_item,
        items=items,
        known=events_of(run, job, known, items, of_user),
        profiles=job.profiles,
        ranking=run.job.ranks,
        space_modalities=job.space_modalities,
    )
    about = read_ranking(first_schema(run.records("items"), run.store.root))
    if about.get("method") == "learned" and RANKING_VECTOR in of_user.column_names:
        return _explain_taste(match)
    return _explain_late(match) if about.get("fusion") == "late" else _explain_early(match)


def _ranking_vectors(match: _Match) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the ranking vectors of the user and the item, float64 [w] each; None if the run has none."""
    if RANKING_VECTOR not in match.user.column_names or RANKING_VECTOR not in match.item.column_names:
        return None
    user, item = (from_vector_column(t[RANKING_VECTOR])[0][0].astype(np.float64) for t in (match.user, match.item))
    return user, item


def _common_parts(match: _Match) -> list[tuple[str, float]]:
    """Returns what is the same for all users, by name, without parts of 0."""
    both = _ranking_vectors(match)
    if both is None:
        return []
    late, likes, few, new = (both[0] * both[1])[-COMMON:].tolist()
    parts = [("popularity", late + likes), ("few users (caution)", few), ("item without likes", new)]
    return [(name, part) for name, part in parts if part]


# --- learned ranking vectors -------------------------------------------------------------------------------


def _explain_taste(match: _Match) -> Explanation:
    both = _ranking_vectors(match)
    assert both is not None
    user, item = both
    d = (len(user) - COMMON) // 2
    parts = [("behaviour", float(user[:d] @ item[:d])), *_content_parts(match, user[d : 2 * d], item[d : 2 * d])]
    by_modality = [(name, part) for name, part in parts if part] + _common_parts(match)
    by_event = np.zeros(len(match.known.history.time))
    if not match.known.missing:
        at = match.profiles
        spec = taste_spec(match.ranking, half_life_days=at.half_life_days, min_events=at.min_events)
        tastes = read_tastes(match.run.records("items"), spec, match.run.store.root)
        known = match.known
        warm, new = taste_parts(
            known.history, tastes, at.recent_events, newest=known.newest, events=known.events, older=known.older
        )
        by_event = warm @ item[:d] + new @ item[d : 2 * d]
        match = _checked(match, np.concatenate([warm, new], axis=1), user[: 2 * d])
    return _explanation(match, float(user @ item), "taste", by_modality, by_event)


def _checked(match: _Match, parts: np.ndarray, vector: np.ndarray) -> _Match:
    """Checks that the parts of all events add up to the user's vector. If not, the log has changed since then.

    Args:
        match: The user and the item.
        parts: float64 [events, w].
        vector: float64 [w].
    """
    if not match.known.complete or np.abs(parts.sum(0) - vector).max() < _SAME:
        return match
    return replace(match, known=replace(match.known, missing=CHANGED))


def _content_parts(match: _Match, user: np.ndarray, item: np.ndarray) -> list[tuple[str, float]]:
    """Splits the part of a new item's content by modality: each modality's columns predict a part of its vector."""
    whole = float(user @ item)
    if not item.any():
        return []
    run = match.run
    record = next(r for r in run.records("ranking") if r.path.endswith(".safetensors"))
    model = RankingModel.from_bytes(files.read_bytes(run.store.path(record.path)))
    row = run.rows("embeddings", match.item["item_id"].combine_chunks(), "item")
    row = row.select([c for c in row.column_names if c.endswith(EMBEDDING)])
    columns = model.scale.columns(row)[0]
    turned = model.new_items * (model.content[:, : model.factors] @ model.turn @ user)
    parts = [(m, float(columns[span] @ turned[span])) for m, span in model.scale.spans.items()]
    rest = whole - sum(part for _, part in parts)
    return parts if abs(rest) < _ROUNDING else [*parts, ("rounding of stored vectors", rest)]


# --- early fusion: one vector of the user against the fused vector of the item -----------------------------


def _explain_early(match: _Match) -> Explanation:
    vector = read_vectors(match.item)[0][0].astype(np.float64)
    query = queries_of(match.user, match.ranking)[0].astype(np.float64)
    both = _ranking_vectors(match)
    score = float(query @ vector) if both is None else float(both[0] @ both[1])
    name, parts = _query_parts(match)
    if not match.user["cold"][0].as_py():  # nobody knows the prior of a cold user's profile any more
        match = _checked(match, parts, query)
    by_event = parts @ vector
    common = _common_parts(match)
    own = _modality_parts(match, query, score - sum(part for _, part in common))
    return _explanation(match, score, name, own + common, by_event)


def _query_parts(match: _Match) -> tuple[str, np.ndarray]:
    """Splits the query of the user into what each event adds to it.

    Returns:
        The name of the query, and float64 [events, dim].
    """
    history, items, spec = match.known.history, match.items, match.profiles
    interests = match.user["interests"][0].as_py() or []
    if interests and match.ranking.interests != "profile":
        weighted = [i["weight"] * interest_parts(history, items, spec, n) for n, i in enumerate(interests)]
        return "all interests", sum(weighted, np.zeros((len(history.time), items.dim)))
    cold = bool(match.user["cold"][0].as_py())
    profile = from_vector_column(match.user["vector"])[0][0].astype(np.float64)
    modalities = {m: match.modalities[m] for m in match.space_modalities if m in match.modalities}
    parts = profile_parts(history, items, modalities, spec, cold, match.known.length)
    if cold:  # the published profile has unit length: divide by the length it had before
        parts = parts / _cold_length(profile, parts, spec.min_events)
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
    history, items, weights = match.known.history, match.items, dict(match.ranking.weights)
    names = [m for m in match.space_modalities if weights.get(m, 1.0) > 0 and m in match.modalities]
    row = int(items.lookup(match.item["item_id"])[0])
    query = queries_of(match.user, match.ranking, names)[0].astype(np.float64)
    of_item = {m: match.modalities[m][row : row + 1] for m in names}
    vector = late_matrix(of_item, weights)[0].astype(np.float64)
    by_modality, by_event = [], np.zeros(len(history.time))
    for i, m in enumerate(names):
        where = slice(i * items.dim, (i + 1) * items.dim)
        parts = weights.get(m, 1.0) * modality_parts(history, match.modalities[m], match.profiles)
        match = _checked(match, parts, query[where])
        if vector[where].any():
            by_modality.append((m, float(query[where] @ vector[where])))
            by_event += parts @ vector[where]
    both = _ranking_vectors(match)
    score = float(query @ vector) if both is None else float(both[0] @ both[1])
    return _explanation(match, score, "modalities", by_modality + _common_parts(match), by_event)


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
    history = match.known.history
    order = np.argsort(-np.abs(by_event), kind="stable")
    ids = match.items.ids(history.rows[order]).to_pylist()
    when = [f"{t}Z" for t in history.time[order].astype("datetime64[us]").astype("datetime64[s]").tolist()]
    events = zip(ids, when, history.weight[order].tolist(), by_event[order].tolist(), strict=True)
    if match.known.missing:
        return Explanation(score, query, tuple(by_modality), (), score, match.known.missing)
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
    by_event.add_row(_signed(found.rest), "no event of the log (popularity, older logs, rounding)")
    console.print(by_modality, "", by_event, sep="\n")
    if found.note:
        console.print(Text(found.note))


def _signed(part: float) -> str:
    return f"{round(part, 4) + 0.0:+.4f}"  # + 0.0 turns −0 into 0
