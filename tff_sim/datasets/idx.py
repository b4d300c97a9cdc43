"""IDX files, the format of MNIST and its kin: big-endian magic number, dimensions, then unsigned bytes.

Format: http://yann.lecun.com/exdb/mnist/. The magic number's third byte is the type (8: unsigned byte),
its fourth the number of dimensions.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tff_sim.errors import DatasetError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, plain or compressed (the name ends in .gz).

    Raises:
        DatasetError: the file is missing, damaged or truncated, has another magic number than one of that
            many dimensions, or another size than its header says.
    """
    data = _read(path)
    expected = _UNSIGNED_BYTE << 8 | dimensions
    header = struct.Struct(f">{1 + dimensions}I")
    if len(data) < header.size:
        raise DatasetError(f"{path}: truncated: {len(data)} bytes, the header alone has {header.size}")
    magic, *shape = header.unpack_from(data)
    if magic != expected:
        raise DatasetError(
            f"{path}: wrong magic number 0x{magic:08x}; expected 0x{expected:08x}, an IDX file of unsigned bytes"
            f" with {dimensions} dimension{'s' * (dimensions > 1)}"
        )
    size = header.size + math.prod(shape)
    if len(data) != size:
        kind = "truncated" if len(data) < size else "too long"
        raise DatasetError(f"{path}: {kind}: {len(data)} bytes, its header says {size}")
    return np.frombuffer(data, np.uint8, offset=header.size).reshape(shape)


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: truncated or not a gzip file: {error}") from None
    except OSError as error:
        raise DatasetError(f"{path}: can't read it: {error.strerror}") from None
