"""White space around texts, and texts that consist of nothing else."""

from __future__ import annotations

import pytest

from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.text import clean_text


def test_white_space_is_stripped_at_both_ends_only() -> None:
    assert clean_text("\t a  red\nlamp \u3000") == "a  red\nlamp"


@pytest.mark.parametrize("raw", ["", " ", "\n\t", "\u3000\u00a0"])
def test_a_blank_text_is_refused(raw: str) -> None:
    with pytest.raises(InputError) as caught:
        clean_text(raw)
    assert caught.value.reason is Reason.EMPTY_TEXT
