"""Training in the real interpreter, against the same training by hand in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from device_runtime.bundle import TRAIN_ARTIFACT, Bundle
from device_runtime.errors import IntegrityError, UpdateError
from device_runtime.examples import Examples
from device_runtime.progress import Position
from device_runtime.tensors import Weights
from device_runtime.trainer import StoppedError, Trainer
from device_runtime.work import ClientWork, step_seeds

Make = Callable[[int, int], Examples]
Doubles = list[npt.NDArray[np.float64]]


@pytest.fixture(scope="module")
def trainer(digits_bundle: Bundle) -> Trainer:
    return Trainer(digits_bundle)


@pytest.fixture(scope="module")
def initial(digits_bundle: Bundle) -> Weights:
    return digits_bundle.initial_weights()


def forward(weights: Doubles, x: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Hidden activations [n, 64] and log-probabilities [n, 10] of the perceptron."""
    kernel, bias, out_kernel, out_bias = weights
    hidden = np.maximum(x @ kernel + bias, 0)
    logits = hidden @ out_kernel + out_bias
    shifted = logits - logits.max(axis=1, keepdims=True)
    return hidden, shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def by_hand(
    initial: Weights, examples: Examples, epochs: int, batch_size: int | None, rate: float, proximal: float, seed: int
) -> tuple[Doubles, float]:
    """The weights after the training, and the mean loss: softmax regression on ReLU features, in float64."""
    anchor = [tensor.astype(np.float64) for tensor in initial]
    weights = [tensor.copy() for tensor in anchor]
    x, y = examples.x.reshape(len(examples), -1).astype(np.float64), examples.y
    losses: list[float] = []
    for epoch in range(epochs):
        order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(y))
        size = batch_size or len(y)
        for start in range(0, len(y), size):
            batch = order[start : start + size]
            hidden, log_p = forward(weights, x[batch])
            losses += list(-log_p[np.arange(len(batch)), y[batch]])
            d_logits = (np.exp(log_p) - np.eye(10)[y[batch]]) / len(batch)
            d_hidden = (d_logits @ weights[2].T) * (hidden > 0)
            gradients = [x[batch].T @ d_hidden, d_hidden.sum(0), hidden.T @ d_logits, d_logits.sum(0)]
            weights = [w - rate * (g + proximal * (w - a)) for w, g, a in zip(weights, gradients, anchor, strict=True)]
    return weights, float(np.mean(losses))


def same(first: Sequence[npt.NDArray[np.float32]], second: Sequence[npt.NDArray[np.float32]]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("proximal", [0.0, 2.0])
@pytest.mark.parametrize(
    ("count", "batch_size", "epochs"), [(23, 5, 1), (23, 5, 3), (1, 10, 2), (3, 10, 2), (7, None, 2)]
)
def test_training_is_what_it_is_by_hand(
    trainer: Trainer,
    initial: Weights,
    digits_examples: Make,
    count: int,
    batch_size: int | None,
    epochs: int,
    proximal: float,
) -> None:
    examples = digits_examples(count, count)
    work = ClientWork(epochs, batch_size, 0.1, proximal, seed=11)
    update = trainer.train(initial, examples, work, 4).collect()
    weights, loss = by_hand(initial, examples, epochs, batch_size, 0.1, proximal, 11)
    for delta, after, before in zip(update.delta, weights, initial, strict=True):
        expected = after - before
        assert np.abs(delta - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (update.weight, update.round_number) == (count, 4)
    assert set(update.metrics) == {"loss"}
    assert update.metrics["loss"] == pytest.approx(loss, rel=1e-5)


def test_the_proximal_term_and_the_seed_matter(trainer: Trainer, initial: Weights, digits_examples: Make) -> None:
    examples = digits_examples(20, 0)
    plain = trainer.train(initial, examples, ClientWork(2, 5), 1).collect()
    pulled = trainer.train(initial, examples, ClientWork(2, 5, proximal=2.0), 1).collect()
    another = trainer.train(initial, examples, ClientWork(2, 5, seed=1), 1).collect()
    assert not same(plain.delta, pulled.delta)
    assert not same(plain.delta, another.delta)
    assert sum(float((d**2).sum()) for d in pulled.delta) < sum(float((d**2).sum()) for d in plain.delta)


def test_the_delta_is_after_minus_before(trainer: Trainer, initial: Weights, digits_examples: Make) -> None:
    examples = digits_examples(16, 1)
    update = trainer.train(initial, examples, ClientWork(epochs=5), 1).collect()
    after = trainer.get_weights()
    assert same(update.delta, [a - b for a, b in zip(after, initial, strict=True)])
    trainer.set_weights(initial)
    before_loss = trainer.evaluate(examples).loss
    trainer.set_weights(tuple(b + d for b, d in zip(initial, update.delta, strict=True)))
    assert trainer.evaluate(examples).loss < before_loss


def test_a_training_leaves_nothing_behind(
    digits_bundle: Bundle, trainer: Trainer, initial: Weights, digits_examples: Make
) -> None:
    examples, work = digits_examples(23, 2), ClientWork(2, 5, proximal=0.5, seed=3)
    first = trainer.train(initial, examples, work, 1).collect()
    trainer.set_weights(tuple(tensor + 1 for tensor in initial))
    trainer.step(examples.x, examples.y, 0.5, 0.5)
    assert same(trainer.train(initial, examples, work, 1).collect().delta, first.delta)
    assert same(Trainer(digits_bundle, threads=2).train(initial, examples, work, 1).collect().delta, first.delta)
    assert same(Trainer(digits_bundle, threads=1).train(initial, examples, work, 1).collect().delta, first.delta)


def test_weights_go_in_and_come_out(trainer: Trainer, initial: Weights) -> None:
    weights = tuple(np.random.default_rng(0).normal(size=tensor.shape).astype(np.float32) for tensor in initial)
    trainer.set_weights(weights)
    got = trainer.get_weights()
    assert same(got, weights)
    trainer.set_weights(initial)
    assert same(got, weights)  # what was handed out is a copy


def test_weights_of_another_model_are_refused(trainer: Trainer, initial: Weights) -> None:
    with pytest.raises(IntegrityError, match=r"^set_weights: expected 4 tensors, found 3$"):
        trainer.set_weights(initial[:3])
    with pytest.raises(
        IntegrityError, match=r"^set_weights: tensor '.*bias.*' should be float32\[64\], but is .*10\]$"
    ):
        trainer.set_weights((initial[0], initial[3], initial[2], initial[3]))


@pytest.mark.parametrize("count", [1, 256, 300])
def test_evaluation_counts_each_example_once(
    trainer: Trainer, initial: Weights, digits_examples: Make, count: int
) -> None:
    examples = digits_examples(count, 5)
    trainer.set_weights(initial)
    result = trainer.evaluate(examples)
    _, log_p = forward([tensor.astype(np.float64) for tensor in initial], examples.x.reshape(count, 64).astype(float))
    assert result.examples == count
    assert result.accuracy == pytest.approx(float((log_p.argmax(1) == examples.y).mean()))
    assert result.loss == pytest.approx(float(-log_p[np.arange(count), examples.y].mean()), rel=1e-5)
    probabilities = np.exp(trainer.infer(examples.x).astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert np.allclose(probabilities, np.exp(log_p), atol=1e-5)


def test_a_training_stops_after_the_step_that_it_is_told_to(
    trainer: Trainer, initial: Weights, digits_examples: Make
) -> None:
    asked = []

    def stop(position: Position) -> str | None:
        asked.append(True)
        return "warm" if len(asked) == 3 else None

    with pytest.raises(StoppedError, match=r"^warm$"):
        trainer.train(initial, digits_examples(20, 0), ClientWork(batch_size=5), 1, stop)
    assert len(asked) == 3
    trainer.train(initial, digits_examples(20, 0), ClientWork(batch_size=5), 1, stop)
    assert len(asked) == 7


def test_a_training_that_diverges_is_no_update(trainer: Trainer, initial: Weights, digits_examples: Make) -> None:
    with pytest.raises(UpdateError, match="the training diverged: its loss is not finite; use a lower") as caught:
        trainer.train(initial, digits_examples(20, 0), ClientWork(learning_rate=1e30), 1)
    assert caught.value.reason == "non_finite"


@pytest.mark.parametrize("data", [b"", b"no model", b"\x1c\0\0\0TFL3" + bytes(2)], ids=["empty", "text", "magic"])
def test_a_broken_artifact(digits_copy: Path, rehash: Callable[..., Bundle], data: bytes) -> None:
    (digits_copy / TRAIN_ARTIFACT).write_bytes(data)
    bundle = rehash(digits_copy)
    with pytest.raises(
        IntegrityError, match=f"^{digits_copy / TRAIN_ARTIFACT}: the TFLite interpreter can't load it: "
    ):
        Trainer(bundle)


def test_an_artifact_without_the_manifest_s_signatures(digits_copy: Path, rehash: Callable[..., Bundle]) -> None:
    (digits_copy / TRAIN_ARTIFACT).write_bytes((digits_copy / "infer.tflite").read_bytes())
    with pytest.raises(IntegrityError, match=r"can't load it: .*signature"):
        Trainer(rehash(digits_copy))


@pytest.mark.parametrize(("signature", "side"), [("infer", "outputs"), ("train", "inputs")])
def test_a_manifest_that_describes_another_artifact(
    digits_copy: Path, rehash: Callable[..., Bundle], digits_bundle: Bundle, signature: str, side: str
) -> None:
    described = dict(digits_bundle.manifest.signatures)
    described[signature] = replace(described[signature], **{side: ()})
    with pytest.raises(IntegrityError) as caught:
        Trainer(rehash(digits_copy, signatures=described))
    expected = f"{digits_copy / TRAIN_ARTIFACT}: its signature {signature!r} has other {side} than the manifest says"
    assert str(caught.value) == expected


def test_a_bundle_for_another_class_of_runtime(digits_copy: Path, rehash: Callable[..., Bundle]) -> None:
    bundle = rehash(digits_copy, runtime="flex")
    with pytest.raises(IntegrityError) as caught:
        Trainer(bundle)
    expected = f"{digits_copy / TRAIN_ARTIFACT}: made for the runtime 'flex'; this one is 'tflite-builtins'"
    assert str(caught.value) == expected


def test_a_manifest_without_signatures(digits_copy: Path, rehash: Callable[..., Bundle]) -> None:
    bundle = rehash(digits_copy, signatures={})
    with pytest.raises(IntegrityError) as caught:
        Trainer(bundle)
    expected = "the manifest names no signature train, evaluate, infer, write_variable, read_variable, reset, anchor"
    assert str(caught.value) == f"{digits_copy / TRAIN_ARTIFACT}: {expected}"


def test_each_step_has_a_seed_where_the_artifact_takes_one(
    trainer: Trainer, initial: Weights, digits_examples: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seeds = dict(trainer._run), []

    def train(seed: np.int32, **inputs: Any) -> Any:
        assert seed.dtype == np.int32
        seeds.append(int(seed))
        return trainer_step(**inputs)

    trainer_step, run["train"] = run["train"], train
    monkeypatch.setattr(trainer, "_run", run)
    monkeypatch.setattr(trainer, "_seeded", True)
    trainer.train(initial, digits_examples(23, 0), ClientWork(3, 5, seed=7), 1)
    assert seeds == step_seeds(7, 15).tolist()
    trainer.train(initial, digits_examples(23, 0), ClientWork(2, None, seed=7), 1)
    assert seeds[15:] == step_seeds(7, 2).tolist()
    examples = digits_examples(4, 0)
    trainer.step(examples.x, examples.y, 0.1, seed=42)
    assert seeds[17:] == [42]
