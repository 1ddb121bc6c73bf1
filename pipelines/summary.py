"""What a finished run made, in a few lines a person can read."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from unisono.transforms.space.info import SpaceInfo
from unisono.transforms.store.runs import Manifest, Store, read_json

_SHOWN = 12  # of the reasons for dead letters


def plain_console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for our tables where it is a file or a pipe."""
    out = Console()
    return out if out.is_terminal else Console(width=140)


def print_summary(store: Store, manifest: Manifest, seconds: float) -> None:
    """Prints counts, dead letters by reason, and where the files are."""
    out = plain_console()
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
        _add_space(table, store, manifest)
    if "interactions.rows" in counts:
        table.add_row("events", f"{counts['interactions.rows']:,}")
    if "users.rows" in counts:
        table.add_row("events of unknown items", f"{counts.get('events.unknown_item', 0):,}", "skipped")
        table.add_row("user profiles", f"{counts.get('users.rows', 0):,}")
        if cold := counts.get("users.cold", 0):
            table.add_row("  of them cold", f"{cold:,}", "lean on what everybody likes")
        if without := counts.get("users.without_profile", 0):
            lost = counts.get("users.without_usable_event", 0)
            note = f"of {lost:,} every event is a dead letter" if lost else "no row"
            table.add_row("users without profile", f"{without:,}", note)
    if "recommendations.rows" in counts:
        table.add_row("users served", f"{counts['recommendations.rows']:,}")
    _add_privacy(table, manifest)
    dead = sorted(((n, k.removeprefix("dead.")) for k, n in counts.items() if k.startswith("dead.")), reverse=True)
    table.add_row("dead letters", f"{sum(n for n, _ in dead):,}")
    for n, key in dead[:_SHOWN]:
        table.add_row(f"  {key.replace('.-.', '.')}", f"{n:,}")
    if len(dead) > _SHOWN:
        table.add_row(f"  {len(dead) - _SHOWN} more reasons", f"{sum(n for n, _ in dead[_SHOWN:]):,}")
    table.add_row("time", f"{seconds:.1f} s")
    out.print(table)
    out.print(f"published {store.run_path(manifest.run_id)}", highlight=False, soft_wrap=True)


def _add_privacy(table: Table, manifest: Manifest) -> None:
    """Says what was done for the people in the log."""
    said = manifest.privacy or {}
    if "pseudonyms" in said:
        table.add_row("user ids", "pseudonyms", f"key {said['pseudonyms']['key_fingerprint']}")
    if "forget" in said:
        table.add_row("people forgotten", f"{said['forget']['removed']:,}", "in nothing this run wrote")
    if "noise" in said:
        n = said["noise"]
        note = f"a release is ({n['epsilon']:g}, {n['delta']:g})-private; {n['releases']} so far"
        table.add_row("noise on profiles", f"σ {n['sigma']:.3g}", note)


def _add_space(table: Table, store: Store, manifest: Manifest) -> None:
    """Says how long the vectors came out, and which modalities are not in them and why."""
    record = next(r for r in manifest.part("space") if r.path.endswith("space.json"))
    space = read_json(store, record.path)
    info = SpaceInfo.from_json(space["info"])
    asked = space["dim"] if info.axes_asked is None else info.axes_asked
    note = "" if asked == space["dim"] else f"{asked} asked for; the data has no more on which modalities agree"
    table.add_row("joint space", f"{space['dim']} axes, {space['method']}", note)
    for modality, why in info.left_out.items():
        table.add_row("", f"without {modality}", why)
