"""Parity holds for what the export makes, and fails, naming tensor and step, for what was tampered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import models
from device_runtime.bundle import Bundle
from device_runtime.errors import CheckFailedError, InputError
from device_runtime.tensors import Weights
from device_runtime.trainer import Trainer
from device_runtime.weights import dump_weights
from export import bundle_writer
from export.bundle_writer import export_bundle
from export.parity import TOLERANCE, UPDATE_TOLERANCE, check_parity
from export.reference import KerasTrainer, synthetic_batch
from models import ModelSpec

Array = npt.NDArray[Any]


def test_parity_holds_for_digits(digits_bundle: Bundle) -> None:
    seen: list[int] = []
    report = check_parity(digits_bundle, progress=seen.append)
    assert report.ok and report.step is None and report.steps == 60 and seen == list(range(1, 61))
    assert {difference.name for difference in report.differences} == {
        "loss", "hidden/kernel", "hidden/bias", "logits/kernel", "logits/bias",
    }  # fmt: skip
    # Far below the tolerance: what is left is the order of float32 sums.
    assert 0 < report.worst.max_rel < TOLERANCE / 10


@pytest.mark.parametrize("name", [name for name in models.names() if name != "digits_mlp"])
def test_parity_holds_for_the_papers_models(name: str, tmp_path: Path) -> None:
    report = check_parity(export_bundle(models.get(name), tmp_path))
    assert report.ok, report


def test_parity_holds_for_weights_whose_losses_are_tiny(tmp_path: Path) -> None:
    """A trained model's loss of one example may be 1e-4, and its rounding error that of logits of 10 and more."""
    spec, rng = models.get("digits_mlp"), np.random.Generator(np.random.Philox(3))
    trained = KerasTrainer(spec, models.initial_weights(spec, 0))
    losses = [trained.step(*synthetic_batch(spec, 10, 32, rng), 0.5) for _ in range(3000)]
    bundle = export_bundle(spec, tmp_path / "untrained")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(dump_weights(trained.get_weights(), bundle.manifest.tensors))
    bundle = export_bundle(spec, tmp_path / "trained", weights_file=path)
    assert min(losses[-100:]) < 1e-3
    for seed in range(5):
        report = check_parity(bundle, seed=seed)
        assert report.ok and report.worst.max_rel < TOLERANCE / 5, report


def test_parity_holds_at_two_threads_for_both_paddings(
    tiny_cnn: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.registry._SPECS, tiny_cnn.name, tiny_cnn)
    bundle = export_bundle(tiny_cnn, tmp_path)
    one, two = check_parity(bundle, threads=1), check_parity(bundle, threads=2)
    assert one.ok and two.ok, (one, two)


@pytest.mark.parametrize("threads", [1, 2])
def test_weights_set_in_the_middle_take_effect(tiny_cnn: ModelSpec, tmp_path: Path, threads: int) -> None:
    """A kernel once kept filters from before `set_weights` (tensorflow issue 31205)."""
    bundle = export_bundle(tiny_cnn, tmp_path)
    other = models.initial_weights(tiny_cnn, 99)
    x, y = synthetic_batch(tiny_cnn, 3, 5, np.random.Generator(np.random.Philox(1)))
    used, fresh = Trainer(bundle, threads), Trainer(bundle, threads)
    for trainer, before in ((used, 3), (fresh, 0)):
        trainer.set_weights(bundle.initial_weights())
        for _ in range(before):
            trainer.step(x, y, 0.1)
        trainer.set_weights(other)
    assert used.step(x, y, 0.1, 0.5) == fresh.step(x, y, 0.1, 0.5)
    for a, b in zip(used.get_weights(), fresh.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(KerasTrainer(tiny_cnn, other).step(x, y, 0.1), _loss(bundle, other, x, y), rtol=1e-5)


def _loss(bundle: Bundle, weights: Weights, x: Array, y: Array) -> float:
    trainer = Trainer(bundle)
    trainer.set_weights(weights)
    return trainer.step(x, y, 0.1)


def test_a_flipped_gradient_fails_with_its_tensor_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, negated_bias_add: None
) -> None:
    # The export's own check would stop it; a bundle made elsewhere comes without.
    monkeypatch.setattr(bundle_writer, "accept", lambda bundle, find_kernels: None)
    report = check_parity(export_bundle(models.get("digits_mlp"), tmp_path))
    assert not report.ok
    assert (report.tensor, report.step) == ("hidden/bias", 1)
    assert report.to_json()["ok"] is False


def test_a_gradient_that_is_off_by_two_percent_is_not_taken_for_a_kink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_bundle: Bundle
) -> None:
    """Trained with a learning rate that is 2 % too large, the update differs beyond `UPDATE_TOLERANCE`."""
    original = Trainer.step

    def off(self: Trainer, x: Array, y: Array, learning_rate: float, *rest: float, **named: int) -> float:
        return original(self, x, y, learning_rate * (1 + 4 * UPDATE_TOLERANCE), *rest, **named)

    monkeypatch.setattr(Trainer, "step", off)
    report = check_parity(digits_bundle)
    assert not report.ok and report.tensor is not None and report.step is not None


def test_a_crossed_kink_is_confirmed_and_survived(digits_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drift that no gradient explains (Keras pushed off its path) is resolved by the step from equal weights."""
    original = KerasTrainer.step
    calls = 0

    def pushed(self: KerasTrainer, x: Array, y: Array, *rest: float, **named: int) -> float:
        nonlocal calls
        calls += 1
        loss = original(self, x, y, *rest, **named)
        if calls == 30:
            self.set_weights(tuple(w + np.float32(1e-3) for w in self.get_weights()))
        return loss

    monkeypatch.setattr(KerasTrainer, "step", pushed)
    report = check_parity(digits_bundle)
    assert report.ok and report.kinks == (30,)


def test_too_few_steps_are_refused(digits_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="at least 60 steps are needed to show a drift, not 59"):
        check_parity(digits_bundle, steps=59)


def test_a_model_that_changed_since_the_export_is_named(digits_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    other = models.get("mnist_2nn")
    monkeypatch.setattr(models, "get", lambda name: other)
    with pytest.raises(CheckFailedError, match="its tensors are not those of the model 'mnist_2nn'; export it again"):
        check_parity(digits_bundle)
