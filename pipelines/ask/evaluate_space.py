"""Measures the published run: how good its joint space is, and whether another method would be better."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from unisono.pipelines.job.job import Job
from unisono.transforms.base.columns import EMBEDDING, common_rows, embeddings_of, in_sample
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import concat_tables, hash_ids, sort_by_id, to_vector_column, with_column
from unisono.transforms.behaviour.behaviour import BEHAVIOUR, join_behaviour
from unisono.transforms.space.fit.fusion import fit_fusion
from unisono.transforms.space.fit.methods import fit_space, possible_axes
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.quality import measure_space, missing_with_and_without
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.fit.step import TRAINING_ROWS
from unisono.transforms.space.registry import FUSIONS, METHODS
from unisono.transforms.space.space import Space
from unisono.transforms.store.parquet import list_parquet, read_row_group, require_column
from unisono.transforms.store.runs import Store, read_table

_SHARE = 5  # without folds, a fifth of the items is held out


def evaluate_space(
    job: Job,
    methods: Sequence[str] = (),
    fusions: Sequence[str] = (),
    folds: int = 5,
    label: str | None = None,
    labels_path: str | None = None,
) -> dict[str, Any]:
    """Fits spaces to the published run's embeddings, each without a part of the items, and measures them on it.

    Args:
        job: names the store, and how its own space is fitted.
        methods: names, or `all`; none: the job's own. All see the same folds.
        fusions: names, or `all`, compared in the job's own space; none: the job's own.
        folds: how many; 1: one split, a fifth held out. Items go to folds by hash of their id.
        label: a column whose equal values should be neighbours; of the catalogue, or of `labels_path`.
        labels_path: a Parquet file with the catalogue's id column.

    Returns:
        `items`, `folds`, `label`, `methods` and `fusions`: by name what `space_quality.measure_space` gives,
        averaged over the folds, with `missing` split in `plain` and `impute`, `recall@10_by_fold`, `fit_seconds`
        and, where a method cannot be fitted, `not_fitted`: why.

    Raises:
        JobError: nothing is published, or an argument is not allowed.
    """
    table = published_embeddings(job.store_at)
    if table.num_rows < 50:
        raise JobError(f"evaluate: {table.num_rows} items with embeddings; 50 or more are needed to hold some out")
    names = _names(methods, [m for m in METHODS if m != "auto"], "--methods", job.space.method)
    fused = _names(fusions, list(FUSIONS), "--fusions", job.fusion.method)
    labels = None if label is None else read_labels(job, table["item_id"], label, labels_path)
    specs = {name: replace(_spec(job, table), method=name) for name in names}
    out: dict[str, Any] = {"items": table.num_rows, "folds": folds, "label": label, "methods": {}, "fusions": {}}
    fusion = job.fit_settings(1, {}).fusion
    for name, spec in specs.items():
        out["methods"][name] = _over_folds(table, labels, folds, spec, fusion)
    own = _spec(job, table)
    for name in fused if fusions else ():
        given = fusion if name == fusion.method else replace(fusion, method=name, weights={})
        out["fusions"][name] = _over_folds(table, labels, folds, own, given)
    if "weighted" in out["fusions"]:
        learned = FusionSpec("weighted", "learned", impute=fusion.impute)
        out["fusions"]["weighted (learned)"] = _over_folds(table, labels, folds, own, learned)
    return out


def published_embeddings(store: Store) -> pa.Table:
    """Reads `item_id` and the embeddings of the published run, at most about 100,000 items drawn by hash.

    Behaviour's are made of the whole log: an item that is held out from a fit is not held out from them.
    """
    manifest = store.published()
    records = manifest.part("embeddings")
    behaviour = [read_table(store, r) for r in manifest.part(BEHAVIOUR)]
    if not records:
        raise JobError(f"evaluate: the published run in {store.root} has no embeddings/; run `unisono embed` first")
    fraction = min(1.0, TRAINING_ROWS / max(sum(r.rows for r in records), 1))
    tables = []
    for record in records:  # a file at a time, so that what is not drawn is let go
        table = read_table(store, record)
        for made in behaviour:
            table = join_behaviour(table, made)
        table = table.select(["item_id", *(c for c in table.column_names if c.endswith(EMBEDDING))])
        tables.append(table.filter(pa.array(in_sample(table["item_id"], fraction))))
    return sort_by_id(concat_tables(tables))


def read_labels(job: Job, ids: pa.ChunkedArray, label: str, path: str | None) -> np.ndarray:
    """Gives each item's label as a string, '' where it has none.

    Raises:
        JobError: there is no such column, or no item has a label.
    """
    found = list_parquet(path or job.catalog.path, "--labels" if path else "catalog.path")
    key = job.catalog.id
    require_column(found, label, "--label", lambda _: True, "anything")
    tables = [t for f in found for g in range(len(f.row_groups)) for t in read_row_group(f.path, g, [key, label])]
    known = pa.concat_tables(tables)
    here, there = common_rows(ids, known[key])
    if not len(here):
        raise JobError(f"--label: no item of the published run has a row with a {label}; name the file by --labels")
    out = np.full(len(ids), "", object)
    out[here] = known[label].cast(pa.string()).take(pa.array(there)).fill_null("").to_numpy(zero_copy_only=False)
    return out.astype(str)


def _names(asked: Sequence[str], allowed: Sequence[str], key: str, own: str) -> list[str]:
    if list(asked) == ["all"]:
        return list(allowed)
    unknown = [name for name in asked if name not in (*allowed, "auto")]
    if unknown:
        raise JobError(f"{key}: {unknown[0]!r} is none of {', '.join(allowed)}; choose of them, or all")
    return list(asked) or [own]


def _spec(job: Job, table: pa.Table) -> SpaceSpec:
    dims = {m: x.shape[1] for m, (x, _) in embeddings_of(table).items()}
    return replace(job.space, dim=possible_axes(job.space, dims))


def _over_folds(
    table: pa.Table, labels: np.ndarray | None, folds: int, spec: SpaceSpec, fusion: FusionSpec
) -> dict[str, Any]:
    """Fits and measures fold by fold, and averages."""
    number = max(folds, 1)
    # Of the hash's bits, neither those that shards go by nor those that samples go by.
    fold = (hash_ids(table["item_id"]) >> np.uint64(20)) % np.uint64(_SHARE if number == 1 else number)
    dims = {m: x.shape[1] for m, (x, _) in embeddings_of(table).items()}
    padded = spec.method == "none" and len(set(dims.values())) > 1
    table = pad_embeddings(table) if padded else table
    if spec.method == "cca" and len(dims) != 2:
        return {"not_fitted": f"cca aligns two modalities, there are {len(dims)}"}
    spec = replace(spec, dim=possible_axes(spec, dims))
    found, seconds = [], 0.0
    for k in range(number):
        held = fold == k
        rest, rows = table.filter(pa.array(~held)), table.filter(pa.array(held))
        started = time.monotonic()
        try:
            space = _fit(rest, spec, fusion)
        except JobError as e:
            return {"not_fitted": str(e)}
        seconds += time.monotonic() - started
        one = measure_space(space, rows, None if labels is None else labels[held])
        imputes = fit_fusion(replace(space, outputs={}, weigher=None), rest, FusionSpec("mean", impute=True))
        one["missing"] = missing_with_and_without(replace(imputes, weigher=space.weigher, outputs=space.outputs), rows)
        found.append(one)
        done = f"{spec.method}, {fusion.method}: fold {k + 1} of {number}, R@10 {one['mean_recall@10'] or 0.0:.3f}"
        Console(stderr=True).print(done, highlight=False)
    out: dict[str, Any] = _average(found)
    out["recall@10_by_fold"] = [f["mean_recall@10"] for f in found]
    out["fit_seconds"] = seconds / number
    out["padded"] = padded
    return out


def _fit(rest: pa.Table, spec: SpaceSpec, fusion: FusionSpec) -> Space:
    """Fits method and fusion; learned weights are validated on a part that a first fit leaves out."""
    moments = Moments.zero().add(embeddings_of(rest))
    space = fit_space(moments, spec, rest)
    validation = None
    if fusion.weights == "learned":
        inner = (hash_ids(rest["item_id"]) >> np.uint64(30)) % np.uint64(_SHARE) == 0
        others, rows = rest.filter(pa.array(~inner)), rest.filter(pa.array(inner))
        validation = fit_space(Moments.zero().add(embeddings_of(others)), spec, others), rows
    return fit_fusion(space, rest, fusion, validation)


def pad_embeddings(table: pa.Table) -> pa.Table:
    """Lengthens all embeddings with zeros to the longest: what `none` is measured on where lengths differ."""
    embeddings = embeddings_of(table)
    longest = max(x.shape[1] for x, _ in embeddings.values())
    for m, (x, present) in embeddings.items():
        wide = np.zeros((len(x), longest), np.float32)
        wide[present, : x.shape[1]] = x[present]
        table = with_column(table, m + EMBEDDING, to_vector_column(wide, present))
    return table


def _average(values: Sequence[Any]) -> Any:
    """Averages numbers key by key; None, and keys that a fold lacks, are passed over."""
    values = [v for v in values if v is not None]
    if not values:
        return None
    if isinstance(values[0], Mapping):
        keys = list(dict.fromkeys(k for v in values for k in v))
        return {k: _average([v.get(k) for v in values]) for k in keys}
    return float(np.mean(values))


# --- for people --------------------------------------------------------------------------------------------


def print_evaluation(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the tables of `evaluate_space`.

    found: an item by one modality when it is stored by its others, R@10; lost: the same after 30% of all
    modalities are taken away; drop: the difference; +: with imputation.
    """
    out = console or Console(width=max(160, Console().width))
    out.print(f"{result['items']:,} items, {result['folds']} fold(s), measured on items that the fit did not see")
    for title in ("methods", "fusions"):
        if result[title]:
            out.print(_summary(title, result[title], result["label"]))
        for name, r in result[title].items():
            if "not_fitted" in r:
                out.print(f"  {name}: not fitted: {r['not_fitted']}")
    measured = {n: r for n, r in result["methods"].items() if "pairs" in r}
    if measured:
        best = max(measured, key=lambda n: measured[n]["mean_recall@10"] or 0.0)
        out.print(_pair_table(best, measured[best]))
        out.print(_without_table(best, measured[best]))


def _summary(title: str, rows: Mapping[str, Any], label: str | None) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    table.add_column(title[:-1], no_wrap=True)
    heads = ["R@1", "R@5", "R@10", "× chance", "median", "MRR", "gap", "isotropy"]
    heads += [f"same {label}"] if label else []
    for head in [*heads, "found", "lost", "drop", "+found", "+lost", "+drop", "fit s"]:
        table.add_column(head, justify="right", no_wrap=True)
    for name, r in rows.items():
        if "not_fitted" in r:
            continue
        pairs = list(r["pairs"].values())
        mean = {k: float(np.mean([p[k] for p in pairs])) for k in ("recall@1", "recall@5", "median_rank", "mrr")}
        gap = float(np.mean(list(r["gap"].values()))) if r["gap"] else 0.0
        cells = [mean["recall@1"], mean["recall@5"], r["mean_recall@10"], r["times_chance"], mean["median_rank"]]
        cells += [mean["mrr"], gap, r["isotropy"]]
        cells += [r["same_label"]["vector"]] if label else []
        plain, imputed = r["missing"]["plain"], r["missing"]["impute"]
        cells += [m.get(k) for m in (plain, imputed) for k in ("recall@10", "recall@10_lost", "drop")]
        shown = [f"{c:.1f}" if i in (3, 4) else _number(c) for i, c in enumerate(cells)]
        table.add_row(name + (" (padded)" if r["padded"] else ""), *shown, f"{r['fit_seconds']:.1f}")
    return table


def _pair_table(name: str, r: Mapping[str, Any]) -> Table:
    title = f"{name}: pairs"
    table = Table("query → target", *("R@1", "R@5", "R@10", "chance", "median", "MRR"), title=title, box=None)
    table.title_justify = "left"
    for pair, p in r["pairs"].items():
        keys = ("recall@1", "recall@5", "recall@10", "chance@10", "median_rank", "mrr")
        table.add_row(pair, *(_number(p[k]) for k in keys))
    return table


def _without_table(name: str, r: Mapping[str, Any]) -> Table:
    heads = ("items left", "top-10 kept", "same label", "same label with it")
    table = Table("dropped", *heads, title=f"{name}: each modality dropped", box=None)
    table.title_justify = "left"
    for m, w in r["without"].items():
        keys = ("coverage", "top10_overlap", "same_label", "same_label_with")
        table.add_row(m, *(_number(w.get(k)) for k in keys))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
