"""Errors keep what they say when they cross processes."""

from __future__ import annotations

import copy
import json
import pickle

import cloudpickle
import pytest

from unisono.transforms.base.errors import InputError, JobError, Reason, UsageError


@pytest.mark.parametrize("detail", ["", "one line", "Größe: 名前"])
@pytest.mark.parametrize("reason", [Reason.NOT_FOUND, Reason.TRUNCATED])
@pytest.mark.parametrize("copied", [pickle, cloudpickle, None], ids=["pickle", "cloudpickle", "copy"])
def test_an_input_error_survives_pickling(reason: Reason, detail: str, copied: object) -> None:
    error = InputError(reason, detail)
    again = copied.loads(copied.dumps(error)) if copied else copy.copy(error)  # type: ignore[attr-defined]
    assert type(again) is InputError
    assert (again.reason, again.detail, str(again)) == (reason, detail, str(error))
    assert again.reason is reason


def test_the_message_of_an_input_error_is_its_reason_and_detail() -> None:
    assert str(InputError(Reason.EMPTY_FILE)) == "empty_file"
    assert str(InputError(Reason.EMPTY_FILE, "0 bytes")) == "empty_file: 0 bytes"


def test_a_job_error_survives_pickling_and_a_usage_error_is_one() -> None:
    again = pickle.loads(pickle.dumps(UsageError("command line: --runner: no such thing")))
    assert type(again) is UsageError
    assert isinstance(again, JobError)
    assert str(again) == "command line: --runner: no such thing"


def test_reasons_are_plain_lower_case_strings_wherever_they_are_written() -> None:
    for reason in Reason:
        assert reason.value == reason.name.lower()
        assert json.dumps({"reason": reason}) == f'{{"reason": "{reason.value}"}}'
        assert f"{reason}" == str(reason) == reason.value
    assert Reason("not_found") is Reason.NOT_FOUND
