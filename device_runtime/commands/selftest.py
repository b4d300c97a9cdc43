"""``pocketfed-device selftest``: verify a bundle and test it on this device."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING

from device_runtime.commands.options import EXIT_CODES, add_bundle, add_threads, add_trusted_keys, trusted

if TYPE_CHECKING:
    from device_runtime.commands.options import Subparsers


def add(commands: Subparsers) -> None:
    """Add the command's parser."""
    selftest = commands.add_parser(
        "selftest",
        help="verify a bundle and test it on this device",
        description="Verify a bundle's hashes, then run its golden steps here and compare with what Keras computed.",
        epilog=EXIT_CODES,
    )
    selftest.set_defaults(command=_selftest)
    add_bundle(selftest)
    selftest.add_argument("--json", action="store_true", help="print one JSON object")
    add_threads(selftest)
    add_trusted_keys(selftest)


def _selftest(options: argparse.Namespace) -> int:
    from device_runtime.bundle import open_bundle
    from device_runtime.interpreter import runtime_version
    from device_runtime.selftest import TOLERANCE, self_test

    result = self_test(open_bundle(options.bundle, trusted(options)), options.threads)
    if options.json:
        report = {
            "ok": result.ok,
            "runtime": runtime_version(),
            "max_rel": result.max_rel if math.isfinite(result.max_rel) else None,  # JSON has no infinity
            "tensor": result.tensor,
            "tolerance": TOLERANCE,
        }
        print(json.dumps(report))
        return 0 if result.ok else 1
    verdict = "passed" if result.ok else "FAILED"
    print(
        f"self-test {verdict} on {runtime_version()}: largest relative difference to Keras {result.max_rel:.1e}"
        f" ({result.tensor}), tolerance {TOLERANCE:.0e}"
    )
    return 0 if result.ok else 1
