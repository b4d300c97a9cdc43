"""``infer.tflite`` against Keras: equal logits where it computes in float32, and what int8 costs in accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.bundle import INFER_ARTIFACT, Bundle
from device_runtime.errors import IntegrityError
from device_runtime.examples import Examples
from device_runtime.interpreter import open_interpreter
from device_runtime.selftest import TOLERANCE, relative_difference
from export.reference import symbols_of, synthetic_batch
from models import ModelSpec
from models.metrics import METRICS

_EXAMPLES = 256
_BATCH = 32


@dataclass(frozen=True)
class InferenceReport:
    """A comparison on some examples.

    Attributes:
        computes_in: float32 or int8.
        examples: how many; `synthetic` where no real ones were given.
        max_rel: largest difference of a logit, over the largest logit.
        metric: name of the measure in `keras` and `artifact`, the means over the examples.
    """

    computes_in: str
    examples: int
    synthetic: bool
    max_rel: float
    metric: str
    keras: float
    artifact: float

    @property
    def ok(self) -> bool:
        """Whether it is what Keras computes; int8 is an approximation, and only measured."""
        return self.computes_in == "int8" or self.max_rel <= TOLERANCE

    def to_json(self) -> dict[str, Any]:
        return {
            "computes_in": self.computes_in,
            "examples": self.examples,
            "synthetic": self.synthetic,
            "max_rel": self.max_rel if np.isfinite(self.max_rel) else None,
            "metric": self.metric,
            "keras": self.keras,
            "artifact": self.artifact,
            "difference": self.artifact - self.keras,
        }


def compare_inference(
    bundle: Bundle, spec: ModelSpec, model: Any, examples: Examples | None, seed: int
) -> InferenceReport:
    """Run `model`, which has the bundle's weights, and ``infer.tflite`` on the same examples.

    Raises:
        IntegrityError: the interpreter can't load or run the artifact.
    """
    if examples is None:
        rng = np.random.Generator(np.random.Philox(seed + 1))
        x, y = synthetic_batch(spec, model.output_shape[-1], _EXAMPLES, rng, symbols_of(model))
    else:
        x, y = examples.x, examples.y
    batches = [slice(start, start + _BATCH) for start in range(0, len(x), _BATCH)]
    expected = np.concatenate([model(x[batch], training=False).numpy() for batch in batches])
    path = str(bundle.file(INFER_ARTIFACT))
    try:
        runner = open_interpreter(path, 1).get_signature_runner()
        actual = np.concatenate([runner(x=x[batch])["logits"] for batch in batches])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise IntegrityError(f"{path}: the TFLite interpreter can't run it: {str(error).splitlines()[0]}") from None
    keras, artifact = (_mean(spec, y, logits) for logits in (expected, actual))
    return InferenceReport(
        bundle.manifest.inference, len(x), examples is None, relative_difference(actual, expected), spec.metric,
        keras, artifact,
    )  # fmt: skip


def _mean(spec: ModelSpec, y: npt.NDArray[Any], logits: npt.NDArray[Any]) -> float:
    return float(np.mean(METRICS[spec.metric](spec.loss, y, logits).numpy()))
