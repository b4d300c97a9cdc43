"""Every row of layers, losses and optimisers trains in each runtime as it does in Keras: tests/export/families."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from export.runtimes import Runtime
from tests.export.families import FAMILIES
from tests.export.parity_case import Case, Record

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

Recorded = Callable[[str], tuple[Case, Record]]


@pytest.fixture(scope="module")
def recorded(case_of: Callable[[str], Case], runtime: Runtime) -> Recorded:
    """`recorded(family)`: its case, and what the runtime makes of it."""

    @cache
    def record(name: str) -> tuple[Case, Record]:
        case = case_of(name)
        return case, case.run(runtime)

    return record


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, family in FAMILIES.items() for row in family.rows])
def test_weights_after_each_step_are_those_of_keras(name: str, row: str, recorded: Recorded) -> None:
    case, record = recorded(name)
    assert case.problems(record, row) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_evaluation_are_those_of_keras(name: str, recorded: Recorded) -> None:
    case, record = recorded(name)
    assert case.common_problems(record) == []


def test_a_wrong_row_is_told_from_the_others(recorded: Recorded) -> None:
    """With the gradient of one row off by two percent, that row alone fails."""
    case, record = recorded("merging")
    place = next(i for i, v in enumerate(case.variables) if v is case.parts["shared"][0][0])
    weights = [[*after] for after in record.weights]
    weights[0][place] = case.start[place] + 1.02 * (weights[0][place] - case.start[place])
    wrong = Record(record.losses, weights, record.logits, record.sums)
    assert [row for row in FAMILIES["merging"].rows if case.problems(wrong, row)] == ["shared"]
