"""What a tensor looks like: its name, shape and dtype. Shared by manifests, weight files and updates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from device_runtime.errors import IntegrityError

FloatArray = npt.NDArray[np.float32]
Weights = tuple[FloatArray, ...]
"""A model's trainable weights in the manifest's order, each float32."""

DTYPES = ("float32", "int32")
_ROWS = 1024  # that are looked at in one go, so that a check takes little memory


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one tensor; a dimension of None is free (the batch)."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of elements.

        Raises:
            ValueError: a dimension is free.
        """
        size = 1
        for dimension in self.shape:
            if dimension is None:
                raise ValueError(f"{self.name}: the number of elements of {self.shape} is not known")
            size *= dimension
        return size

    def accepts(self, array: npt.NDArray[Any]) -> bool:
        """True where `array` has this dtype and shape."""
        return (
            array.dtype == np.dtype(self.dtype)
            and len(array.shape) == len(self.shape)
            and all(want is None or want == got for want, got in zip(self.shape, array.shape, strict=True))
        )

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('n' if d is None else str(d) for d in self.shape)}]"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, value: Any, where: str) -> TensorSpec:
        """Read what `to_json` wrote.

        Raises:
            IntegrityError: a field is missing or has another type; `where` names its place.
        """
        if not isinstance(value, dict):
            raise IntegrityError(f"{where}: expected an object with name, shape and dtype")
        name, shape, dtype = value.get("name"), value.get("shape"), value.get("dtype")
        if not isinstance(name, str) or not name:
            raise IntegrityError(f"{where}.name: expected a non-empty string")
        if not isinstance(shape, list) or not all(
            d is None or (isinstance(d, int) and not isinstance(d, bool) and d > 0) for d in shape
        ):
            raise IntegrityError(f"{where}.shape: expected a list of positive integers or null")
        if dtype not in DTYPES:
            raise IntegrityError(f"{where}.dtype: expected one of {', '.join(DTYPES)}")
        return cls(name, tuple(shape), dtype)


def is_finite(array: npt.NDArray[Any]) -> bool:
    """Whether all numbers of an array [n, …] are finite, as whole ones are."""
    if array.dtype.kind != "f":
        return True
    return all(bool(np.isfinite(array[start : start + _ROWS]).all()) for start in range(0, len(array), _ROWS))


def describe(array: npt.NDArray[Any]) -> str:
    """dtype and shape of an array as a `TensorSpec` prints them, for error messages."""
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"


def identity_of(*arrays: npt.NDArray[Any]) -> str:
    """SHA-256, in hexadecimal, of types, shapes and values: equal for the same arrays and for no others."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(describe(array).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, UTF-8, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def sha256(data: bytes) -> str:
    """SHA-256 of `data` in hexadecimal: how weights, files and bundles are identified."""
    return hashlib.sha256(data).hexdigest()


def model_id(name: str, tensors: Iterable[TensorSpec]) -> str:
    """Identity of a model's weights: 32 hexadecimal digits from its name and its ordered tensor specs.

    Two bundles with one model id exchange weights and updates; anything else would mix up tensors.
    """
    return sha256(canonical_json([name, [spec.to_json() for spec in tensors]]))[:32]


def check_weights(weights: Sequence[npt.NDArray[Any]], specs: Sequence[TensorSpec], where: str) -> None:
    """Raise `IntegrityError`, naming the first tensor that is off, unless `weights` are as `specs` say."""
    if len(weights) != len(specs):
        raise IntegrityError(f"{where}: expected {len(specs)} tensors, found {len(weights)}")
    for array, spec in zip(weights, specs, strict=True):
        if not spec.accepts(array):
            raise IntegrityError(f"{where}: tensor {spec.name!r} should be {spec}, but is {describe(array)}")
