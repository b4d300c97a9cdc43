"""The container files: what a linter finds, and the server's image, put together here without an engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli.main import app
from device_runtime.bundle import Bundle
from tests.serving import QUICK, serving, take_part

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy").rglob("Dockerfile"))
SERVER = ROOT / "deploy" / "server" / "Dockerfile"
PROGRAMS = Path(sys.executable).parent
needs_hadolint = pytest.mark.skipif(
    not (PROGRAMS / "hadolint").exists(), reason="hadolint is packaged for Linux on x86-64 only"
)


def _instructions(name: str) -> list[str]:
    """The arguments of all instructions of this name in the server's file."""
    text = SERVER.read_text().replace("\\\n", " ")
    return [line.removeprefix(f"{name} ").strip() for line in text.splitlines() if line.lstrip().startswith(f"{name} ")]


def _lint(path: Path) -> tuple[int, str]:
    done = subprocess.run([PROGRAMS / "hadolint", path], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@needs_hadolint
def test_the_linter_finds_nothing() -> None:
    assert SERVER in FILES and len(FILES) == 2
    for path in FILES:
        assert _lint(path) == (0, "")


@needs_hadolint
def test_the_linter_finds_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(
        SERVER.read_text().replace("ENTRYPOINT [", "ENTRYPOINT python [").replace(":3.11-slim-bookworm", "")
    )
    code, found = _lint(wrong)
    assert code == 1 and "DL3025" in found and "DL3006" in found  # exec form, no tag


def test_it_runs_as_nobody_of_importance_and_takes_signals() -> None:
    assert _instructions("USER") == ["1000:1000"]
    assert json.loads(_instructions("ENTRYPOINT")[0])[0] == "python"  # the exec form: SIGTERM reaches it
    name, *arguments = json.loads(_instructions("CMD")[0])
    options = app.commands[name].make_context(name, arguments).params
    assert _instructions("EXPOSE") == [str(options["port"])]
    assert (options["host"], options["insecure"], options["bundle"]) == ("0.0.0.0", True, Path("/bundle"))
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    (uv,) = [package["version"] for package in lock["package"] if package["name"] == "uv"]
    assert f"uv=={uv}" in SERVER.read_text()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image holds: `site`, the packages that its requirements name, and `app`, our folders that it copies."""
    (line,) = re.findall(r"uv export (.*?) &&", SERVER.read_text().replace("\\\n", " "))
    folder = tmp_path_factory.mktemp("image")
    export = [PROGRAMS / "uv", "--offline", "export", "--project", ROOT, *line.split()]
    subprocess.run(export, check=True, capture_output=True, timeout=120, cwd=folder)
    names = re.findall(
        r"^([\w.-]+)==\S+(?: ; (.*?))?(?: \\)?$", (folder / "requirements.txt").read_text(), re.MULTILINE
    )
    (folder / "site").mkdir()
    for name, condition in names:
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            assert condition, f"{name} is not installed"  # it is of other systems
            continue
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (folder / "site" / top).exists():
                (folder / "site" / top).symlink_to(Path(str(files[0].locate())).parents[len(files[0].parts) - 1] / top)
    for copied in _instructions("COPY"):
        source, _, target = copied.partition(" ")
        if (ROOT / source).is_dir():
            assert source == target
            shutil.copytree(ROOT / source, folder / "app" / target, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_image_s_server_runs_rounds_and_its_health_is_checked(
    image: Path, digits_bundle: Bundle, tmp_path: Path
) -> None:
    environment = {"PYTHONPATH": f"{image / 'site'}:{image / 'app'}", "PATH": os.environ["PATH"]}
    python = [sys.executable, "-S", "-P"]  # without this environment's packages, nor the folder that it starts in
    found = subprocess.run(
        [*python, "-c", "import importlib.util as i; print(i.find_spec('tensorflow'), i.find_spec('cli').origin)"],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert found.stdout.split() == ["None", str(image / "app" / "cli" / "__init__.py")]

    _, *module = json.loads(_instructions("ENTRYPOINT")[0])
    places = ["--db", f"sqlite:///{tmp_path / 'server.db'}", "--spool", tmp_path / "spool", "--keys", tmp_path]
    command = [*python, *module, "serve", digits_bundle.path, *places, "--port", 0, "--open-enrolment", *QUICK]
    with serving(command, tmp_path / "log", environment) as url:
        take_part(url, digits_bundle, tmp_path)
        assert _health(url) == 0
    assert _health(url) == 1


def _health(url: str) -> int:
    """The exit code of the image's check, for a server at another port."""
    (check,) = re.findall(r"CMD (\[.*\])", " ".join(_instructions("HEALTHCHECK")))
    _, *arguments = json.loads(check)
    assert "127.0.0.1:8080" in arguments[-1]
    arguments[-1] = arguments[-1].replace("127.0.0.1:8080", urlsplit(url).netloc)
    run = subprocess.run([sys.executable, *arguments], capture_output=True, timeout=60, check=False)
    return run.returncode
