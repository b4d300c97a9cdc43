"""Plays in plain text: a line ``SPEAKER:``, the lines that are spoken, an empty line. A role is a client.

McMahan et al. 2017, section 3: clients are the roles with at least two lines; the first 80 % of a role's lines are for
training, the last 20 % for testing. There a role belongs to a play; a text like this has no titles, so a name is one
client, wherever it speaks.
"""

from __future__ import annotations

from pathlib import Path

from tff_sim.datasets.characters import circular_windows, full_windows, line_windows
from tff_sim.datasets.dataset import Dataset, owned
from tff_sim.datasets.files import read_file, require_folder
from tff_sim.errors import DatasetError

FILE = "input.txt"
_EXPECTED = "plain text in UTF-8: a line 'SPEAKER:', then lines, then an empty line"
_FEWEST_LINES = 2


def load(data_dir: Path, lines: bool = False) -> Dataset:
    """Windows of 80 characters and the characters after them, int32 [n, 80] each; roles are the owners.

    A role's training lines are cut into windows of its own (`characters.circular_windows`), or each of them begins
    one (`characters.line_windows`), which gives the paper's number of examples. The test lines of all
    roles follow each other in one text, so that each of their characters is predicted once, but for fewer than 80 at
    the end.

    Args:
        data_dir: folder with ``input.txt``.
        lines: a window for each line.

    Raises:
        DatasetError: the file is missing, not UTF-8 or not of this form, or too short to test with.
    """
    require_folder(data_dir, f"{FILE}, {_EXPECTED}")
    path = data_dir / FILE
    try:
        text = read_file(path, _EXPECTED).decode()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: byte {error.start} is not UTF-8; expected {_EXPECTED}") from None
    spoken = {role: own for role, own in roles(text, path).items() if len(own) >= _FEWEST_LINES}
    if not spoken:
        raise DatasetError(f"{path}: no role has {_FEWEST_LINES} lines; expected {_EXPECTED}")
    train, test = {}, []
    for role, own in spoken.items():
        cut = len(own) * 4 // 5
        train[role] = (line_windows if lines else circular_windows)(_text(own[:cut]))
        test.append(_text(own[cut:]))
    tested = full_windows("".join(test))
    if not len(tested):
        raise DatasetError(
            f"{path}: the last fifths of all roles' lines are fewer than 81 characters; use a longer text"
        )
    return owned("shakespeare-lines" if lines else "shakespeare", train, tested)


def roles(text: str, path: Path) -> dict[str, list[str]]:
    """Each speaker's lines, in the order of the text; `DatasetError` where a speech has no speaker."""
    found: dict[str, list[str]] = {}
    speaker: list[str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            speaker = None
        elif speaker is not None:
            speaker.append(line)
        elif line.rstrip().endswith(":") and len(line.strip()) > 1:
            speaker = found.setdefault(" ".join(line.strip()[:-1].split()), [])
        else:
            raise DatasetError(f"{path}: line {number} should be a speaker's name and a colon, not {line[:40]!r}")
    return found


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
