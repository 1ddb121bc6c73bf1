"""What a person reads when a run is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unisono.pipelines.summary import plain_console, print_summary
from unisono.transforms.store.privacy import ForgetStatement, NoiseStatement, PrivacyStatement, PseudonymsStatement
from unisono.transforms.store.runs import FileRecord, Manifest, Store, write_file

ITEMS = {
    "catalog.rows": 1234,
    "items.rows": 1200,
    "embeddings.text": 1100,
    "reused.text": 1000,
    "embeddings.image": 900,
    "dead.catalog.-.null_id": 34,
    "dead.encode.image.not_found": 2001,
}
USERS = {
    "interactions.rows": 5000,
    "users.rows": 70,
    "users.cold": 7,
    "users.without_profile": 3,
    "users.without_usable_event": 2,
    "events.unknown_item": 11,
}
SPACE = {"dim": 64, "method": "gcca", "info": {"axes_asked": 64, "left_out": {}}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def say(
    store: Store, capsys: pytest.CaptureFixture[str], counts: dict[str, int], space: dict, privacy: PrivacyStatement
) -> dict[str, str]:
    """Prints a run's summary, and returns its lines by their first words."""

    def put(part: str, name: str, body: dict) -> FileRecord:
        return write_file(store, part, f"runs/r/{name}", json.dumps(body).encode())

    records = (put("metrics", "metrics.json", counts), put("space", "space.json", space))
    print_summary(store, Manifest("r", "now", records, privacy=privacy), 12.34)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "run r"
    assert lines[-1] == f"published {store.root}/runs/r"
    assert max(map(len, lines[:-1])) <= 140
    cells = [[cell for cell in line.split("  ") if cell.strip()] for line in lines[1:-1]]
    return {row[0].strip(): " | ".join(cell.strip() for cell in row[1:]) for row in cells}


def test_items(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(store, capsys, ITEMS, SPACE, PrivacyStatement()) == {
        "catalogue rows": "1,234",
        "text embeddings": "1,100 | 1,000 reused from an earlier run",
        "image embeddings": "900",
        "item vectors": "1,200",
        "joint space": "64 axes, gcca",
        "dead letters": "2,035",
        "encode.image.not_found": "2,001",
        "catalog.null_id": "34",
        "time": "12.3 s",
    }


def test_users(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(store, capsys, USERS | {"recommendations.rows": 68}, {}, PrivacyStatement()) == {
        "events": "5,000",
        "events of unknown items": "11 | skipped",
        "user profiles": "70",
        "of these, cold": "7 | lean on what everybody likes",
        "users without profile": "3 | 2 of these have only dead letters",
        "users with recommendations": "68",
        "dead letters": "0",
        "time": "12.3 s",
    }


def test_users_that_all_have_a_profile(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    said = say(store, capsys, {"interactions.rows": 9, "users.rows": 3}, {}, PrivacyStatement())
    assert set(said) == {"events", "events of unknown items", "user profiles", "dead letters", "time"}


def test_a_space_that_is_not_what_was_asked_for(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    info = {"axes_asked": 128, "left_out": {"audio": "2 items have it, 8 are needed", "image": "all alike"}}
    said = say(store, capsys, ITEMS, SPACE | {"info": info}, PrivacyStatement())
    assert said["joint space"] == "64 axes, gcca | 128 asked for; the modalities agree on no more axes than these"
    assert said["without audio"] == "2 items have it, 8 are needed"
    assert said["without image"] == "all alike"


def test_an_earlier_space_that_says_nothing_about_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(store, capsys, ITEMS, SPACE | {"info": {}}, PrivacyStatement())["joint space"] == "64 axes, gcca"


def test_people(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    noise = NoiseStatement("Gaussian", 8.0, 1e-5, 0.5, 1.0, 0.61234, "", "", "", releases=2, epsilon_of_releases=12.0)
    privacy = PrivacyStatement(
        PseudonymsStatement("HMAC", "0f1e2d3c"), ForgetStatement(("f.parquet",), removed=1002), noise
    )
    said = say(store, capsys, USERS, {}, privacy)
    assert said["user ids"] == "pseudonyms | key 0f1e2d3c"
    assert said["people forgotten"] == "1,002 | in no file that this run wrote"
    assert said["noise on profiles"] == "σ 0.612 | a release is (8, 1e-05)-private; 2 so far"


def test_many_reasons_are_cut_and_added_up(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {f"dead.encode.m{i:02d}.truncated": i + 1 for i in range(20)}
    said = say(store, capsys, counts, {}, PrivacyStatement())
    assert said["dead letters"] == str(sum(range(1, 21)))
    shown = [key for key in said if key.startswith("encode.")]
    assert shown == [f"encode.m{i:02d}.truncated" for i in range(19, 7, -1)]
    assert said["8 more reasons"] == str(sum(range(1, 9)))


def test_off_a_terminal_tables_are_wide_enough_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    console = plain_console()
    assert console.width == 140
    console.print("[bold]x[/bold]")
    assert capsys.readouterr().out == "x\n"
