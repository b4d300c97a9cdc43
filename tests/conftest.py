"""What all test folders share: one exported bundle of the digits model, and examples for it."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from device_runtime.bundle import (
    GOLDEN,
    MANIFEST,
    MANIFEST_HASH,
    SUFFIX,
    Bundle,
    FileEntry,
    Manifest,
    manifest_hash_file,
    open_bundle,
)
from device_runtime.commands.options import TRUSTED_KEYS
from device_runtime.examples import Examples
from device_runtime.tensors import sha256
from tests.disk import mounted

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["POCKETFED_RUNTIMES"] = ""  # exports in further runtimes have tests of their own, and take their time
os.environ["POCKETFED_OPEN_WORKER"] = "1"  # what commands print is the same where namespaces are not permitted
os.environ.pop(TRUSTED_KEYS, None)  # those of whoever runs the tests have not signed the tests' bundles

# A test's time says nothing on a machine that others use too.
settings.register_profile("pocketfed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pocketfed")


@pytest.fixture(scope="session", autouse=True)
def nothing_installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is installed for whoever runs the tests would keep the tests' bundles out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of `digits_mlp`, exported once; not to be changed: see `digits_copy`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow 2.14 uses what its dependencies have deprecated since
        import models
        from export.bundle_writer import export_bundle

        return export_bundle(models.get("digits_mlp"), tmp_path_factory.mktemp("digits"), seed=0)


@pytest.fixture
def digits_copy(digits_bundle: Bundle, tmp_path: Path) -> Path:
    """The path of a copy of `digits_bundle`, to be damaged."""
    return Path(shutil.copytree(digits_bundle.path, tmp_path / "copies" / digits_bundle.path.name))


@pytest.fixture(scope="session")
def release(
    digits_bundle: Bundle, rehash: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """`release(version)`: another version of `digits_bundle`; with further changes of its manifest another bundle."""

    def make(version: int, **changes: Any) -> Bundle:
        name = changes.get("name", digits_bundle.manifest.name)
        path = tmp_path_factory.mktemp("release") / f"{name}-{version}{SUFFIX}"
        return rehash(Path(shutil.copytree(digits_bundle.path, path)), version=version, **changes)

    return make


@pytest.fixture(scope="session")
def digits_2(release: Callable[..., Bundle]) -> Bundle:
    """Version 2 of `digits_bundle`; not to be changed."""
    return release(2)


@pytest.fixture(scope="session")
def wrong_3(release: Callable[..., Bundle], rehash: Callable[..., Bundle]) -> Bundle:
    """Version 3, sound in every byte, of which a device computes something else than its golden values."""
    bundle = release(3)
    golden = bundle.golden()
    np.savez(bundle.file(GOLDEN), allow_pickle=False, **(golden | {"logits": golden["logits"] + np.float32(1)}))
    return rehash(bundle.path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for one bundle of the digits and not for two."""
    with mounted(tmp_path / "disk", "200k") as folder:
        yield folder


@pytest.fixture(scope="session")
def rehash() -> Callable[..., Bundle]:
    """Make a changed bundle's manifest and hashes fit its files again, as somebody who means harm would."""

    def make(path: Path, **changes: Any) -> Bundle:
        manifest = Manifest.load((path / MANIFEST).read_bytes())
        content = {name: (path / name).read_bytes() for name in manifest.files}
        files = {name: FileEntry(len(data), sha256(data)) for name, data in content.items()}
        data = replace(manifest, **({"files": files} | changes)).dump()
        (path / MANIFEST).write_bytes(data)
        (path / MANIFEST_HASH).write_bytes(manifest_hash_file(data))
        return open_bundle(path)

    return make


@pytest.fixture(scope="session")
def digits_examples() -> Callable[[int, int], Examples]:
    """`digits_examples(n, seed)`: x float32 [n, 8, 8, 1] from 0 to 1 and labels y int32 [n] from 0 to 9."""

    def make(count: int, seed: int) -> Examples:
        rng = np.random.default_rng(seed)
        return Examples(rng.random((count, 8, 8, 1), np.float32), rng.integers(0, 10, count, np.int32))

    return make


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that POCKETFED_DATA_DIR names, with real data sets: ``mnist/`` and others. For tests marked `data`."""
    folder = os.environ.get("POCKETFED_DATA_DIR")
    if not folder:
        pytest.skip("POCKETFED_DATA_DIR is not set")
    return Path(folder)
