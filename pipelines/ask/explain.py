"""Says why the published run matches a user with an item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unisono.pipelines.job.job import Job
from unisono.transforms.base import files
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, shard_of
from unisono.transforms.privacy.pseudonyms import Pseudonyms
from unisono.transforms.rank.ranking import RankingSpec, late_matrix, queries_of
from unisono.transforms.read.interactions import check_interactions, clean_interactions
from unisono.transforms.store.item_matrix import ItemMatrix, modality_vectors
from unisono.transforms.store.parquet import read_row_group
from unisono.transforms.store.runs import Manifest, Store, read_table
from unisono.transforms.store.small_vectors import read_vectors
from unisono.transforms.users.explain import interest_parts, modality_parts, profile_parts
from unisono.transforms.users.history import History, limit_a_day, once_a_session, order_history

_ROUNDING = 1e-5  # of float32; what more is missing comes of vectors stored in fewer bytes


@dataclass(frozen=True)
class Explanation:
    """A score and what it is made of.

    Attributes:
        score: of user and item, before any popularity penalty or bonus.
        query: what of the user was compared: `profile`, `interest 2 (item-7)`, `all interests`, `modalities`.
        modalities: (modality, part); the parts add up to the score.
        events: (item_id, time, weight, part) of the user's events, the largest first.
        rest: what no event accounts for: of a cold user the prior's part, of an incremental run what older
            logs brought, and rounding. `events` and `rest` add up to the score.
    """

    score: float
    query: str
    modalities: tuple[tuple[str, float], ...]
    events: tuple[tuple[Any, str, float, float], ...]
    rest: float


def explain(store: Store, user: str, item: str) -> Explanation:
    """Splits the score of a user and an item of the published run.

    Raises:
        JobError: there is no such user or item, or the run has no profiles.
    """
    manifest = store.published()
    job = _job(store, manifest)
    of_item = _row(store, manifest, "items", "item_id", item, "--item")
    if job.privacy.noise:
        raise JobError(
            "explain: the published profiles are noised (privacy.noise), and an explanation shows the events as they "
            "are; explain a run without privacy.noise"
        )
    pseudonyms = _pseudonyms(job, manifest)
    known = pseudonyms.of(pa.array([user]))[0].as_py() if pseudonyms else user
    of_user = _row(store, manifest, "users", "user_id", known, "--user", user)
    items = ItemMatrix.open(manifest.part("items"), store.root)
    names = [c.removesuffix("_vector") for c in of_item.column_names if c.endswith("_vector")]
    matrices = {m: modality_vectors(manifest.part("items"), m, store.root) for m in names}
    history = _history(job, items, of_user["user_id"], pseudonyms)
    ranking = job.ranking or RankingSpec()
    if ranking.fusion == "late":
        return _late(job, of_user, items, matrices, history, items.lookup(of_item["item_id"])[0])

    spec = job.profiles
    vector = read_vectors(of_item)[0][0].astype(np.float64)
    queries, _ = queries_of(of_user, ranking)
    queries = queries.astype(np.float64)
    best = int(np.argmax(queries @ vector))
    cold = bool(of_user["cold"][0].as_py())
    profile = from_vector_column(of_user["vector"])[0][0].astype(np.float64)
    interests = of_user["interests"][0].as_py() or []
    parts = profile_parts(history, items, {m: matrices[m] for m in job.space_modalities if m in matrices}, spec, cold)
    if cold:  # scaled to the prior's length: what the published profile leaves open
        parts = parts / _cold_length(profile, parts, spec.min_events)
    name = "profile"
    if interests and ranking.interests == "maximum":
        own = np.asarray(interests[best]["vector"], np.float64)
        name = f"interest {best + 1} ({interests[best]['item_id']})"
        parts = (parts + interest_parts(history, items, spec, best)) / np.linalg.norm(own + profile)
    elif interests and ranking.interests == "weighted":
        name = "all interests"
        parts = sum(
            (i["weight"] * interest_parts(history, items, spec, n) for n, i in enumerate(interests)),
            np.zeros_like(parts),
        )
    query = queries[best]
    by_modality = _modalities(of_item, names, query, float(query @ vector))
    return _explanation(float(query @ vector), name, by_modality, history, items, parts @ vector)


def _modalities(of_item: pa.Table, names: list[str], query: np.ndarray, score: float) -> list[tuple[str, float]]:
    """Splits a score by what each modality is in the item's vector; what rounding keeps from adding up is a part."""
    imputed = of_item["imputed"][0].as_py() if "imputed" in of_item.column_names else []
    parts = []
    for m in names:
        weight = of_item[f"{m}_weight"][0].as_py()
        if weight:
            part = float(weight * (query @ read_vectors(of_item, f"{m}_vector")[0][0]))
            parts.append((f"{m} (predicted)" if m in imputed else m, part))
    rest = score - sum(part for _, part in parts)
    return parts if abs(rest) < _ROUNDING else [*parts, ("rounding of stored vectors", rest)]


def _cold_length(profile: np.ndarray, parts: np.ndarray, min_events: int) -> float:
    """Finds the length L for which profile · L − Σ parts is as long as the prior's part, `min_events`.

    A quadratic in L: ‖L·p − s‖² = k², with ‖p‖ = 1.
    """
    s = parts.sum(0)
    along = float(profile @ s)
    return along + float(np.sqrt(max(along**2 - float(s @ s) + min_events**2, 0.0)))


def _late(
    job: Job, of_user: pa.Table, items: ItemMatrix, matrices: dict[str, np.ndarray], history: History, row: int
) -> Explanation:
    """Splits a score of late fusion: modality by modality it is a sum already."""
    spec, ranking = job.profiles, job.ranking or RankingSpec()
    weights = ranking.weights
    names = [m for m in job.late_modalities if m in matrices]
    query = queries_of(of_user, ranking, names)[0][0].astype(np.float64)
    vector = late_matrix({m: matrices[m][row : row + 1] for m in names}, weights)[0].astype(np.float64)
    by_modality, by_event = [], np.zeros(len(history.time))
    for i, m in enumerate(names):
        where = slice(i * items.dim, (i + 1) * items.dim)
        if vector[where].any():
            by_modality.append((m, float(query[where] @ vector[where])))
            by_event += weights.get(m, 1.0) * (modality_parts(history, matrices[m], spec) @ vector[where])
    return _explanation(float(query @ vector), "modalities", by_modality, history, items, by_event)


def _explanation(
    score: float,
    query: str,
    by_modality: list[tuple[str, float]],
    history: History,
    items: ItemMatrix,
    by_event: np.ndarray,
) -> Explanation:
    order = np.argsort(-np.abs(by_event), kind="stable")
    ids = items.ids(history.rows[order]).to_pylist()
    when = [f"{t}Z" for t in history.time[order].astype("datetime64[us]").astype("datetime64[s]").tolist()]
    events = zip(ids, when, history.weight[order].tolist(), by_event[order].tolist(), strict=True)
    return Explanation(score, query, tuple(by_modality), tuple(events), score - float(by_event.sum()))


def _job(store: Store, manifest: Manifest) -> Job:
    """The job file of the run that made the published profiles."""
    if not manifest.part("users"):
        raise JobError(f"store: the published run in {store.root} has no users/; run `unisono profile` first")
    run = manifest.part("users")[0].path.split("/")[1]
    return Job.model_validate(yaml.safe_load(files.read_bytes(store.run_path(run, "config.yaml"))))


def _pseudonyms(job: Job, manifest: Manifest) -> Pseudonyms | None:
    """What hides the published user ids. The key has to be in the environment: ids are asked for as they are."""
    at = job.privacy.pseudonyms
    if at is None:
        return None
    return Pseudonyms(at.key_env, manifest.privacy.pseudonyms.key_fingerprint if manifest.privacy.pseudonyms else "")


def _row(
    store: Store, manifest: Manifest, part: str, column: str, wanted: str, key: str, asked: str | None = None
) -> pa.Table:
    """Reads one row of a part by its id, from the one shard it is in; messages name what was `asked` for."""
    records = manifest.part(part)
    dtype = read_table(store, records[0], [column]).schema.field(column).type
    try:
        value = pa.array([wanted]).cast(dtype)
    except pa.ArrowInvalid:
        raise JobError(f"{key}: {wanted!r} is no {dtype}, which the ids in {part}/ are") from None
    table = read_table(store, records[int(shard_of(value, len(records))[0])])
    found = table.filter(pc.equal(table[column], value[0]))
    if not found.num_rows:
        raise JobError(f"{key}: {asked or wanted!r} is not in {part}/ of the published run {manifest.run_id}")
    return found.combine_chunks()


def _history(job: Job, items: ItemMatrix, user: pa.ChunkedArray, pseudonyms: Pseudonyms | None) -> History:
    """Reads one user's events out of the log, as the profile was made of them."""
    looked = check_interactions(job.log).hiding(pseudonyms, None)
    mine = [looked.schema.empty_table()]
    for file in looked.files:
        for group in range(len(file.row_groups)):
            for raw in read_row_group(file.path, group, looked.spec.columns):
                table = looked.hide_users(raw)
                rows = table.filter(pc.equal(table[looked.spec.user].cast(looked.user_type), user[0]))
                if rows.num_rows:
                    mine.append(clean_interactions(rows, looked.spec)[0].cast(looked.schema))
    history, _ = order_history(pa.concat_tables(mine), items)
    spec = job.profiles
    if spec.session_minutes is not None:
        history = once_a_session(history, spec.session_minutes)
    if spec.max_events_per_day is not None:
        history, _ = limit_a_day(history, spec.max_events_per_day, spec.robots == "drop")
    return history


def print_explanation(console: Console, found: Explanation, most: int) -> None:
    """Prints an explanation: every modality, and of the events the `most` that count most."""
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
    return f"{round(part, 4) + 0.0:+.4f}"  # + 0.0: no −0
