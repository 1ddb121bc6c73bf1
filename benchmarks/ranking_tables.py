"""Comparison of the rows of `benchmarks.ranking`, with intervals, and its tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.own_rows import COMPARED, OWN_ROWS
from benchmarks.rivals import RIVALS
from unisono.transforms.measure.rank_metrics import bootstrap_interval

K = 10
EASE, EASE_AGED, GIVEN_OURS = "ease", "ease, aged", "ease, our ageing and trend"
ALL, OF_NEW, AMONG_NEW = "all", "new items, among all", "new items, among new"  # parts of the held-out pairs


# --- comparison --------------------------------------------------------------------------------------------


def interval(values: np.ndarray) -> dict[str, float | None]:
    """Returns the mean over users and its 95% interval; None where there are no users."""
    mean, low, high = bootstrap_interval(values)
    return {n: None if np.isnan(x) else x for n, x in (("mean", mean), ("low", low), ("high", high))}


def compare(values: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """Compares the rows of one split.

    Args:
        values: NDCG@10 of each user, by row and part.

    Returns:
        For each row and part: `users`, the mean with its interval, and `against` the best rival (with its `name`), EASE
        and aged EASE: the mean of the paired differences with its interval.
    """
    out: dict[str, dict[str, Any]] = {name: {} for name in values}
    for part in (ALL, OF_NEW, AMONG_NEW):
        means = {n: float(np.nanmean(v[part])) for n, v in values.items() if not np.isnan(v[part]).all()}
        for name in means:
            mine = values[name][part]
            ages = OWN_ROWS[name].ages if name in OWN_ROWS else RIVALS[name].ages
            rivals = [n for n in means if n in RIVALS and n not in (name, GIVEN_OURS) and (ages or not RIVALS[n].ages)]
            found: dict[str, Any] = {"users": int((~np.isnan(mine)).sum()), **interval(mine), "against": {}}
            if rivals:
                best = max(rivals, key=means.__getitem__)
                found["against"]["best rival"] = {"name": best, **interval(mine - values[best][part])}
            for other in (EASE, EASE_AGED):
                if other in means and other != name:
                    found["against"][other] = interval(mine - values[other][part])
            out[name][part] = found
    return out


def ratios(values: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Divides the means of the pairs of rows in `COMPARED`."""
    return {
        f"{one} / {other}": float(np.nanmean(values[one][ALL]) / np.nanmean(values[other][ALL]))
        for one, other in COMPARED
        if one in values and other in values
    }


# --- tables ----------------------------------------------------------------------------------------------


def print_split(split: str, result: Mapping[str, Any], console: Console) -> None:
    """Prints the rows of a split as a table."""
    about = result["about"]
    title = f"{split}: NDCG@{K} of {about['users']:,} users ({about['users_without_history']:,} more have no history)"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    heads = ["row", "all", "− best rival", "− ease", "new among all", "new among new", "validation", "tried", "s"]
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    for name, row in result["rows"].items():
        if "not_measured" in row:
            console.print(f"  {name}: not measured: {row['not_measured']}", highlight=False)
            continue
        every = row["figures"][ALL]
        parts = [_cell(row["figures"].get(part)) for part in (OF_NEW, AMONG_NEW)]
        against = [_cell(every["against"].get(other), "+") for other in ("best rival", EASE)]
        tuned = [f"{row['validation']:.4f}", f"{row['tried']}/{row['points']}", f"{row['seconds']:.0f}"]
        table.add_row(name, _cell(every), *against, *parts, *tuned)
    console.print(table)
    for pair, ratio in result["ratios"].items():
        console.print(f"  {pair}: {ratio:.3f}", highlight=False)


def _cell(found: Mapping[str, Any] | None, sign: str = "") -> str:
    if found is None or found["mean"] is None:
        return "–"
    return f"{found['mean']:{sign}.4f} ({found['low']:{sign}.3f}, {found['high']:{sign}.3f})"
