"""What else an update could be encoded with, on the same updates: python -m benchmarks.alternatives --data-dir FOLDER

Four tables: the error of the mean over 100 clients by quantiser; what the server does for an update; what a lossless
stage would save; and training with clients that return, whose errors are fed back.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from benchmarks.codec import BITS, CodecBenchmarks, Updates
from benchmarks.feedback import SCHEMES, train
from benchmarks.quantisers import RoundTrip, lossy
from device_runtime.codec import Total, undo_rotation

_CODECS = tuple(BITS)


def errors(updates: Updates, rounds: int) -> list[tuple[str, ...]]:
    """Rows of names, and for each number of bits the NMSE of the mean and of a single update."""
    found: dict[str, dict[int, str]] = {}
    for bits in BITS.values():
        for name, round_trip in lossy(bits).items():
            row = found.setdefault(name.replace(f"q{bits}", "qN"), {})
            row[bits] = "{:.3g} ({:.3g})".format(*_mean_and_single(updates, round_trip, rounds))
    return [(name, *(row.get(bits, "—") for bits in BITS.values())) for name, row in found.items()]


def _mean_and_single(updates: Updates, round_trip: RoundTrip, rounds: int) -> tuple[float, float]:
    means, singles = [], []
    for number in range(1, rounds + 1):
        total = np.zeros(updates.deltas.shape[1])
        for client, delta in enumerate(updates.deltas):
            read = round_trip(delta, client, number)
            total += read
            error = read - delta
            singles.append(float(np.dot(error, error)) / float(np.dot(delta, delta)))
        means.append(updates.error_of_mean((total / len(updates.deltas)).astype(np.float32)))
    return float(np.mean(means)), float(np.mean(singles))


def server_costs(updates: Updates) -> list[tuple[str, ...]]:
    """Milliseconds to add an update of each codec, and to rotate one back."""
    size = updates.deltas.shape[1]
    total = Total(size)
    rows: list[tuple[str, ...]] = []
    for codec in _CODECS:
        update = updates.read(updates.encode(0, codec, 1))
        rows.append((f"add an update of {codec}", f"{_ms(partial(update.add_to, total, 600.0)):.2f}"))
    vector = updates.deltas[0].copy()
    rows.append(
        ("rotate back: here once a round, for EDEN every update", f"{_ms(lambda: undo_rotation(vector, 1)):.2f}")
    )
    return rows


def _ms(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return median(seconds) * 1e3


def lossless(updates: Updates) -> list[tuple[str, ...]]:
    """Rows of codec, and for zlib's levels 1 and 6 the bytes saved and the milliseconds, there and back."""
    rows = []
    for codec in _CODECS:
        data = updates.encode(0, codec, 1)
        row = [codec, f"{len(data):,}"]
        for level in (1, 6):
            smaller = zlib.compress(data, level)
            there = _ms(partial(zlib.compress, data, level))
            back = _ms(partial(zlib.decompress, smaller))
            row.append(f"{1 - len(smaller) / len(data):.1%} in {there:.0f} ms and {back:.1f} ms")
        rows.append((*row, f"{1 - _entropy(np.frombuffer(data, np.uint8)) / 8:.1%}"))
    return rows


def _entropy(data: npt.NDArray[np.uint8]) -> float:
    """Bits a byte, as if bytes were independent: what a coder of single bytes could reach."""
    shares = np.bincount(data, minlength=256) / data.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def feedback(benchmarks: CodecBenchmarks, rounds: int, tell: Callable[[str], None]) -> list[tuple[str, ...]]:
    """Rows of scheme, and the 2NN's loss and accuracy after so many rounds of clients with all digits, and with two."""
    rows: list[tuple[str, ...]] = []
    for scheme in SCHEMES:
        row = [scheme]
        for dealing in ("iid", "shards"):
            tell(f"training with {scheme}, {dealing}")
            loss, accuracy = train(benchmarks.federation("mnist_2nn", dealing), scheme, rounds)
            row.append(f"{loss:.4f}, {accuracy:.2%}")
        rows.append(tuple(row))
    return rows


def _print(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    print(f"\n{title}\n")
    for row in (header, ("---",) * len(header), *rows):
        print("|", " | ".join(row), "|", flush=True)


def main() -> None:
    """Parse the arguments; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's four files; else the embedded digits")
    parser.add_argument("--rounds", type=int, default=20, help="of training with feedback")
    parser.add_argument("--only-feedback", action="store_true", help="the last table alone")
    parser.add_argument("--quick", action="store_true", help="few clients and rounds: to try whether it runs")
    options = parser.parse_args()

    def tell(figures: str) -> None:
        print(f"measuring: {figures}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        benchmarks = CodecBenchmarks(Path(folder), options.data_dir, options.quick, tell)
        if not options.only_feedback:
            _quantisers(benchmarks, CodecBenchmarks(Path(folder), options.data_dir, True, tell), options.quick)
        rounds = 2 if options.quick else options.rounds
        header = ("test loss, accuracy", "examples at random", "two digits a client")
        title = f"Feedback of errors: 2NN, 10 clients that return, {rounds} rounds"
        _print(title, header, feedback(benchmarks, rounds, tell))


def _quantisers(benchmarks: CodecBenchmarks, few: CodecBenchmarks, quick: bool) -> None:
    updates = benchmarks.updates("mnist_2nn")
    header = ("error of the mean (of one update)", *(f"{bits} bits" for bits in BITS.values()))
    title = f"Quantisers: normalised mean squared error, 2NN, {updates.source}"
    _print(title, header, errors(updates, 1 if quick else 3))
    updates = few.updates("mnist_cnn")
    _print("On the server: CNN", ("", "ms"), server_costs(updates))
    _print("A lossless stage: CNN", ("", "bytes", "zlib 1", "zlib 6", "entropy of bytes"), lossless(updates))


if __name__ == "__main__":
    main()
