"""What is in a bundle: its manifest in short, operators and file sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from device_runtime.bundle import TRAIN_ARTIFACT, Bundle
from export.operators import Operators, read_operators


@dataclass(frozen=True)
class Inspection:
    """A bundle's manifest, the operators of its training artifact, and sizes of all files in bytes."""

    bundle: Bundle
    operators: Operators
    files: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        manifest = self.bundle.manifest
        return {
            "name": manifest.name,
            "version": manifest.version,
            "model_id": manifest.model_id,
            "identity": self.bundle.identity,
            "parameters": manifest.parameters,
            "tensors": {spec.name: str(spec) for spec in manifest.tensors},
            "examples": {spec.name: str(spec) for spec in manifest.examples},
            "operators": {**self.operators.builtin, **self.operators.custom},
            "flex": self.operators.flex,
            "custom": self.operators.other_custom,
            "files": self.files,
        }


def inspect_bundle(bundle: Bundle) -> Inspection:
    """Read the operators of a verified bundle's training artifact, and the sizes of its files."""
    path = bundle.file(TRAIN_ARTIFACT)
    operators = read_operators(path.read_bytes(), str(path))
    sizes = {name: bundle.file(name).stat().st_size for name in bundle.files}
    return Inspection(bundle, operators, sizes)
