"""README and docs/: every command and option in them exists, and every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from cli.main import app
from device_runtime import cli as device

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def _prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def _commands(page: Path, program: str) -> Iterator[list[str]]:
    text = _prose(page).replace("\\\n", " ")
    for line in re.findall(rf"^    (?:\S*/)?{program} (.*)$", text, re.MULTILINE):
        yield shlex.split(line.partition(" > ")[0], comments=True)


@cache
def _anchors(page: Path) -> frozenset[str]:
    """Those that GitHub gives a page's headings."""
    found = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_commands_are_taken(page: Path) -> None:
    for words in _commands(page, "pocketfed"):
        command: click.Command = app
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, [word for word in words if word != "…"])  # raises a usage error
    for words in _commands(page, "pocketfed-device"):
        if words[-1] != "…":  # what is left out there is elsewhere
            device._parser().parse_args(words)


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([\w-]+\.md)", index))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
