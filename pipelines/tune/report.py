"""Prints what `tune` found."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from unisono.pipelines.summary import plain_console
from unisono.pipelines.tune.bench import K
from unisono.pipelines.tune.job_file import Written
from unisono.pipelines.tune.search import LEVEL, Row
from unisono.pipelines.tune.settings import Settings, Value
from unisono.pipelines.tune.tune import LEAST_USERS, Tuned


def print_tuned(found: Tuned, console: Console | None = None) -> None:
    """Prints the table that settings were chosen from, and what they gain."""
    out = console or Console(width=max(170, Console().width))
    for line in _head(found):
        out.print(line, highlight=False)
    if found.validation is None or found.gain is None:
        return
    table = Table(box=None, padding=(0, 1))
    table.add_column("setting", no_wrap=True)
    table.add_column(f"value: validation NDCG@{K}")
    table.add_column(f"gain of the best ({LEVEL:.0%})", justify="right", no_wrap=True)
    table.add_column("chosen", justify="right", no_wrap=True)
    for row in found.rows:
        gain = "" if row.best == row.over else f"{_point(row.best)} over {_point(row.over)}: {_gain(row.gain)}"
        chosen = {k: found.settings[k] for k in row.before}
        changed = any(chosen[k] != found.before[k] for k in chosen)
        table.add_row("\n".join(row.before), _tried(row), gain, _point(chosen) + (" *" if changed else "  "))
    out.print(table)
    out.print("* changed. A setting changes only where the interval of the gain is above 0.", highlight=False)
    for (name, users), (before, after) in zip(found.cuts, found.ndcg, strict=True):
        out.print(f"  {name}: {users:,} users, NDCG@{K} {before:.4f} → {after:.4f}", highlight=False)
    for line in _tail(found):
        out.print(line, highlight=False)


def print_written(job_file: str, written: Written | None, in_place: bool, console: Console | None = None) -> None:
    """Says where the settings were written.

    Args:
        job_file: the job file.
        written: what was written. None means nothing.
        in_place: whether the job file itself was to be changed.
        console: where to print. None means standard output.
    """
    out = console or plain_console()
    if written is None:
        out.print(f"nothing to write: {job_file} has these settings already", highlight=False, soft_wrap=True)
        return
    lines = [f"settings written to {written.path}"]
    if not written.comments:
        lines.append("the comments of the job file are not in it: its text could not be changed in place")
    if in_place and written.path != job_file:
        lines.append(f"{job_file} stays as it is; copy the settings by hand, or use the new file")
    lines.append("run `unisono nightly` with it to make lists by these settings")
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)


def as_json(found: Tuned, written: Written | None) -> dict[str, Any]:
    """Returns what was found in JSON types.

    Args:
        found: what was found.
        written: the file that the settings were written to. None means that none was written.
    """
    return {
        "changes": found.changes,
        "settings": found.settings,
        "validation": found.validation,
        "gain": found.gain,
        "cuts": [{"name": name, "users": users} for name, users in found.cuts],
        "ndcg": found.ndcg,
        "rows": [asdict(row) for row in found.rows],
        "users": found.users,
        "ageing": found.ageing,
        "whole": found.whole,
        "points": found.points,
        "journal": found.journal,
        "written": None if written is None else written.path,
    }


def text(value: Value) -> str:
    """Writes a value as in a job file."""
    return "null" if value is None else f"{value:g}"


def _head(found: Tuned) -> list[str]:
    if found.validation is None:
        return [
            f"nothing can be chosen: {found.users} users have something to find on the cuts of this log, and "
            f"{LEAST_USERS} are needed; the settings stay as they are"
        ]
    lines = [f"{len(found.cuts)} cuts, {found.users:,} users, {found.points} points scored ({found.earlier} earlier)"]
    if not found.ageing:
        lines.append("the log spans less than a week, so ageing is not tried: recent and trend stay as they are")
    return lines


def _tail(found: Tuned) -> list[str]:
    assert found.validation is not None
    assert found.gain is not None
    before, after = found.validation
    lines = [f"validation NDCG@{K}: {before:.4f} with the job's settings, {after:.4f} with the chosen ones"]
    if found.changes:
        lines[0] += f", {_gain(found.gain)} ({LEVEL:.0%}, {found.users:,} users)"
    else:
        lines.append("no value can be told from the job's own: all settings stay as they are")
    if not found.whole:
        lines.append("the time was over before all values were tried; the same command goes on from here")
    return lines


def _tried(row: Row) -> str:
    """Writes points with their figures: one line for each value of the first setting, if there are two."""
    lines: dict[str, list[str]] = {}
    for point, score in row.tried:
        *first, last = (text(v) for v in point.values())
        lines.setdefault(" ".join(first), []).append(f"{last}: {_figure(score)}")
    return "\n".join(f"{first} × {'  '.join(cells)}" if first else "  ".join(cells) for first, cells in lines.items())


def _point(point: Settings) -> str:
    return " × ".join(text(v) for v in point.values())


def _figure(score: float | None) -> str:
    return "–" if score is None else f"{score:.4f}"


def _gain(gain: tuple[float, float, float]) -> str:
    mean, low, high = (f"{x:+.4f}".replace("-", "−") for x in gain)
    return f"{mean} ({low} to {high})"
