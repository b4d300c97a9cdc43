"""What holds in each runtime beside parity: threads, weights that are set between steps, dropout, frozen layers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_runtime.errors import InputError
from device_runtime.selftest import relative_difference
from export.operators import read_operators
from export.runtimes import RUNTIMES, Runtime, RuntimeFailedError, installed_runtimes
from tests.export.parity_case import Case

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

CaseOf = Callable[[str], Case]


def _train(case: Case, step: int, seed: int = 0) -> tuple[str, dict[str, Any]]:
    given = case.steps[step]
    numbers = {"learning_rate": np.float32(case.learning_rate), "proximal": np.float32(0)}
    return "train", {"x": given.x, "y": given.y, **numbers, **({"seed": np.int32(seed)} if case.draws else {})}


@pytest.mark.parametrize("name", ["conv2d", "recurrent", "attention", "frozen_mobile_net"])
def test_threads_change_nothing(name: str, case_of: CaseOf, runtime: Runtime) -> None:
    """To 1e-6: tflite-runtime's batched matrix product of attention splits its work by the number of threads.

    On the machine of the measurements it was off by 8e-8, and all other cases agreed to the bit.
    """
    case = case_of(name)
    one, *others = (case.run(runtime, threads) for threads in (1, 2, 4))
    for other in others:
        for after_one, after_other in zip(one.weights, other.weights, strict=True):
            for a, b in zip(after_one, after_other, strict=True):
                assert relative_difference(b, a) <= 1e-6


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["conv2d", "recurrent", "frozen_images"])
def test_no_weight_of_before_is_left_after_set_weights(
    name: str, threads: int, case_of: CaseOf, runtime: Runtime
) -> None:
    """A kernel once kept filters from before (tensorflow issue 31205)."""
    case = case_of(name)
    other = [(0.5 * value + 0.01).astype(np.float32) for value in case.start]
    after = [_train(case, 2), *case.get_calls(), ("infer", {"x": case.steps[0].x})]
    used = [
        *case.set_calls(case.start),
        _train(case, 0),
        ("infer", {"x": case.steps[0].x}),
        _train(case, 2),
        *case.set_calls(other),
        *after,
    ]
    fresh = [*case.set_calls(other), *after]
    for a, b in zip(
        runtime.run(case.artifact, used, threads)[-len(after) :],
        runtime.run(case.artifact, fresh, threads)[-len(after) :],
        strict=True,
    ):
        for key, value in a.items():
            np.testing.assert_array_equal(value, b[key], key)


def test_dropout_is_random_in_training_alone_and_follows_from_the_seed(case_of: CaseOf, runtime: Runtime) -> None:
    case = case_of("dropout")
    infer = ("infer", {"x": case.steps[0].x})
    calls = [call for seed in (1, 1, 2) for call in (*case.set_calls(case.start), infer, infer, _train(case, 0, seed))]
    results = runtime.run(case.artifact, calls)
    logits = [result["logits"] for result in results if "logits" in result]
    losses = [float(result["loss"]) for result in results if "loss" in result]
    assert losses[0] == losses[1] != losses[2]
    for other in logits[1:]:
        np.testing.assert_array_equal(logits[0], other)


def test_frozen_layers_neither_travel_nor_are_differentiated(case_of: CaseOf) -> None:
    case = case_of("frozen_mobile_net")
    assert [variable.name for variable in case.variables] == ["head/kernel:0", "head/bias:0"]
    # Every weight is in the artifact once, though three signatures use it; batch statistics are folded in.
    frozen = 4 * sum(int(np.prod(weight.shape)) for weight in case.model.non_trainable_weights)
    assert len(case.artifact) < 1.1 * frozen
    # Training computes the base as inference does, and beside that only the head's step.
    train, infer = (len(case.functions[name].graph.get_operations()) for name in ("train", "infer"))
    assert infer < train < infer + 120
    assert read_operators(case.artifact, "frozen").custom == {}


def test_what_an_interpreter_refuses_is_told_and_survived(case_of: CaseOf, runtime: Runtime) -> None:
    case = case_of("merging")
    with pytest.raises(RuntimeFailedError, match=rf"^{runtime.name}: ValueError: "):
        runtime.run(b"no artifact", [("infer", {})])
    with pytest.raises(RuntimeFailedError, match=rf"^{runtime.name}: \w+: "):
        runtime.run(case.artifact, [("no_such", {})])
    assert case.common_problems(case.run(runtime)) == []


def test_a_crash_is_told_and_survived(tmp_path: Path) -> None:
    with Runtime(Path(sys.executable)) as runtime:
        assert runtime._process is not None
        runtime._process.kill()
        with pytest.raises(RuntimeFailedError, match=r"^tflite-runtime 2\.14\.0: the interpreter crashed"):
            runtime.run(b"", [])
        with pytest.raises(RuntimeFailedError, match="ValueError"):
            runtime.run(b"no artifact", [])


def test_a_python_without_an_interpreter_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "python"
    empty.write_text("#!/bin/sh\nexit 3\n")
    empty.chmod(0o755)
    with pytest.raises(RuntimeFailedError, match=r"python: the interpreter crashed \(status 3\)$"):
        Runtime(empty)


def test_further_runtimes_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, litert: Path
) -> None:
    here = Path(sys.executable)
    monkeypatch.delenv(RUNTIMES, raising=False)
    assert installed_runtimes() == [here, litert]  # what 'make setup' installs is found without being named
    monkeypatch.setenv(RUNTIMES, "")
    assert installed_runtimes() == [here]
    monkeypatch.setenv(RUNTIMES, os.pathsep.join(map(str, (litert, here))))
    assert installed_runtimes() == [here, litert]
    monkeypatch.setenv(RUNTIMES, str(tmp_path / "missing"))
    with pytest.raises(InputError, match=f"missing: no such file; {RUNTIMES} names Python executables"):
        installed_runtimes()
