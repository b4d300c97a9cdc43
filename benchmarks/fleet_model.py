"""What it takes to serve a fleet: front ends, transactions, bytes; and how well the model foretells its own simulation.

    python -m benchmarks.fleet_model
    python -m benchmarks.fleet_model --devices 1000000 --check-ins 1800 --reports 200

Where `pocketfed bench server` measures, its figures are options. Pace steering makes the load flat: whatever the hour,
as many devices check in as is wanted, and what changes over a day is how long each of them waits in between.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from aggregation_server.aggregation.aggregate import PART
from aggregation_server.coordination.pace import PaceSteering
from benchmarks.fleet_queue import Load, predicted, simulated

_SIMULATED_REQUESTS = 50_000


@dataclass(frozen=True)
class Process:
    """What one server process can: each alone, of a process that does nothing else.

    Attributes:
        check_ins: answered in a second.
        reports: taken in a second, of the size that the fleet sends.
        transaction_seconds: for which a transaction holds the population's row, without its requests.
        request_seconds: … and for each request more.
        add_seconds: to decode a report and add it to a partial sum.
        merge_seconds: to add a partial sum to another.
        threads: that add at once.
    """

    check_ins: float = 1500.0
    reports: float = 150.0
    transaction_seconds: float = 0.002
    request_seconds: float = 0.00035
    add_seconds: float = 0.0011
    merge_seconds: float = 0.002
    threads: int = 2


@dataclass(frozen=True)
class Fleet:
    """Who is served, and what for: one population with its rounds.

    Attributes:
        devices: that are active on a day.
        active: share of them that may train at once, in the mean of a day.
        swing: the most active devices of a day over the fewest.
        target_rate: check-ins a second that are wanted at most, of all front ends together.
        goal: reports that a round wants.
        over_selection: devices accepted per report wanted.
        round_seconds: from a cohort's start to its last report that counts.
        configurations: that an accepted device asks for; more than one where the round has not started by then.
        update_bytes, weights_bytes: of a report, and of what a device fetches.
        utilisation: of a front end, at most.
        spare: front ends that may fail.
    """

    devices: int = 10_000_000
    active: float = 0.2
    swing: float = 4.0
    target_rate: float = 2000.0
    goal: int = 7_700
    over_selection: float = 1.3
    round_seconds: float = 150.0
    configurations: float = 1.0
    update_bytes: float = 1.7e6
    weights_bytes: float = 1.7e6
    utilisation: float = 0.6
    spare: int = 1

    def active_at(self, hour: float) -> float:
        """Active devices at an hour of the day: a sine around the mean, highest at 2 o'clock at night."""
        depth = (self.swing - 1) / (self.swing + 1)
        return self.devices * self.active * (1 + depth * math.cos(2 * math.pi * (hour - 2) / 24))


@dataclass(frozen=True)
class Sizing:
    """What it takes; rates are a second.

    Attributes:
        check_ins: of devices.
        reports: that count.
        requests: to the population's row: check-ins, configurations and reports.
        front_ends: processes, spare ones included.
        period: seconds from one round's selection to the next one's.
        aggregation: seconds of it between the last report and the new weights.
        written, read: bytes of reports to and from the spool.
        fetched: bytes of weights by devices, whoever serves them.
        held: bytes in the spool at the end of a round.
    """

    check_ins: float
    reports: float
    requests: float
    front_ends: int
    period: float
    aggregation: float
    written: float
    read: float
    fetched: float
    held: float

    def load(self, process: Process) -> Load:
        """As `benchmarks.fleet_queue` takes it; a loop is busy with any request for as long as with a check-in."""
        return Load(
            self.front_ends,
            self.requests,
            1 / process.check_ins,
            process.transaction_seconds,
            process.request_seconds,
        )


def sized(fleet: Fleet, process: Process) -> Sizing:
    """The sizing of a fleet: the fewest front ends that suffice, and the spare ones."""
    check_ins = PaceSteering(fleet.target_rate).settled_rate
    cohort = math.ceil(fleet.goal * fleet.over_selection)
    parts = math.ceil(fleet.goal / PART)
    aggregation = math.ceil(parts / process.threads) * PART * process.add_seconds + parts * process.merge_seconds
    period = cohort / check_ins + fleet.round_seconds + aggregation
    reports = fleet.goal / period
    small = check_ins + fleet.configurations * cohort / period
    busy = small / process.check_ins + reports * (1 / process.reports + process.add_seconds)
    return Sizing(
        check_ins=check_ins,
        reports=reports,
        requests=small + reports,
        front_ends=math.ceil(busy / fleet.utilisation) + fleet.spare,
        period=period,
        aggregation=aggregation,
        written=reports * fleet.update_bytes,
        read=reports * fleet.update_bytes,
        fetched=cohort / period * fleet.weights_bytes,
        held=fleet.goal * fleet.update_bytes,
    )


def tables(fleet: Fleet, process: Process) -> str:
    """Sizing, hours of a day, and prediction beside simulation, as Markdown."""
    found = sized(fleet, process)
    load = found.load(process)
    foretold, seen = predicted(load), simulated(load, _SIMULATED_REQUESTS / load.rate)
    mega = 1e-6
    selection = math.ceil(fleet.goal * fleet.over_selection) / found.check_ins
    lines = [
        "| | |",
        "| --- | --- |",
        f"| check-ins | {found.check_ins:,.0f}/s |",
        f"| reports that count | {found.reports:.0f}/s; a round every {found.period:.0f} s |",
        f"| … of which selection | {selection:.1f} s |",
        f"| … of which aggregation | {found.aggregation:.1f} s |",
        f"| front ends | {found.front_ends}, {fleet.spare} of them spare |",
        f"| database | {foretold.transactions:,.0f} transactions/s for {found.requests:,.0f} requests/s |",
        f"| spool, written and read once | {found.written * mega:,.0f} MB/s each; {found.held * 1e-9:.1f} GB at most |",
        f"| weights to devices | {found.fetched * mega:,.0f} MB/s |",
        "",
        "| | devices that are active | each checks in every |",
        "| --- | --- | --- |",
    ]
    for name, hour in (("the quietest hour", 14.0), ("the mean", 8.0), ("the busiest hour", 2.0)):
        active = fleet.active_at(hour)
        lines.append(f"| {name} | {active:,.0f} | {active / found.check_ins / 60:.0f} min |")
    lines += ["", "| | foretold | simulated |", "| --- | --- | --- |"]
    for name, title, scale, unit in _COMPARED:
        figures = (f"{getattr(queues, name) * scale:.3g}{unit}" for queues in (foretold, seen))
        lines.append(f"| {title} | {' | '.join(figures)} |")
    return "\n".join(lines)


_COMPARED = (
    ("loop_utilisation", "utilisation of a front end's event loop", 100, " %"),
    ("loop_queue", "requests there", 1, ""),
    ("row_utilisation", "utilisation of the row", 100, " %"),
    ("transactions", "transactions a second", 1, ""),
    ("batch", "requests in a transaction", 1, ""),
    ("row_queue", "requests of a front end that wait for it or are in it", 1, ""),
    ("seconds", "until a request is answered", 1e3, " ms"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables; every field of `Fleet` and `Process` is an option."""
    parser = argparse.ArgumentParser(description="What it takes to serve a fleet.")
    for kind in (Fleet, Process):
        for field in fields(kind):
            option = f"--{field.name.replace('_', '-')}"
            parser.add_argument(
                option, type=type(field.default), default=field.default, help=f"default {field.default}"
            )
    options = vars(parser.parse_args(arguments))
    fleet = Fleet(**{field.name: options[field.name] for field in fields(Fleet)})
    process = Process(**{field.name: options[field.name] for field in fields(Process)})
    print(tables(fleet, process))


if __name__ == "__main__":
    main()
