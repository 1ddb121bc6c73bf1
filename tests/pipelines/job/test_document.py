"""docs/job-file.md says what the code declares."""

from __future__ import annotations

import re

from tests.paths import ROOT
from unisono.pipelines.job.document import document_job
from unisono.pipelines.job.load import parse_job

PAGE = ROOT / "docs" / "job-file.md"


def test_the_page_is_current() -> None:
    remedy = "run `python -m unisono.pipelines.job.document > docs/job-file.md`"
    assert PAGE.read_text() == document_job(), remedy


def test_every_key_of_a_whole_job_stands_in_the_page_with_a_meaning() -> None:
    log = {"path": "l", "user": "u", "item": "i", "time": "t"}
    privacy = {"pseudonyms": {"key_env": "KEY"}}
    body = {"store": "s", "catalog": {"path": "c", "id": "i", "text": "t"}, "interactions": log, "privacy": privacy}
    job = parse_job(body | {"behaviour": {}, "ranking": {}}, "/j/job.yaml")
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| .* \| (.*) \|$", PAGE.read_text(), re.M))

    def check(section: dict) -> None:
        for key, value in section.items():
            assert rows.get(key), key
            if isinstance(value, dict) and "model" not in value:
                check(value)

    check(job.model_dump())


def test_limits_and_defaults_are_said() -> None:
    page = PAGE.read_text()
    assert "| `half_life_days` | number above 0, or null | `30.0` |" in page
    assert "| `max_media_bytes` | whole number above 0 | `67_108_864` |" in page
    assert "| `epsilon` | number above 0 and below 500 | required |" in page
    assert "| `method` | `auto`, `cca`, `gcca`," in page
