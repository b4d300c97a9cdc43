"""One function for what a model does many times, such as a recurrent layer's step: emitted once, and called.

Every operator that is made costs time in Python, several times more than in the converter, which puts a function's
operators in the place of its calls: the artifact is the same as if they had been written out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from export.backward import Step, Value, add, propagate
from export.lowering import Gradient, OuterProducts

CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})

Body = Callable[[list[Value]], tuple[list[Value], list[Step]]]
"""Emits the function: from its inputs to its results, and to the lowered operators between them."""


def fixed_inputs(graph: Any) -> dict[str, tuple[bool, ...]]:
    """For each function that a graph calls more than once: which of its inputs are the same in all the calls."""
    calls = [op for op in graph.get_operations() if op.type in CALLS]
    times = Counter(op.get_attr("f").name for op in calls)
    given: dict[str, list[set[str]]] = {}
    for op in calls:
        name = op.get_attr("f").name
        if times[name] > 1:
            names = given.setdefault(name, [set() for _ in op.inputs])
            for seen, tensor in zip(names, op.inputs, strict=True):
                seen.add(tensor.name)
    return {name: tuple(len(seen) == 1 for seen in names) for name, names in given.items()}


class SharedFunction:
    """A function of the present graph, forward and back.

    What back-propagation needs of the forward function's values, that one returns besides its results. Inputs that are
    the same in all calls are no inputs here, so that what is made of them, such as a transposition, is made once.

    Args:
        body: emits the function.
        inputs: of the first call; those of the others have the same shapes, and vary alike.
        fixed: which of them are the same in all calls.
    """

    def __init__(self, body: Body, inputs: Sequence[Value], fixed: Sequence[bool]) -> None:
        self._fixed = tuple(fixed)
        self._varies: tuple[bool, ...] = ()
        self._gradients: list[Gradient] = []  # of the inputs, in tensors that a call's take the place of:
        self._kept: list[tf.Tensor] = []  # those of the forward function that it returns besides its results,
        self._made: list[tf.Tensor] = []  # and those that the function back returns

        def forward(*tensors: tf.Tensor) -> list[tf.Tensor]:
            given = iter(tensors)
            inner = [x if same else Value(next(given), x.varies) for x, same in zip(inputs, fixed, strict=True)]
            results, steps = body(inner)
            self._varies = tuple(result.varies for result in results)
            varying = [result.tensor for result in results if result.varies]

            def back(*by_results: tf.Tensor) -> list[tf.Tensor]:
                found: dict[int, Gradient] = {}
                for tensor, gradient in zip(varying, by_results, strict=True):
                    found[id(tensor)] = add(found.get(id(tensor)), gradient)
                propagate(steps, found)
                self._gradients = [found.get(id(x.tensor)) if x.varies else None for x in inner]
                self._made = _in_present_graph(part for g in self._gradients for part in _parts(g))
                return self._made

            self._back = _function(back, varying)
            parts = (part for g in self._gradients for part in _parts(g))
            self._kept = _in_present_graph([*self._back.captured_inputs, *parts])
            return [*(result.tensor for result in results), *self._kept]

        self._forward = _function(forward, self._given([x.tensor for x in inputs]))

    def __call__(self, inputs: Sequence[tf.Tensor]) -> tuple[list[Value], Callable[..., Sequence[Gradient]]]:
        """A call's results, and how gradients pass back through it to the inputs."""
        outputs = _call(self._forward, [*self._given(inputs), *self._forward.captured_inputs])
        count = len(self._varies)
        values = dict(zip(map(id, self._kept), outputs[count:], strict=True))

        def of_call(tensor: tf.Tensor) -> tf.Tensor:
            return values.get(id(tensor), tensor)

        def pullback(*by_results: tf.Tensor) -> list[Gradient]:
            by_varying = [gradient for gradient, varies in zip(by_results, self._varies, strict=True) if varies]
            made = _call(self._back, [*by_varying, *map(of_call, self._back.captured_inputs)])
            values.update(zip(map(id, self._made), made, strict=True))
            return [_with(of_call, gradient) for gradient in self._gradients]

        return [Value(*result) for result in zip(outputs[:count], self._varies, strict=True)], pullback

    def _given(self, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return [tensor for tensor, same in zip(inputs, self._fixed, strict=True) if not same]


def _function(body: Callable[..., Any], like: Sequence[tf.Tensor]) -> Any:
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in like]
    return tf.function(body, autograph=False).get_concrete_function(*specs)


def _call(function: Any, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The function's outputs; `inputs` are all that its graph has, captured ones included."""
    types = [output.dtype for output in function.outputs]
    if not types:
        return []
    outputs: list[tf.Tensor] = tf.raw_ops.PartitionedCall(args=inputs, Tout=types, f=function)
    for output, inner in zip(outputs, function.outputs, strict=True):
        output.set_shape(inner.shape)
    return outputs


def _in_present_graph(tensors: Iterable[tf.Tensor]) -> list[tf.Tensor]:
    """Those of the tensors, each once."""
    here = tf.compat.v1.get_default_graph()
    return list({id(tensor): tensor for tensor in tensors if tensor.graph is here}.values())


def _parts(gradient: Gradient) -> tuple[tf.Tensor, ...]:
    """The tensors that a gradient consists of."""
    if gradient is None:
        return ()
    return gradient.left + gradient.right if isinstance(gradient, OuterProducts) else (gradient,)


def _with(replace: Callable[[tf.Tensor], tf.Tensor], gradient: Gradient) -> Gradient:
    """The gradient of other tensors."""
    if isinstance(gradient, OuterProducts):
        return OuterProducts(tuple(map(replace, gradient.left)), tuple(map(replace, gradient.right)), gradient.axis)
    return None if gradient is None else replace(gradient)
