"""`fingerprint`: whether two models are the same one, for what is to go on with a model or to repeat its run."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import tensorflow as tf

from models.state import all_layers


def fingerprint(model: tf.keras.Model) -> str:
    """SHA-256 over the model's layers and all its weights, in hexadecimal digits.

    Names don't count: Keras numbers those of unnamed layers through a whole process.

    Args:
        model: with its layers built.
    """
    digest = hashlib.sha256()
    for layer in all_layers(model):
        digest.update(json.dumps([type(layer).__name__, _nameless(layer.get_config())], default=repr).encode())
    for variable in model.weights:
        digest.update(f"{variable.dtype.name}{variable.shape}".encode())
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def _nameless(config: Any) -> Any:
    if isinstance(config, dict):
        inner = {key: value for key, value in config.items() if key not in ("name", "inbound_nodes")}
        return {key: _nameless(value) for key, value in sorted(inner.items())}
    return [_nameless(item) for item in config] if isinstance(config, list | tuple) else config
