"""The TFLite interpreter that is installed: tflite-runtime up to Python 3.11, ai-edge-litert from there on.

Both have the same `Interpreter`. Nothing else in this package imports either.
"""

from __future__ import annotations

from typing import Any

try:
    from tflite_runtime.interpreter import Interpreter, OpResolverType

    _PACKAGE = "tflite-runtime"
    # XNNPACK's threads and copies make a training step slower here; in the successor they make it many times faster
    # (docs/performance.md).
    _OPTIONS = {"experimental_op_resolver_type": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
except ImportError:
    from ai_edge_litert.interpreter import Interpreter

    _PACKAGE = "ai-edge-litert"
    _OPTIONS = {}


def runtime_version() -> str:
    """Name and version of the installed interpreter, such as ``tflite-runtime 2.14.0``."""
    from importlib import metadata  # it takes two megabytes, and training needs no version

    return f"{_PACKAGE} {metadata.version(_PACKAGE)}"


def open_interpreter(path: str, threads: int) -> Any:
    """An interpreter for the artifact at `path`; it raises ValueError or RuntimeError for a broken one."""
    return Interpreter(model_path=path, num_threads=threads, **_OPTIONS)
