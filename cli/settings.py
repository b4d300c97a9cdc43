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


class _OrNone(click.ParamType[Any]):
    """A type, or the word ``none``, as the file has it for no value."""

    def __init__(self, value: click.ParamType[Any]) -> None:
        self._value = value
        self.name = value.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from tff_sim.experiments.settings import NONE  # a server is installed without simulation

        return value if value == NONE else self._value(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self._value.get_metavar(param, ctx)


def setting_options(settings: Iterable[Setting], over_file: bool = False) -> Callable[[_Function], _Function]:
    """A decorator: an option for each; None where it is not given.

    Args:
        settings: the options.
        over_file: they take the place of a file's values, and so ``none`` says that there is to be no value, where
            that can be, and a flag has an opposite.
    """

    def decorate(function: _Function) -> _Function:
        for setting in reversed(list(settings)):
            flag = setting.type is bool
            opposite = f"/--no-{setting.flag.removeprefix('--')}" if flag and over_file else ""
            kind = click.types.convert_type(setting.type)
            if over_file and setting.default is None:
                kind = _OrNone(kind)
            shown = "" if setting.default is None or flag else f"  [default: {setting.default}]"
            function = click.option(
                setting.flag + opposite, setting.parameter, type=kind, is_flag=flag, default=None,
                help=setting.help + shown,
            )(function)  # fmt: skip
        return function

    return decorate


def given(settings: Iterable[Setting], values: dict[str, Any]) -> dict[str, Any]:
    """Key → value of those that were given."""
    return {s.key: values[s.parameter] for s in settings if values.get(s.parameter) is not None}
