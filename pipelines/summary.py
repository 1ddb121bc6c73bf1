"""What a finished run made, in a few lines a person can read."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from transforms.store import Manifest, Store, read_json

_SHOWN = 12  # of the reasons for dead letters


def print_summary(store: Store, manifest: Manifest, seconds: float, console: Console | None = None) -> None:
    """Prints counts, dead letters by reason, and where the files are."""
    out = console or Console()
    counts: dict[str, int] = read_json(store, manifest.part("metrics")[0].path)
    table = Table(title=f"run {manifest.run_id}", title_justify="left", show_header=False, box=None, padding=(0, 2))
    if "catalog.rows" in counts:
        table.add_row("catalogue rows", f"{counts['catalog.rows']:,}")
        for key in sorted(k for k in counts if k.startswith("embeddings.")):
            modality = key.partition(".")[2]
            reused = counts.get(f"reused.{modality}", 0)
            note = f"{reused:,} reused from an earlier run" if reused else ""
            table.add_row(f"{modality} embeddings", f"{counts[key]:,}", note)
        table.add_row("item vectors", f"{counts.get('items.rows', 0):,}")
    if "interactions.rows" in counts:
        table.add_row("events", f"{counts['interactions.rows']:,}")
    if "users.rows" in counts:
        table.add_row("events of unknown items", f"{counts.get('events.unknown_item', 0):,}", "skipped")
        table.add_row("user profiles", f"{counts.get('users.rows', 0):,}")
        table.add_row("users without a usable event", f"{counts.get('users.without_profile', 0):,}", "no row")
    if "recommendations.rows" in counts:
        table.add_row("users served", f"{counts['recommendations.rows']:,}")
    dead = sorted(((n, k.removeprefix("dead.")) for k, n in counts.items() if k.startswith("dead.")), reverse=True)
    table.add_row("dead letters", f"{sum(n for n, _ in dead):,}")
    for n, key in dead[:_SHOWN]:
        table.add_row(f"  {key.replace('.-.', '.')}", f"{n:,}")
    if len(dead) > _SHOWN:
        table.add_row(f"  {len(dead) - _SHOWN} more reasons", f"{sum(n for n, _ in dead[_SHOWN:]):,}")
    table.add_row("time", f"{seconds:.1f} s")
    table.add_row("published", store.run_path(manifest.run_id))
    out.print(table)
