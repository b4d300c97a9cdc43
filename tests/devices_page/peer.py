"""Runs the signatures of an artifact for another process, which asks in the format of Java's DataOutputStream."""

from __future__ import annotations

import math
import struct
import sys
from typing import BinaryIO

import numpy as np

from device_runtime.interpreter import open_interpreter


def main(path: str, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer each request with all outputs, as float32, until there are no more."""
    interpreter = open_interpreter(path, 1)
    runners = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}

    def number() -> int:
        value: int = struct.unpack(">i", requests.read(4))[0]
        return value

    while length := requests.read(2):
        signature = requests.read(*struct.unpack(">H", length)).decode()
        inputs = {}
        for _ in range(number()):
            name, dtype = (requests.read(*struct.unpack(">H", requests.read(2))).decode() for _ in range(2))
            shape = [number() for _ in range(number())]
            values = np.frombuffer(requests.read(4 * math.prod(shape)), np.dtype(dtype).newbyteorder(">"))
            inputs[name] = values.astype(dtype).reshape(shape)
        outputs = runners[signature](**inputs)
        answers.write(struct.pack(">i", len(outputs)))
        for name, output in outputs.items():
            values = np.asarray(output, ">f4")  # of scalars too, which as such have no byte order
            answers.write(struct.pack(">H", len(name)) + name.encode() + struct.pack(">i", values.size))
            answers.write(values.tobytes())
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
