"""Errors of the simulation.

PocketfedError
├── InputError
│   ├── DatasetError      a data file is missing, truncated or of another format; the message names it
│   └── UnavailableError  TensorFlow Federated can't run on this machine
"""

from __future__ import annotations

from device_runtime.errors import InputError


class DatasetError(InputError):
    """A data file is missing, truncated or of another format; the message names it."""


class UnavailableError(InputError):
    """TensorFlow Federated can't run on this machine; the message says why and what works without it."""
