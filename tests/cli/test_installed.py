"""A device on which a bundle is installed, and a server that serves an older one: real processes all the way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cli.fleet import server_process
from device_runtime.bundle import Bundle
from device_runtime.examples import Examples
from device_runtime.installation import Installation
from device_runtime.installation_state import Release


def test_an_older_bundle_of_the_server(
    digits_bundle: Bundle, digits_2: Bundle, digits_examples: Callable[[int, int], Examples], tmp_path: Path
) -> None:
    root, cache, data = tmp_path / "root", tmp_path / "cache", tmp_path / "examples.npz"
    examples = digits_examples(20, 0)
    np.savez(data, x=examples.x, y=examples.y)
    installation = Installation(root)
    installation.install(digits_bundle.path)
    installation.install(digits_2.path)
    program = str(Path(sys.executable).with_name("pocketfed-device"))
    serve = [str(digits_bundle.path), "--goal", "1", "--over-selection", "1", "--rounds", "2", "--keys", str(tmp_path)]
    serve += ["--db", f"sqlite:///{tmp_path / 'server.db'}", "--spool", str(tmp_path / "spool")]

    def run(url: str) -> subprocess.CompletedProcess[str]:
        arguments = ["run", "--server", url, "--population", "digits_mlp", "--client", "a", "--data", str(data)]
        arguments += ["--root", str(root), "--cache", str(cache), "--rounds", "1"]
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False
        )

    with server_process(serve, tmp_path / "log") as url:
        refused = run(url)
        assert (refused.returncode, refused.stdout) == (4, "enrolled as 'a'\n")
        assert refused.stderr == (
            f"pocketfed-device: the server's bundle is digits_mlp version 1, older than {Release.of(digits_2)}, which"
            f" is installed in {root}; serve that or a newer one, or go back here with --rollback\n"
        )
        for path in cache.iterdir():
            if path.name != "rounds":
                path.rename(tmp_path / path.name)  # so that it would have to be downloaded again
        installation.rollback()
        taken = run(url)
        assert (taken.returncode, taken.stderr) == (0, "")
        assert taken.stdout.startswith("round 1: reported")
        assert not (cache / digits_bundle.identity).exists()  # it is what is installed
