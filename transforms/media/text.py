"""Cleans raw texts in the same way for every text encoder."""

from __future__ import annotations

from unisono.transforms.base.errors import InputError, Reason


def clean_text(raw: str) -> str:
    """Strips white space at both ends.

    Raises:
        InputError: EMPTY_TEXT; nothing is left.
    """
    text = raw.strip()
    if not text:
        raise InputError(Reason.EMPTY_TEXT, "no characters besides white space")
    return text
