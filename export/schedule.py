"""In which order the artifact computes, so that little memory is in use at once.

TensorFlow's converter puts operators into an order of its own: it reads all variables first, and many a tensor waits
long for its use. An interpreter keeps a tensor from the operator that makes it to the last one that takes it, and needs
room for the most that it keeps at once. So operators are ordered greedily: of those whose inputs are there, next comes
the one after which least is kept. Reading a variable waits until the value is taken, and what is computed for a
variable alone, until it can be assigned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from export.layout import SLAB_NAME
from export.single_operator import inputs_of

_BATCH = 8
"""Examples that sizes are compared for."""


def shorten_lifetimes(model: Any, artifact: bytes) -> None:
    """Order the operators of every signature of a `schema.ModelT` anew; `artifact` is the file that it is of."""
    interpreter = tf.lite.Interpreter(
        model_content=artifact,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    for signature in model.signatureDefs:
        index = int(signature.subgraphIndex)
        graph = model.subgraphs[index]
        sizes = _sizes(interpreter, graph, index)
        _read_again(model, graph, sizes)
        order = _order(_nodes(model, graph), sizes, list(map(int, graph.outputs)))
        graph.operators = [graph.operators[position] for position in order]


@dataclass(frozen=True)
class _Node:
    """An operator.

    Attributes:
        takes, makes: the tensors that it is given by others, and gives.
        after: positions of the operators that have to come before it.
        prepares: whether it depends on nothing but variables.
        assigns: whether it assigns to a variable, and does nothing else.
    """

    takes: tuple[int, ...]
    makes: tuple[int, ...]
    after: frozenset[int]
    prepares: bool
    assigns: bool


def _sizes(interpreter: Any, graph: Any, index: int) -> list[int]:
    """Elements of every tensor in a batch of `_BATCH`; none of a variable's handle."""
    inner = interpreter._interpreter  # the public interface allocates the first subgraph only
    for tensor in map(int, graph.inputs):
        shape = interpreter._get_tensor_details(tensor, index)["shape_signature"]
        inner.ResizeInputTensor(tensor, np.where(shape < 0, _BATCH, shape).astype(np.int32), False, index)
    inner.AllocateTensors(index)
    return [
        0 if tensor.type == schema.TensorType.RESOURCE else int(np.prod(inner.TensorSize(position, index)))
        for position, tensor in enumerate(graph.tensors)
    ]


def _read_again(model: Any, graph: Any, sizes: list[int]) -> None:
    """Read a slab anew for each operator that takes its value; `sizes` grows with the tensors.

    Otherwise all slabs would be kept from the way there to the way back. Whole weights are kept: to read them again
    would take longer than it helps, above all those that a recurrent layer uses at every step.
    """
    takers: dict[int, list[Any]] = {}
    for operator in graph.operators:
        for value in set(inputs_of(operator)):
            takers.setdefault(value, []).append(operator)
    slabs: set[int] = set()
    operators: list[Any] = []
    for operator in graph.operators:
        operators.append(operator)
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        named = operator.builtinOptions.sharedName if code == schema.BuiltinOperator.VAR_HANDLE else b""
        if named.startswith(SLAB_NAME.encode()):
            slabs.add(int(operator.outputs[0]))
        if code != schema.BuiltinOperator.READ_VARIABLE or int(operator.inputs[0]) not in slabs:
            continue
        value = int(operator.outputs[0])
        for taker in takers.get(value, ())[1:]:
            again, place = copy(operator), len(graph.tensors)
            graph.tensors.append(copy(graph.tensors[value]))
            sizes.append(sizes[value])
            again.outputs = [place]
            taker.inputs = [place if index == value else int(index) for index in taker.inputs]
            operators.append(again)
    graph.operators = operators


def _nodes(model: Any, graph: Any) -> list[_Node]:
    builtin = schema.BuiltinOperator
    resources = {index for index, tensor in enumerate(graph.tensors) if tensor.type == schema.TensorType.RESOURCE}
    maker: dict[int, int] = {}
    reads: dict[int, set[int]] = {}
    writes: dict[int, int] = {}
    nodes: list[_Node] = []
    for position, operator in enumerate(graph.operators):
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        given = set(inputs_of(operator))
        takes = tuple(tensor for tensor in sorted(given) if tensor in maker)
        after = {maker[tensor] for tensor in takes}
        assigned = _assigned(model, operator)
        for resource in resources & given:
            if resource in writes:
                after.add(writes[resource])
            if resource in assigned:
                after |= reads.pop(resource, set())
                writes[resource] = position
            else:
                reads.setdefault(resource, set()).add(position)
        makes = tuple(map(int, operator.outputs))
        maker.update(dict.fromkeys(makes, position))
        prepares = code == builtin.VAR_HANDLE or (
            bool(makes and after) and code != builtin.IF and all(nodes[before].prepares for before in after)
        )
        assigns = code == builtin.ASSIGN_VARIABLE
        nodes.append(_Node(takes, makes, frozenset(after), prepares, assigns))
    return nodes


def _assigned(model: Any, operator: Any) -> set[int]:
    """The variables' handles that an operator assigns to, or may assign to."""
    builtin = schema.BuiltinOperator
    code, given = model.operatorCodes[operator.opcodeIndex].builtinCode, inputs_of(operator)
    if code == builtin.IF:
        options = operator.builtinOptions
        branches = [model.subgraphs[index] for index in (options.thenSubgraphIndex, options.elseSubgraphIndex)]
        return {
            given[1 + list(branch.inputs).index(inner)]
            for branch in branches
            for one in branch.operators
            for inner in _assigned(model, one)
            if inner in branch.inputs
        }
    if code in (builtin.VAR_HANDLE, builtin.READ_VARIABLE):
        return set()
    return set(given[:1] if code == builtin.ASSIGN_VARIABLE else given)


def _order(nodes: Sequence[_Node], sizes: Sequence[int], outputs: Collection[int]) -> list[int]:
    """Positions of the nodes in their new order."""
    uses = Counter(tensor for node in nodes for tensor in node.takes)
    uses.update(outputs)
    waits = _waiting(nodes, outputs)
    steps, missing = _steps(nodes, waits)
    followers: dict[int, list[int]] = {}
    for position, before in missing.items():
        for other in before:
            followers.setdefault(other, []).append(position)
    done: set[int] = set()

    def growth(position: int) -> int:
        """By how many elements more is kept after this step."""
        step = [nodes[one] for one in steps[position] if one not in done]
        taken = Counter(tensor for node in step for tensor in node.takes)
        made = {tensor for node in step for tensor in node.makes}
        return sum(sizes[tensor] for tensor in made if uses[tensor] > taken[tensor]) - sum(
            sizes[tensor] for tensor, count in taken.items() if tensor not in made and uses[tensor] == count
        )

    order: list[int] = []
    ready = [position for position in steps if not missing[position]]
    while ready:
        chosen = min(ready, key=lambda position: (growth(position), position))
        ready.remove(chosen)
        for one in steps[chosen]:
            if one not in done:
                done.add(one)
                order.append(one)
                uses.subtract(nodes[one].takes)
        for follower in followers.get(chosen, ()):
            missing[follower].discard(chosen)
            if not missing[follower]:
                ready.append(follower)
    return order


def _waiting(nodes: Sequence[_Node], outputs: Collection[int]) -> list[bool]:
    """Which nodes wait for the one that needs them: those that prepare, and those on the way to an assignment alone."""
    users: dict[int, list[int]] = {}
    for position, node in enumerate(nodes):
        for tensor in node.takes:
            users.setdefault(tensor, []).append(position)
    waits = [False] * len(nodes)
    for position in reversed(range(len(nodes))):
        node = nodes[position]
        by = {user for tensor in node.makes for user in users.get(tensor, ())}
        if by and not set(node.makes).intersection(outputs):
            sole = min(by)
            waits[position] = node.prepares or (len(by) == 1 and (nodes[sole].assigns or waits[sole]))
    return waits


def _steps(nodes: Sequence[_Node], waits: Sequence[bool]) -> tuple[dict[int, tuple[int, ...]], dict[int, set[int]]]:
    """By each node that does not wait: it after those that wait for it, and those that have to be done before."""
    chains: list[tuple[int, ...]] = []
    befores: list[set[int]] = []
    for position, node in enumerate(nodes):
        chain: dict[int, None] = {}
        before: set[int] = set()
        for other in sorted(node.after):
            if waits[other]:
                chain.update(dict.fromkeys(chains[other]))
                before |= befores[other]
            else:
                before.add(other)
        chains.append((*chain, position))
        befores.append(before)
    first = [position for position in range(len(nodes)) if not waits[position]]
    return {position: chains[position] for position in first}, {position: befores[position] for position in first}
