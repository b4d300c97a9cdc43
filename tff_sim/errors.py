"""Errors of the simulation.

PocketfedError
├── CheckFailedError
│   └── DivergedError     the training diverged
└── InputError
    ├── DatasetError      a data file is missing, truncated or of another format; the message names it
    └── UnavailableError  TensorFlow Federated can't run on this machine
"""

from __future__ import annotations

from device_runtime.errors import CheckFailedError, InputError


class DivergedError(CheckFailedError):
    """The training diverged: another learning rate may do better."""


class DatasetError(InputError):
    """A data file is missing, truncated or of another format; the message names it."""


class UnavailableError(InputError):
    """TensorFlow Federated can't run on this machine; the message says why and what works without it."""
