"""A case: a model of many rows, trained in Keras and in each runtime, and compared row by row.

A row is one layer, or a few, with weights before and after it. The rows of a family are branches of one model, which
is converted once. Its loss is the mean over all outputs of squared errors, so that no row's gradient depends on
another's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from device_runtime.selftest import loss_difference, relative_difference
from device_runtime.trainer import write_calls
from export.convert import training_artifact
from export.parity import TOLERANCE, UPDATE_TOLERANCE
from export.reference import KerasTrainer
from export.runtimes import Runtime, SignatureCall
from export.training_graph import TrainingGraph
from models import ClientOptimizer, ModelSpec, trained_variables
from models.training import evaluation_sums

Array = npt.NDArray[Any]
Row = Callable[[Any], Any]
"""From the input's Keras tensor to the row's result."""

BATCHES = (7, 1, 32)


@dataclass(frozen=True)
class Step:
    """What a training step is given, beside the learning rate."""

    x: Array
    y: Array
    proximal: float = 0.0
    seed: int = 0


@dataclass
class Record:
    """What one side computed: losses and weights of each step, then logits and evaluation sums at the end."""

    losses: list[float] = field(default_factory=list)
    weights: list[list[Array]] = field(default_factory=list)
    logits: Array | None = None
    sums: dict[str, float] = field(default_factory=dict)


class Case:
    """A model with its artifact, and what Keras makes of a few training steps.

    Args:
        model: its trained weights are moved away from where Keras starts, where many are zero or one.
        steps: makes x and y of a batch of this size.
        parts: for each row, its variables and its share of the logits.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        label: tf.TensorSpec,
        batch: Callable[[np.random.Generator, int], tuple[Array, Array]],
        loss: str = "mean_squared_error",
        metric: str = "mean_absolute_error",
        optimizer: ClientOptimizer = ClientOptimizer(),  # noqa: B008 (it is frozen)
        learning_rate: float = 0.05,
        proximal: float = 0.0,
        seed: int = 0,
        parts: Mapping[str, tuple[Sequence[Any], slice]] | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        x = tf.TensorSpec(model.input_shape, model.input.dtype)
        self.spec = ModelSpec("case", lambda: model, x, label, loss, metric, "tests", optimizer)
        self.model = model
        self.learning_rate = learning_rate
        self.variables = trained_variables(model)
        self.parts = parts or {"": (self.variables, slice(None))}
        self.start = [_moved(variable, rng) for variable in self.variables]
        self.steps = [Step(*batch(rng, size), proximal if i == 1 else 0.0, 17 + i) for i, size in enumerate(BATCHES)]
        self.graph = TrainingGraph(self.spec, model)
        self.draws = self.graph.draws
        self.stored = self.graph.stored_variables
        self.functions = self.graph.functions()
        self.artifact = training_artifact(self.functions)
        self.keras = self._in_keras()

    def _in_keras(self) -> Record:
        trainer, record = KerasTrainer(self.spec, tuple(self.start)), Record()
        for step in self.steps:
            record.losses.append(trainer.step(step.x, step.y, self.learning_rate, step.proximal, seed=step.seed))
            record.weights.append(list(trainer.get_weights()))
        record.logits = trainer.infer(self.steps[0].x)
        sums = evaluation_sums(self.spec, self.model, self.steps[-1].x, self.steps[-1].y)
        record.sums = dict(zip(("loss_sum", "correct", "count"), (float(total) for total in sums), strict=True))
        return record

    def set_calls(self, weights: Sequence[Array]) -> list[SignatureCall]:
        """What sets all weights."""
        return [*write_calls(tuple(weights), self.stored)]

    def get_calls(self) -> list[SignatureCall]:
        """What reads all weights, part by part."""
        return [("read_variable", {"number": np.asarray(number, np.int32)}) for number in range(len(self.stored))]

    def calls(self) -> list[SignatureCall]:
        """The steps as calls of the artifact's signatures."""
        zero = {"unused": np.float32(0)}
        calls: list[Any] = [*self.set_calls(self.start), ("anchor", zero)]
        for step in self.steps:
            numbers = {"learning_rate": np.float32(self.learning_rate), "proximal": np.float32(step.proximal)}
            seed = {"seed": np.int32(step.seed)} if self.draws else {}
            calls += [("train", {"x": step.x, "y": step.y, **numbers, **seed}), *self.get_calls()]
        calls.append(("infer", {"x": self.steps[0].x}))
        calls.append(("evaluate", {"x": self.steps[-1].x, "y": self.steps[-1].y}))
        return calls

    def run(self, runtime: Runtime, threads: int = 1) -> Record:
        """The same in an interpreter."""
        record = Record()
        calls = self.calls()
        for (signature, given), outputs in zip(calls, runtime.run(self.artifact, calls, threads), strict=True):
            if signature == "train":
                record.losses.append(float(outputs["loss"]))
                record.weights.append([np.zeros(variable.shape, np.float32) for variable in self.variables])
            elif signature == "read_variable":
                one = self.stored[int(given["number"])]
                weight, values = record.weights[-1][one.tensor], outputs["values"]
                if one.transposed:
                    values = values.reshape(weight.shape[::-1]).T.reshape(-1)
                weight.reshape(-1)[one.start : one.start + one.size] = values
            elif signature == "infer":
                record.logits = outputs["logits"]
            elif signature == "evaluate":
                record.sums = {name: float(value) for name, value in outputs.items()}
        return record

    def problems(self, got: Record, row: str = "") -> list[str]:
        """What differs in a row, in words; empty where it is right."""
        variables, columns = self.parts[row]
        places = {variable.ref(): index for index, variable in enumerate(self.variables)}
        indices = [places[variable.ref()] for variable in variables]
        assert got.logits is not None and self.keras.logits is not None
        found = []
        logits = relative_difference(got.logits[..., columns], self.keras.logits[..., columns])
        if not logits <= TOLERANCE:
            found.append(f"logits differ by {logits:.1e}")
        before_got = before_want = self.start
        for number, (after_got, after_want) in enumerate(zip(got.weights, self.keras.weights, strict=True), 1):
            largest = max(float(np.abs(after_want[i] - before_want[i]).max()) for i in indices)
            for i in indices:
                difference = relative_difference(after_got[i], after_want[i])
                step_got, step_want = after_got[i] - before_got[i], after_want[i] - before_want[i]
                # A gradient that is zero in theory, such as a bias's before a normalisation, is rounding noise: it is
                # held against the largest step of the row.
                rounding = 4 * float(np.spacing(np.abs(after_want[i]).max())) + 1e-4 * largest
                allowed = UPDATE_TOLERANCE * float(np.abs(step_want).max()) + rounding
                update = float(np.abs(step_got - step_want).max())
                if not (difference <= TOLERANCE and update <= allowed):
                    found.append(
                        f"step {number}: {self.variables[i].name} differs by {difference:.1e}, its update by"
                        f" {update / (float(np.abs(step_want).max()) or 1.0):.1e}"
                    )
            before_got, before_want = after_got, after_want
        return found

    def common_problems(self, got: Record) -> list[str]:
        """What differs in the losses and evaluation sums, which all rows share."""
        pairs = {
            **{f"loss of step {i}": pair for i, pair in enumerate(zip(got.losses, self.keras.losses, strict=True), 1)},
            **{name: (got.sums[name], want) for name, want in self.keras.sums.items()},
        }
        return [f"{name}: {a}, not {b}" for name, (a, b) in pairs.items() if not loss_difference(a, b) <= TOLERANCE]


def family(shape: tuple[int, ...], rows: Mapping[str, Row], seed: int = 0, symbols: int | None = None) -> Case:
    """A case whose rows are branches of one model with inputs of this shape; each ends in a dense layer of two.

    Args:
        symbols: inputs are whole numbers below it, int32; without it they are normal, float32.
    """
    tf.keras.utils.set_random_seed(seed)
    x = tf.keras.Input(shape, dtype=tf.int32 if symbols else tf.float32)
    results = {}
    for name, row in rows.items():
        y = row(x)
        flat = tf.keras.layers.Flatten()(y) if len(y.shape) > 2 else y
        results[name] = tf.keras.layers.Dense(2, name=f"{name}_out")(flat)
    joined = tf.keras.layers.Concatenate()(list(results.values())) if len(results) > 1 else next(iter(results.values()))
    parts = {
        name: (trained_variables(tf.keras.Model(x, y)), slice(2 * i, 2 * i + 2))
        for i, (name, y) in enumerate(results.items())
    }

    def batch(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
        given = rng.integers(0, symbols, (size, *shape), np.int32) if symbols else rng.standard_normal((size, *shape))
        labels = rng.uniform(-1, 1, (size, 2 * len(rows)))
        return np.asarray(given, np.int32 if symbols else np.float32), labels.astype(np.float32)

    label = tf.TensorSpec((None, 2 * len(rows)), tf.float32)
    rate = 0.05 * len(rows)
    return Case(tf.keras.Model(x, joined), label, batch, learning_rate=rate, seed=seed, parts=parts)


def _moved(variable: tf.Variable, rng: np.random.Generator) -> Array:
    value = variable.numpy() + 0.1 * rng.standard_normal(variable.shape)
    return np.asarray(np.abs(value) if "variance" in variable.name else value, np.float32)
