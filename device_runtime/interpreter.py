"""The TFLite interpreter that is installed: tflite-runtime up to Python 3.11, ai-edge-litert from there on.

Both have the same `Interpreter`. Nothing else in this package imports either.
"""

from __future__ import annotations

from typing import Any

try:
    from tflite_runtime.interpreter import Interpreter, OpResolverType

    _PACKAGE = "tflite-runtime"
except ImportError:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    _PACKAGE = "ai-edge-litert"


def runtime_version() -> str:
    """Name and version of the installed interpreter, such as ``tflite-runtime 2.14.0``."""
    from importlib import metadata  # it takes two megabytes, and training needs no version

    return f"{_PACKAGE} {metadata.version(_PACKAGE)}"


def open_interpreter(path: str, threads: int) -> Any:
    """An interpreter for the artifact at `path`; it raises ValueError or RuntimeError for a broken one.

    It is without XNNPACK, whose threads and copies make a training step slower (docs/performance.md).
    """
    return Interpreter(
        model_path=path,
        num_threads=threads,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
