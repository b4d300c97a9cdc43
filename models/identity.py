"""`fingerprint`: whether two models are the same one, for what is to go on with a model or to repeat its run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from models.state import trained_variables

# Random seeds, which a training step replaces by its own, and names: all else in a graph is computed with.
_NOT_COMPUTED_WITH = ("seed", "seed2", "shared_name", "container")


def fingerprint(model: tf.keras.Model) -> str:
    """SHA-256 over what the model computes, its weights, and which of them are trained; hexadecimal digits.

    Two functions of other code, or in other files, that make the same graph are the same. Names don't count.

    Args:
        model: with its layers built.
    """
    digest = hashlib.sha256()
    trained = {variable.ref() for variable in trained_variables(model)}
    numbers = {}
    for number, variable in enumerate(model.weights):
        numbers[id(variable.handle)] = number
        digest.update(f"{variable.dtype.name}{variable.shape}{variable.ref() in trained}".encode())
        digest.update(variable.numpy().tobytes())
    inputs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs]
    for training in (False, True):
        function = tf.function(lambda *x, training=training: model(x[0] if len(x) == 1 else list(x), training=training))
        concrete = function.get_concrete_function(*inputs)
        graph = concrete.graph.as_graph_def()
        captured = [numbers.get(id(tensor), -1) for tensor in concrete.captured_inputs]
        digest.update(repr(captured).encode())
        _Graphs(digest, graph.library.function).add(graph.node, results=[output.name for output in concrete.outputs])
    return digest.hexdigest()


class _Graphs:
    """Adds graphs to a digest, each function where it is first used, with numbers in the place of all names."""

    def __init__(self, digest: Any, functions: Iterable[Any]) -> None:
        self._digest = digest
        self._functions = {function.signature.name: function for function in functions}
        self._numbers: dict[str, int] = {}

    def add(self, nodes: Iterable[Any], arguments: Iterable[str] = (), results: Iterable[str] = ()) -> None:
        """The nodes in their order, and what is returned of them; of a function also the names of its arguments."""
        nodes = list(nodes)
        places = {name: place for place, name in enumerate([*arguments, *(node.name for node in nodes)])}
        for node in nodes:
            inputs = [_numbered(name, places) for name in node.input]
            self._digest.update(f"{node.op}{inputs}".encode())
            for key in sorted(node.attr):
                if key not in _NOT_COMPUTED_WITH and not key.startswith("_"):
                    self._digest.update(key.encode())
                    self._add_value(node.attr[key])
        self._digest.update(repr([_numbered(name, places) for name in results]).encode())

    def _add_value(self, value: Any) -> None:
        called = [value.func] if value.HasField("func") else list(value.list.func)
        if not called:
            self._digest.update(value.SerializeToString(deterministic=True))
        for function in called:
            if function.name in self._numbers or function.name not in self._functions:
                self._digest.update(str(self._numbers.get(function.name)).encode())
                continue
            self._numbers[function.name] = len(self._numbers)
            body = self._functions[function.name]
            names = [argument.name for argument in body.signature.input_arg]
            self.add(body.node_def, names, [body.ret[output.name] for output in body.signature.output_arg])


def _numbered(name: str, places: dict[str, int]) -> str:
    """``^name``, ``name:1`` and ``name:output:0``, with the place of the name."""
    control, plain = ("^", name[1:]) if name.startswith("^") else ("", name)
    node, colon, output = plain.partition(":")
    return f"{control}{places.get(node, -1)}{colon}{output}"
