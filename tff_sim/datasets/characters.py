"""Text as numbers, and as examples of the next character.

A symbol is a byte of the text in UTF-8, so an app on a device makes them without a table, and no text has any other.
The model's vocabulary has 258: the last two, 256 and 257, are never used.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from device_runtime.examples import Examples

STEPS = 80
"""The characters of an example: those over which the paper's model is unrolled."""

_LINE_END = ord("\n")

Symbols = npt.NDArray[np.int32]


def symbols(text: str) -> Symbols:
    """The numbers of a text's symbols, 0 to 255; int32 [bytes]."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def circular_windows(text: str, steps: int = STEPS) -> Examples:
    """As few windows of `steps` characters as hold all of a text, which goes on from its start after its end.

    So every window is full: there is no padding, which losses and metrics would count. A short text fills its one
    window several times.

    Args:
        text: at least one character.
        steps: of a window.

    Returns:
        x int32 [n, steps], and y of the same shape: for each character the one after it.
    """
    values = symbols(text)
    return _windows(values, np.arange(0, len(values), steps), steps)


def line_windows(text: str, steps: int = STEPS) -> Examples:
    """A window from the start of each line on, over the lines after it; else as `circular_windows`.

    Args:
        text: lines, each with its end.
        steps: of a window.
    """
    values = symbols(text)
    ends = np.flatnonzero(values == _LINE_END)
    return _windows(values, np.concatenate([[0], ends[:-1] + 1]), steps)


def full_windows(text: str, steps: int = STEPS) -> Examples:
    """The full windows of a text, one after the other: each predicted character is counted once.

    The rest, below one window, is left out. Types as of `circular_windows`.
    """
    values = symbols(text)
    count = max(len(values) - 1, 0) // steps
    return _windows(values, np.arange(count) * steps, steps)


def _windows(values: Symbols, starts: npt.NDArray[np.int64], steps: int) -> Examples:
    places = (starts[:, None] + np.arange(steps)) % max(len(values), 1)
    return Examples(values[places], values[(places + 1) % max(len(values), 1)])
