"""Test vectors of the codec for other languages: python -m benchmarks.codec_vectors > docs/codec-vectors.json

`docs/codec.md` says what they hold. A test compares the file with what the codec computes today.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime import codec
from device_runtime.codec import tables
from device_runtime.codec.codebook import rotation
from device_runtime.codec.levels import scales_of
from device_runtime.codec.randomness import OVERLAP, ROTATION, ROUNDING, Draws
from device_runtime.codec.rotation import chunks, rotated
from device_runtime.tensors import FloatArray, TensorSpec
from device_runtime.update import ClientUpdate

MODEL_ID = "0123456789abcdef" * 2
METRICS = {"größe": -0.5, "loss": 0.25}
WEIGHT = 600
SMALL = (1, 2, 31, 32, 33, 100, 1000)
LARGE = (65_536, 65_537, 70_000, 131_077)
SPREAD = 40  # powers of two over which the values of a second input are spread
_GOLDEN = 0x9E3779B97F4A7C15


def values(size: int, spread: int = 1) -> FloatArray:
    """The input, float32 [size]: exact, whatever computes it."""
    places = np.arange(size, dtype=np.uint64)
    whole = ((places * np.uint64(2654435761) % np.uint64(2**32)) >> np.uint64(8)).astype(np.int64) - 2**23
    return np.ldexp(whole.astype(np.float32), -30 - np.arange(size) % spread)


def vector(name: str, size: int, spread: int = 1) -> dict[str, Any]:
    """An update of one tensor: the bytes, and what they decode to, or their hashes where they are long."""
    specs = (TensorSpec("t", (size,)),)
    seed, round_number = size * _GOLDEN % 2**64, 3 + size
    update = ClientUpdate((values(size, spread),), WEIGHT, round_number, METRICS)
    encoded = codec.encode(update, specs, MODEL_ID, name, seed)
    decoded = codec.decode(encoded, specs, MODEL_ID).delta[0].astype("<f4").tobytes()
    fields: dict[str, Any] = {"codec": name, "size": size, "spread": spread, "seed": f"{seed:016x}"}
    fields |= {"round": round_number, "encoded_bytes": len(encoded)}
    if size <= max(SMALL):
        fields |= {"encoded": encoded.hex(), "decoded": decoded.hex()}
    else:
        fields["encoded_sha256"] = hashlib.sha256(encoded).hexdigest()
    return fields | {"decoded_sha256": hashlib.sha256(decoded).hexdigest()}


def steps() -> dict[str, Any]:
    """What a decoder computes on its way, each alone."""
    keys = ((0, ROUNDING), (3, ROTATION), (2**64 - 1, OVERLAP))
    return {
        "philox": [{"key": _words(key), "words": _words(Draws(*key).words(8))} for key in keys],
        "coarse": {"seed": "000000000000000b", "numbers": Draws(11, ROUNDING).coarse(8).tolist()},
        "signs": {"round": 3, "signs": "".join("-" if sign < 0 else "+" for sign in Draws(3, ROTATION).signs(70))},
        "rotated": [
            {"round": 3, "values": values(size).tolist(), "rotated": _floats(rotated(chunks([values(size)]), 3))}
            for size in (8, 5)
        ],
        "rotations": [
            {"seed": "000000000000000b", "dimensions": d, "matrix": rotation(d, Draws(11, ROUNDING))} for d in (2, 4)
        ],
        "scales": [{"exponent": exponent, "scales": _floats([scales_of(exponent)])} for exponent in (0, 5, -83)],
    }


def constants() -> dict[str, Any]:
    """The codebooks: coordinates in 1/1024, lengths as float32."""
    points = {str(d): [[round(1024 * x) for x in point] for point in tables.POINTS[d]] for d in (2, 4)}
    return {"points": points, "lengths": {str(d): _floats([tables.LENGTHS[d]]) for d in (2, 4)}}


def document() -> dict[str, Any]:
    """The whole file."""
    small = [vector(name, size) for name in codec.CODECS for size in SMALL]
    spread = [vector(name, 100, SPREAD) for name in codec.CODECS]
    large = [vector(name, size) for name in codec.CODECS for size in LARGE]
    common = {"model_id": MODEL_ID, "weight": WEIGHT, "metrics": METRICS}
    return {**common, "vectors": small + spread + large, "steps": steps(), "constants": constants()}


def _words(words: Iterable[int] | npt.NDArray[np.uint64]) -> list[str]:
    return [f"{int(word):016x}" for word in words]


def _floats(parts: Iterable[FloatArray]) -> str:
    return np.concatenate(list(parts)).astype("<f4").tobytes().hex()


def text() -> str:
    """The file as it is written: a line a vector."""
    fields = document()
    vectors = fields.pop("vectors")
    lines = ",\n".join("  " + json.dumps(one, ensure_ascii=False) for one in vectors)
    rest = json.dumps(fields, indent=1, ensure_ascii=False)
    return f'{rest[:-2]},\n "vectors": [\n{lines}\n ]\n}}\n'


if __name__ == "__main__":
    print(text(), end="")
