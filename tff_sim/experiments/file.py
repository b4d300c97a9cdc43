"""experiment.toml: an experiment as a file that is written with every run, and that repeats it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from device_runtime.errors import InputError
from device_runtime.work import SEED_BITS, ClientWork
from tff_sim.algorithms.algorithm import SERVER_OPTIMIZERS
from tff_sim.algorithms.schedules import SCHEDULES
from tff_sim.experiments.experiment import Experiment
from tff_sim.experiments.own_model import OwnModel, located
from tff_sim.experiments.settings import (
    NO_FLAGS,
    NONE,
    flat,
    from_tables,
    in_words_of_file,
    merged,
    nested,
    to_tables,
    unknown_key,
)
from tff_sim.partition import SCHEMES

# Of the fields of a client's work, those that the file has elsewhere, and those that a simulation has no use for.
_SEED = "seed"
_NOT_SIMULATED = "deadline_seconds"
_PATHS = ("data_dir", "partition_file")
_KNOWN = {
    "": (_SEED, *(field.name for field in fields(Experiment))),
    "work.": tuple(field.name for field in fields(ClientWork) if field.name not in (_SEED, _NOT_SIMULATED)),
}
_PARTITIONS = {name: tuple(scheme.__dataclass_fields__) for name, scheme in SCHEMES.items()}
# Key of a choice → what can be chosen, and the parameters of each, which stand beside it. A partition's file is one of
# naming no partition.
_CHOICES: Mapping[str, Mapping[str, Iterable[str]]] = {
    "schedule.name": {**SCHEDULES, "cosine": [*SCHEDULES["cosine"], "rounds"]},
    "algorithm.optimizer.name": SERVER_OPTIMIZERS,
    "algorithm.aggregator": {"mean": ["weighting"], "median": [], "trimmed_mean": ["trim"]},
    "data.partition": {**_PARTITIONS, NONE: ["partition_file"]},
}
_OF_PARTITIONS = ("partition", "clients", *sorted({name for names in _PARTITIONS.values() for name in names}))


def dump_experiment(experiment: Experiment) -> bytes:
    """All of it, defaults included, as the bytes of a TOML file; paths are absolute."""
    return tomli_w.dumps(experiment_tables(experiment)).encode()


def experiment_tables(experiment: Experiment) -> dict[str, Any]:
    """The tables of its file: as in the dataclasses, but for the seed, which stands at the top."""
    data = experiment.data
    paths = {name: path.absolute() for name in _PATHS if (path := getattr(data, name)) is not None}
    own = None if experiment.keras is None else experiment.keras.within(Path.cwd())
    experiment = replace(experiment, data=replace(data, **paths), keras=own)
    tables = to_tables(experiment)
    tables["work"].pop(_NOT_SIMULATED, None)
    return {_SEED: tables["work"].pop(_SEED), **tables}


def load_experiment(path: Path | None, changes: Mapping[str, Any], flags: Mapping[str, str] = NO_FLAGS) -> Experiment:
    """The experiment that a file describes, with changes to it; without a file, to the default one.

    Args:
        path: a TOML file; what it doesn't mention has its default. Paths in it are relative to its folder.
        changes: tables of what is to be otherwise, the command line's. Where they choose another schedule, server
            optimiser, aggregator, partition or model than the file, parameters that it has not are left out of the
            file's; and a cosine that ends with the file's last round ends with theirs.
        flags: key → its option, for messages.

    Raises:
        InputError: the file can't be read or is no TOML, a key of it is unknown, or a value is of another type or out
            of range; one line that names file and key, or the option.
    """
    tables = {} if path is None else _read(path)
    if path is not None:
        # On its own first: what is wrong in it is told as the file's.
        experiment = from_tables(Experiment, _inner(tables, path), path, flags)
        try:
            experiment.data.spec(experiment.work.seed)
        except InputError as error:
            raise InputError(in_words_of_file(str(error), path, "data", flags)) from None
        tables = experiment_tables(experiment)
    return from_tables(Experiment, _inner(merged(_fitting(tables, changes), changes), None), None, flags)


def _fitting(tables: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tables, without what does not go with the changes."""
    values, changed = dict(flat(tables)), dict(flat(changes))
    for key, choices in _CHOICES.items():
        if key in changed:
            known = {parameter for parameters in choices.values() for parameter in parameters}
            for parameter in known.difference(choices.get(changed[key], ())):
                values.pop(f"{key.rpartition('.')[0]}.{parameter}", None)
    if changed.get("data.partition_file", NONE) != NONE:
        for name in _OF_PARTITIONS:
            values.pop(f"data.{name}", None)
    if "keras.source" in changed:
        values = {key: value for key, value in values.items() if key not in ("model", "keras.sha256")}
    elif "model" in changed:
        values = {key: value for key, value in values.items() if not key.startswith("keras.")}
    if "rounds" in changed and values.get("schedule.rounds") == values.get("rounds"):
        values.pop("schedule.rounds", None)
    return nested(values)


def _inner(tables: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """With the seed where the dataclasses have it, and the number of rounds also where a schedule needs it."""
    where = "" if path is None else f"{path}: "
    rest = {key: value for key, value in tables.items() if key != _SEED}
    schedule = tables.get("schedule")
    if isinstance(schedule, Mapping) and schedule.get("name") == "cosine" and schedule.get("rounds", NONE) == NONE:
        rest["schedule"] = {**schedule, "rounds": tables.get("rounds", Experiment.rounds)}
    own = tables.get("keras")
    if isinstance(own, Mapping):
        rest = _with_own_model(rest, own, path)
    work = tables.get("work", {})
    if not isinstance(work, Mapping):
        return rest
    if _NOT_SIMULATED in work:
        raise InputError(f"{where}unknown key 'work.{_NOT_SIMULATED}'; see world.stragglers.deadline_seconds")
    if _SEED in work:
        raise InputError(f"{where}unknown key 'work.{_SEED}'; the seed stands at the top, before all tables")
    for table, content in (("", tables), ("work.", work)):
        for key in content:
            if key not in _KNOWN[table]:
                raise InputError(f"{where}{unknown_key(table + key, _KNOWN[table])}")
    if _SEED not in tables:
        return rest
    seed = tables[_SEED]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**SEED_BITS:
        name = "--seed" if path is None else f"{path}: seed"
        raise InputError(f"{name} should be a whole number from 0 to 2**{SEED_BITS} - 1, not {seed!r}")
    return {**rest, "work": {**work, _SEED: seed}}


def _with_own_model(tables: Mapping[str, Any], own: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """The tables, with a model's path relative to the file's folder, and without a name unless they say one."""
    said = {key: value for key, value in own.items() if value != NONE}
    known = [field.name for field in fields(OwnModel)]
    if own and (not said or own.get("source") == NONE) and said.keys() <= set(known):
        return {**tables, "keras": None}
    if path is None and "source" not in said:
        raise InputError("--loss is of a model of your own: give --keras too, or leave it out")
    if path is None and "loss" not in said:
        raise InputError("--keras needs --loss, such as --loss sparse_categorical_crossentropy")
    source = said.get("source")
    if isinstance(source, str):
        said["source"] = located(source, Path() if path is None else path.parent)
    return {"model": "", **tables, "keras": said}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: can't read it: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from None
