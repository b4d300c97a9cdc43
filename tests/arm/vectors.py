"""Codec vectors: run on the host and on an emulated device, it has to write the same files.

    python vectors.py DELTA.npz --out FOLDER [--decode FOLDER]

For each codec it encodes the delta, the arrays ``w0`` … of the file, as ``FOLDER/CODEC.update``, and writes what
the update of the folder that ``--decode`` names (its own without it) decodes to, as raw float32, to
``FOLDER/CODEC.values``.
"""

import argparse
from pathlib import Path

import numpy as np

from device_runtime import codec
from device_runtime.tensors import TensorSpec
from device_runtime.update import ClientUpdate

MODEL = "0123456789abcdef" * 2
SEED = 2**53 - 1
METRICS = {"loss": 0.1, "größe": -1e300}


def main() -> None:
    """Parse the arguments and write the files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("delta", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--decode", type=Path)
    options = parser.parse_args()
    with np.load(options.delta) as arrays:
        delta = tuple(arrays[f"w{index}"] for index in range(len(arrays.files)))
    specs = tuple(TensorSpec(f"w{index}", tensor.shape) for index, tensor in enumerate(delta))
    options.out.mkdir()
    for name in codec.CODECS:
        data = codec.encode(ClientUpdate(delta, 2**64 - 1, 2**32 - 1, METRICS), specs, MODEL, name, SEED)
        assert len(data) == codec.encoded_size(specs, name, tuple(METRICS)), name
        (options.out / f"{name}.update").write_bytes(data)
        given = data if options.decode is None else (options.decode / f"{name}.update").read_bytes()
        update = codec.decode(given, specs, MODEL)
        assert (update.weight, update.round_number, update.metrics) == (2**64 - 1, 2**32 - 1, METRICS), name
        values = b"".join(tensor.astype("<f4").tobytes() for tensor in update.delta)
        (options.out / f"{name}.values").write_bytes(values)


if __name__ == "__main__":
    main()
