"""A `ModelSpec` for a user's own Keras model: a ``.keras`` file, or a function ``module:function`` that builds one."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

import models.layers  # noqa: F401  # registers the layers that a file may name
from device_runtime.errors import InputError
from device_runtime.tensors import DTYPES, TensorSpec, describe
from models import ClientOptimizer, ModelSpec, trained_variables
from models.identity import fingerprint
from models.losses import LOSSES
from models.metrics import METRICS
from models.omissions import CLASS_LOSSES, omission
from models.optimizers import PLAIN_SGD

_ENDING = ".keras"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def user_spec(
    source: str,
    loss: str,
    name: str | None = None,
    metric: str | None = None,
    optimizer: ClientOptimizer = PLAIN_SGD,
    name_option: str = "--name",
) -> ModelSpec:
    """The spec of a model that is in no registry.

    Args:
        source: path of a ``.keras`` file, or ``module:function``; the function takes no arguments. A module is looked
            for in the working directory, too.
        loss: a key of `models.losses.LOSSES`; the model has to return logits for the cross-entropies.
        name: of the bundle; the model's own name by default.
        metric: a key of `models.metrics.METRICS`; accuracy for the cross-entropies, else mean_absolute_error.
        optimizer: of the client.
        name_option: how whoever calls this lets its user name the model; for messages.

    Returns:
        A spec whose `build` makes the same model each time, all weights included.

    Raises:
        InputError: the model can't be loaded, or is not one that a device could train; the message says why.
    """
    if loss not in LOSSES:
        raise InputError(f"--loss {loss}: unknown; known losses: {', '.join(sorted(LOSSES))}")
    metric = metric or ("accuracy" if loss in CLASS_LOSSES else "mean_absolute_error")
    if metric not in METRICS or (metric == "accuracy" and loss not in CLASS_LOSSES):
        raise InputError(f"--metric {metric}: not a metric for the loss {loss}; use one of {', '.join(METRICS)}")
    make = _from_file(Path(source)) if source.endswith(_ENDING) else _from_function(source)
    first = _made(make, source)
    _check(first, source, loss)
    kept = first.get_weights()

    def build() -> tf.keras.Model:
        tf.keras.backend.reset_uids()  # else layers without a name would have another one in each model
        model = make()
        model.set_weights(kept)  # a function may draw other weights each time; frozen ones have to stay the same
        return model

    if not source.endswith(_ENDING):
        _require_same(first, build, source)
    chosen = name or first.name
    if not _NAME.fullmatch(chosen):
        raise InputError(
            f"{source}: the model's name {chosen!r} should be of letters, digits, '_', '-' and '.'"
            + ("" if name else f": give another one with {name_option}")
        )
    output = first.output_shape
    sparse = loss == "sparse_categorical_crossentropy"
    return ModelSpec(
        name=chosen,
        build=build,
        input=tf.TensorSpec((None, *first.inputs[0].shape[1:]), first.inputs[0].dtype),
        label=tf.TensorSpec((None, *(output[1:-1] if sparse else output[1:])), tf.int32 if sparse else tf.float32),
        loss=loss,
        metric=metric,
        source=source,
        optimizer=optimizer,
    )


def _from_file(path: Path) -> Callable[[], Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a model that Keras saved as .keras, or module:function")

    def load() -> Any:
        # Safe mode: a file may not bring Python code of its own.
        return tf.keras.models.load_model(path, compile=False, safe_mode=True)

    return load


def _from_function(source: str) -> Callable[[], Any]:
    module_name, colon, function_name = source.partition(":")
    if not (colon and module_name and function_name):
        raise InputError(f"--keras {source}: expected a file that ends in .keras, or module:function")
    folder = Path.cwd()
    try:
        with _importing_from(folder):
            module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does on import
        raise InputError(
            f"--keras {source}: can't import {module_name}: {_line(error)}; modules are looked for in the working"
            " directory, and among those that are installed"
        ) from None
    meant, found = folder / f"{module_name}.py", getattr(module, "__file__", None)
    if meant.is_file() and (found is None or not meant.samefile(found)):
        raise InputError(f"--keras {source}: another module has the name {module_name}: rename {meant.name}")
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"--keras {source}: {module_name} has no function {function_name}")

    def make() -> Any:
        with _importing_from(folder):  # a function may import, too
            return function()

    return make


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _require_same(first: Any, build: Callable[[], Any], source: str) -> None:
    """Raise `InputError` where a function makes another model, constants and all, when it is called again."""
    try:
        same = fingerprint(first) == fingerprint(build())
    except Exception as error:  # the user's function, and layers of the user's
        raise InputError(f"{source}: can't make the model again: {_line(error)}") from None
    if not same:
        raise InputError(f"{source}: makes another model each time; a function should always make the same one")


def _made(make: Callable[[], Any], source: str) -> Any:
    try:
        # Frozen weights that a function draws have to be the same at the parity check.
        tf.keras.utils.set_random_seed(0)
        tf.keras.backend.reset_uids()
        model = make()
    except Exception as error:  # Keras, zipfile and the user's function have their own kinds
        advice = "; one with code of its own is given as MODULE:FUNCTION" if source.endswith(_ENDING) else ""
        raise InputError(f"{source}: can't make the model: {_line(error)}{advice}") from None
    if not isinstance(model, tf.keras.Model):
        raise InputError(f"{source}: expected a tf.keras.Model, got {type(model).__name__}")
    return model


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _check(model: Any, source: str, loss: str) -> None:
    """Raise `InputError` unless a device could train the model with this loss."""
    if not model.built or getattr(model, "inputs", None) is None:
        raise InputError(f"{source}: its input's shape is not known; begin the model with tf.keras.Input")
    for kind, tensors in (("input", model.inputs), ("output", model.outputs)):
        if len(tensors) != 1:
            raise InputError(f"{source}: {len(tensors)} {kind}s; a model that devices train has one")
    x = model.inputs[0]
    if None in x.shape[1:]:
        raise InputError(f"{source}: input {x.shape} has a free dimension besides the batch; give Input a full shape")
    if x.dtype.name not in DTYPES:
        raise InputError(
            f"{source}: input of type {x.dtype.name}; use one of {', '.join(DTYPES)}, and a layer to scale"
        )
    for variable in model.weights:
        if variable.dtype != tf.float32 and variable.ref() in {v.ref() for v in trained_variables(model)}:
            raise InputError(f"{source}: weight {variable.name!r} is {variable.dtype.name}; devices train float32")
        if variable.dtype.is_floating and not np.isfinite(variable.numpy()).all():
            raise InputError(f"{source}: weight {variable.name!r} holds values that are not finite")
    if (fault := omission(model, loss)) is not None:
        raise InputError(fault)


def read_representative(path: Path, spec: ModelSpec) -> npt.NDArray[Any]:
    """The array ``x`` of an ``.npz`` file: examples as the model meets them, for quantisation.

    Raises:
        InputError: the file can't be read, or its examples are not the model's.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x: npt.NDArray[Any] = arrays["x"]
    except Exception:  # numpy, zipfile and zlib have a dozen kinds between them for a damaged file
        raise InputError(f"{path}: expected an .npz file with an array x of examples") from None
    wanted = TensorSpec("x", (None, *spec.input.shape[1:]), spec.input.dtype.name)
    if not wanted.accepts(x) or not len(x):
        raise InputError(f"{path}: x should be {wanted} with at least one example, but is {describe(x)}")
    return x
