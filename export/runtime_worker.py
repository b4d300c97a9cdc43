"""A process that runs TFLite files in the interpreter of its own Python: ``python -m export.runtime_worker``.

It is started by `export.runtimes.Runtime`, and has NumPy and the interpreter alone: no TensorFlow. First it prints the
interpreter's name. Then each line that it reads is JSON with ``folder`` and ``threads``: it makes the calls of
``calls.json`` (names of signatures) with the arrays of ``inputs.npz`` to ``artifact.tflite``, writes
``outputs.npz``, and prints one line, empty or with what went wrong. An array's name is the number of its call, a
slash, and its name in the signature.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from device_runtime.interpreter import open_interpreter, runtime_version


def main() -> None:
    """Serve until the input ends."""
    answer = sys.stdout
    sys.stdout = sys.stderr  # what an interpreter prints is no answer
    print(runtime_version(), file=answer, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        try:
            _run(Path(task["folder"]), int(task["threads"]))
            problem = ""
        except Exception as error:  # whatever it is, the other side has to hear of it
            problem = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        print(problem, file=answer, flush=True)


def _run(folder: Path, threads: int) -> None:
    interpreter = open_interpreter(str(folder / "artifact.tflite"), threads)
    signatures = json.loads((folder / "calls.json").read_text())
    runners = {name: interpreter.get_signature_runner(name) for name in signatures}
    inputs: list[dict[str, Any]] = [{} for _ in signatures]
    with np.load(folder / "inputs.npz", allow_pickle=False) as arrays:
        for key in arrays.files:
            call, _, name = key.partition("/")
            inputs[int(call)][name] = arrays[key]
    outputs = {}
    for call, (signature, given) in enumerate(zip(signatures, inputs, strict=True)):
        for name, value in runners[signature](**given).items():
            outputs[f"{call}/{name}"] = np.array(value)  # a copy: the interpreter's own memory changes
    np.savez(folder / "outputs.npz", **outputs)


if __name__ == "__main__":
    main()
