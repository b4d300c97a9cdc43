"""What an algorithm may consist of, and the messages where it may not."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from device_runtime.errors import InputError
from tff_sim.algorithms.algorithm import SERVER_OPTIMIZERS, Algorithm, ServerOptimizer


def test_the_default_is_fed_avg() -> None:
    assert Algorithm().to_json() == {
        "optimizer": {"name": "sgd", "learning_rate": 1.0},
        "aggregator": "mean",
        "weighting": "examples",
        "trim": None,
        "clip_norm": None,
        "zero_norm": None,
    }


def test_a_summary_has_the_values_that_count() -> None:
    chosen = Algorithm(ServerOptimizer("fedadam", beta_2=0.999), "trimmed_mean", clip_norm=1, zero_norm=5.0)
    assert chosen.to_json() == {
        "optimizer": {"name": "fedadam", "learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.999, "tau": 1e-3},
        "aggregator": "trimmed_mean",
        "weighting": "uniform",
        "trim": 0.1,
        "clip_norm": 1,
        "zero_norm": 5.0,
    }
    assert Algorithm(weighting="uniform").to_json()["weighting"] == "uniform"
    assert Algorithm(aggregator="trimmed_mean", trim=0).to_json()["trim"] == 0


def test_fed_adagrad_has_no_first_moment_unless_it_is_asked_for() -> None:
    assert ServerOptimizer("fedadagrad").parameters == {"learning_rate": 0.01, "beta_1": 0.0, "tau": 1e-3}
    assert ServerOptimizer("fedadagrad", beta_1=0.9).parameters["beta_1"] == 0.9
    assert ServerOptimizer("momentum", momentum=0).parameters == {"learning_rate": 1.0, "momentum": 0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"name": "adam"},
            "--server-optimizer should be one of sgd, momentum, fedadagrad, fedadam, fedyogi, not 'adam'",
        ),
        ({"learning_rate": 0.0}, "--server-lr should be a finite number above 0, not 0.0"),
        ({"learning_rate": math.inf}, "--server-lr should be a finite number above 0, not inf"),
        ({"learning_rate": 10**400}, f"--server-lr should be a finite number above 0, not {10**400}"),
        ({"learning_rate": "1"}, "--server-lr should be a finite number above 0, not '1'"),
        ({"name": "momentum", "momentum": 1.0}, "--server-momentum should be at least 0 and below 1, not 1.0"),
        ({"name": "fedadam", "beta_1": -0.1}, "--server-beta1 should be at least 0 and below 1, not -0.1"),
        ({"name": "fedyogi", "beta_2": math.nan}, "--server-beta2 should be at least 0 and below 1, not nan"),
        ({"name": "fedadagrad", "tau": 0}, "--server-tau should be a finite number above 0, not 0"),
        (
            {"momentum": 0.9},
            "--server-momentum does not go with --server-optimizer sgd: leave it out, or choose momentum",
        ),
        (
            {"name": "momentum", "tau": 0.1},
            "--server-tau does not go with --server-optimizer momentum: leave it out, or choose"
            " fedadagrad or fedadam or fedyogi",
        ),
        (
            {"name": "fedadagrad", "beta_2": 0.9},
            "--server-beta2 does not go with --server-optimizer fedadagrad: leave it out, or choose fedadam or fedyogi",
        ),
        (
            {"beta_1": 0.9},
            "--server-beta1 does not go with --server-optimizer sgd: leave it out, or choose"
            " fedadagrad or fedadam or fedyogi",
        ),
    ],
)
def test_values_of_the_optimizer_out_of_range_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ServerOptimizer(**values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"aggregator": "krum"}, "--aggregator should be one of mean, median, trimmed_mean, not 'krum'"),
        ({"weighting": "steps"}, "--weighting should be one of examples, uniform, not 'steps'"),
        (
            {"aggregator": "median", "weighting": "examples"},
            "--weighting examples does not go with --aggregator median, in which every client counts alike:"
            " leave it out",
        ),
        ({"trim": 0.1}, "--trim is for --aggregator trimmed_mean, not mean: leave it out"),
        ({"aggregator": "trimmed_mean", "trim": 0.5}, "--trim should be at least 0 and below 0.5, not 0.5"),
        ({"clip_norm": -1.0}, "--clip-update should be a finite number above 0, not -1.0"),
        ({"zero_norm": math.nan}, "--zero-update should be a finite number above 0, not nan"),
        (
            {"clip_norm": 2.0, "zero_norm": 2.0},
            "--zero-update 2.0 leaves nothing to --clip-update 2.0: it should be the larger of the two",
        ),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Algorithm(**values)
    assert str(caught.value) == message


def test_every_parameter_is_a_field() -> None:
    for name, parameters in SERVER_OPTIMIZERS.items():
        assert ServerOptimizer(name, **parameters).parameters == dict(parameters)


def test_choosing_an_algorithm_loads_no_tensorflow() -> None:
    program = (
        "import sys, tff_sim.algorithms.algorithm, tff_sim.algorithms.schedules\n"
        "sys.exit(any(name.startswith('tensorflow') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
