"""Measures recommendations on a held-out part of the log: the job, its ablations, and what it has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from unisono.pipelines.ask.evaluation_files import EvaluationFiles, read_candidates, read_split, write_per_user
from unisono.pipelines.ask.hidden import read_hidden
from unisono.pipelines.ask.ranking_case import Case, Pairs, Rules, lay_out, make_case
from unisono.pipelines.ask.ranking_lists import Lists, serve, serve_baseline
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
from unisono.transforms.privacy.pseudonyms import check_key
from unisono.transforms.rank.spec import INTERESTS
from unisono.transforms.space.registry import FUSIONS

KS = (5, 10, 20, 50)
OWN = "unisono"
_FEW = 5  # an item of at most this many users has few
_LEAST_USERS = 20  # with fewer users, a bootstrap over users promises too much


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
        `per_user`: each metric's values, float64 [who].
    """
    k = ks[min(1, len(ks) - 1)]
    users = measure_users(lists.every, case.relevant, case.items, ks)
    if case.whole:
        users["auc"] = area_under_curve(lists.every, case.relevant, case.items)
    out: dict[str, Any] = {
        "metrics": {name: _interval(v, case.seed) for name, v in users.items()},
        "lists": measure_lists(lists.every, case.turned, case.log.shape[0], ks, ~case.hidden),
        "slices": {},
        "seconds": lists.seconds,
        "per_user": users,
    }
    for name, (ranked, relevant) in _slices(lists, case, min_events).items():
        found = measure_users(ranked, relevant, case.items, [k])
        some = int(np.count_nonzero(~np.isnan(found[f"ndcg@{k}"])))
        out["slices"][name] = {"users": some, "metrics": {n: _interval(v, case.seed) for n, v in found.items()}}
    return out


def _slices(lists: Lists, case: Case, min_events: int) -> dict[str, tuple[Ranked, Pairs]]:
    """Names parts of the held-out pairs, each with the lists that are measured on it. Empty parts are left out."""
    user, item = case.relevant
    of_new = case.new[item]
    few = (case.turned > 0) & (case.turned <= _FEW)
    cold = case.events < max(min_events, 2)
    slices = {
        "new items, among all": (lists.every, of_new),
        "new items, among new": (lists.new, of_new),
        f"items of 1–{_FEW} users, among all": (lists.every, few[item]),
        "cold users": (lists.every, cold[user]),
    }
    for column in case.embeddings.column_names:
        if column.endswith(EMBEDDING):
            lacks = case.embeddings[column].is_null().to_numpy()
            slices[f"items without {column.removesuffix(EMBEDDING)}"] = lists.every, lacks[item]
    return {name: (ranked, (user[some], item[some])) for name, (ranked, some) in slices.items() if some.any()}


def _interval(values: np.ndarray, seed: int = 0) -> dict[str, float | None]:
    mean, low, high = bootstrap_interval(values, seed=seed)
    return {n: None if np.isnan(x) else x for n, x in (("mean", mean), ("low", low), ("high", high))}


# --- the evaluation ----------------------------------------------------------------------------------------


def variants(job: Job, fusions: Sequence[str] = ()) -> Iterable[tuple[str, Job]]:
    """Yields the job and its ablations by name.

    A learned job is also tried without ageing, without new items, and by item vectors and profiles. These are tried
    with each modality alone, with each left out, at the other level of fusion, and with other uses of interests.

    Args:
        job: the job.
        fusions: further fusion methods to compare.
    """
    have, at = job.space_modalities, job.ranks
    yield OWN, job.model_copy(update={"ranking": at})
    if at.learned:
        still = replace(job.profiles, half_life_days=None)
        yield "nothing ages", _ranked(job.model_copy(update={"profiles": still}), recent=0.0, trend=0.0)
        yield "no new items", _ranked(job, cold_exposure=0.0, cold_quantile=None)
        job = _ranked(job, method="vectors")
        yield "item vectors", job
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
            if name != (at.interests or "weighted"):
                yield f"interests {name}", _ranked(job, interests=name)


def _ranked(job: Job, **settings: Any) -> Job:
    return job.model_copy(update={"ranking": replace(job.ranks, **settings)})


def evaluate_ranking(
    job: Job,
    split: SplitSpec | None = None,
    baselines: Sequence[str] = (),
    fusions: Sequence[str] = (),
    ablations: bool = True,
    files: EvaluationFiles | None = None,
) -> dict[str, Any]:
    """Holds out a part of the job's log, makes recommendations from the rest, and measures them on the held-out part.

    The encoders' embeddings are read from the published run; no event influences them. Behaviour, space, profiles and
    lists are made anew for each row of the result, from the training events. The published run does not change.

    With `profiles.incremental: true`, only the logs that `interactions.path` names are read: the events of earlier logs
    are in the published state as sums, which cannot be split. `about` says so.

    The job's own rules hold for all rows: events in the future and forgotten people are left out, no list holds an item
    that `ranking.filter` hides, and baselines learn from the events that profiles are made from.

    Args:
        job: a job with a log. Its `ranking` says how items are ranked.
        split: how the log is split. None holds out the last fifth of the time. Its seed is that of all random numbers.
        baselines: names from `BASELINES`, or `all`. Empty means all that are installed.
        fusions: further fusion methods to compare, or `all`.
        ablations: adds rows for single modalities, the other level of fusion and other uses of interests.
        files: an own split, candidates, and where to write the figures of each user. None means none of them.

    Returns:
        `about`: a description of the split. `rows`: for each method what `measure` returns, without `per_user` and with
        `against`, the difference in NDCG to the best baseline (paired bootstrap); or `not_measured`, the reason.
        `best_baseline`: its name. `ratio`: the job's NDCG divided by that of the best baseline. `verdict`: a line that
        says which of the two is better, if one is.

    Raises:
        JobError: nothing is published, or an argument is not allowed.
    """
    split, files = split or SplitSpec(), files or EvaluationFiles()
    installed = [b for b in BASELINES if has_implicit() or b not in ("als", "bpr")]
    chosen = _chosen(baselines, BASELINES, "--baselines") or installed
    levels = _chosen(fusions, FUSIONS, "--fusions")
    case = _make_case(job, split, files)
    rows: dict[str, Any] = {}
    made: dict[str, Items] = {}
    for name, one in variants(job, levels):
        if name != OWN and not ablations:
            break
        try:
            key = repr([one.encoders, one.space, one.fusion, one.behaviour, one.output, one.ranks, one.profiles])
            if key not in made:
                made[key] = build_items(one, case.embeddings, case.train, case.hidden_ids)
            rows[name] = measure(serve(one, case, made[key]), case, job.profiles.min_events)
        except JobError as e:
            if name == OWN:
                raise
            rows[name] = {"not_measured": str(e)}
        _say(name, rows[name])
    for name in chosen:
        try:
            score = fit_baseline(Baseline(name), case.log, split.seed, case.known)
            rows[name] = measure(serve_baseline(score, case, case.about["exclude_seen"]), case, job.profiles.min_events)
        except JobError as e:
            rows[name] = {"not_measured": str(e)}
        _say(name, rows[name])
    if files.per_user:
        write_per_user(files.per_user, job, case.who, rows)
    return {"about": case.about, **compare_rows(rows, chosen, split.seed)}


def _make_case(job: Job, split: SplitSpec, files: EvaluationFiles) -> Case:
    """Reads embeddings, events, hidden items and candidates, and splits the events."""
    at = job.ranks
    if files.per_user and job.privacy.pseudonyms:
        check_key(job.privacy.pseudonyms.key_env)  # now, not after all the work
    if files.candidates and at.diversity:
        raise JobError("--candidates: cannot be ranked with ranking.diversity; set it to 0 for this measurement")
    embeddings = read_embeddings(job.store_at)
    hidden, candidates = read_hidden(job), None
    if files.train and files.test:
        parts, lost = read_split(job, files.train, files.test, split.relevant)
        events = parts.train
    else:
        events, lost = read_events(job)
    if files.candidates:
        user_type, item_type = events.schema.field("user_id").type, embeddings.schema.field("item_id").type
        candidates = read_candidates(files.candidates, user_type, item_type)
    rules = Rules(job.usable, hidden, candidates)
    if files.train:
        how: dict[str, str | None] = {"split": "own files", "fraction": None, "cut": None}
        case = lay_out(embeddings, parts, how, rules=rules, seed=split.seed)
    else:
        case = make_case(embeddings, events, split, rules=rules)
    earlier = job.profiles.incremental is True and not files.train
    about = {"events_lost": lost, "exclude_seen": at.exclude_seen, "earlier_logs_left_out": earlier}
    return replace(case, about=case.about | about)


def _chosen(asked: Sequence[str], allowed: Iterable[str], key: str) -> list[str]:
    """Checks names that the command line gives; `all` stands for all of them."""
    names = list(allowed)
    if list(asked) == ["all"]:
        return names
    if unknown := [name for name in asked if name not in names]:
        raise JobError(f"{key}: {unknown[0]!r} is none of {', '.join(names)}; choose among them, or all")
    return list(asked)


def compare_rows(rows: dict[str, Any], baselines: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Adds to each row the difference to the best baseline in NDCG@10, and removes the figures of single users.

    Args:
        rows: what `measure` returned for each method.
        baselines: the names of the rows that are baselines.
        seed: seed of the bootstrap.

    Returns:
        `rows`, `best_baseline`, `ratio` and `verdict` of `evaluate_ranking`.
    """
    out: dict[str, Any] = {"best_baseline": None, "ratio": None, "verdict": None, "rows": rows}
    per_user = {name: r.pop("per_user")[f"ndcg@{KS[1]}"] for name, r in rows.items() if "per_user" in r}
    if measured := [b for b in baselines if b in per_user]:
        best = max(measured, key=lambda b: float(np.nanmean(per_user[b])))
        out["best_baseline"] = best
        under = float(np.nanmean(per_user[best]))
        out["ratio"] = float(np.nanmean(per_user[OWN])) / under if under and OWN in per_user else None
        for name, values in per_user.items():
            rows[name]["against"] = _interval(values - per_user[best], seed)
        if OWN in per_user:
            users = int(np.count_nonzero(~np.isnan(per_user[OWN] - per_user[best])))
            out["verdict"] = state_verdict(best, rows[OWN]["against"], users)
    return out


def state_verdict(rival: str, gap: Mapping[str, float | None], users: int) -> str:
    """Says in one line which of two rows to believe: the job's or that of the best baseline.

    Args:
        rival: the name of the baseline.
        gap: mean, low and high of the job's NDCG minus the baseline's, with a 95% interval.
        users: the number of users.
    """
    mean, low, high = (gap[name] for name in ("mean", "low", "high"))
    if mean is None or low is None or high is None or users < _LEAST_USERS:
        return f"too few users to tell yours and {rival} apart: {users}, and {_LEAST_USERS} are needed"
    if low <= 0 <= high:
        signed = (f"{x:+.3f}".replace("-", "−") for x in (mean, low, high))
        return "yours and {} cannot be told apart: {} ({} to {}), 95%, {:,} users".format(rival, *signed, users)
    first, second = ("yours", rival) if mean > 0 else (rival, "yours")
    line = f"{first} beats {second} by {abs(mean):.3f} ± {(high - low) / 2:.3f} (95%, {users:,} users)"
    return line if mean > 0 else f"{line}: recommend with {rival}, or change the job"


def _say(name: str, row: Mapping[str, Any]) -> None:
    found = row.get("not_measured") or f"NDCG@{KS[1]} {row['metrics'][f'ndcg@{KS[1]}']['mean']:.4f}"
    Console(stderr=True).print(f"{name}: {found}", highlight=False)
