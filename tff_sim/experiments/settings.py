"""A tree of frozen dataclasses as tables of plain values, and back: what experiment.toml holds.

Every field is a key, every dataclass a table; its types say what a key may hold. None is left out where it is the
default, and a word where it is not: ``all`` for a batch size, ``none`` elsewhere.
"""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from device_runtime.errors import InputError

_Settings = TypeVar("_Settings")

NONE = "none"
"""What stands for no value."""
_NONE_WORDS = {"batch_size": "all"}
NO_FLAGS: Mapping[str, str] = {}
_EXPECTED: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


class SettingError(InputError):
    """A setting of the experiment is out of its range.

    Attributes:
        key: its name in the file, ``target_accuracy``; the message has the option's, ``--target-accuracy``.
        problem: what it should be, and what it is.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"--{key.replace('_', '-')} {problem}")
        self.key = key
        self.problem = problem


def to_tables(settings: Any) -> dict[str, Any]:
    """The tables of a dataclass; plain values first, as TOML wants them."""
    plain: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            tables[field.name] = to_tables(value)
        elif value is not None:
            plain[field.name] = _plain(value)
        elif field.default is not None:
            plain[field.name] = _NONE_WORDS.get(field.name, NONE)
    return plain | tables


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_tables(
    kind: type[_Settings],
    tables: Mapping[str, Any],
    source: Path | None = None,
    flags: Mapping[str, str] = NO_FLAGS,
) -> _Settings:
    """The dataclass that the tables describe; what they don't mention has its default.

    Args:
        kind: a frozen dataclass whose fields are plain values, tuples of them, or such dataclasses.
        tables: as `to_tables` gives and TOML reads them.
        source: the file that they come from, for messages; paths in it are relative to its folder. Without it they are
            the command line's.
        flags: key → its option. Messages name keys where there is a file, and options where there is none.

    Raises:
        InputError: a key is not known, or its value is of another type or out of range; one line with file and key.
    """
    return typing.cast(_Settings, _Reader(source, flags).read(kind, tables, ""))


def unknown_key(key: str, known: Iterable[str]) -> InputError:
    """What a key that there is not is told as."""
    return InputError(f"unknown key {key!r}; known here: {', '.join(known)}")


def in_words_of_file(text: str, source: Path, table: str, flags: Mapping[str, str]) -> str:
    """What is wrong in a table of a file, with its keys in the place of the options that a message names."""
    keys = {flag: key.removeprefix(f"{table}.") for key, flag in flags.items()}
    text = re.sub(r"--[a-z0-9-]+", lambda option: keys.get(option[0], option[0]), text)
    return f"{source}: [{table}] {text}" if table else f"{source}: {text}"


class _Reader:
    def __init__(self, source: Path | None, flags: Mapping[str, str]) -> None:
        self._source = source
        self._flags = flags

    def read(self, kind: Any, tables: Mapping[str, Any], path: str) -> Any:
        hints = typing.get_type_hints(kind)
        known = {field.name: field for field in fields(kind)}
        for key in tables:
            if key not in known:
                raise self._error(str(unknown_key(path + key, known)))
        values = {key: self._value(hints[key], known[key], value, path + key) for key, value in tables.items()}
        try:
            return kind(**values)
        except SettingError as error:
            raise error if self._source is None else self._error(f"{path}{error.key} {error.problem}") from None
        except (InputError, ValueError) as error:
            raise InputError(self._told(str(error), path, known)) from None

    def _told(self, text: str, path: str, known: Mapping[str, Any]) -> str:
        """What a dataclass says of its fields, ``world: share should be …``, as one of its file or of its options."""
        table = path.removesuffix(".")
        if table:  # it says what the first words of the text do
            text = re.sub("^[a-z ]+: ", "", text)
        name, space, rest = text.partition(" ")
        if name in known:
            rest = re.sub(r"or none\b", f"or {_NONE_WORDS.get(name, NONE)!r}", rest)
            if self._source is None:
                name = self._flags.get(path + name, path + name)
        text = name + space + rest
        return text if self._source is None else in_words_of_file(text, self._source, table, self._flags)

    def _value(self, hint: Any, field: Field[Any], value: Any, path: str) -> Any:
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
            word = _NONE_WORDS.get(field.name, NONE)
            if value is None or value == word:
                return None
            return self._typed(kinds[0], value, path, f", or {word!r}")
        return self._typed(hint, value, path)

    def _typed(self, kind: Any, value: Any, path: str, also: str = "") -> Any:
        if is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise self._error(f"{path} should be a table, [{path}]{also}, not {value!r}")
            return self.read(kind, value, f"{path}.")
        if typing.get_origin(kind) is tuple:
            if not isinstance(value, list | tuple):
                raise self._error(f"{path} should be a list{also}, not {value!r}")
            return tuple(self._typed(typing.get_args(kind)[0], item, path) for item in value)
        if kind is Path and isinstance(value, str | Path):
            folder = Path() if self._source is None else self._source.parent
            return folder / expanded(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self._error(f"{path} should be {_EXPECTED[kind]}{also}, not {value!r}")
        return value

    def _error(self, text: str) -> InputError:
        return InputError(text if self._source is None else f"{self._source}: {text}")


def expanded(path: str | Path) -> Path:
    """With a home in the place of ``~``; an unknown user's is left as it is, which a Path's own method is not."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def flat(tables: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value with its whole key, such as ``work.epochs``."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{key}.")
        else:
            yield path + key, value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tables whose `flat` these are."""
    tables: dict[str, Any] = {}
    for path, value in values.items():
        *parents, key = path.split(".")
        table = tables
        for parent in parents:
            table = table.setdefault(parent, {})
        table[key] = value
    return tables


def merged(tables: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The first, with what the second says in the place of what it says."""
    return nested(dict(flat(tables)) | dict(flat(over)))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key → both values, of the keys in which two trees of tables differ; None where one does not have it."""
    first, second = dict(flat(one)), dict(flat(other))
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}
