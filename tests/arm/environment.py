"""An aarch64 and an armv7 Python without a board: qemu runs single programs, so no chroot, binfmt or root is needed.

``python -m tests.arm.environment`` builds those that are missing, in the folder ``.arm`` of this checkout: Debian's
Python 3.11 for that processor, and the wheels that a device installs, with the versions and hashes of ``uv.lock``.
What has no wheel for armv7 (numpy, cffi) is Debian's too. apt resolves, fetches and verifies Debian's packages, with a
state of its own and the archive's keys; they are unpacked, not installed. A mirror keeps only the latest packages of a
release, so the release is what is pinned of them; ``packages.txt`` beside them says which versions they are.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".arm"
RELEASE = "bookworm"  # Debian 12, which Raspberry Pi OS of 2023 to 2025 is made from: Python 3.11, glibc 2.36
MIRROR = "POCKETFED_DEBIAN_MIRROR"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PYTHON = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
_PIP = "pip==25.3"  # uv can't choose wheels for armv7
UV = Path(sys.executable).with_name("uv")


class BuildError(Exception):
    """Something is missing on this machine, or could not be fetched; one line that says what to do."""


@dataclass(frozen=True)
class Machine:
    """A kind of processor: what Debian and the wheels' tags call it, and which packages come from where."""

    name: str
    debian: str
    emulator: str
    triplet: str
    wheel_platforms: tuple[str, ...]
    debian_packages: tuple[str, ...]
    wheels: tuple[str, ...]


MACHINES = {
    "aarch64": Machine(
        name="aarch64",
        debian="arm64",
        emulator="qemu-aarch64-static",
        triplet="aarch64-linux-gnu",
        wheel_platforms=("manylinux_2_34_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64"),
        debian_packages=_PYTHON,
        wheels=("numpy", "tflite-runtime", "cryptography", "cffi", "pycparser"),
    ),
    "armv7": Machine(
        name="armv7",
        debian="armhf",
        emulator="qemu-arm-static",
        triplet="arm-linux-gnueabihf",
        wheel_platforms=("manylinux_2_34_armv7l", "manylinux_2_31_armv7l", "manylinux2014_armv7l"),
        debian_packages=(*_PYTHON, "python3-numpy", "python3-cffi-backend"),
        wheels=("tflite-runtime", "cryptography"),
    ),
}


@dataclass(frozen=True)
class Environment:
    """What is built: `root` with Debian's packages, `site` with the wheels."""

    machine: Machine
    folder: Path

    def command(self, *arguments: object, path: Sequence[Path] = ()) -> list[str]:
        """Start Python there with these arguments; the folders of `path` come first where it looks for modules."""
        root = self.folder / "root"
        libraries = root / "usr/lib" / self.machine.triplet  # of numpy's BLAS, which its installation would link
        variables = {
            "PYTHONPATH": ":".join(map(str, [*path, self.folder / "site", root / "usr/lib/python3/dist-packages"])),
            "LD_LIBRARY_PATH": f"{libraries / 'blas'}:{libraries / 'lapack'}",
        }
        settings = [word for name, value in variables.items() for word in ("-E", f"{name}={value}")]
        # What the user's own Python is told is not for this one: it keeps what it compiles, which takes long here.
        for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "LD_PRELOAD"):
            settings += ["-U", name]
        python = root / "usr/bin/python3.11"
        return [self.machine.emulator, "-L", str(root), *settings, str(python), *map(str, arguments)]


def require_tools(machines: Sequence[Machine]) -> None:
    """Raise `BuildError`, in one line with all that has to be installed, where this machine lacks something."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise BuildError("the ARM tests need apt-get and dpkg-deb: run them on Debian or Ubuntu, or in a container")
    missing = []
    if any(shutil.which(machine.emulator) is None for machine in machines):
        missing.append("qemu-user-static")
    if not KEYRING.is_file():
        missing.append("debian-archive-keyring")
    if missing:
        raise BuildError(f"the ARM tests need packages that are missing here: apt-get install {' '.join(missing)}")


def environment(machine: Machine, tell: Callable[[str], None] = lambda line: None) -> Environment:
    """The environment for this machine, which is built where it is not there yet.

    Raises:
        BuildError: it can't be built; nothing half-built is left in its place.
    """
    require_tools([machine])
    requirements = locked_wheels(machine.wheels)
    recipe = hashlib.sha256("\n".join([Path(__file__).read_text(encoding="utf-8"), *requirements]).encode())

    def build(scratch: Path) -> None:
        tell(f"{machine.name}: fetching Debian's Python and the wheels")
        _unpack_debian(machine, scratch)
        _unpack_wheels(machine, requirements, scratch)
        _run([*Environment(machine, scratch).command("-c", "import numpy, tflite_runtime.interpreter")], scratch)

    return Environment(machine, built_once(FOLDER, machine.name, recipe.hexdigest()[:12], build))


def built_once(folder: Path, name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The path ``folder/name-key``, which `build` fills the first time; what other keys have left goes then.

    It is filled under another name and renamed, and one process at a time does so: a folder with the final name is
    whole, however an earlier build ended.
    """
    import fcntl  # Windows has none; the tests that need no build are collected there too

    path = folder / f"{name}-{key}"
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_dir():
            return path
        for old in folder.glob(f"{name}-*"):
            shutil.rmtree(old)
        scratch = folder / f"{name}-{key}.part"
        scratch.mkdir()
        build(scratch)
        scratch.rename(path)
    return path


def locked_wheels(names: Sequence[str]) -> list[str]:
    """A line a package for pip, with the version of ``uv.lock`` and the hashes of all its wheels."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    packages = {package["name"]: package for package in lock["package"] if package["name"] in names}
    return [
        " ".join([f"{name}=={packages[name]['version']}", *(f"--hash={w['hash']}" for w in packages[name]["wheels"])])
        for name in names
    ]


def _mirror() -> str:
    """Where this machine has Debian's packages from; another distribution takes Debian's own address."""
    chosen = os.environ.get(MIRROR)
    if chosen:
        return chosen
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    return next((uri for uri in listed if uri.rstrip("/").endswith("/debian")), "http://deb.debian.org/debian")


def _unpack_debian(machine: Machine, scratch: Path) -> None:
    apt = scratch / "apt"
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()  # nothing is installed, so that all dependencies are fetched
    mirror = _mirror()
    source = f"deb [arch={machine.debian} signed-by={KEYRING}] {mirror} {RELEASE} main\n"
    (apt / "sources.list").write_text(source, encoding="utf-8")
    settings = {
        "APT::Architecture": machine.debian,
        "APT::Architectures": machine.debian,
        "APT::Sandbox::User": "",
        "APT::Get::Download-Only": "true",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": apt,
        "Dir::State::Lists": apt / "lists",
        "Dir::State::Status": apt / "status",
        "Dir::Cache": apt,
        "Dir::Cache::Archives": apt / "archives",
    }
    get = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    _run([*get, "update", "--error-on=any"], scratch, f"from {mirror}; another mirror is named by {MIRROR}")
    _run([*get, "install", "--yes", "--no-install-recommends", *machine.debian_packages], scratch, f"from {mirror}")
    packages = sorted((apt / "archives").glob("*.deb"))
    for package in packages:
        _run(["dpkg-deb", "--extract", str(package), str(scratch / "root")], scratch)
    (scratch / "packages.txt").write_text("".join(f"{package.name}\n" for package in packages), encoding="utf-8")
    shutil.rmtree(apt)


def _unpack_wheels(machine: Machine, requirements: Sequence[str], scratch: Path) -> None:
    pins = scratch / "requirements.txt"
    pins.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    pip = [str(UV), "run", "--quiet", "--no-project", "--python", sys.executable, "--with", _PIP, "python", "-m", "pip"]
    platforms = [f"--platform={platform}" for platform in machine.wheel_platforms]
    choice = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3"]
    target = ["--target", str(scratch / "site"), "--no-deps", "--require-hashes", "--no-compile"]
    _run([*pip, "install", "--quiet", *target, *choice, *platforms, "-r", str(pins)], scratch)


def _run(command: Sequence[str], folder: Path, hint: str = "") -> None:
    result = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        said = (result.stderr.strip() or f"exit code {result.returncode}").splitlines()[-1]
        raise BuildError(f"{Path(command[0]).name} failed{f' ({hint})' if hint else ''}: {said}")


def main() -> int:
    """Build what is missing, both at a time."""
    machines = list(MACHINES.values())

    def tell(line: str) -> None:
        sys.stderr.write(f"{line}\n")  # in one piece, as both write at once

    try:
        require_tools(machines)
        with ThreadPoolExecutor(len(machines)) as threads:
            list(threads.map(lambda machine: environment(machine, tell), machines))
    except BuildError as error:
        print(f"test-arm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # what was half-built goes when the next build starts
        print("test-arm: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
