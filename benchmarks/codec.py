"""The benchmarks of `pocketfed bench codec`: size, error, time and memory of encoded updates."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np

from aggregation_server.aggregation.partial_sum import PartialSum
from benchmarks import eden
from benchmarks.deltas import CLIENTS, Federation, Task, load_task, real_deltas
from benchmarks.exported import exported
from benchmarks.result import Result
from benchmarks.suite import Progress, chosen, measure_each
from benchmarks.turns import Local, Plan, by_turns
from device_runtime.bundle import Bundle, open_bundle
from device_runtime.codec import (
    EncodedUpdate,
    Total,
    UpdateHeader,
    codec_named,
    encoded_size,
    read_update,
    shaped,
    write_update,
)
from device_runtime.tensors import FloatArray, TensorSpec
from device_runtime.trainer import Trainer

BITS = {"q8": 8, "q4": 4, "q2": 2, "q1": 1}
_MODELS = {"": "mnist_cnn", "_mlp": "mnist_2nn"}
_METRICS = {"loss": 0.25}
_REPETITIONS = 5
_BLOCK = 512  # of the plain 8-bit decoder
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Updates:
    """Real changes of a model's weights, float32 [clients, values], and what comes with them."""

    deltas: FloatArray
    specs: tuple[TensorSpec, ...]
    model_id: str
    source: str

    def encode(self, client: int, codec: str, round_number: int) -> bytes:
        """One client's update, with a seed of its own in every round."""
        seed = round_number * len(self.deltas) + client
        header = UpdateHeader(codec_named(codec).number, self.model_id, round_number, 600, seed, _METRICS)
        file = BytesIO()
        write_update(file, header, shaped(self.deltas[client], self.specs))
        return file.getvalue()

    def read(self, data: bytes) -> EncodedUpdate:
        return read_update(data, self.specs, self.model_id)

    def error_of_mean(self, mean: FloatArray) -> float:
        """|mean − true mean|² over the clients' mean |x|²."""
        error = mean.astype(np.float64) - self.deltas.mean(axis=0, dtype=np.float64)
        squares = sum(float(np.dot(delta, delta)) for delta in self.deltas)
        return float(np.dot(error, error)) * len(self.deltas) / squares


class CodecBenchmarks:
    """The benchmarks by name; clients are trained once a model.

    Args:
        folder: for bundles.
        data_dir: with MNIST's files; the embedded digits, enlarged, without one.
        quick: few clients and repetitions: to try whether it runs.
        tell: told what is going on.
    """

    def __init__(self, folder: Path, data_dir: Path | None, quick: bool = False, tell: Tell = lambda figures: None):
        self._folder, self._data_dir, self._quick, self._tell = folder, data_dir, quick, tell
        self._clients = 5 if quick else CLIENTS
        self.updates = cache(self._updates)
        self._task = cache(self._load_task)
        self._bundle = cache(self._open_bundle)

    @property
    def all(self) -> dict[str, Callable[[], Result]]:
        """Name → function that measures it."""
        named: dict[str, Callable[[str], Result]] = {}
        for suffix, model in _MODELS.items():
            for codec in BITS:
                named[f"nmse_vs_eden{suffix}_{codec}"] = partial(self._error, model, codec)
        for codec in BITS:
            named[f"bytes_{codec}"] = partial(self._bytes, codec)
        for codec in BITS:
            named[f"encode_vs_step_{codec}"] = partial(self._encoding, codec)
        named["encode_vs_step"] = self._slowest_encoding
        for codec in BITS:
            named[f"decode_add_vs_plain_{codec}"] = partial(self._decoding, codec)
        for codec in BITS:
            named[f"encode_extra_memory_{codec}"] = partial(self._memory, codec)
        return {name: partial(measure, name) for name, measure in named.items()}

    def check_data(self) -> None:
        """Read the examples now: what is wrong with them is told before the minutes of training."""
        self._task()

    def _error(self, model: str, codec: str, name: str) -> Result:
        updates, bits = self.updates(model), BITS[codec]
        ours = [_mean_error(updates, codec, 1 + number) for number in range(1 if self._quick else _REPETITIONS)]
        # One rotation a client: its errors average out within a single mean.
        reference = _eden_error(updates, bits)
        value = float(np.mean(ours))
        apart = f"{min(ours) / reference:.3f} to {max(ours) / reference:.3f} in {len(ours)} rounds"
        sizes = (
            f"{encoded_size(updates.specs, codec):,} bytes, EDEN {eden.encoded_size(updates.deltas.shape[1], bits):,}"
        )
        return Result(name, value, "NMSE", f"EDEN, {bits} bits", reference, f"{updates.source}; {apart}; {sizes}")

    def _bytes(self, codec: str, name: str) -> Result:
        specs = self._bundle("mnist_cnn").manifest.tensors
        size = encoded_size(specs, codec, tuple(_METRICS))
        return Result(name, size / 1e6, "MB", "float32", 4 * sum(spec.size for spec in specs) / 1e6)

    def _encoding(self, codec: str, name: str) -> Result:
        updates, step = self.updates("mnist_cnn"), self._step()
        encoding = Local(partial(updates.encode, 0, codec, 1))
        value, reference = by_turns(encoding, Local(step), Plan(2, 2) if self._quick else Plan(12, 8))
        return Result(name, value, "ms", "one training step, B = 10, 1 thread", reference)

    def _slowest_encoding(self, name: str) -> Result:
        return max((self._encoding(codec, name) for codec in BITS), key=lambda result: result.ratio)

    def _decoding(self, codec: str, name: str) -> Result:
        updates = self.updates("mnist_cnn")
        update, total = updates.read(updates.encode(0, codec, 1)), Total(updates.deltas.shape[1])
        plain = Local(_plain_decoder(updates.deltas.shape[1]))
        ours = Local(lambda: update.add_to(total, 600.0))
        value, reference = by_turns(ours, plain, Plan(2, 2) if self._quick else Plan(15, 20))
        return Result(name, value, "ms", "8-bit codes times scales, added", reference)

    def _memory(self, codec: str, name: str) -> Result:
        updates = self.updates("mnist_cnn")
        header = UpdateHeader(codec_named(codec).number, updates.model_id, 1, 600, 0, _METRICS)
        tensors = shaped(updates.deltas[0], updates.specs)
        sink = cast(BytesIO, _Sink())
        write_update(sink, header, tensors)
        tracemalloc.start()
        try:
            write_update(sink, header, tensors)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        limit = 2 * max(tensor.nbytes for tensor in tensors)
        return Result(name, peak / 1e6, "MB", "twice the largest tensor", limit / 1e6)

    def _step(self) -> Callable[[], object]:
        bundle = self._bundle("mnist_cnn")
        trainer = Trainer(bundle)
        trainer.set_weights(bundle.initial_weights(), anchor=False)
        examples = next(iter(self._task().clients.values()))
        return partial(trainer.step, examples.x[:10], examples.y[:10], 0.01)

    def federation(self, model: str, dealing: str = "iid") -> Federation:
        """A new training of this model, from its initial weights."""
        return Federation(self._bundle(model), self._task(dealing))

    def _updates(self, model: str) -> Updates:
        federation, task = self.federation(model), self._task()
        deltas = real_deltas(federation, self._clients, lambda figures: self._tell(f"{model}: {figures}"))
        source = task.title if self._clients == CLIENTS else f"{self._clients} of {task.title}"
        return Updates(deltas, federation.specs, federation.model_id, source)

    def _open_bundle(self, model: str) -> Bundle:
        self._tell(f"exporting {model}")
        return open_bundle(exported(model, self._folder)[0])

    def _load_task(self, dealing: str = "iid") -> Task:
        return load_task(self._data_dir, CLIENTS, dealing)


class _Sink:
    """A file that keeps nothing."""

    def write(self, piece: bytes) -> int:
        return len(piece)


def _mean_error(updates: Updates, codec: str, round_number: int) -> float:
    """Of the mean that a server computes in this round."""
    aggregate = PartialSum(updates.specs)
    for client in range(len(updates.deltas)):
        aggregate.add(updates.read(updates.encode(client, codec, round_number)))
    return updates.error_of_mean(np.concatenate([tensor.reshape(-1) for tensor in aggregate.result()]))


def _eden_error(updates: Updates, bits: int) -> float:
    total = np.zeros(updates.deltas.shape[1], np.float64)
    for client, delta in enumerate(updates.deltas):
        total += eden.round_trip(delta, bits, client)
    return updates.error_of_mean((total / len(updates.deltas)).astype(np.float32))


def _plain_decoder(size: int) -> Callable[[], None]:
    """Codes of 8 bits, a scale each 512: what a decoder costs at least that is written in numpy."""
    rng = np.random.default_rng(0)
    size = -(-size // _BLOCK) * _BLOCK
    codes = rng.integers(-127, 128, size, np.int8)
    scales = rng.random(size // _BLOCK, np.float32)
    total = np.zeros(size, np.float32)

    def decode_and_add() -> None:
        nonlocal total
        values = codes.astype(np.float32).reshape(-1, _BLOCK)
        values *= scales[:, None]
        total += values.reshape(-1)

    return decode_and_add


NAMES = tuple(CodecBenchmarks(Path(), None).all)


def run_codec_benchmarks(
    names: Sequence[str],
    data_dir: Path | None,
    quick: bool,
    progress: Progress = lambda done, figures: None,
) -> list[Result]:
    """Measure what `names` says, or everything where it is empty.

    Args:
        names: of `NAMES`.
        data_dir: the folder with MNIST's four files; without one, the embedded digits are enlarged.
        quick: few clients and repetitions: to try whether it runs.
        progress: told how many are done, and of the next one or what it does.

    Raises:
        BenchmarkError: a name is unknown, or an export failed.
        DatasetError: the data can't be read.
    """
    names = chosen(names, NAMES)
    done = 0

    def count(measured: int, figures: str) -> None:
        nonlocal done
        done = measured
        progress(measured, figures)

    with tempfile.TemporaryDirectory() as folder:
        benchmarks = CodecBenchmarks(Path(folder), data_dir, quick, lambda figures: progress(done, figures))
        benchmarks.check_data()
        return measure_each(names, lambda name: benchmarks.all[name](), count)
