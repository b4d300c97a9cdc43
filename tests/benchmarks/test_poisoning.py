"""Three of thirty clients poison a real training: what the table of the benchmark says holds in a short run."""

from __future__ import annotations

import numpy as np
import pytest

from aggregation_server.aggregation.robust import Aggregation
from aggregation_server.aggregation.validation import UNBOUNDED
from benchmarks.poisoning import ATTACKS, Defence, Fleet, Outcome, defences, table
from device_runtime.bundle import Bundle


@pytest.fixture(scope="module")
def fleet(digits_bundle: Bundle) -> Fleet:
    return Fleet(digits_bundle, seed=1, rounds=12)


@pytest.fixture(scope="module")
def honest(fleet: Fleet) -> Outcome:
    return fleet.run(None, Defence(UNBOUNDED, Aggregation()))


@pytest.mark.parametrize(
    ("attack", "reason"),
    [("scaled", "norm"), ("flipped", "norm"), ("NaN", "non_finite"), ("weighted", "weight"), ("replayed", None)],
)
def test_with_the_defences_on_accuracy_stays_within_two_points(
    fleet: Fleet, honest: Outcome, attack: str, reason: str | None
) -> None:
    assert honest.accuracy > 0.88
    defended = fleet.run(attack, defences(honest)["bounds, trimmed mean"])
    assert defended.accuracy > honest.accuracy - 0.02
    assert dict(defended.refused) == ({reason: 3 * 12} if reason else {})
    assert defended.abandoned == 0


@pytest.mark.parametrize("attack", ["scaled", "NaN"])
def test_without_them_it_does_not(fleet: Fleet, honest: Outcome, attack: str) -> None:
    attacked = fleet.run(attack, defences(honest)["none"])
    assert attacked.accuracy < honest.accuracy - 0.2


def test_the_table_has_a_line_for_each_attack() -> None:
    found = {
        (attack, title): [Outcome(accuracy) for accuracy in (0.5, 0.75)]
        for attack in ("nobody", *ATTACKS)
        for title in ("none", "bounds")
    }
    lines = table(found).splitlines()
    assert lines[0] == "| 3 of 30 clients report | none | bounds |"
    assert lines[2] == "| as the others | 62.5 | 62.5 |"
    assert [line.split("|")[1].strip() for line in lines[3:]] == list(ATTACKS.values())
    assert np.unique([line.count("|") for line in lines]).tolist() == [4]
