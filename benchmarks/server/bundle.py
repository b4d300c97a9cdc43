"""Bundles for a server alone: real models' tensors, and nothing to train with. No server looks into an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from device_runtime.bundle import (
    FILES,
    MANIFEST,
    MANIFEST_HASH,
    SUFFIX,
    WEIGHTS,
    FileEntry,
    Manifest,
    StoredVariable,
    manifest_hash_file,
)
from device_runtime.tensors import TensorSpec, Weights, sha256
from device_runtime.weights import dump_weights

MODELS: dict[str, dict[str, tuple[int, ...]]] = {
    "digits_mlp": {"hidden": (64, 64), "logits": (64, 10)},
    "mnist_2nn": {"hidden_1": (784, 200), "hidden_2": (200, 200), "logits": (200, 10)},
    "mnist_cnn": {"conv_1": (5, 5, 1, 32), "conv_2": (5, 5, 32, 64), "hidden": (3136, 512), "logits": (512, 10)},
}
"""The shapes of their kernels; each has a bias of its last dimension's length."""


def tensors_of(model: str) -> tuple[TensorSpec, ...]:
    """The trainable weights of one of `MODELS`, in a manifest's order."""
    specs: list[TensorSpec] = []
    for layer, shape in MODELS[model].items():
        specs += [TensorSpec(f"{layer}/kernel", shape), TensorSpec(f"{layer}/bias", shape[-1:])]
    return tuple(specs)


def write_bundle(model: str, folder: Path) -> Path:
    """A bundle of the model in `folder`, whose weights are zero and whose artifacts are empty; its path."""
    specs = tensors_of(model)
    content = dict.fromkeys(FILES, b"") | {WEIGHTS: dump_weights(_zeros(specs), specs)}
    manifest = Manifest(
        name=model,
        version=1,
        files={name: FileEntry(len(data), sha256(data)) for name, data in content.items()},
        signatures={},
        tensors=specs,
        variables=tuple(StoredVariable(place, 0, spec.size) for place, spec in enumerate(specs)),
        loss="",
        metric="",
        optimizer={},
        inference="float32",
        runtime="",
        created={},
    )
    path = folder / f"{model}-1{SUFFIX}"
    path.mkdir(parents=True)
    data = manifest.dump()
    for name, piece in (content | {MANIFEST: data, MANIFEST_HASH: manifest_hash_file(data)}).items():
        (path / name).write_bytes(piece)
    return path


def _zeros(specs: Sequence[TensorSpec]) -> Weights:
    return tuple(np.zeros([d for d in spec.shape if d is not None], np.float32) for spec in specs)
