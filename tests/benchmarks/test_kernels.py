"""The formulations compute the same within their group, and the program that measures them runs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks import kernels
from benchmarks.epoch_loop import BATCH, STEPS, HandWritten
from benchmarks.formulations import Formulation, groups

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")


def _inputs(formulation: Formulation) -> Iterator[npt.NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    for shape in formulation.shapes:
        yield rng.standard_normal([size or BATCH for size in shape]).astype(np.float32)


@pytest.mark.parametrize("names", [("CONV_2D, variable filter", "patches of whole windows", "patches along columns"),
                                   ("resized maximum and comparison", "split by shape, no comparison")])  # fmt: skip
def test_formulations_of_the_same_inputs_compute_the_same(names: tuple[str, ...]) -> None:
    known = {formulation.name: formulation for group in groups().values() for formulation in group}
    results = [np.asarray(known[name].function(*_inputs(known[name]))) for name in names]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-4, atol=1e-3)


def test_products_take_their_operands_as_they_say() -> None:
    by_name = {formulation.name: formulation for formulation in groups()["product 160×1960 · 1960×320"]}
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((160, 1960)).astype(np.float32), rng.standard_normal((1960, 320)).astype(np.float32)
    for name, formulation in by_name.items():
        operands = (a.T if "left" in name else a), (b.T if "right" in name else b)
        assert [operand.shape for operand in operands] == list(formulation.shapes)
        np.testing.assert_allclose(np.asarray(formulation.function(*operands)), a @ b, rtol=1e-3, atol=1e-2)


def test_an_epoch_in_a_while_is_its_steps() -> None:
    rng = np.random.default_rng(3)
    x = rng.random((STEPS, BATCH, 784), np.float32)
    y = np.eye(10, dtype=np.float32)[rng.integers(0, 10, (STEPS, BATCH))]
    single, whole = HandWritten(), HandWritten()
    losses = [float(single.step(batch, labels)["loss"]) for batch, labels in zip(x, y, strict=True)]
    assert float(whole.epoch(x, y)["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_quick_run_in_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["kernels", "--quick", "--json"])
    kernels.main()
    measured = json.loads(capsys.readouterr().out)
    assert {one["group"] for one in measured} == {*groups(), "2NN, a step of an epoch"}
    assert all(milliseconds > 0 for one in measured for milliseconds in one["ms"].values())
