"""The rows of McMahan et al. 2017 (arXiv 1602.05629), Tables 1 to 3, as experiments, with the rounds published.

Learning rates are ours, for the paper does not tell its own; ``--sweep`` searches the grid instead.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from device_runtime.errors import InputError
from device_runtime.work import ClientWork
from tff_sim.algorithms.schedules import Schedule
from tff_sim.experiments.data_settings import Data
from tff_sim.experiments.experiment import Experiment

_PATIENCE = 1.5  # times the published rounds, after which a row is given up
_ROUNDS = 2000  # where none are published


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: of --row.
        about: what it is, in the paper's words.
        data: folder of its data set within --data-dir.
        experiment: all but the folder.
        published: target accuracy → rounds to it, None where the paper has none.
        baseline: name of the row that speed-ups are over; None where this is it.
        updates: what is counted in the place of rounds, where a round is more than one of them.
    """

    name: str
    about: str
    data: str
    experiment: Experiment
    published: Mapping[float, float | None]
    baseline: str | None
    updates: int = 1


def _row(
    name: str,
    about: str,
    experiment: Experiment,
    published: Mapping[float, float | None],
    baseline: str | None,
    updates: int = 1,
) -> Row:
    known = [rounds for rounds in published.values() if rounds is not None]
    rounds = math.ceil(_PATIENCE * max(known) / updates) if known else _ROUNDS
    target = max(published)
    chosen = replace(experiment, rounds=rounds, target_accuracy=target)
    return Row(name, about, experiment.data.dataset, chosen, published, baseline, updates)


def _written(batch_size: int | None) -> str:
    return "inf" if batch_size is None else str(batch_size)


def _mnist(model: str, iid: bool, fraction: float, epochs: int, batch_size: int | None, rate: float) -> Experiment:
    return Experiment(
        model=f"mnist_{model}",
        fraction=fraction,
        data=Data(dataset="mnist", partition="iid" if iid else "shards", clients=100),
        work=ClientWork(epochs=epochs, batch_size=batch_size, learning_rate=rate),
    )


# C → rounds: IID with B = ∞ and B = 10, then non-IID with both.
_TABLE_1: dict[str, tuple[int, dict[float, tuple[int | None, int | None, int | None, int | None]]]] = {
    "2nn": (
        1,
        {
            0.0: (1455, 316, 4278, 3275),
            0.1: (1474, 87, 1796, 664),
            0.2: (1658, 77, 1528, 619),
            0.5: (None, 75, None, 443),
            1.0: (None, 70, None, 380),
        },
    ),
    "cnn": (
        5,
        {
            0.0: (387, 50, 1181, 956),
            0.1: (339, 18, 1100, 206),
            0.2: (337, 18, 978, 200),
            0.5: (164, 18, 1067, 261),
            1.0: (246, 16, None, 97),
        },
    ),
}
_MNIST_TARGETS = {"2nn": 0.97, "cnn": 0.99}
_MNIST_RATES = {  # model, IID, mini-batches
    ("2nn", True, True): 0.2154,
    ("2nn", False, True): 0.1,
    ("2nn", True, False): 0.4642,
    ("2nn", False, False): 0.2154,
    ("cnn", True, True): 0.2154,
    ("cnn", False, True): 0.1,
    ("cnn", True, False): 0.4642,
    ("cnn", False, False): 0.2154,
}


def _table_1() -> Iterator[Row]:
    for model, (epochs, fractions) in _TABLE_1.items():
        for column, (iid, batch_size) in enumerate([(True, None), (True, 10), (False, None), (False, 10)]):
            kind = f"{model}-{'iid' if iid else 'noniid'}-b{_written(batch_size)}"
            for fraction, columns in fractions.items():
                rate = _MNIST_RATES[model, iid, batch_size is not None]
                yield _row(
                    f"{kind}-c{fraction}",
                    f"{model.upper()}, {'IID' if iid else 'non-IID'}, E={epochs}, B={_paper(batch_size)}, C={fraction}",
                    _mnist(model, iid, fraction, epochs, batch_size, rate),
                    {_MNIST_TARGETS[model]: columns[column]},
                    None if fraction == 0 else f"{kind}-c0.0",
                )


def _paper(batch_size: int | None) -> str:
    return "∞" if batch_size is None else str(batch_size)


# E, B → rounds of IID, and non-IID or by role; E = 1 and B = ∞ is FedSGD.
_TABLE_2_CNN: dict[tuple[int, int | None], tuple[int, int]] = {
    (1, None): (626, 483),
    (5, None): (179, 1000),
    (1, 50): (65, 600),
    (20, None): (234, 672),
    (1, 10): (34, 350),
    (5, 50): (29, 334),
    (20, 50): (32, 426),
    (5, 10): (20, 229),
    (20, 10): (18, 173),
}
_TABLE_2_SHAKESPEARE: dict[tuple[int, int | None], tuple[int, int]] = {
    (1, None): (2488, 3906),
    (1, 50): (1635, 549),
    (5, None): (613, 597),
    (1, 10): (460, 164),
    (5, 50): (401, 152),
    (5, 10): (192, 41),
}
_SHAKESPEARE_RATE = 1.468


def _local(epochs: int, batch_size: int | None) -> str:
    return "fedsgd" if (epochs, batch_size) == (1, None) else f"e{epochs}-b{_written(batch_size)}"


def _algorithm(epochs: int, batch_size: int | None) -> str:
    return "FedSGD" if (epochs, batch_size) == (1, None) else f"FedAvg, E={epochs}, B={_paper(batch_size)}"


def _table_2() -> Iterator[Row]:
    for column, iid in enumerate((True, False)):
        for (epochs, batch_size), columns in _TABLE_2_CNN.items():
            kind = f"cnn-{'iid' if iid else 'noniid'}"
            rate = _MNIST_RATES["cnn", iid, batch_size is not None]
            yield _row(
                f"{kind}-{_local(epochs, batch_size)}",
                f"CNN, {'IID' if iid else 'non-IID'}, {_algorithm(epochs, batch_size)}",
                _mnist("cnn", iid, 0.1, epochs, batch_size, rate),
                {0.99: columns[column]},
                None if (epochs, batch_size) == (1, None) else f"{kind}-fedsgd",
            )
    for column, partition in enumerate(("iid", "natural")):
        for (epochs, batch_size), columns in _TABLE_2_SHAKESPEARE.items():
            kind = f"shakespeare-{'iid' if partition == 'iid' else 'role'}"
            yield _row(
                f"{kind}-{_local(epochs, batch_size)}",
                f"Shakespeare LSTM, {'IID' if partition == 'iid' else 'by role'}, {_algorithm(epochs, batch_size)}",
                Experiment(
                    model="shakespeare_lstm",
                    fraction=0.1,
                    data=Data(dataset="shakespeare", partition=partition),
                    work=ClientWork(epochs=epochs, batch_size=batch_size, learning_rate=_SHAKESPEARE_RATE),
                ),
                {0.54: columns[column]},
                None if (epochs, batch_size) == (1, None) else f"{kind}-fedsgd",
            )


def _cifar(clients: int, fraction: float, epochs: int, batch_size: int | None, rate: float, decay: float) -> Experiment:
    return Experiment(
        model="cifar_cnn",
        fraction=fraction,
        data=Data(dataset="cifar10", partition="iid", clients=clients, augment=True),
        work=ClientWork(epochs=epochs, batch_size=batch_size, learning_rate=rate),
        schedule=Schedule("exponential", decay=decay),
    )


def _table_3() -> Iterator[Row]:
    # A single client with all 50,000 images: a round is an epoch of 500 updates.
    sgd = _cifar(1, 1.0, 1, 100, 0.1, 0.97)
    yield _row("cifar-sgd", "SGD, B=100 (updates)", sgd, {0.8: 18000, 0.82: 31000, 0.85: 99000}, None, updates=500)
    fedsgd = _cifar(100, 0.1, 1, None, 0.4642, 0.9995)
    yield _row("cifar-fedsgd", "FedSGD", fedsgd, {0.8: 3750, 0.82: 6600, 0.85: None}, "cifar-sgd")
    fed_avg = _cifar(100, 0.1, 5, 50, 0.1, 0.998)
    yield _row("cifar-e5-b50", "FedAvg, E=5, B=50", fed_avg, {0.8: 280, 0.82: 630, 0.85: 2000}, "cifar-sgd")


def _codecs() -> Iterator[Row]:
    for codec in ("f32", "q8", "q4", "q2", "q1"):
        experiment = _mnist("2nn", True, 0.1, 1, 10, _MNIST_RATES["2nn", True, True])
        experiment = replace(experiment, work=replace(experiment.work, codec=codec))
        row = _row(codec, f"2NN, IID, E=1, B=10, C=0.1, {codec}", experiment, {0.97: None}, None)
        yield replace(row, baseline=None if codec == "f32" else "f32", experiment=replace(row.experiment, rounds=200))


def _by_name(rows: Iterator[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


TABLES: dict[str, dict[str, Row]] = {
    "table1": _by_name(_table_1()),
    "table2": _by_name(_table_2()),
    "table3": _by_name(_table_3()),
    "codecs": _by_name(_codecs()),
}
"""Table → name → row; ``codecs`` is ours."""

FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    **{
        kind: ("table2", tuple(f"{kind}-{local}" for local in locals_))
        for kind, locals_ in {
            "cnn-iid": ("fedsgd", "e1-b50", "e1-b10", "e5-b10", "e20-b10"),
            "cnn-noniid": ("fedsgd", "e1-b50", "e1-b10", "e5-b10", "e20-b10"),
            "shakespeare-iid": ("fedsgd", "e1-b10", "e5-b10"),
            "shakespeare-role": ("fedsgd", "e1-b10", "e5-b10"),
        }.items()
    },
    "cifar": ("table3", ("cifar-fedsgd", "cifar-e5-b50")),
}
"""Figure 2 (CNN, Shakespeare) and Figure 4 (CIFAR-10): name → the table, and the rows whose curves it shows."""


def chosen_rows(table: str, patterns: Sequence[str]) -> list[Row]:
    """The rows whose names match one of the patterns, such as ``2nn-iid-*``; all of them where there is none.

    Raises:
        InputError: a pattern matches no row; the message lists what there is.
    """
    rows = TABLES[table]
    for pattern in patterns:
        if not fnmatch.filter(rows, pattern):
            raise InputError(f"{table} has no row {pattern!r}; it has {', '.join(rows)}")
    return [row for name, row in rows.items() if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]
