"""Measures recommendations on a held-out part of the log: the job, its ablations, and what it has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from unisono.pipelines.ask.ranking_case import Case, Lists, make_case, serve, serve_baseline
from unisono.pipelines.ask.trial import Items, build_items, read_embeddings, read_events, without
from unisono.pipelines.job.job import Job
from unisono.transforms.base.columns import EMBEDDING
from unisono.transforms.base.errors import JobError
from unisono.transforms.measure.baselines import BASELINES, Baseline, fit_baseline, has_implicit
from unisono.transforms.measure.rank_metrics import (
    Ranked,
    area_under_curve,
    bootstrap_interval,
    measure_lists,
    measure_users,
)
from unisono.transforms.measure.splits import SplitSpec
from unisono.transforms.rank.ranking import INTERESTS, RankingSpec
from unisono.transforms.space.registry import FUSIONS

KS = (5, 10, 20, 50)
OWN = "unisono"


# --- figures -----------------------------------------------------------------------------------------------


def measure(lists: Lists, case: Case, min_events: int = 1, ks: Sequence[int] = KS) -> dict[str, Any]:
    """Measures the lists of a method.

    Args:
        lists: the lists.
        case: the split log.
        min_events: users with fewer events count as cold.
        ks: the lengths of a list that are measured.

    Returns:
        `metrics`: each metric's mean over users with a 95% bootstrap interval, as mean, low and high.
        `lists`: coverage, novelty, popularity and gini of all lists together.
        `slices`: parts of the held-out pairs by name, each with `users` (how many users have such pairs) and `metrics`
        at the second of `ks`.
        `seconds`: the time that making the lists took.
        `per_user`: NDCG of each user at the second of `ks`, float64 [who].
    """
    k = ks[min(1, len(ks) - 1)]
    users = measure_users(lists.every, case.relevant, case.items, ks)
    if case.width == case.items:
        users["auc"] = area_under_curve(lists.every, case.relevant, case.items)
    out: dict[str, Any] = {
        "metrics": {name: _interval(v) for name, v in users.items()},
        "lists": measure_lists(lists.every, case.turned, case.log.shape[0], ks),
        "slices": {},
        "seconds": lists.seconds,
        "per_user": users[f"ndcg@{k}"],
    }
    for name, (ranked, relevant) in _slices(lists, case, min_events).items():
        found = measure_users(ranked, relevant, case.items, [k])
        some = int(np.count_nonzero(~np.isnan(found[f"ndcg@{k}"])))
        out["slices"][name] = {"users": some, "metrics": {n: _interval(v) for n, v in found.items()}}
    return out


def _slices(
    lists: Lists, case: Case, min_events: int
) -> dict[str, tuple[Ranked, tuple[np.ndarray, np.ndarray]]]:
    """Names parts of the held-out pairs, each with the lists that are measured on it. Empty parts are left out."""
    user, item = case.relevant
    of_new = case.new[item]
    cold = case.events < max(min_events, 2)
    slices = {
        "new items, among all": (lists.every, of_new),
        "new items, among new": (lists.new, of_new),
        "cold users": (lists.every, cold[user]),
    }
    for column in case.embeddings.column_names:
        if column.endswith(EMBEDDING):
            lacks = case.embeddings[column].is_null().to_numpy()
            slices[f"items without {column.removesuffix(EMBEDDING)}"] = lists.every, lacks[item]
    return {name: (ranked, (user[some], item[some])) for name, (ranked, some) in slices.items() if some.any()}


def _interval(values: np.ndarray) -> dict[str, float | None]:
    mean, low, high = bootstrap_interval(values)
    return {n: None if np.isnan(x) else x for n, x in (("mean", mean), ("low", low), ("high", high))}


# --- the whole ---------------------------------------------------------------------------------------------


def variants(job: Job, fusions: Sequence[str] = ()) -> Iterable[tuple[str, Job]]:
    """Yields the job and its ablations by name: fewer modalities, another level of fusion, other uses of interests."""
    have = job.space_modalities
    at = job.ranking or RankingSpec()
    job = job.model_copy(update={"ranking": at})
    yield OWN, job
    if len(have) > 1:
        for m in have:
            yield f"{m} alone", without(job, set(have) - {m})
        for m in have if len(have) > 2 else ():
            yield f"without {m}", without(job, {m})
        other = "late" if at.fusion == "early" else "early"
        weights = at.weights if other == "late" else {}
        yield f"{other} fusion", _ranked(job, fusion=other, weights=weights)
        for name in fusions:
            if name != job.fusion.method:
                fused = replace(job.fusion, method=name, weights={})
                yield f"fusion {name}", job.model_copy(update={"fusion": fused})
    if job.profiles.interests and at.fusion == "early":
        for name in INTERESTS:
            if name != at.interests:
                yield f"interests {name}", _ranked(job, interests=name)


def _ranked(job: Job, **settings: Any) -> Job:
    return job.model_copy(update={"ranking": replace(job.ranking or RankingSpec(), **settings)})


def evaluate_ranking(
    job: Job,
    split: SplitSpec | None = None,
    baselines: Sequence[str] = (),
    fusions: Sequence[str] = (),
    ablations: bool = True,
) -> dict[str, Any]:
    """Holds out a part of the job's log, makes recommendations from the rest, and measures them on the held-out part.

    The encoders' embeddings are read from the published run; no event influences them. Behaviour, space, profiles and
    lists are made anew for each row of the result, from the training events. The published run does not change.

    Args:
        job: a job with a log. Its `ranking` says how items are ranked.
        split: how the log is split. None holds out the last fifth of the time.
        baselines: names from `BASELINES`, or `all`. Empty means all that are installed.
        fusions: further fusion methods to compare, or `all`.
        ablations: adds rows for single modalities, the other level of fusion and other uses of interests.

    Returns:
        `about`: a description of the split. `rows`: for each method what `measure` returns, without `per_user` and with
        `against`, the difference in NDCG to the best baseline (paired bootstrap); or `not_measured`, the reason.
        `best_baseline`: its name. `ratio`: the job's NDCG divided by that of the best baseline.

    Raises:
        JobError: nothing is published, or an argument is not allowed.
    """
    installed = [b for b in BASELINES if has_implicit() or b not in ("als", "bpr")]
    chosen = _chosen(baselines, BASELINES, "--baselines") or installed
    levels = _chosen(fusions, FUSIONS, "--fusions")
    embeddings = read_embeddings(job.store_at)
    events, lost = read_events(job)
    case = make_case(embeddings, events, split or SplitSpec())
    about = {**case.about, "events_lost": lost, "exclude_seen": (job.ranking or RankingSpec()).exclude_seen}
    rows: dict[str, Any] = {}
    made: dict[str, Items] = {}
    for name, one in variants(job, levels):
        if name != OWN and not ablations:
            break
        try:
            key = repr([one.encoders, one.space, one.fusion, one.behaviour, one.output])
            made[key] = made[key] if key in made else build_items(one, case.embeddings, case.train)
            rows[name] = measure(serve(one, case, made[key]), case, job.profiles.min_events)
        except JobError as e:
            if name == OWN:
                raise
            rows[name] = {"not_measured": str(e)}
        _say(name, rows[name])
    for name in chosen:
        lists = serve_baseline(fit_baseline(Baseline(name), case.log), case, about["exclude_seen"])
        rows[name] = measure(lists, case, job.profiles.min_events)
        _say(name, rows[name])
    return {"about": about, **compare_rows(rows, chosen)}


def _chosen(asked: Sequence[str], allowed: Iterable[str], key: str) -> list[str]:
    """Checks names that the command line gives; `all` stands for all of them."""
    names = list(allowed)
    if list(asked) == ["all"]:
        return names
    if unknown := [name for name in asked if name not in names]:
        raise JobError(f"{key}: {unknown[0]!r} is none of {', '.join(names)}; choose among them, or all")
    return list(asked)


def compare_rows(rows: dict[str, Any], baselines: Sequence[str]) -> dict[str, Any]:
    """Adds to each row the difference to the best baseline, and removes the figures of single users."""
    out: dict[str, Any] = {"best_baseline": None, "ratio": None, "rows": rows}
    per_user = {name: r.pop("per_user") for name, r in rows.items() if "per_user" in r}
    if baselines:
        best = max(baselines, key=lambda b: float(np.nanmean(per_user[b])))
        out["best_baseline"] = best
        under = float(np.nanmean(per_user[best]))
        out["ratio"] = float(np.nanmean(per_user[OWN])) / under if under and OWN in per_user else None
        for name, values in per_user.items():
            rows[name]["against"] = _interval(values - per_user[best])
    return out


def _say(name: str, row: Mapping[str, Any]) -> None:
    found = row.get("not_measured") or f"NDCG@{KS[1]} {row['metrics'][f'ndcg@{KS[1]}']['mean']:.4f}"
    Console(stderr=True).print(f"{name}: {found}", highlight=False)


def print_ranking(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the result of `evaluate_ranking` as tables: each mean ± half the width of its 95% interval."""
    out = console or Console(width=max(170, Console().width))
    about, k = result["about"], KS[1]
    out.print(
        f"{about['split']}: {about['train_events']:,} events to learn from, {about['held_out_pairs']:,} pairs to find, "
        f"{about['users']:,} users ({about['users_without_history']:,} more have no history), {about['items']:,} items "
        f"({about['new_items']:,} new)"
    )
    names = [f"ndcg@{k}", f"recall@{k}", f"map@{k}", f"hit@{k}", f"mrr@{k}", f"recall@{KS[-1]}", "auc"]
    table = _table("all", ["row", *names, "− best baseline"])
    likes = [f"{name}@{k}" for name in ("coverage", "novelty", "popularity", "gini")]
    lists = _table("what the lists are like", ["row", *likes])
    slices = list(dict.fromkeys(s for r in result["rows"].values() for s in r.get("slices", ())))
    parts = _table(f"ndcg@{k} on a part", ["row", *slices])
    for name, row in result["rows"].items():
        if "not_measured" in row:
            out.print(f"  {name}: not measured: {row['not_measured']}")
            continue
        cells = [_cell(row["metrics"].get(n)) for n in names]
        table.add_row(name, *cells, _cell(row.get("against"), "+"))
        lists.add_row(name, *(f"{row['lists'][n]:.3f}" for n in likes))
        parts.add_row(name, *(_cell(row["slices"].get(s, {}).get("metrics", {}).get(f"ndcg@{k}")) for s in slices))
    out.print(table)
    if slices:
        sizes: Mapping[str, Any] = next((r["slices"] for r in result["rows"].values() if r.get("slices")), {})
        out.print(parts)
        out.print("users with something to find: " + ", ".join(f"{s} {v['users']:,}" for s, v in sizes.items()))
    out.print(lists)


def _table(title: str, heads: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    return table


def _cell(value: Mapping[str, float | None] | None, sign: str = "") -> str:
    if value is None or value["mean"] is None:
        return "–"
    low, high = value["low"] or 0.0, value["high"] or 0.0
    return f"{value['mean']:{sign}.4f} ±{(high - low) / 2:.4f}"
