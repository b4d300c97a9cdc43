"""Bundles that were changed after they were made, hashes and all: parity fails, and says where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow.lite.python import schema_py_generated as schema

from cli.main import main
from device_runtime.bundle import TRAIN_ARTIFACT, WEIGHTS, Bundle, open_bundle
from device_runtime.weights import dump_weights
from export.flatbuffer import pack, subgraph_index, unpack
from export.parity import check_parity

Rehash = Callable[..., Bundle]
_OPERATORS = {name: code for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


def _edit_training(path: Path, edit: Callable[[Any, Any], None]) -> None:
    """Rewrite a bundle's training artifact after `edit` has changed its model and subgraph ``train``."""
    file = path / TRAIN_ARTIFACT
    model = unpack(file.read_bytes())
    edit(model, model.subgraphs[subgraph_index(model, "train")])
    file.write_bytes(pack(model))


def _code(model: Any, name: str) -> int:
    """Index of an operator's code, which is added where the model lacks it."""
    number = _OPERATORS[name]
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == number:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = number
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _sign_flipped(shape: tuple[int | None, ...]) -> Callable[[Any, Any], None]:
    """The update w − step of the variable with this shape becomes w + step."""

    def edit(model: Any, train: Any) -> None:
        subtract, assign = _code(model, "SUB"), _code(model, "ASSIGN_VARIABLE")
        assigned = [operator.inputs[1] for operator in train.operators if operator.opcodeIndex == assign]
        (fits,) = [index for index in assigned if tuple(train.tensors[index].shape) == shape]
        update = next(o for o in train.operators if o.opcodeIndex == subtract and o.outputs[0] == fits)
        update.opcodeIndex = _code(model, "ADD")
        update.builtinOptionsType = schema.BuiltinOptions.AddOptions
        update.builtinOptions = schema.AddOptionsT()

    return edit


@pytest.mark.parametrize("variable", range(4))
def test_a_flipped_sign_in_one_gradient_fails(
    variable: int, digits_copy: Path, rehash: Rehash, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = open_bundle(digits_copy).manifest.tensors[variable]
    _edit_training(digits_copy, _sign_flipped(spec.shape))
    bundle = rehash(digits_copy)
    assert main(["parity", str(bundle.path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["step"], report["layer"]) == (False, 1, report["tensor"].split("/")[0])
    assert report["tensor"] == spec.name


def test_a_mask_that_is_left_out_fails(digits_copy: Path, rehash: Rehash) -> None:
    """The gradient passes a ReLU as if it were none: the product with its mask gives the gradient itself."""

    def edit(model: Any, train: Any) -> None:
        sign, multiply = _code(model, "SIGN"), _code(model, "MUL")
        masks = {o.outputs[0] for o in train.operators if o.opcodeIndex == sign}
        for operator in train.operators:
            if operator.opcodeIndex == multiply and masks & set(operator.inputs):
                kept = next(index for index in operator.inputs if index not in masks)
                operator.opcodeIndex = _code(model, "MAXIMUM")
                operator.builtinOptionsType = schema.BuiltinOptions.MaximumMinimumOptions
                operator.builtinOptions = schema.MaximumMinimumOptionsT()
                operator.inputs = [kept, kept]

    _edit_training(digits_copy, edit)
    report = check_parity(rehash(digits_copy))
    assert (report.ok, report.tensor, report.step) == (False, "hidden/kernel", 1)


def test_a_changed_weight_fails(digits_copy: Path, rehash: Rehash) -> None:
    """Keras and the training artifact start from it alike; the inference artifact has the weights as they were."""
    bundle = open_bundle(digits_copy)
    first, *rest = bundle.initial_weights()
    first = first.copy()
    first[20, 3] += np.float32(0.1)
    (digits_copy / WEIGHTS).write_bytes(dump_weights((first, *rest), bundle.manifest.tensors))
    report = check_parity(rehash(digits_copy))
    assert (report.ok, report.tensor, report.step) == (False, "infer.tflite", 0)
