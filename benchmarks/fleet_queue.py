"""Front ends that share a database's row, as a queueing formula and as a simulation that it is held to.

Each front end answers HTTP in one event loop, and has one thread that waits for the row's lock, takes all requests that
wait by then, and holds the lock for a transaction: so long for the transaction itself, and so long for each request.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass

import numpy as np

_ITERATIONS = 100  # of the fixed point, which halves its error in each


@dataclass(frozen=True)
class Load:
    """What comes, and what it costs.

    Attributes:
        front_ends: processes; devices come to any of them.
        rate: requests a second, of all of them.
        loop_seconds: of a front end's event loop for a request.
        transaction_seconds: for which a transaction holds the row, without its requests.
        request_seconds: … and for each request more.
    """

    front_ends: int
    rate: float
    loop_seconds: float
    transaction_seconds: float
    request_seconds: float


@dataclass(frozen=True)
class Queues:
    """How it goes, in the long run.

    Attributes:
        loop_utilisation: share of its time that an event loop works.
        loop_queue: requests that wait for one event loop or are in it.
        row_utilisation: share of the time that the row is locked.
        transactions: a second.
        batch: requests in a transaction.
        row_queue: requests of one front end that wait for a transaction or are in it.
        seconds: from a request's arrival to its answer.
    """

    loop_utilisation: float
    loop_queue: float
    row_utilisation: float
    transactions: float
    batch: float
    row_queue: float
    seconds: float


def predicted(load: Load) -> Queues:
    """By formula; infinite where more comes than can be done.

    An event loop is an M/D/1 queue. The row is seen at the ends of transactions: of the front ends that don't wait for
    it then, each has a request by the end of the next one with a probability that follows from its length. So the
    number of front ends that wait is a Markov chain. A transaction's length follows from the mean batch, and that from
    how often transactions begin: a fixed point.
    """
    each = load.rate / load.front_ends
    loop = each * load.loop_seconds
    if loop >= 1 or load.rate * load.request_seconds >= 1:
        return Queues(loop, math.inf, 1.0, math.nan, math.inf, math.inf, math.inf)
    batch = 1.0
    for _ in range(_ITERATIONS):
        hold = load.transaction_seconds + load.request_seconds * batch
        transactions = 1 / (hold + _nobody_waits(load.front_ends, -math.expm1(-each * hold)) / load.rate)
        batch += 0.5 * (load.rate / transactions - batch)
    # A batch is the request that came first, and those that came while it waited: of about the same time always where
    # the row is busy, and where it is not, hardly any came.
    wait = (batch - 1) / each
    seconds = wait * (1 + batch) / 2 / batch
    seconds += load.transaction_seconds + load.request_seconds * (batch + (batch - 1) / batch)
    loop_queue = loop + loop**2 / (2 * (1 - loop))
    return Queues(
        loop, loop_queue, transactions * hold, transactions, batch, each * seconds, loop_queue / each + seconds
    )


def _nobody_waits(front_ends: int, comes: float) -> float:
    """Probability that at the end of a transaction no front end waits for the row.

    Args:
        front_ends: how many there are.
        comes: probability that one which does not wait has a request by the end of the next transaction.
    """
    chain = np.zeros((front_ends + 1, front_ends + 1))  # from so many that wait to so many
    for waiting in range(front_ends + 1):
        left = max(waiting, 1) - 1  # the first takes the row; where nobody waits, the first that comes does
        others = front_ends - left
        for more in range(others + 1):
            chain[waiting, left + more] = math.comb(others, more) * comes**more * (1 - comes) ** (others - more)
    # Its stationary distribution: unchanged by a step, and a sum of 1.
    equations = np.vstack([chain.T - np.eye(front_ends + 1), np.ones(front_ends + 1)])
    shares = np.linalg.lstsq(equations, np.append(np.zeros(front_ends + 1), 1.0), rcond=None)[0]
    return float(max(shares[0], 0.0))


def simulated(load: Load, seconds: float, seed: int = 0) -> Queues:
    """By events: requests at random instants, each loop and the row first come, first served."""
    rng = random.Random(seed)  # noqa: S311
    count = load.front_ends
    loop_free = [0.0] * count
    loop_work = loop_time = row_time = answered_time = held = 0.0
    requests = transactions = answered = 0
    waiting: list[deque[tuple[float, float]]] = [deque() for _ in range(count)]  # (reached the queue, arrived)
    wanted = [False] * count  # it waits for the row, or holds it
    row: deque[int] = deque()
    row_free = True
    # (time, kind, front end): 0 a request arrives, 1 it has gone through the loop, 2 a transaction ends.
    events: list[tuple[float, int, int, float]] = [(rng.expovariate(load.rate), 0, 0, 0.0)]

    def lock(now: float) -> None:
        nonlocal row_free, transactions, held, row_time, answered_time, answered
        if not row_free or not row:
            return
        row_free, holder = False, row.popleft()
        batch = len(waiting[holder])
        ends = now + load.transaction_seconds + load.request_seconds * batch
        for reached, arrived in waiting[holder]:
            row_time += ends - reached
            answered_time += ends - arrived
        answered += batch
        waiting[holder].clear()
        transactions += 1
        held += ends - now
        heapq.heappush(events, (ends, 2, holder, 0.0))

    while True:
        now, kind, front_end, arrived = heapq.heappop(events)
        if now >= seconds:
            break
        if kind == 0:
            heapq.heappush(events, (now + rng.expovariate(load.rate), 0, 0, 0.0))
            front_end = rng.randrange(count)
            loop_free[front_end] = max(loop_free[front_end], now) + load.loop_seconds
            requests += 1
            loop_work += load.loop_seconds
            loop_time += loop_free[front_end] - now
            heapq.heappush(events, (loop_free[front_end], 1, front_end, now))
            continue
        if kind == 1:
            waiting[front_end].append((now, arrived))
        else:
            row_free, wanted[front_end] = True, False
        if waiting[front_end] and not wanted[front_end]:
            wanted[front_end] = True
            row.append(front_end)
        lock(now)
    return Queues(
        loop_work / seconds / count,
        loop_time / seconds / count,
        held / seconds,
        transactions / seconds,
        answered / transactions,
        row_time / seconds / count,
        answered_time / answered,
    )
