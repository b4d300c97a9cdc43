"""The Kotlin of docs/devices.md, compiled and run: its round is, byte for byte, that of the device's own runtime."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from device_runtime.batching import epoch_order
from device_runtime.bundle import TRAIN_ARTIFACT, Bundle
from device_runtime.codec import encode
from device_runtime.examples import Examples
from device_runtime.messages import TOKEN, CheckIn, Enrolment
from device_runtime.trainer import Trainer
from device_runtime.transport import Caller
from device_runtime.work import ClientWork, step_seeds

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "devices.md").read_text(encoding="utf-8")
LARGEST_SEED = 2**53 - 1


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program made of the page's blocks in their order, `app.kt` and `interpreter.kt`."""
    compiler = shutil.which("kotlinc")
    if compiler is None or shutil.which("java") is None:
        pytest.skip("no kotlinc or no java: install Debian's kotlin and default-jre-headless")
    folder = tmp_path_factory.mktemp("kotlin")
    lines = [line for block in re.findall(r"```kotlin\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    imports = [line for line in lines if line.startswith("import ")]
    (folder / "page.kt").write_text("\n".join(imports + [line for line in lines if line not in imports]))
    sources = [str(folder / "page.kt"), str(HERE / "app.kt"), str(HERE / "interpreter.kt")]
    compiled = subprocess.run(
        [compiler, *sources, "-include-runtime", "-d", str(folder / "app.jar")],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr
    return folder / "app.jar"


@pytest.fixture(scope="module")
def cnn_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a kernel that is stored in several runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow 2.14 uses what its dependencies have deprecated since
        import models
        from export.bundle_writer import export_bundle

        return export_bundle(models.get("mnist_cnn"), tmp_path_factory.mktemp("cnn"), seed=0)


def _numbers(values: Sequence[int]) -> bytes:
    return struct.pack(f">{len(values) + 1}i", len(values), *values)


def _write_input(path: Path, bundle: Bundle, examples: Examples, work: ClientWork, round_number: int) -> None:
    """What `app.kt` reads."""
    manifest = bundle.manifest
    shapes = [[size for size in spec.shape if size is not None] for spec in manifest.tensors]
    variables = [[one.tensor, one.start, one.size, int(one.transposed)] for one in manifest.variables]
    parts = [struct.pack(">i", len(shapes)), *map(_numbers, shapes)]
    parts += [struct.pack(">i", len(variables)), *map(_numbers, variables)]
    parts += [tensor.astype(">f4").tobytes() for tensor in bundle.initial_weights()]
    parts += [_numbers(examples.x.shape), examples.x.astype(">f4").tobytes(), _numbers(examples.y.tolist())]
    parts += [bytes.fromhex(manifest.model_id)]
    parts += [_numbers([work.epochs, work.batch_size or 0, work.seed, round_number])]
    path.write_bytes(b"".join([*parts, struct.pack(">2f", work.learning_rate, work.proximal)]))


@pytest.mark.parametrize(
    ("name", "work", "count"),
    [
        ("digits", ClientWork(epochs=2, batch_size=10, learning_rate=0.125, seed=5), 23),
        ("digits", ClientWork(epochs=3, batch_size=None, learning_rate=0.125, proximal=0.5, seed=6), 7),
        ("cnn", ClientWork(epochs=1, batch_size=2, learning_rate=0.125, seed=7), 3),
    ],
    ids=["digits", "proximal", "cnn"],
)
def test_an_app_s_round_is_the_device_s_byte_for_byte(
    name: str, work: ClientWork, count: int, app: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle: Bundle = request.getfixturevalue(f"{name}_bundle")
    rng = np.random.default_rng(0)
    shape = [size for size in bundle.manifest.examples[0].shape if size is not None]
    examples = Examples(rng.random((count, *shape), np.float32), rng.integers(0, 10, count, np.int32))
    _write_input(tmp_path / "input", bundle, examples, work, 4)
    run = subprocess.run(
        ["java", "-jar", str(app), str(bundle.file(TRAIN_ARTIFACT)), str(tmp_path / "input"), str(tmp_path / "update")],
        env={**os.environ, "PEER": f"{sys.executable}\n{HERE / 'peer.py'}"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr

    trainer = Trainer(bundle)
    update = trainer.train(bundle.initial_weights(), examples, work, 4).collect()
    tensors, model_id = bundle.manifest.tensors, bundle.manifest.model_id
    assert (tmp_path / "update").read_bytes() == encode(update, tensors, model_id, "f32", work.seed)
    sums, logits, order, seeds = (line.split() for line in run.stdout.splitlines())
    evaluation = trainer.evaluate(examples)
    expected = [evaluation.loss * count, evaluation.accuracy * count, count]
    np.testing.assert_allclose([float(value) for value in sums], expected, rtol=1e-6)
    np.testing.assert_array_equal(np.array(logits, np.float32), trainer.infer(examples.x).reshape(-1))
    assert int(order[0]) == _hash_of_order(100_000, 3)
    assert [int(value) for value in seeds] == step_seeds(LARGEST_SEED, 5).tolist()


def _hash_of_order(examples: int, epoch: int) -> int:
    """As `app.kt` computes it, in 32 bits with a sign."""
    value = 7
    for index in epoch_order(examples, LARGEST_SEED, epoch).tolist():
        value = (31 * value + index) & 0xFFFFFFFF
    return value - (value >> 31 << 32)


def test_an_app_s_calls_are_the_protocol_s(app: Path) -> None:
    requests: list[tuple[str, str, bytes, dict[str, str]]] = []
    answers = [(200, b"enrolled"), (200, b"accept"), (200, b"wait"), (401, b"unknown"), (404, b"")]
    given = iter(answers)

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append((self.command, self.path, body, dict(self.headers)))
            status, content = next(given)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = handle_any  # noqa: N815

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        run = subprocess.run(
            ["java", "-jar", str(app), "call", url],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        server.shutdown()
        thread.join()
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [f"{status} {body.decode()}" for status, body in answers]

    calls = [
        "POST /v1/enrol",
        "POST /v1/check-in",
        "GET /v1/configuration",
        "POST /v1/report",
        "GET /v1/weights/latest",
    ]
    assert [f"{method} {path}" for method, path, *_ in requests] == calls
    enrolment = Enrolment(**json.loads(requests[0][2]))
    assert (enrolment.code, enrolment.client) == ("a-code", "phone-0")
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", enrolment.secret)
    assert CheckIn(**json.loads(requests[1][2])) == CheckIn("digits_mlp", "phone-0", "LiteRT")
    assert requests[3][2] == b"\x01\xff\x00"
    authorization = Caller("phone-0", enrolment.secret).authorization
    named = [headers.get("Authorization") for *_, headers in requests]
    assert named == [None, *[authorization] * 4]
    assert [headers.get(TOKEN) for *_, headers in requests] == [None, None, "the-token", "the-token", None]
    kinds = [headers.get("Content-Type") for *_, headers in requests]
    assert kinds == ["application/json", "application/json", None, "application/octet-stream", None]
