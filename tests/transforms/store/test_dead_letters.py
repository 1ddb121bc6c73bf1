"""Dead letters as tables, against plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.transforms.base.errors import Reason
from unisono.transforms.store.dead_letters import (
    SCHEMA,
    DeadLetter,
    count_by,
    dead_letter_table,
    dead_letters_of_rows,
    sort_letters,
)

TEXT = st.one_of(st.none(), st.text("ab\n ü", max_size=4))
LETTER = st.builds(
    DeadLetter,
    item_id=TEXT,
    modality=st.sampled_from([None, "text", "image"]),
    stage=st.sampled_from(["catalog", "encode"]),
    reason=st.sampled_from(list(Reason)),
    detail=st.text("ab\n", max_size=6),
    uri=TEXT,
)


@given(st.lists(LETTER, max_size=20))
def test_letters_are_rows_of_the_schema(letters: list[DeadLetter]) -> None:
    table = dead_letter_table(letters)
    assert table.schema == SCHEMA
    assert table.to_pylist() == [
        letter._asdict() | {"reason": letter.reason.value, "detail": letter.detail.replace("\n", " ")}
        for letter in letters
    ]


def test_no_letters_are_an_empty_table() -> None:
    assert dead_letter_table([]).equals(SCHEMA.empty_table())


def test_a_long_detail_becomes_one_short_line() -> None:
    (row,) = dead_letter_table([DeadLetter("a", None, "encode", Reason.ENCODER_FAILED, "x\n" * 4000)]).to_pylist()
    assert row["detail"] == "x " * 250


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (pa.array(["a", None, "c", "d"]), ["a", None, "d"]),
        (pa.array([1, None, 3, 4], pa.int16()), ["1", None, "4"]),
        (pa.chunked_array([["a"], [None, "c"], ["d"]], pa.large_string()), ["a", None, "d"]),
    ],
    ids=["strings", "integers", "chunks"],
)
def test_rows_of_a_mask_become_letters(ids: pa.Array, text: list) -> None:
    mask = np.array([True, True, False, True])
    table = dead_letters_of_rows(ids, mask, "catalog", Reason.NULL_ID, "column 'id' is null", "text")
    assert table.schema == SCHEMA
    assert table["item_id"].to_pylist() == text
    same = {"modality": "text", "stage": "catalog", "reason": "null_id", "detail": "column 'id' is null", "uri": None}
    assert [{k: v for k, v in row.items() if k != "item_id"} for row in table.to_pylist()] == [same] * 3


def test_a_mask_of_nothing_and_no_rows_make_no_letters() -> None:
    for ids in (pa.array(["a", "b"]), pa.array([], pa.int64())):
        table = dead_letters_of_rows(ids, np.zeros(len(ids), bool), "catalog", Reason.NULL_ID)
        assert table.schema == SCHEMA
        assert table.num_rows == 0


@given(st.lists(LETTER, max_size=30))
def test_counts_agree_with_the_rows(letters: list[DeadLetter]) -> None:
    expected = Counter((letter.stage, letter.modality or "", letter.reason.value) for letter in letters)
    assert count_by(dead_letter_table(letters)) == expected


@given(st.lists(LETTER, max_size=20), st.randoms(use_true_random=False))
def test_sorted_letters_do_not_depend_on_their_order(letters: list[DeadLetter], random) -> None:
    shuffled = list(letters)
    random.shuffle(shuffled)
    first, second = (sort_letters(dead_letter_table(some)) for some in (letters, shuffled))
    assert first.equals(second)
    ids = [i for i in first["item_id"].to_pylist() if i is not None]
    assert ids == sorted(ids)
