"""Error feedback: nothing is lost for good, and only what the server took counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from device_runtime import codec
from device_runtime.bundle import Bundle
from device_runtime.feedback import ErrorFeedback
from device_runtime.tensors import Weights
from device_runtime.update import ClientUpdate


def a_delta(bundle: Bundle, seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = [[size or 0 for size in spec.shape] for spec in bundle.manifest.tensors]
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def flat(weights: Weights) -> npt.NDArray[np.float64]:
    return np.concatenate([tensor.reshape(-1).astype(np.float64) for tensor in weights])


def send(
    feedback: ErrorFeedback, bundle: Bundle, delta: Weights, name: str, seed: int, accepted: bool = True
) -> Weights:
    """What the server decodes."""
    manifest = bundle.manifest
    corrected = feedback.corrected(iter(delta), manifest)
    data = codec.encode(ClientUpdate(corrected, 1, 1), manifest.tensors, manifest.model_id, name, seed)
    feedback.encoded(corrected, data, manifest)
    feedback.settle(accepted)
    return codec.decode(data, manifest.tensors, manifest.model_id).delta


@pytest.mark.parametrize(("name", "bound"), [("q4", 0.15), ("q2", 0.7), ("q1", 3.0)])
def test_what_one_round_loses_comes_with_the_next(
    name: str, bound: float, digits_bundle: Bundle, tmp_path: Path
) -> None:
    """Over 20 rounds the server has all of it but one round's loss; without feedback it lacks the loss of all."""
    feedback = ErrorFeedback(tmp_path)
    deltas = [a_delta(digits_bundle, seed) for seed in range(20)]
    sent = [flat(send(feedback, digits_bundle, delta, name, seed)) for seed, delta in enumerate(deltas)]
    got, wanted = np.sum(sent, axis=0), np.sum([flat(delta) for delta in deltas], axis=0)
    one = np.linalg.norm(flat(deltas[0]))
    assert np.linalg.norm(got - wanted) < bound * one
    for seed in range(20):
        (tmp_path / str(seed)).mkdir()
    alone = [
        flat(send(ErrorFeedback(tmp_path / str(seed)), digits_bundle, delta, name, seed))
        for seed, delta in enumerate(deltas)
    ]
    without = np.sum(alone, axis=0)
    assert np.linalg.norm(without - wanted) > 1.5 * np.linalg.norm(got - wanted)


def test_an_update_that_was_not_taken_changes_nothing(digits_bundle: Bundle, tmp_path: Path) -> None:
    feedback = ErrorFeedback(tmp_path)
    first, second = a_delta(digits_bundle, 1), a_delta(digits_bundle, 2)
    sent = send(feedback, digits_bundle, first, "q2", 0)
    lost = flat(first) - flat(sent)
    send(feedback, digits_bundle, second, "q2", 1, accepted=False)
    corrected = flat(feedback.corrected(iter(second), digits_bundle.manifest))
    np.testing.assert_allclose(corrected, flat(second) + lost, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss"]
    feedback.settle(True)  # asked again after a crash, it has nothing to do
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss"]


@pytest.mark.parametrize("how", ["damaged", "of another model"])
def test_a_loss_that_can_t_be_used_counts_for_nothing(how: str, digits_bundle: Bundle, tmp_path: Path) -> None:
    feedback = ErrorFeedback(tmp_path)
    if how == "damaged":
        send(feedback, digits_bundle, a_delta(digits_bundle, 1), "q2", 0)
        content = bytearray((tmp_path / "loss").read_bytes())
        content[-20] ^= 1
        (tmp_path / "loss").write_bytes(content)
    else:
        manifest = replace(digits_bundle.manifest, name="another")
        other = Bundle(digits_bundle.path, manifest, digits_bundle.identity)
        send(feedback, other, a_delta(other, 1), "q2", 0)
    delta = a_delta(digits_bundle, 2)
    np.testing.assert_array_equal(flat(feedback.corrected(iter(delta), digits_bundle.manifest)), flat(delta))
