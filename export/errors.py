"""Errors of the export.

PocketfedError
└── InputError
    └── ExportError  a model can't be exported; the message names the layer and the operator
"""

from __future__ import annotations

from device_runtime.errors import InputError


class ExportError(InputError):
    """A model can't be exported; the message names the layer, the operator and what is supported."""
