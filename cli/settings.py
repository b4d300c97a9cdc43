"""`Setting`: one value of an experiment as an option of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Setting:
    """One option.

    Attributes:
        flag: as it is typed.
        key: in experiment.toml, with its tables: ``work.epochs``.
        type: of the value; click's. A bool is a flag.
        default: as the help shows it. The experiment's own is what counts, but loading it takes seconds; a test
            compares. None is no value.
        help: a line.
    """

    flag: str
    key: str
    type: Any
    default: Any
    help: str

    @property
    def parameter(self) -> str:
        """The name that the command gets it under: the key, as a word of Python."""
        return self.key.replace(".", "__")


def setting_options(settings: Iterable[Setting]) -> Callable[[_Function], _Function]:
    """A decorator: an option for each; None where it is not given."""

    def decorate(function: _Function) -> _Function:
        for setting in reversed(list(settings)):
            flag = setting.type is bool
            shown = "" if setting.default is None or flag else f"  [default: {setting.default}]"
            function = click.option(
                setting.flag, setting.parameter, type=setting.type, is_flag=flag, default=None,
                help=setting.help + shown,
            )(function)  # fmt: skip
        return function

    return decorate


def given(settings: Iterable[Setting], values: dict[str, Any]) -> dict[str, Any]:
    """Key → value of those that were given."""
    return {s.key: values[s.parameter] for s in settings if values[s.parameter] is not None}
