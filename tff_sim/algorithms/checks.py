"""Values of options that are out of range, in one line that names the option of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from device_runtime.errors import InputError
from device_runtime.work import is_number


def check_choice(option: str, value: Any, choices: Iterable[str]) -> None:
    """Raise `InputError` unless it is one of these."""
    if value not in list(choices):
        raise InputError(f"{option} should be one of {', '.join(choices)}, not {value!r}")


def check_whole(option: str, value: Any, least: int) -> None:
    """Raise `InputError` unless it is an integer, at least `least` and below 2**31."""
    if not (isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31):
        raise InputError(f"{option} should be a whole number from {least} to 2**31 - 1, not {value!r}")


def check_number(option: str, value: Any, holds: Callable[[float], bool], expected: str) -> None:
    """Raise `InputError` unless it is a finite number for which `holds`."""
    if not (is_number(value) and holds(value)):
        raise InputError(f"{option} should be {expected}, not {value!r}")


def check_positive(option: str, value: Any) -> None:
    """Raise `InputError` unless it is a finite number above 0."""
    check_number(option, value, lambda number: number > 0, "a finite number above 0")


def check_goes_with(
    option: str, parameter: str, kind_option: str, kind: str, kinds: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise `InputError` where a parameter is given that this kind does not have.

    Args:
        option: of the parameter.
        parameter: its name.
        kind_option: the option that chooses the kind.
        kind: which one is chosen.
        kinds: name → its parameters.
    """
    if parameter not in kinds[kind]:
        having = " or ".join(name for name, parameters in kinds.items() if parameter in parameters)
        raise InputError(f"{option} does not go with {kind_option} {kind}: leave it out, or choose {having}")
