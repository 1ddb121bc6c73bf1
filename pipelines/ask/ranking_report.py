"""Prints what `evaluate_ranking` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from unisono.pipelines.ask.evaluate_ranking import KS


def print_ranking(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the result of `evaluate_ranking` as tables: each mean ± half the width of its 95% interval."""
    out = console or Console(width=max(170, Console().width))
    about, k = result["about"], KS[1]
    out.print(
        f"{about['split']}: {about['train_events']:,} events to learn from, {about['held_out_pairs']:,} pairs to find, "
        f"{about['users']:,} users ({about['users_without_history']:,} more have no history), {about['items']:,} items "
        f"({about['new_items']:,} new)"
    )
    if about.get("earlier_logs_left_out"):
        out.print(
            "  note: with profiles.incremental: true, only the logs that interactions.path names are measured; the "
            "published profiles hold earlier ones too. Name all logs to measure with them"
        )
    for words in _set_aside(about):
        out.print(f"  {words}")
    names = [f"{name}@{k}" for name in ("ndcg", "precision", "recall", "map", "hit", "mrr")]
    names += [f"recall@{KS[-1]}", "auc"]
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
    if result["verdict"]:
        out.print(f"NDCG@{k}: {result['verdict']}", highlight=False)


def _set_aside(about: Mapping[str, Any]) -> list[str]:
    """Says what was left out of the measurement."""
    says = {
        "events_lost": "rows of the log cannot be used",
        "events_set_aside": "events do not count, as repeats or as a robot's",
        "held_out_unknown": "held-out pairs have an item without embeddings",
        "held_out_hidden": "held-out pairs have an item that ranking.filter hides",
        "held_out_not_candidates": "of the pairs to find have an item that is no candidate: no row can find them",
        "users_without_candidates": "users have no candidates",
    }
    return [f"{about[name]:,} {words}" for name, words in says.items() if about.get(name)]


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
