"""Read targets: from the command line, or from a file with one a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from device_runtime.errors import InputError
from export.flashing.adb import Phone
from export.flashing.folder import Folder
from export.flashing.plan import Target
from export.flashing.ssh import Host

FORMS = "dir:PATH, ssh://USER@HOST:PORT/PATH or adb:SERIAL/PACKAGE"
# Nothing that begins with '-', which the clients would take for an option.
_SSH = re.compile(
    r"ssh://(?P<destination>(?:[A-Za-z0-9_.][A-Za-z0-9_.-]*@)?(?:[A-Za-z0-9_.][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\]))"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/.*[^/].*)"
)
_ADB = re.compile(
    r"adb:(?P<serial>[A-Za-z0-9][A-Za-z0-9._:-]*)(?:/(?P<package>[A-Za-z]\w*(?:\.[A-Za-z]\w*)+))?", re.ASCII
)


def parse_target(text: str, program: str, config: Path | None) -> Target:
    """The target that a text names.

    Args:
        text: of one of the `FORMS`.
        program: ``pocketfed-device`` on hosts.
        config: of OpenSSH's client; None for the user's own.

    Raises:
        InputError: it has none of the forms.
    """
    if text.startswith("dir:") and text != "dir:":
        return Folder(text, Path(text.removeprefix("dir:")))
    host = _SSH.fullmatch(text)
    if host and text.isprintable() and (host["port"] is None or 0 < int(host["port"]) < 1 << 16):
        destination = re.sub(r"\[(.*)\]", r"\1", host["destination"])  # the client takes an IPv6 address bare
        port = int(host["port"]) if host["port"] else None
        return Host(text, destination, port, host["path"], program, config)
    phone = _ADB.fullmatch(text)
    if phone:
        return Phone(text, phone["serial"], phone["package"] or "")
    raise InputError(f"target {text!r}: expected {FORMS}")


def read_targets(named: Sequence[str], file: Path | None, program: str, config: Path | None) -> list[Target]:
    """All targets, of which each may be named once.

    Raises:
        InputError: one is malformed or named twice, there is none, or the file can't be read.
    """
    texts = [("", text) for text in named]
    if file is not None:
        texts += _lines(file)
    found: dict[str, Target] = {}
    for where, text in texts:
        try:
            target = parse_target(text, program, config)
        except InputError as error:
            raise InputError(f"{where}{error}") from None
        if text in found:
            raise InputError(f"{where}target {text!r}: named twice")
        found[text] = target
    if not found:
        raise InputError(f"no targets: name some, as {FORMS}, or a file of them with --targets")
    return list(found.values())


def _lines(file: Path) -> Iterable[tuple[str, str]]:
    try:
        content = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: can't read the targets: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: expected text in UTF-8, with one target a line") from None
    for number, line in enumerate(content.splitlines(), start=1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if text:
            yield f"{file}:{number}: ", text
