"""What `make fuzz` looks for, for a few seconds: any bytes give an update or an error, in bounded memory."""

from __future__ import annotations

import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_target import MODEL, MODELS, REASONS, fitted, sealed, survive
from benchmarks.turns import ROOT
from device_runtime import codec
from device_runtime.errors import UpdateError
from device_runtime.tensors import TensorSpec
from device_runtime.update import ClientUpdate

PYTHON = ROOT / ".bench" / "fuzz" / "bin" / "python"


@pytest.fixture(autouse=True, scope="module")
def memory_is_traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def encoded(name: str, specs: tuple[TensorSpec, ...], seed: int = 0) -> bytes:
    """An update without its checksum."""
    size = codec.values_of(specs)
    delta = codec.shaped(np.random.default_rng(size).standard_normal(size).astype(np.float32), specs)
    return codec.encode(ClientUpdate(delta, 600, 3, {"loss": 0.5}), specs, MODEL, name, seed)[:-4]


ORIGINALS = {(name, number): encoded(name, specs) for name in codec.CODECS for number, specs in enumerate(MODELS)}


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(ORIGINALS)),
    st.lists(st.tuples(st.one_of(st.integers(0, 60), st.integers(-300, -1)), st.binary(min_size=1, max_size=4))),
    st.one_of(st.none(), st.integers(0, 300)),
)
def test_damaged_updates_of_every_codec_and_model(
    original: tuple[str, int], changes: list[tuple[int, bytes]], end: int | None
) -> None:
    content = bytearray(ORIGINALS[original])
    for place, data in changes:
        start = place % len(content)
        content[start : start + len(data)] = data
    cut = bytes(content[:end])
    specs = MODELS[original[1]]
    assert survive(bytes(content), specs) in ("checksum", "truncated")
    assert survive(sealed(cut), specs) in (*codec.CODECS, *REASONS)
    try:
        mended = fitted(cut, specs)
    except UpdateError as error:
        assert error.reason in REASONS
    else:
        assert survive(sealed(mended), specs) in (*codec.CODECS, *REASONS)


@pytest.mark.parametrize("name", codec.CODECS)
@pytest.mark.parametrize("number", range(len(MODELS)))
def test_undamaged_ones_are_read(name: str, number: int) -> None:
    assert survive(sealed(ORIGINALS[name, number]), MODELS[number]) == name


@pytest.mark.parametrize("name", codec.CODECS)
def test_memory_is_bounded_where_every_chunk_is_different(name: str) -> None:
    """An exponent of its own for each chunk: as many tables as a decoder can be made to compute."""
    specs = (TensorSpec("t", (700, 700)),)
    content = bytearray(encoded(name, specs))
    chunks = -(-codec.values_of(specs) // 65_536)
    levels = -(-codec.values_of(specs) // 32) // 2 + 1
    if name == "f16":
        content[-4 * chunks :] = np.exp2(np.arange(chunks)).astype("<f4").tobytes()
    elif name != "f32":
        start = len(content) - levels - 2 * chunks
        content[start : start + 2 * chunks] = (100 + np.arange(chunks)).astype("<i2").tobytes()
    assert survive(sealed(bytes(content)), specs) == name
    assert codec.read_update(sealed(bytes(content)), specs, MODEL).finite


def test_a_decoder_that_takes_more_is_found() -> None:
    """The bound can fail: here, whoever looks at the tensors takes memory."""
    specs = MODELS[4]
    data = sealed(ORIGINALS["q1", 4])
    waste = [np.zeros(400_000, np.float64)]

    class Wasteful(tuple):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[TensorSpec]:
            waste.append(np.zeros(400_000, np.float64))
            return super().__iter__()

    with pytest.raises(AssertionError, match=r"^\d+ bytes of memory, allowed \d+$"):
        survive(data, Wasteful(specs))


@pytest.mark.skipif(not PYTHON.exists(), reason="the fuzzer's environment is missing: make bench-setup")
def test_the_fuzzer_runs(tmp_path: Path) -> None:
    command = [str(PYTHON), "-m", "benchmarks.fuzz", str(tmp_path / "corpus")]
    # A process inherits the peak of the one that starts it: the limit on it is the fuzzer's own affair.
    command += ["-runs=100", "-rss_limit_mb=0", f"-artifact_prefix={tmp_path}/"]
    run = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "stat::number_of_executed_units: " in run.stderr
    assert len(list((tmp_path / "corpus").iterdir())) >= len(ORIGINALS)
