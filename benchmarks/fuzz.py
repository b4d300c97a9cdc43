"""Fuzz the decoder of updates: .bench/fuzz/bin/python -m benchmarks.fuzz CORPUS -max_total_time=600

`make bench-setup` makes the environment, `make fuzz` runs it for ten minutes. libFuzzer's options come after the
folder of the corpus, which is filled with an update of every codec and model where it is empty. What is found to be
wrong ends the run, and is left as a file `crash-…`.

An input is the number of a model, then an update. Bytes that are changed at random nearly never have the right
checksum or length; so the mutator mends both, most of the time.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["device_runtime"]):
    from benchmarks.fuzz_target import MODEL, MODELS, fitted, sealed, survive
    from device_runtime import codec
    from device_runtime.errors import UpdateError
    from device_runtime.update import ClientUpdate

_outcomes: Counter[str] = Counter()
_REPORT = 50_000


def try_input(data: bytes) -> None:
    """One execution."""
    if not data:
        return
    _outcomes[survive(data[1:], MODELS[data[0] % len(MODELS)])] += 1
    if _outcomes.total() % _REPORT == 0:
        print("outcomes:", dict(_outcomes.most_common()), file=sys.stderr, flush=True)


def mutate(data: bytes, size: int, seed: int) -> bytes:
    """Change bytes; then mend, more often than not, the length and the checksum."""
    draws = random.Random(seed)  # noqa: S311
    if draws.random() < 0.1 or len(data) < 5:  # also the bytes of the checksum
        return bytes(atheris.Mutate(data, size))
    change = _header_changed if draws.random() < 0.3 else _changed
    content = change(bytes(data[:-4]), size - 4, draws)
    if not content:
        return content
    number, update = content[:1], content[1:]
    if draws.random() < 0.8:
        with contextlib.suppress(UpdateError):  # its header can't be read
            update = fitted(update, MODELS[number[0] % len(MODELS)])
    return (number + sealed(update))[:size]


def _changed(content: bytes, size: int, draws: random.Random) -> bytes:
    """As libFuzzer likes."""
    return bytes(atheris.Mutate(content, size))


def _header_changed(content: bytes, size: int, draws: random.Random) -> bytes:
    """Another model or codec, number or byte near the start or the end, where all that is not values stands."""
    changed = bytearray(content)
    place = draws.choice((0, 7, 8, draws.randrange(60), -1 - draws.randrange(40)))
    if -len(changed) <= place < len(changed):
        changed[place] = draws.choice((0, 1, 2, 3, 4, 5, 127, 128, 255, draws.randrange(256)))
    return bytes(changed)


def fill(corpus: Path) -> None:
    """Updates of every codec and model."""
    rng = np.random.default_rng(0)
    for number, specs in enumerate(MODELS):
        shapes = [[size for size in spec.shape if size is not None] for spec in specs]
        delta = tuple(rng.standard_normal(shape).astype(np.float32).reshape(shape) for shape in shapes)
        for name in codec.CODECS:
            update = ClientUpdate(delta, 600, 3, {"loss": 0.5})
            data = codec.encode(update, specs, MODEL, name, 11)
            (corpus / f"{name}-{number}").write_bytes(bytes([number]) + data)


def main() -> None:
    """Fuzz until libFuzzer's options say to stop."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m benchmarks.fuzz CORPUS [-max_total_time=SECONDS] [libFuzzer's options]")
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        fill(corpus)
    longest = 2 + max(codec.encoded_size(specs, "f32", ["a" * 255] * 16) for specs in MODELS)
    defaults = [f"-max_len={longest}", "-len_control=0", "-rss_limit_mb=600", "-timeout=10", "-print_final_stats=1"]
    tracemalloc.start()
    atheris.Setup([sys.argv[0], *defaults, *sys.argv[1:]], try_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
