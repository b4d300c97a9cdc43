"""Examples that TFF's worker reads from shared memory: the same rounds to the bit, and nothing that is left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.work import ClientWork
from tff_sim import build_fed_avg
from tff_sim.engines.engine import ClientTask, Engine, EngineRound, ProcessEngine
from tff_sim.engines.shared import SharedEngine
from tff_sim.engines.shared_memory import SharedMemory
from tff_sim.pixels import PixelExamples
from tff_sim.plan import RoundPlan
from tff_sim.simulation import always, simulate

pytestmark = [
    pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning"),
    pytest.mark.usefixtures("tff_worker"),
]

SPEC = models.get("digits_mlp")
WORK = ClientWork(epochs=2, batch_size=5, learning_rate=0.2, seed=11)
# A slot of memory is used for fewer, then for more examples than before; and the cohort shrinks and grows.
PLANS = [["large", "few"], ["single"], ["few", "single", "large"]]


@pytest.fixture(scope="module")
def clients() -> dict[str, Examples]:
    rng = np.random.default_rng(0)
    sizes = {"large": 23, "few": 3, "single": 1}
    return {
        name: Examples(rng.random((size, 8, 8, 1), np.float32), rng.integers(0, 10, size, np.int32))
        for name, size in sizes.items()
    }


def _process(in_files: bool = True) -> Any:
    return build_fed_avg(SPEC, WORK, models.initial_weights(SPEC, 0), in_files=in_files)


@pytest.fixture(scope="module")
def process() -> Any:
    return _process()


@pytest.fixture(scope="module")
def reference() -> ProcessEngine:
    return ProcessEngine(_process(in_files=False))


def _rounds(engine: Engine, clients: Mapping[str, Examples], work: ClientWork = WORK) -> list[EngineRound]:
    plans = {number: RoundPlan(dict.fromkeys(names, -0.5)) for number, names in enumerate(PLANS, start=1)}
    return [done.result for done in simulate(engine, always(clients), always(work), plans.__getitem__, plans)]


def test_its_rounds_are_those_of_the_process_to_the_bit(
    process: Any, reference: ProcessEngine, clients: dict[str, Examples]
) -> None:
    wanted = _rounds(reference, clients)
    got = _rounds(SharedEngine(process), clients)
    other = _rounds(SharedEngine(process), clients, replace(WORK, learning_rate=0.1))
    for one, two in zip(got, wanted, strict=True):
        assert [w.tobytes() for w in one.weights] == [w.tobytes() for w in two.weights]
        assert replace(one, weights=(), state=None) == replace(two, weights=(), state=None)
    assert other[-1].weights[0].tobytes() != got[-1].weights[0].tobytes()


def test_bytes_of_images_become_the_numbers_that_the_process_takes(process: Any, reference: ProcessEngine) -> None:
    rng = np.random.default_rng(1)
    clients = {
        name: PixelExamples(rng.integers(0, 256, (size, 8, 8, 1), np.uint8), rng.integers(0, 10, size, np.int32))
        for name, size in {"large": 128, "few": 3, "single": 1}.items()
    }
    wanted, got = _rounds(reference, clients), _rounds(SharedEngine(process), clients)
    assert [w.tobytes() for w in got[-1].weights] == [w.tobytes() for w in wanted[-1].weights]
    assert got[-1].train_loss == wanted[-1].train_loss


def test_examples_that_are_a_view_of_others_are_read_as_they_are(
    process: Any, reference: ProcessEngine, clients: dict[str, Examples]
) -> None:
    x, y = clients["large"].x, clients["large"].y
    views = clients | {"large": Examples(x[::-2], y[::-2])}
    copies = clients | {"large": Examples(x[::-2].copy(), y[::-2].copy())}
    got, wanted = _rounds(SharedEngine(process), views), _rounds(reference, copies)
    assert [w.tobytes() for w in got[-1].weights] == [w.tobytes() for w in wanted[-1].weights]


def test_memory_is_given_back_with_the_engine(process: Any, clients: dict[str, Examples]) -> None:
    def descriptors() -> int:
        return sum(
            "memfd:pocketfed" in str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()
        )

    before = descriptors()
    engine = SharedEngine(process)
    _rounds(engine, clients)
    assert descriptors() == before + 2 * 3  # two files a client, of the largest cohort
    del engine
    assert descriptors() == before


def test_a_client_without_examples_is_refused(process: Any) -> None:
    nothing = Examples(np.zeros((0, 8, 8, 1), np.float32), np.zeros(0, np.int32))
    engine = SharedEngine(process)
    with pytest.raises(InputError, match=r"^a client without examples can't take part in a round"):
        engine.round(engine.initialize(), WORK, [ClientTask("nobody", nothing, 0)])


def test_what_is_written_is_what_the_path_holds() -> None:
    memory = SharedMemory()
    for arrays in ([np.arange(6, dtype=np.int32).reshape(2, 3).T, np.ones(2, np.float32)], [np.zeros(0)], [np.ones(1)]):
        memory.write(arrays)
        assert Path(memory.path).read_bytes() == b"".join(array.tobytes() for array in arrays)


LIMITED = """
import os, resource, sys
import numpy as np
from device_runtime.errors import InputError
from tff_sim.engines.shared_memory import SharedMemory
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    memory = [SharedMemory() for _ in range(100)]
    memory[-1].write([np.arange(3, dtype=np.uint8)])
    print(open(memory[-1].path, "rb").read())
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (("30", "200"), r"b'\x00\x01\x02'"),
        (
            ("30", "60"),
            "a round's clients need several open files each, and a process may have 60: lower --fraction, or raise the"
            " limit ('ulimit -Hn')",
        ),
    ],
)
def test_more_files_than_a_process_may_have_at_first(limits: tuple[str, str], said: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, *limits], check=True, capture_output=True, text=True, timeout=60
    )
    assert run.stdout.strip() == said
