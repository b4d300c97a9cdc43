"""TensorFlow functions to TFLite files, with builtin operators only."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from export.addressing import VARIABLES, number_variables
from export.compaction import compact, share_constants
from export.errors import ExportError
from export.flatbuffer import pack, unpack
from export.replay import Replay
from export.schedule import shorten_lifetimes


def training_artifact(functions: dict[str, Any]) -> bytes:
    """The bytes of ``train.tflite``: every function as a signature, weights as resource variables.

    A device sets the weights itself, from ``weights.safetensors`` or from the server: the artifact holds no values of
    variables. One that is read before it was assigned is an error of the interpreter.

    Args:
        functions: signature name → concrete function. Each variable is assigned in one of them: the converter makes a
            constant of one that is not, and ends the process where it has no value.

    Raises:
        ExportError: an operator has no TFLite builtin; the message names it.
    """
    # Only the variables: with the Keras model, TensorFlow would trace all its layers again, and save that too.
    module = tf.Module()
    module.kept = list({v.ref(): v for function in functions.values() for v in function.graph.variables}.values())
    with tempfile.TemporaryDirectory() as folder:
        saved = str(Path(folder) / "saved")
        tf.saved_model.save(module, saved, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        converter.experimental_enable_resource_variables = True
        # Values that the converter finds, it puts into the artifact, and has them assigned on loading.
        shutil.rmtree(Path(saved) / "variables")
        artifact = _convert(converter)
    if VARIABLES not in functions:
        return compact(artifact)
    model = unpack(artifact)
    share_constants(model)
    shorten_lifetimes(model, artifact)
    number_variables(model)
    return pack(model, len(artifact))


def inference_artifact(graph: Any, x: tf.TensorSpec, representative: npt.NDArray[Any] | None = None) -> bytes:
    """The bytes of ``infer.tflite``: the model with its present weights as constants, one signature ``infer``.

    Args:
        graph: of the forward pass, see `export.replay.trace`; its variables are frozen.
        x: its input.
        representative: examples as the model meets them, [n, …]. With them weights and activations are quantised to
            8 bits (Jacob et al. 2018), in ranges that are measured on these examples; input and logits stay float32.

    Raises:
        ExportError: an operator has no TFLite builtin; the message names it.
    """

    class Inference(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(x.shape, x.dtype, name="x")], autograph=False)
        def infer(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"logits": Replay(graph, (x,), ()).outputs[0]}

    module = Inference()
    function = module.infer.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    if representative is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([example[None]] for example in representative)
    return compact(_convert(converter))


def _convert(converter: Any) -> bytes:
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.exclude_conversion_metadata = True
    if not converter.optimizations:
        # What TensorFlow does here in Python takes longer than the conversion where there are thousands of operators;
        # `compact` does the part of it that counts.
        converter._optimize_tflite_model = lambda model, *rest, **options: model
    try:
        artifact: bytes = converter.convert()
    except Exception as error:  # the converter has no narrower type for what it can't convert
        line = next((line for line in str(error).splitlines() if "ops:" in line or "error:" in line), str(error))
        raise ExportError(f"the model can't be converted to TFLite builtins: {line.strip()[:300]}") from None
    return artifact
