"""The two kinds of errors: a wrong job stops at once; a wrong input is set aside and the run goes on."""

from __future__ import annotations

from enum import StrEnum


class JobError(Exception):
    """A job cannot be done as asked: its settings, its files or its machine are at fault, not the code.

    The message is one line. It names the key or file, what it got, what is allowed, and what to do.
    """


class UsageError(JobError):
    """The command line is wrong, not the job file."""


class Reason(StrEnum):
    """Why an input could not be used: the codes that a dead letter can have."""

    # Stage `catalog`: the row gets no item vector.
    NULL_ID = "null_id"
    DUPLICATE_ID = "duplicate_id"
    NO_MODALITY = "no_modality"
    # Stage `encode`: the item loses one modality and keeps the others.
    EMPTY_TEXT = "empty_text"
    URI_NOT_ALLOWED = "uri_not_allowed"
    NOT_FOUND = "not_found"
    UNAVAILABLE = "unavailable"
    EMPTY_FILE = "empty_file"
    TOO_MANY_BYTES = "too_many_bytes"
    NOT_AN_IMAGE = "not_an_image"
    NOT_AUDIO = "not_audio"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED = "truncated"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_LONG = "too_long"
    OUT_OF_MEMORY = "out_of_memory"
    ENCODER_FAILED = "encoder_failed"
    # Stage `interactions`: the event is skipped.
    NULL_USER = "null_user"
    NULL_ITEM = "null_item"
    NULL_TIME = "null_time"
    UNKNOWN_EVENT = "unknown_event"
    TIME_OUT_OF_RANGE = "time_out_of_range"
    TIME_IN_FUTURE = "time_in_future"
    # Stage `profiles`: the letter is about a user.
    TOO_MANY_EVENTS = "too_many_events"
    WEIGHTS_CANCEL = "weights_cancel"


class InputError(Exception):
    """An input cannot be used; it becomes one dead letter.

    Args:
        reason: the dead letter's code.
        detail: one line for a person.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[InputError], tuple[Reason, str]]:
        return (InputError, (self.reason, self.detail))
