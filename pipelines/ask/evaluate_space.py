"""Measures the joint space of the published run, and compares it with other methods."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.job.job import Job
from unisono.transforms.base.columns import EMBEDDING, common_rows, embeddings_of, in_sample
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.modalities import BEHAVIOUR
from unisono.transforms.base.tables import concat_tables, hash_ids, sort_by_id, to_vector_column, with_column
from unisono.transforms.behaviour.behaviour import join_behaviour
from unisono.transforms.space.fit.fusion import fit_fusion
from unisono.transforms.space.fit.methods import fit_space, possible_axes
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.quality import measure_space, missing_with_and_without
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.fit.step import TRAINING_ROWS
from unisono.transforms.space.registry import FUSIONS, METHODS
from unisono.transforms.space.space import Space
from unisono.transforms.store.parquet import list_parquet, read_rows, require_column
from unisono.transforms.store.runs import read_table

_SHARE = 5  # with one fold, a fifth of the items is held out
_LEAST_ITEMS = 50  # fewer are too few to hold some out


def evaluate_space(
    job: Job,
    methods: Sequence[str] = (),
    fusions: Sequence[str] = (),
    folds: int = 5,
    label: str | None = None,
    labels_path: str | None = None,
) -> dict[str, Any]:
    """Fits spaces to the embeddings of the published run, each without a part of the items, and measures them there.

    Args:
        job: Names the store, and says how its own space is fitted.
        methods: Names of space methods, or `all`. None given means the job's own method. All see the same folds.
        fusions: Names of fusion methods, or `all`, each measured in the job's own space. None given means that fusions
            are not compared.
        folds: The number of folds; items go to folds by hash of their id. 1 means one split that holds out a fifth.
        label: A column of the catalogue, or of `labels_path`, whose equal values should be neighbours. None means
            that no label is measured.
        labels_path: A Parquet file with the catalogue's id column and the column `label`. None means the catalogue.

    Returns:
        `items`, `folds`, `label`, and by name of the method `methods` and `fusions`: what
        `unisono.transforms.space.fit.quality.measure_space` returns, averaged over the folds, with `missing` (`plain`
        and `impute`), `recall@10_by_fold` and `fit_seconds`. A method that cannot be fitted has `not_fitted`, the
        reason, instead.

    Raises:
        JobError: Nothing is published, there are too few items, or an argument is not allowed.
    """
    table = published_embeddings(PublishedRun.open(job.store_at))
    if table.num_rows < _LEAST_ITEMS:
        raise JobError(
            f"evaluate: {table.num_rows} items with embeddings; {_LEAST_ITEMS} or more are needed to hold some out"
        )
    names = _names(methods, [m for m in METHODS if m != "auto"], "--methods", job.space.method)
    fused = _names(fusions, list(FUSIONS), "--fusions", job.fusion.method)
    labels = None if label is None else read_labels(job, table["item_id"], label, labels_path)
    own, fusion = _spec(job, table), job.fit_settings(1, {}).fusion
    out: dict[str, Any] = {"items": table.num_rows, "folds": folds, "label": label, "methods": {}, "fusions": {}}
    for name in names:
        out["methods"][name] = _over_folds(table, labels, folds, replace(own, method=name), fusion)
    for name in fused if fusions else ():
        given = fusion if name == fusion.method else replace(fusion, method=name, weights={})
        out["fusions"][name] = _over_folds(table, labels, folds, own, given)
    if "weighted" in out["fusions"]:
        learned = FusionSpec("weighted", "learned", impute=fusion.impute)
        out["fusions"]["weighted (learned)"] = _over_folds(table, labels, folds, own, learned)
    return out


def published_embeddings(run: PublishedRun) -> pa.Table:
    """Reads the embeddings of a run, of at most about 100,000 items drawn by hash of their id.

    The embeddings of `behaviour` were made from the whole log: an item that a fit does not see was seen by them.

    Returns:
        item_id, `<m>_embedding` for each modality, sorted by id.

    Raises:
        JobError: The run has no embeddings.
    """
    records = run.records("embeddings")
    behaviour = [read_table(run.store, r) for r in run.manifest.part(BEHAVIOUR)]
    fraction = min(1.0, TRAINING_ROWS / max(sum(r.rows for r in records), 1))
    tables = []
    for record in records:  # one file at a time: rows that are not drawn do not stay in memory
        table = read_table(run.store, record)
        for made in behaviour:
            table = join_behaviour(table, made)
        table = table.select(["item_id", *(c for c in table.column_names if c.endswith(EMBEDDING))])
        tables.append(table.filter(pa.array(in_sample(table["item_id"], fraction))))
    return sort_by_id(concat_tables(tables))


def read_labels(job: Job, ids: pa.ChunkedArray, label: str, path: str | None) -> np.ndarray:
    """Reads the label of each item.

    Args:
        job: Names the catalogue and its id column.
        ids: The ids of the items.
        label: The column that holds the labels.
        path: The Parquet file that holds them. None means the catalogue.

    Returns:
        A string for each id, '' where the item has no label.

    Raises:
        JobError: There is no such column, or no item has a row there.
    """
    found = list_parquet(path or job.catalog.path, "--labels" if path else "catalog.path")
    key = job.catalog.id
    require_column(found, label, "--label", lambda _: True, "anything")
    known = pa.concat_tables(list(read_rows(found, [key, label])))
    here, there = common_rows(ids, known[key])
    if not len(here):
        raise JobError(f"--label: no item of the published run has a row with {label!r}; name the file with --labels")
    out = np.full(len(ids), "", object)
    out[here] = known[label].cast(pa.string()).take(pa.array(there)).fill_null("").to_numpy(zero_copy_only=False)
    return out.astype(str)


def _names(asked: Sequence[str], allowed: Sequence[str], key: str, own: str) -> list[str]:
    if list(asked) == ["all"]:
        return list(allowed)
    unknown = [name for name in asked if name not in (*allowed, "auto")]
    if unknown:
        raise JobError(f"{key}: {unknown[0]!r} is none of {', '.join(allowed)}; choose some of these, or all")
    return list(asked) or [own]


def _spec(job: Job, table: pa.Table) -> SpaceSpec:
    dims = {m: x.shape[1] for m, (x, _) in embeddings_of(table).items()}
    return replace(job.space, dim=possible_axes(job.space, dims))


def _over_folds(
    table: pa.Table, labels: np.ndarray | None, folds: int, spec: SpaceSpec, fusion: FusionSpec
) -> dict[str, Any]:
    """Fits without each fold in turn, measures on that fold, and averages over the folds."""
    number = max(folds, 1)
    # Shards use the low bits of the hash and samples the high bits, so folds use bits between them.
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
    """Fits the space and the fusion. Learned weights are validated on items that a first fit leaves out."""
    moments = Moments.zero().add(embeddings_of(rest))
    space = fit_space(moments, spec, rest)
    validation = None
    if fusion.weights == "learned":
        inner = (hash_ids(rest["item_id"]) >> np.uint64(30)) % np.uint64(_SHARE) == 0
        others, rows = rest.filter(pa.array(~inner)), rest.filter(pa.array(inner))
        validation = fit_space(Moments.zero().add(embeddings_of(others)), spec, others), rows
    return fit_fusion(space, rest, fusion, validation)


def pad_embeddings(table: pa.Table) -> pa.Table:
    """Appends zeros to all embeddings, up to the longest. The method `none` needs embeddings of one length."""
    embeddings = embeddings_of(table)
    longest = max(x.shape[1] for x, _ in embeddings.values())
    for m, (x, present) in embeddings.items():
        wide = np.zeros((len(x), longest), np.float32)
        wide[present, : x.shape[1]] = x[present]
        table = with_column(table, m + EMBEDDING, to_vector_column(wide, present))
    return table


def _average(values: Sequence[Any]) -> Any:
    """Averages numbers, or mappings of numbers key by key. None and missing keys do not count."""
    values = [v for v in values if v is not None]
    if not values:
        return None
    if isinstance(values[0], Mapping):
        keys = list(dict.fromkeys(k for v in values for k in v))
        return {k: _average([v.get(k) for v in values]) for k in keys}
    return float(np.mean(values))


# --- printing ----------------------------------------------------------------------------------------------


def print_evaluation(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the tables of `evaluate_space`.

    Columns: `found` is R@10 when one modality of an item searches for the item stored by its other modalities. `lost`
    is the same after 30% of all modalities are taken away. `drop` is the difference. `+` means with imputation.

    Args:
        result: What `evaluate_space` returned.
        console: Where to print. None means standard output.
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
