"""TensorFlow is imported here first, because 2.14 uses what its dependencies have deprecated since."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tensorflow  # noqa: F401
