"""Real servers beside the model of them, and the model's figures from what they took."""

from __future__ import annotations

import re

import pytest

from benchmarks.fleet_measured import Costs, Measured, costs, main
from benchmarks.fleet_queue import Load, predicted
from tests.aggregation_server.durability.postgresql import running_cluster


def _as_foretold(rate: float, found: Costs) -> Measured:
    what = predicted(Load(1, rate, *vars(found).values()))
    hold = what.row_utilisation / what.transactions
    return Measured(
        1, rate, what.transactions, what.batch, hold, found.loop_seconds + found.request_seconds, what.seconds
    )


def test_costs_are_found_again() -> None:
    real = Costs(0.0005, 0.002, 0.0001)
    found = costs([_as_foretold(rate, real) for rate in (100.0, 400.0, 1200.0)])
    assert list(vars(found).values()) == pytest.approx(list(vars(real).values()))


def test_no_cost_is_less_than_nothing() -> None:
    cells = [Measured(1, 100.0, 90.0, 1.1, 0.004, 0.001, 0.01), Measured(1, 400.0, 200.0, 2.0, 0.003, 0.001, 0.01)]
    found = costs(cells)
    assert found.request_seconds == 0 and 0.003 < found.transaction_seconds < 0.004


def test_one_server_and_then_two(capsys: pytest.CaptureFixture[str]) -> None:
    with running_cluster() as cluster:
        database = cluster.new_database()
        rates = ["--rates", "40", "120", "--seconds", "1"]
        main(["--db", database, *rates])
        said = capsys.readouterr().out
        rows = [line.split(" | ") for line in said.splitlines() if re.match(r"\| \d", line)]
        assert [row[0] for row in rows] == ["| 1", "| 1", "| 2", "| 2"]
        for row in rows:
            measured = float(row[3].split(", ")[1])
            assert measured >= 1
            assert float(row[2].split(", ")[1]) * measured == pytest.approx(float(row[1]), rel=0.2)
        with pytest.raises(SystemExit) as ended:
            main(["--db", database, *rates])
        assert ended.value.code == 3
        assert re.fullmatch(r"postgresql://\S+: .*; expected an empty database\n", capsys.readouterr().err)
