"""Whether a model can learn from a data set: said before the first round, and not by TensorFlow in the midst of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError
from models import ModelSpec
from tff_sim.federated_data import FederatedData
from tff_sim.pixels import rows

_CLASSES = "sparse_categorical_crossentropy"
"""The loss whose labels are numbers of the model's outputs."""


def require_fit(spec: ModelSpec, data: FederatedData) -> None:
    """Compare types and shapes of examples, and the range of labels, in training and in testing.

    Raises:
        InputError: they are not those of the model; one line that names model and data set.
    """
    test = rows(data.test, slice(0, 1))
    for x, y in (data.clients.example_types, (_type(test.x), _type(test.y))):
        shape = spec.input.shape[1:]
        if shape != x[1]:
            raise _misfit(spec, data, f"takes examples of {tuple(shape)}", f"has {x[1]}")
        for part, expected, found in (("examples", spec.input, x), ("labels", spec.label, y)):
            if expected.dtype.name != found[0] or not expected.shape[1:].is_compatible_with(found[1]):
                takes = f"takes {part} of {expected.dtype.name} {tuple(expected.shape[1:])}"
                raise _misfit(spec, data, takes, f"has {found[0]} {found[1]}")
    if spec.loss != _CLASSES:
        return
    classes = int(spec.build().output_shape[-1])
    for bounds in (data.clients.label_bounds, (int(data.test.y.min()), int(data.test.y.max()))):
        if bounds is not None and not 0 <= bounds[0] <= bounds[1] < classes:
            takes = f"takes labels from 0 to {classes - 1}"
            raise _misfit(spec, data, takes, f"has {bounds[0]} to {bounds[1]}")


def _type(array: npt.NDArray[Any]) -> tuple[str, tuple[int, ...]]:
    return np.dtype(array.dtype).name, array.shape[1:]


def _misfit(spec: ModelSpec, data: FederatedData, takes: str, has: str) -> InputError:
    return InputError(
        f"model {spec.name!r} {takes}, data set {data.name!r} {has}: choose another model, or another --dataset"
    )
