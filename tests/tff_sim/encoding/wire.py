"""What `tff_sim.encoding` encodes as the bytes that a device sends."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from device_runtime.codec import UpdateHeader, codec_named, write_update
from device_runtime.codec.levels import pack_nibbles
from device_runtime.codec.rotation import CHUNK
from device_runtime.tensors import FloatArray

_GROUP = {"q2": 2, "q1": 4}


def payload(codec: str, size: int, encoded: list[Any]) -> bytes:
    """The bytes of the values of an update with so many, from the chunks that `encode` gave."""
    codes: list[bytes] = []
    levels, exponents = [], []
    for piece in encoded:
        for row in range(piece["codes"].shape[0]):
            chunk = {name: np.asarray(tensor)[row] for name, tensor in piece.items()}
            codes.append(_codes(codec, chunk["codes"], min(CHUNK, size - CHUNK * len(codes))))
            levels.append(chunk.get("levels", np.zeros(0, np.uint8)))
            exponents.append(int(chunk.get("exponents", 0)))
    if codec == "f32":
        return b"".join(codes)
    if codec == "f16":
        return b"".join(codes) + np.exp2(exponents).astype("<f4").tobytes()
    return b"".join(codes) + np.array(exponents, "<i2").tobytes() + pack_nibbles(np.concatenate(levels)).tobytes()


def device_payload(codec: str, delta: FloatArray, round_number: int, seed: int) -> bytes:
    """The bytes of the values as a device writes them; `UpdateError` where it refuses."""
    file = io.BytesIO()
    header = UpdateHeader(codec_named(codec).number, "0" * 32, round_number, 1, seed)
    write_update(file, header, [delta])
    return file.getvalue()[len(header.pack()) : -4]


def _codes(codec: str, codes: Any, size: int) -> bytes:
    if codec in ("f32", "f16", "q8"):
        return bytes(codes[:size].tobytes())
    if codec == "q4":
        return pack_nibbles((codes[:size] + np.int8(8)).astype(np.uint8)).tobytes()
    groups = -(-size // _GROUP[codec])
    pairs = np.zeros(groups + groups % 2, np.uint8)
    pairs[:groups] = codes[:groups]
    return (pairs[0::2] | pairs[1::2] << 4).tobytes()
