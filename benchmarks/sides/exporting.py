"""A whole export in a process of its own: python -m benchmarks.sides.exporting MODEL FOLDER.

Says the bundle's path and how long the export took; the import of TensorFlow is no part of it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import models
from export.bundle_writer import export_bundle


def main(name: str, folder: str) -> None:
    """Export, and print a line of JSON."""
    spec = models.get(name)
    start = time.perf_counter()
    bundle = export_bundle(spec, Path(folder))
    seconds = time.perf_counter() - start
    print(json.dumps({"bundle": str(bundle.path), "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
