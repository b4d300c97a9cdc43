"""The aggregator: the weighted mean of a round's updates, a pure function of them in a fixed order.

The sequence of updates is cut into parts of `PART`. Each part has a sum of its own, and the sums are merged in the
parts' order. So the bits do not depend on who computes which part: one thread or several, one server or many, which
hand each other the bytes of their parts' sums.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

from aggregation_server.aggregation.partial_sum import PartialSum
from device_runtime.codec import EncodedUpdate
from device_runtime.tensors import TensorSpec

PART = 256
"""Updates of a part, but for the last. The same on all servers of a fleet, and for good: another one, other bits."""


Report = TypeVar("Report")
Result = TypeVar("Result")

Read = Callable[[Report], EncodedUpdate]
"""From what stands for a report, such as its place in a file, to its update; called in any thread."""


def aggregate(
    reports: Iterable[Report], read: Read[Report], specs: Sequence[TensorSpec], *, threads: int = 1
) -> PartialSum:
    """The sum of all reports; the same bits for any number of threads.

    Memory: a `PartialSum` a thread and one more, and an encoded update a thread; it does not grow with the reports.

    Args:
        reports: in the order that fixes the bits: that of the clients' names.
        read: gives a report's update, validated.
        specs: the model's tensors.
        threads: how many add; numpy lets go of Python's lock for that.

    Raises:
        ValueError: the updates are of several rounds or models.
        Exception: whatever `read` raises.
    """
    return merged(in_order(partial(sum_of, read=read, specs=specs), parts(reports), threads), specs)


def parts(reports: Iterable[Report]) -> Iterator[list[Report]]:
    """The parts of a sequence, as all servers of a fleet cut it."""
    waiting = iter(reports)
    while part := list(islice(waiting, PART)):
        yield part


def sum_of(
    part: Iterable[Report], read: Read[Report], specs: Sequence[TensorSpec], weighted: bool = True
) -> PartialSum:
    """The sum of one part's updates, one after the other."""
    total = PartialSum(specs, weighted)
    for report in part:
        total.add(read(report))
    return total


def merged(sums: Iterable[PartialSum], specs: Sequence[TensorSpec], weighted: bool = True) -> PartialSum:
    """One sum of those of all parts, in the parts' order."""
    total = PartialSum(specs, weighted)
    for one in sums:
        total.merge(one)
        del one  # its memory is the next one's
    return total


def in_order(compute: Callable[[Report], Result], items: Iterable[Report], threads: int) -> Iterator[Result]:
    """`compute` of each item, by several threads, in the items' order; at most `threads` are begun and not yet given.

    Where one raises, so does this, once those that were begun have ended.
    """
    if threads <= 1:
        yield from map(compute, items)
        return
    begun: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, "aggregate") as executor:
        for item in items:
            if len(begun) == threads:
                yield begun.popleft().result()
            begun.append(executor.submit(compute, item))
        while begun:
            yield begun.popleft().result()
