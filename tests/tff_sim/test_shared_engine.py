"""Examples that TFF's worker reads from shared memory: the same rounds to the bit, and nothing that is left behind."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

import models
from device_runtime.errors import InputError
from device_runtime.examples import Examples
from device_runtime.work import ClientWork
from models import ModelSpec
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


@pytest.fixture(scope="module")
def engine() -> SharedEngine:
    return SharedEngine(SPEC, WORK, models.initial_weights(SPEC, 0))


@pytest.fixture(scope="module")
def reference() -> ProcessEngine:
    return ProcessEngine(build_fed_avg(SPEC, WORK, models.initial_weights(SPEC, 0)))


def _rounds(engine: Engine, clients: Mapping[str, Examples], work: ClientWork = WORK) -> list[EngineRound]:
    plans = {number: RoundPlan(dict.fromkeys(names, -0.5)) for number, names in enumerate(PLANS, start=1)}
    return [done.result for done in simulate(engine, always(clients), always(work), plans.__getitem__, plans)]


def test_its_rounds_are_those_of_the_process_to_the_bit(
    engine: SharedEngine, reference: ProcessEngine, clients: dict[str, Examples]
) -> None:
    wanted = _rounds(reference, clients)
    got = _rounds(engine, clients)
    other = _rounds(engine, clients, replace(WORK, learning_rate=0.1))
    _assert_equal(got, wanted)
    assert other[-1].weights[0].tobytes() != got[-1].weights[0].tobytes()


def _assert_equal(got: list[EngineRound], wanted: list[EngineRound]) -> None:
    for one, two in zip(got, wanted, strict=True):
        assert math.isfinite(one.train_loss)
        assert [w.tobytes() for w in one.weights] == [w.tobytes() for w in two.weights]
        assert replace(one, weights=(), state=None) == replace(two, weights=(), state=None)


def _with_dropout() -> tf.keras.Model:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Flatten(), layers.Dropout(0.5), layers.Dense(10, name="logits")]
    )


def _of_text() -> tf.keras.Model:
    layers = tf.keras.layers
    return tf.keras.Sequential([layers.Input((4,), dtype="int32"), layers.Embedding(9, 5), layers.Dense(9)])


TEXT = replace(SPEC, build=_of_text, input=tf.TensorSpec((None, 4), tf.int32), label=tf.TensorSpec((None, 4), tf.int32))


@pytest.mark.parametrize(
    ("spec", "work"),
    [
        (SPEC, replace(WORK, batch_size=None)),
        (SPEC, replace(WORK, codec="q8")),
        (replace(SPEC, build=_with_dropout), WORK),
        (TEXT, WORK),
    ],
    ids=["one batch", "encoded", "dropout", "text"],
)
def test_so_are_those_of_other_work_and_other_models(spec: ModelSpec, work: ClientWork) -> None:
    rng = np.random.default_rng(2)

    def examples(size: int) -> Examples:
        if spec is TEXT:
            return Examples(*rng.integers(0, 9, (2, size, 4), np.int32))
        return Examples(rng.random((size, 8, 8, 1), np.float32), rng.integers(0, 10, size, np.int32))

    clients = {"large": examples(13), "few": examples(3), "single": examples(1)}
    weights = models.initial_weights(spec, 0)
    wanted = _rounds(ProcessEngine(build_fed_avg(spec, work, weights)), clients, work)
    _assert_equal(_rounds(SharedEngine(spec, work, weights), clients, work), wanted)


@pytest.mark.parametrize("transposed", [False, True])
def test_bytes_of_images_become_the_numbers_that_the_process_takes(
    engine: SharedEngine, reference: ProcessEngine, transposed: bool
) -> None:
    rng = np.random.default_rng(1)

    def images(size: int) -> npt.NDArray[np.uint8]:
        values = rng.integers(0, 256, (size, 8, 8, 1), np.uint8)
        return values.transpose(0, 2, 1, 3) if transposed else values

    clients = {
        name: PixelExamples(images(size), rng.integers(0, 10, size, np.int32))
        for name, size in {"large": 128, "few": 3, "single": 1}.items()
    }
    _assert_equal(_rounds(engine, clients), _rounds(reference, clients))


def test_examples_that_are_a_view_of_others_are_read_as_they_are(
    engine: SharedEngine, reference: ProcessEngine, clients: dict[str, Examples]
) -> None:
    x, y = clients["large"].x, clients["large"].y
    views = clients | {"large": Examples(x[::-2], y[::-2])}
    copies = clients | {"large": Examples(x[::-2].copy(), y[::-2].copy())}
    _assert_equal(_rounds(engine, views), _rounds(reference, copies))


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        (
            Examples(np.zeros((2, 8, 8, 1)), np.zeros(2, np.int32)),
            "model 'digits_mlp' takes float32[None, 8, 8, 1], and the examples of 'one' have float64[1, 8, 8, 1]",
        ),
        (
            Examples(np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, np.int64)),
            "model 'digits_mlp' takes int32[None], and the examples of 'one' have int64[1]",
        ),
        (
            PixelExamples(np.zeros((2, 28, 28, 1), np.uint8), np.zeros(2, np.int32)),
            "model 'digits_mlp' takes float32[None, 8, 8, 1], and the examples of 'one' have float32[1, 28, 28, 1]",
        ),
    ],
)
def test_examples_of_another_model_are_refused(engine: SharedEngine, examples: Examples, said: str) -> None:
    with pytest.raises(InputError) as caught:
        engine.round(engine.initialize(), WORK, [ClientTask("one", examples, 0)])
    assert str(caught.value) == said


def test_a_label_that_the_model_has_no_output_for_ends_the_round_in_a_line(
    engine: SharedEngine, clients: dict[str, Examples]
) -> None:
    wrong = Examples(clients["few"].x, np.array([1, 10, 3], np.int32))
    with pytest.raises(InputError) as caught:
        engine.round(engine.initialize(), WORK, [ClientTask("one", wrong, 0)])
    assert re.fullmatch(
        r"TensorFlow can't train these clients \(.*Received a label value of 10 which is outside the valid range of"
        r" \[0, 10\)\..*\); do they fit the model\?",
        str(caught.value),
    )
    _rounds(engine, clients)  # the worker is none the worse


def test_memory_is_given_back_with_the_engine(clients: dict[str, Examples]) -> None:
    def descriptors() -> int:
        return sum(
            "memfd:pocketfed" in str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()
        )

    before = descriptors()
    engine = SharedEngine(SPEC, WORK, models.initial_weights(SPEC, 0))
    _rounds(engine, clients)
    assert descriptors() == before + 2 * 3  # two files a client, of the largest cohort
    del engine
    assert descriptors() == before


def test_a_client_without_examples_is_refused(engine: SharedEngine) -> None:
    nothing = Examples(np.zeros((0, 8, 8, 1), np.float32), np.zeros(0, np.int32))
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
