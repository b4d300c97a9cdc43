"""docs/codec-vectors.json: what the codec computes, and what a decoder does that was written from its description."""

from __future__ import annotations

import hashlib
import json
import struct
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks.codec_vectors import LARGE, SMALL, document, text, values
from device_runtime import codec
from device_runtime.codec import codebook
from device_runtime.codec.randomness import Draws
from tests.device_runtime.codec import plain_decoder as plain
from tests.device_runtime.codec import plain_encoder

FILE = Path(__file__).parents[3] / "docs" / "codec-vectors.json"
CONTENT: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
POINTS = {int(dimensions): points for dimensions, points in CONTENT["constants"]["points"].items()}
LENGTHS = {int(dimensions): text for dimensions, text in CONTENT["constants"]["lengths"].items()}
SHORT = [vector for vector in CONTENT["vectors"] if "encoded" in vector]


def floats(text: str) -> list[float]:
    """Little-endian float32 in hexadecimal digits."""
    return list(struct.unpack(f"<{len(text) // 8}f", bytes.fromhex(text)))


def hexadecimal(numbers: list[float]) -> str:
    return struct.pack(f"<{len(numbers)}f", *numbers).hex()


def test_the_file_is_what_the_codec_computes() -> None:
    assert json.loads(text()) == document() == CONTENT, "python -m benchmarks.codec_vectors > docs/codec-vectors.json"
    assert FILE.read_text(encoding="utf-8") == text()
    assert FILE.stat().st_size < 200_000
    covered = {(vector["codec"], vector["size"]) for vector in CONTENT["vectors"]}
    assert covered == {(name, size) for name in codec.CODECS for size in (*SMALL, *LARGE)}


@pytest.mark.parametrize("size", [1, 33, 1000])
@pytest.mark.parametrize("spread", [1, 40])
def test_the_input_follows_from_whole_numbers(size: int, spread: int) -> None:
    wanted = [((i * 2654435761 % 2**32 >> 8) - 2**23) * 2.0 ** (-30 - i % spread) for i in range(size)]
    assert values(size, spread).tolist() == wanted


@pytest.mark.parametrize("vector", SHORT, ids=lambda vector: f"{vector['codec']}-{vector['size']}-{vector['spread']}")
def test_the_plain_decoder_reads_every_short_vector_to_the_same_bits(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["encoded"])
    assert len(data) == vector["encoded_bytes"]
    decoded = plain.decode(data, vector["size"], POINTS)
    assert codec.CODECS[decoded.codec] == vector["codec"]
    assert decoded.model.hex() == CONTENT["model_id"][:16]
    assert (decoded.round_number, decoded.weight) == (vector["round"], CONTENT["weight"])
    assert decoded.metrics == CONTENT["metrics"]
    assert hexadecimal(decoded.values) == vector["decoded"]
    assert hashlib.sha256(bytes.fromhex(vector["decoded"])).hexdigest() == vector["decoded_sha256"]


@pytest.mark.parametrize("vector", SHORT, ids=lambda vector: f"{vector['codec']}-{vector['size']}-{vector['spread']}")
def test_the_plain_encoder_writes_every_short_vector(vector: dict[str, Any]) -> None:
    data = plain_encoder.encode(
        codec.CODECS.index(vector["codec"]),
        bytes.fromhex(CONTENT["model_id"][:16]),
        vector["round"],
        CONTENT["weight"],
        int(vector["seed"], 16),
        CONTENT["metrics"],
        values(vector["size"], vector["spread"]).tolist(),
        POINTS,
        {dimensions: floats(text) for dimensions, text in LENGTHS.items()},
    )
    assert data.hex() == vector["encoded"]


def test_the_decoder_s_steps_are_those_of_the_file() -> None:
    steps = CONTENT["steps"]
    for one in steps["philox"]:
        words = plain.philox(*(int(half, 16) for half in one["key"]))
        assert [f"{word:016x}" for word in islice(words, 8)] == one["words"]
    one = steps["coarse"]
    assert plain.coarse(plain.philox(int(one["seed"], 16), plain.ROUNDING), 8) == one["numbers"]
    one = steps["signs"]
    drawn = plain.signs(plain.philox(one["round"], plain.ROTATION), len(one["signs"]))
    assert ["-" if sign < 0 else "+" for sign in drawn] == list(one["signs"])
    for one in steps["rotated"]:
        back = plain.rotated_back(floats(one["rotated"]), one["round"])
        assert back == pytest.approx(one["values"], abs=1e-9)
    for one in steps["rotations"]:
        words = plain.philox(int(one["seed"], 16), plain.ROUNDING)
        assert plain.matrix(words, one["dimensions"]) == one["matrix"]
    for one in steps["scales"]:
        assert [plain.scale(one["exponent"], level) for level in range(16)] == floats(one["scales"])


@pytest.mark.parametrize(("dimensions", "seed"), [(2, 1400), (2, 1934), (4, 1721), (4, 2284)])
def test_lengths_are_square_roots_not_powers(dimensions: int, seed: int) -> None:
    """The C library's power is off by a bit for these, and another library's for others."""
    drawn = codebook.rotation(dimensions, Draws(seed, plain.ROUNDING))
    assert drawn == plain.matrix(plain.philox(seed, plain.ROUNDING), dimensions)
