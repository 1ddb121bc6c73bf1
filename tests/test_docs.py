"""The documentation agrees with the code: reasons, commands, paths, links, command lines, the example of a job file."""

from __future__ import annotations

import ast
import itertools
import re
import runpy
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer.main
from packaging.requirements import Requirement

from tests.paths import ROOT
from unisono.pipelines.cli import app
from unisono.pipelines.job.load import load_job
from unisono.runners.select import unknown_options
from unisono.transforms.base.errors import Reason
from unisono.transforms.encode.columns import embeddings_schema
from unisono.transforms.rank.lists import recommendation_schema
from unisono.transforms.space.fuse import items_schema
from unisono.transforms.store import dead_letters
from unisono.transforms.users.profiles import profile_schema

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TOP = ("transforms", "pipelines", "runners", "unisono", "tests", "benchmarks", "docs", "examples", ".ci")
# Where inputs are set aside, and under which stage. The first prefix that fits a file counts.
STAGES = (
    ("transforms/read/catalog", "catalog"),
    ("transforms/read/interactions", "interactions"),
    ("transforms/space", "catalog"),
    ("transforms/users", "profiles"),
    ("transforms/media", "encode"),
    ("transforms/encode", "encode"),
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
_SPAN = re.compile(r"`([^`]+)`")


def rows_of_table(page: Path, head: str) -> list[list[str]]:
    """The cells of the table whose first line is `head`."""
    lines = page.read_text().splitlines()
    body = itertools.takewhile(lambda line: line.startswith("|"), lines[lines.index(head) + 2 :])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def fences(page: Path, kind: str) -> list[str]:
    """The contents of the page's fenced blocks of one kind."""
    return [body for name, body in _FENCE.findall(page.read_text()) if name == kind]


def spans(page: Path) -> list[str]:
    """The code spans of the page, without those in fenced blocks."""
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", page.read_text()))]


# --- reasons -----------------------------------------------------------------------------------------------


def reasons_in(path: Path) -> set[Reason]:
    """The reasons that a module names as `Reason.X`."""
    nodes = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute))
    return {Reason[n.attr] for n in nodes if isinstance(n.value, ast.Name) and n.value.id == "Reason"}


def reasons_of_the_code() -> dict[str, set[str]]:
    """The reasons that the code gives, by stage."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "transforms").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if used := reasons_in(path):
            stage = next((stage for prefix, stage in STAGES if name.startswith(prefix)), None)
            assert stage, f"{name} names dead-letter reasons; say in STAGES under which stage"
            found.setdefault(stage, set()).update(str(reason) for reason in used)
    return found


def test_every_reason_is_in_the_readme_under_the_stage_that_gives_it() -> None:
    table = {}
    for stage, reasons in rows_of_table(README, "| stage | reasons |"):
        (name, *_) = _SPAN.findall(stage)
        table[name] = set(_SPAN.findall(reasons))
    assert table == reasons_of_the_code()
    assert set().union(*table.values()) == {str(reason) for reason in Reason}


# --- commands ----------------------------------------------------------------------------------------------

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def command_lines() -> list[tuple[str, str]]:
    """Every command line in the documentation that starts with `unisono`, with the name of its page."""
    found = []
    for page in PAGES:
        blocks = [line for body in fences(page, "") for line in body.splitlines()]
        for line in [*blocks, *spans(page)]:
            match = re.match(r"(?:\S*/)?(unisono [a-z]+.*)", line.strip())
            if match:
                found.append((page.relative_to(ROOT).as_posix(), match.group(1)))
    return found


def test_every_command_is_in_the_readme() -> None:
    first = [_SPAN.findall(command)[0] for command, _ in rows_of_table(README, "| command | does |")]
    assert sorted(line.split()[1] for line in first) == sorted(COMMANDS)


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_every_command_line_can_be_parsed(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    command = COMMANDS.get(words[1])
    assert command is not None, f"{page}: no command {words[1]!r}"
    if len(words) > 2:  # otherwise the page names the command and does not call it
        context = command.make_context(words[1], words[2:])
        assert not unknown_options(context.args), f"{page}: {line}"


# --- extras ------------------------------------------------------------------------------------------------


def extras_of_setup() -> dict[str, set[str]]:
    """The names of the packages that each extra installs, read by running setup.py without its last step."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("setuptools.setup", lambda **given: found.update(given))
        runpy.run_path("setup.py")
    return {extra: {Requirement(line).name for line in lines} for extra, lines in found["extras_require"].items()}


def test_every_extra_is_in_the_readme_with_what_it_installs() -> None:
    extras = extras_of_setup()
    table: dict[str, set[str]] = {}
    for extra, _, installs in rows_of_table(README, "| extra | for | installs |"):
        names = _SPAN.findall(installs.replace("(with its extra `gcp`)", ""))
        (name,) = _SPAN.findall(extra)
        table[name] = set().union(*(table.get(n, {n}) for n in names))  # an extra may contain an earlier one
    assert table.keys() == extras.keys()
    del table["test"]  # the README does not list the tools of the tests
    assert table == {extra: packages for extra, packages in extras.items() if extra != "test"}
    assert set().union(*table.values()) <= extras["test"]


# --- paths, names and links --------------------------------------------------------------------------------


def paths_in(page: Path) -> set[str]:
    """The words of a page's code that name something in the repository."""
    code = [*spans(page), *(body for _, body in _FENCE.findall(page.read_text()))]
    words = {word.strip(",;:()") for text in code for word in text.split()}
    return {word for word in words if word.split("/")[0] in TOP and "/" in word and not re.search(r"[*<>…]", word)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    missing = sorted(p for p in paths_in(page) if not (ROOT / p).exists())
    assert not missing, f"{page.name} names {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_and_function_exists(page: Path) -> None:
    names = set(re.findall(r"unisono\.(?:transforms|pipelines|runners)(?:\.\w+)+", page.read_text()))
    for name in sorted(names):
        words = name.split(".")
        module = next(n for n in range(len(words), 0, -1) if is_module(words[:n]))
        found: Any = import_module(".".join(words[:module]))
        for word in words[module:]:
            assert hasattr(found, word), f"{page.name} names {name}"
            found = getattr(found, word)


def is_module(words: list[str]) -> bool:
    """Says whether a dotted name is one of our modules or folders."""
    place = ROOT.joinpath(*words[1:]) if len(words) > 1 else ROOT / "unisono"
    return place.is_dir() or place.with_suffix(".py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text())):
        assert "://" not in target, f"{page.name}: {target}: only links within the repository are checked"
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors_of(linked), f"{page.name}: {target}"


def anchors_of(page: Path) -> set[str]:
    """The anchors that a Markdown viewer gives the headings of a page: lower case, no punctuation, hyphens."""
    heads = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


# --- the job file ------------------------------------------------------------------------------------------


def test_the_job_file_of_the_readme_is_valid(tmp_path: Path) -> None:
    (body,) = fences(README, "yaml")
    (tmp_path / "job.yaml").write_text(body)
    job = load_job(str(tmp_path / "job.yaml"))
    assert job.store == str(tmp_path / "out")
    assert job.interactions is not None
    assert job.interactions.weights == {"view": 1, "cart": 3, "purchase": 5, "dislike": -3}


# --- columns -----------------------------------------------------------------------------------------------

SCHEMAS = {
    "items": items_schema(pa.string(), 4, ["text"], imputes=True, carried=[pa.field("title", pa.string())]),
    "users": profile_schema(pa.string(), 4, pa.string(), ["text"], vectors=True),
    "recommendations": recommendation_schema(pa.string(), pa.string()),
    "embeddings": embeddings_schema(pa.string(), {"text": 4}),
    "dead_letters": dead_letters.SCHEMA,
}


@pytest.mark.parametrize("part", SCHEMAS)
def test_every_column_of_a_part_is_in_the_page_of_the_store(part: str) -> None:
    page = (ROOT / "docs" / "store.md").read_text()
    for name in SCHEMAS[part].names:
        column = re.sub("^text_", "<m>_", name)
        assert re.search(rf"(?<![\w<]){re.escape(column)}(?!\w)", page), f"docs/store.md does not name {part}/ {column}"
