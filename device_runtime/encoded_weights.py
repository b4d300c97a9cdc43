"""Weights that came as an encoded difference, or as float16: the server's down-link (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Sequence

from device_runtime.codec import read_update, shaped
from device_runtime.errors import IntegrityError
from device_runtime.tensors import FloatArray, TensorSpec, Weights, sha256
from device_runtime.weights import dump_weights


def decoded_weights(
    base: Weights | None, encoded: Sequence[bytes], specs: Sequence[TensorSpec], model_id: str, identity: str
) -> bytes:
    """The safetensors bytes of the version with this identity, bit for bit what the server has.

    Args:
        base: the version that the encoded values are added to, one after the other; None where the first of them are
            the weights themselves.
        encoded: encoded updates, in their order; at least one.
        specs: the model's tensors.
        model_id: the manifest's.
        identity: SHA-256 of what has to come out.

    Raises:
        IntegrityError: the bytes are not encoded weights of this model, or something else comes out.
    """
    weights = base
    for data in encoded:
        values: FloatArray = read_update(data, specs, model_id).values()
        tensors = shaped(values, specs)
        if weights is not None:
            for tensor, before in zip(tensors, weights, strict=True):
                tensor += before
        weights = tensors
    if weights is None:
        raise IntegrityError("encoded weights: expected at least one version")
    content = dump_weights(weights, specs)
    if sha256(content) != identity:
        raise IntegrityError(f"encoded weights: what comes out does not have the SHA-256 {identity}")
    return content
