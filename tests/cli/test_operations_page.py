"""docs/operations.md: its commands and options exist, and what it quotes is what the server says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from cli.main import app
from device_runtime import cli as device

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def _commands(program: str) -> Iterator[list[str]]:
    for line in re.findall(rf"^    {program} (.*)$", PAGE, re.MULTILINE):
        yield shlex.split(line, comments=True)


def _sources() -> str:
    """What the server and its start say, with texts that go over several lines put together."""
    files = [*(ROOT / "aggregation_server").rglob("*.py"), *(ROOT / "cli").glob("*.py")]
    return "\n".join(re.sub(r'"\n\s+f?"', "", path.read_text(encoding="utf-8")) for path in files)


def test_its_commands_are_taken() -> None:
    found = list(_commands("pocketfed"))
    assert {command[0] for command in found} >= {"serve", "enrol", "rounds", "pause", "resume", "rollback", "release"}
    for name, *arguments in found:
        app.commands[name].make_context(name, arguments)  # raises a usage error
    for arguments in _commands("pocketfed-device"):
        device._parser().parse_args(arguments)


def test_its_options_exist() -> None:
    known = {option for command in app.commands.values() for parameter in command.params for option in parameter.opts}

    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= known


def test_what_it_quotes_is_what_the_server_says() -> None:
    sources = _sources()
    first = PAGE.index("| it says | do |")
    quoted = re.findall(r"^\| `(.*?)`(?:, `(.*?)`)? \|", PAGE[first : PAGE.index("| status |")], re.MULTILINE)
    said = [text for texts in quoted for text in texts if text]
    assert len(said) > 15
    for text in said:
        for part in re.split(r"…|round N \(training\) |\bN\b", text.replace("the operator's", "the …")):
            words = part.strip(" :").removeprefix("abandoned: ")
            assert words in sources, text
