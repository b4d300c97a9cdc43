"""An update as bytes. docs/codec.md gives the format to the bit, and says why it is as it is.

    delta ── chunks ──► rotation ──► q8, q4: dithered levels ──┐
               │                     q2, q1: turned points  ───┼──► header, values, checksum
               └──────────────────► f32, f16 ──────────────────┘

All codecs are unbiased: E[decode(encode(x))] = x, which is what lets the errors of many clients average out. A decoder
trusts no length: the size of everything follows from the manifest's tensors, so the whole input is measured against
them before anything is allocated.
"""

from device_runtime.codec.codecs import CODECS, codec_named, values_of
from device_runtime.codec.encoding import (
    EncodedUpdate,
    decode,
    encode,
    encoded_size,
    read_update,
    require_codec,
    require_finite,
    shaped,
    write_update,
)
from device_runtime.codec.rotation import undo as undo_rotation
from device_runtime.codec.total import Total
from device_runtime.codec.update_format import MAX_METRICS, UpdateHeader

__all__ = [
    "CODECS",
    "MAX_METRICS",
    "EncodedUpdate",
    "Total",
    "UpdateHeader",
    "codec_named",
    "decode",
    "encode",
    "encoded_size",
    "read_update",
    "require_codec",
    "require_finite",
    "shaped",
    "undo_rotation",
    "values_of",
    "write_update",
]
