"""A model as a bundle directory: convert, compute the golden values, self-test, then write."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime.bundle import (
    GOLDEN,
    INFER_ARTIFACT,
    MANIFEST,
    MANIFEST_HASH,
    MANIFEST_SIGNATURE,
    RUNTIME,
    SUFFIX,
    TRAIN_ARTIFACT,
    WEIGHTS,
    Bundle,
    FileEntry,
    Manifest,
    manifest_hash_file,
    open_bundle,
)
from device_runtime.errors import InputError
from device_runtime.signature import sign_manifest
from device_runtime.tensors import Weights, sha256
from device_runtime.weights import dump_weights, read_weights
from export.acceptance import accept, kernels_of
from export.convert import inference_artifact, training_artifact
from export.errors import ExportError
from export.footprint import step_footprint
from export.golden import golden_file
from export.operators import read_operators
from export.training_graph import TrainingGraph, describe
from models import ModelSpec, seeded_model


def export_bundle(
    spec: ModelSpec,
    out: Path,
    version: int = 1,
    seed: int = 0,
    weights_file: Path | None = None,
    key: Ed25519PrivateKey | None = None,
    representative: npt.NDArray[Any] | None = None,
) -> Bundle:
    """Make ``out/NAME-VERSION.bundle/``.

    Args:
        spec: the model.
        out: folder for the bundle; made if missing.
        version: the bundle's version; a device refuses an older one than it runs.
        seed: of the initial weights and of the golden batch.
        weights_file: safetensors file to take the weights from instead.
        key: signs the bundle; without one, it is not signed.
        representative: examples [n, …]; with them ``infer.tflite`` is quantised to 8 bits.

    Raises:
        InputError: the bundle exists already or can't be written, or the weights can't be read or are not finite.
        IntegrityError: the weights are another model's.
        ExportError: the model can't be exported.
        CheckFailedError: a runtime does not compute from the artifact what Keras does; nothing is written.
    """
    target = out / f"{spec.name}-{version}{SUFFIX}"
    try:
        taken = target.exists()
    except OSError as error:
        raise InputError(f"{target}: can't write it: {error.strerror}; change --out or --bundle-version") from None
    if taken:
        raise InputError(f"{target}: exists already; choose another --bundle-version or --out, or remove it")
    model = seeded_model(spec, seed)
    graph = TrainingGraph(spec, model)
    tensors = graph.tensors
    if weights_file is not None:
        for tensor, variable, value in zip(tensors, graph.weights, read_weights(weights_file, tensors), strict=True):
            if not np.isfinite(value).all():
                raise InputError(f"{weights_file}: tensor {tensor.name!r} holds values that are not finite")
            variable.assign(value)
    weights: Weights = tuple(variable.numpy() for variable in graph.weights)

    with _without_collector():
        functions = graph.functions()
        signatures = describe(functions)
        files = {
            TRAIN_ARTIFACT: training_artifact(functions),
            INFER_ARTIFACT: inference_artifact(graph.logits, spec.input, representative),
            WEIGHTS: dump_weights(weights, tensors),
            GOLDEN: golden_file(spec, weights, seed),
        }
    for name in (TRAIN_ARTIFACT, INFER_ARTIFACT):
        custom = read_operators(files[name], name).custom
        if custom:
            raise ExportError(f"{name}: operators that are no TFLite builtins: {', '.join(custom)}")
    with _without_collector():
        footprint = step_footprint(files[TRAIN_ARTIFACT])
    manifest = Manifest(
        name=spec.name,
        version=version,
        files={name: FileEntry(len(data), sha256(data)) for name, data in files.items()},
        signatures=signatures,
        tensors=tensors,
        variables=graph.stored_variables,
        loss=spec.loss,
        metric=spec.metric,
        optimizer=spec.optimizer.to_json(),
        inference="float32" if representative is None else "int8",
        runtime=RUNTIME,
        created=_created(),
        optimizer_state=graph.optimizer_state,
        footprint=footprint,
    )
    data = manifest.dump()

    def check(bundle: Bundle) -> None:
        accept(bundle, kernels_of(spec, model, seed))

    return _install(target, files | {MANIFEST: data, MANIFEST_HASH: manifest_hash_file(data)}, key, check)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's garbage collector would go through graphs of many thousand operators over and over, and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _install(
    target: Path, files: dict[str, bytes], key: Ed25519PrivateKey | None, check: Callable[[Bundle], None]
) -> Bundle:
    """Write beside the target, self-test and sign there, then rename: a bundle that exists is whole and checked."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=target.parent))
    except OSError as error:
        raise InputError(f"{target.parent}: can't write there: {error.strerror}") from None
    try:
        for name, data in files.items():
            (scratch / name).write_bytes(data)
        check(open_bundle(scratch))
        if key is not None:
            (scratch / MANIFEST_SIGNATURE).write_bytes(sign_manifest(files[MANIFEST], key))
        scratch.chmod(0o755)
        scratch.rename(target)
    except OSError as error:
        raise InputError(f"{target}: can't write it: {error.strerror}; change --out") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return open_bundle(target)


def _created() -> dict[str, str]:
    """When (SOURCE_DATE_EPOCH where it is set, for builds that repeat byte for byte) and with what versions."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return {
        "at": moment.isoformat(timespec="seconds"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
    }
