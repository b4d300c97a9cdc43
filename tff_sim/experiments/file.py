"""experiment.toml: an experiment as a file that is written with every run, and that repeats it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from device_runtime.errors import InputError
from tff_sim.algorithms.algorithm import SERVER_OPTIMIZERS
from tff_sim.algorithms.schedules import SCHEDULES
from tff_sim.experiments.experiment import Experiment
from tff_sim.experiments.settings import flat, from_tables, merged, nested, to_tables
from tff_sim.partition import SCHEMES

# Of the fields of a client's work, those that the file has elsewhere, and those that a simulation has no use for.
_SEED = "seed"
_NOT_SIMULATED = "deadline_seconds"
_PATHS = ("data_dir", "partition_file")
# Key of a choice → what can be chosen, and the parameters of each, which stand beside it.
_CHOICES: Mapping[str, Mapping[str, Iterable[str]]] = {
    "schedule.name": {**SCHEDULES, "cosine": [*SCHEDULES["cosine"], "rounds"]},
    "algorithm.optimizer.name": SERVER_OPTIMIZERS,
    "algorithm.aggregator": {"mean": ["weighting"], "median": [], "trimmed_mean": ["trim"]},
    "data.partition": {name: scheme.__dataclass_fields__ for name, scheme in SCHEMES.items()},
}


def dump_experiment(experiment: Experiment) -> bytes:
    """All of it, defaults included, as the bytes of a TOML file; paths are absolute."""
    return tomli_w.dumps(experiment_tables(experiment)).encode()


def experiment_tables(experiment: Experiment) -> dict[str, Any]:
    """The tables of its file: as in the dataclasses, but for the seed, which stands at the top."""
    data = experiment.data
    paths = {name: path.absolute() for name in _PATHS if (path := getattr(data, name)) is not None}
    experiment = replace(experiment, data=replace(data, **paths))
    tables = to_tables(experiment)
    tables["work"].pop(_NOT_SIMULATED, None)
    return {_SEED: tables["work"].pop(_SEED), **tables}


def load_experiment(path: Path | None, changes: Mapping[str, Any]) -> Experiment:
    """The experiment that a file describes, with changes to it; without a file, to the default one.

    Args:
        path: a TOML file; what it doesn't mention has its default. Paths in it are relative to its folder.
        changes: tables of what is to be otherwise. Where they choose another schedule, server optimiser, aggregator or
            partition than the file, parameters that it has not are left out of the file's.

    Raises:
        InputError: the file can't be read or is no TOML, a key of it is unknown, or a value is of another type or out
            of range; one line that names file and key.
    """
    tables = {} if path is None else _read(path)
    if path is not None:
        # On its own first: what is wrong in it is told as the file's.
        tables = experiment_tables(from_tables(Experiment, _inner(tables, path), path))
    return from_tables(Experiment, _inner(merged(_fitting(tables, changes), changes), None))


def _fitting(tables: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tables, without parameters that what the changes choose does not have."""
    values, changed = dict(flat(tables)), dict(flat(changes))
    for key, choices in _CHOICES.items():
        choice = changed.get(key)
        if choice is not None and choice in choices:
            table = key.rpartition(".")[0]
            known = {parameter for parameters in choices.values() for parameter in parameters}
            for parameter in known.difference(choices[choice]):
                values.pop(f"{table}.{parameter}", None)
    return nested(values)


def _inner(tables: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """With the seed where the dataclasses have it, and the number of rounds also where a schedule needs it."""
    where = "" if path is None else f"{path}: "
    rest = {key: value for key, value in tables.items() if key != _SEED}
    schedule = tables.get("schedule")
    if isinstance(schedule, Mapping) and schedule.get("name") == "cosine":
        rest["schedule"] = {"rounds": tables.get("rounds", Experiment.rounds), **schedule}
    work = tables.get("work", {})
    if not isinstance(work, Mapping):
        return rest
    if _NOT_SIMULATED in work:
        raise InputError(f"{where}unknown key 'work.{_NOT_SIMULATED}'; see world.stragglers.deadline_seconds")
    if _SEED in work:
        raise InputError(f"{where}unknown key 'work.{_SEED}'; the seed stands at the top, before all tables")
    if _SEED not in tables:
        return rest
    seed = tables[_SEED]
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"{where}seed should be a whole number, not {seed!r}")
    return {**rest, "work": {**work, _SEED: seed}}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't read it: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from None
