"""Prints what a finished run made, in a few lines for a person."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from unisono.transforms.space.info import SpaceInfo
from unisono.transforms.store.privacy import PrivacyStatement
from unisono.transforms.store.runs import Manifest, Store, read_json

_SHOWN = 12  # the most frequent reasons of dead letters that have a line of their own


def plain_console() -> Console:
    """Returns a console on standard output, 140 columns wide if that is a file or a pipe."""
    out = Console()
    return out if out.is_terminal else Console(width=140)


def print_summary(store: Store, manifest: Manifest, seconds: float) -> None:
    """Prints counts, dead letters by reason, and where the files are.

    Args:
        store: the store that the run is in.
        manifest: the run.
        seconds: how long the run took.
    """
    out = plain_console()
    counts: dict[str, int] = read_json(store, manifest.part("metrics")[0].path)
    table = Table(title=f"run {manifest.run_id}", title_justify="left", show_header=False, box=None, padding=(0, 2))
    if "catalog.rows" in counts:
        _add_items(table, counts)
        _add_space(table, store, manifest)
    _add_users(table, counts)
    _add_privacy(table, manifest.privacy)
    _add_dead_letters(table, counts)
    table.add_row("time", f"{seconds:.1f} s")
    out.print(table)
    out.print(f"published {store.run_path(manifest.run_id)}", highlight=False, soft_wrap=True)


def _add_items(table: Table, counts: dict[str, int]) -> None:
    table.add_row("catalogue rows", f"{counts['catalog.rows']:,}")
    for key in sorted(k for k in counts if k.startswith("embeddings.")):
        modality = key.partition(".")[2]
        reused = counts.get(f"reused.{modality}", 0)
        note = f"{reused:,} reused from an earlier run" if reused else ""
        table.add_row(f"{modality} embeddings", f"{counts[key]:,}", note)
    table.add_row("item vectors", f"{counts.get('items.rows', 0):,}")


def _add_space(table: Table, store: Store, manifest: Manifest) -> None:
    """Adds the number of axes, and why a modality is not in the joint space."""
    record = next(r for r in manifest.part("space") if r.path.endswith("space.json"))
    space = read_json(store, record.path)
    info = SpaceInfo.from_json(space["info"])
    asked = space["dim"] if info.axes_asked is None else info.axes_asked
    note = "" if asked == space["dim"] else f"{asked} asked for; the modalities agree on no more axes than these"
    table.add_row("joint space", f"{space['dim']} axes, {space['method']}", note)
    for modality, why in info.left_out.items():
        table.add_row("", f"without {modality}", why)


def _add_users(table: Table, counts: dict[str, int]) -> None:
    if "interactions.rows" in counts:
        table.add_row("events", f"{counts['interactions.rows']:,}")
    if "users.rows" in counts:
        table.add_row("events of unknown items", f"{counts.get('events.unknown_item', 0):,}", "skipped")
        table.add_row("user profiles", f"{counts.get('users.rows', 0):,}")
        if cold := counts.get("users.cold", 0):
            table.add_row("  of these, cold", f"{cold:,}", "lean on what everybody likes")
        if without := counts.get("users.without_profile", 0):
            lost = counts.get("users.without_usable_event", 0)
            note = f"{lost:,} of these have only dead letters" if lost else "no row"
            table.add_row("users without profile", f"{without:,}", note)
    if "recommendations.rows" in counts:
        table.add_row("users with recommendations", f"{counts['recommendations.rows']:,}")


def _add_privacy(table: Table, privacy: PrivacyStatement) -> None:
    if privacy.pseudonyms:
        table.add_row("user ids", "pseudonyms", f"key {privacy.pseudonyms.key_fingerprint}")
    if privacy.forget:
        table.add_row("people forgotten", f"{privacy.forget.removed or 0:,}", "in no file that this run wrote")
    if noise := privacy.noise:
        note = f"a release is ({noise.epsilon:g}, {noise.delta:g})-private; {noise.releases} so far"
        table.add_row("noise on profiles", f"σ {noise.sigma:.3g}", note)


def _add_dead_letters(table: Table, counts: dict[str, int]) -> None:
    dead = sorted(((n, k.removeprefix("dead.")) for k, n in counts.items() if k.startswith("dead.")), reverse=True)
    table.add_row("dead letters", f"{sum(n for n, _ in dead):,}")
    for n, key in dead[:_SHOWN]:
        table.add_row(f"  {key.replace('.-.', '.')}", f"{n:,}")
    if len(dead) > _SHOWN:
        table.add_row(f"  {len(dead) - _SHOWN} more reasons", f"{sum(n for n, _ in dead[_SHOWN:]):,}")
