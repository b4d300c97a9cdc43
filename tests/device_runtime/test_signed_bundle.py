"""Signed bundles on a device that trusts keys: from a folder, from a server, from the cache, by every command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime.bundle import FILES, MANIFEST, MANIFEST_HASH, MANIFEST_SIGNATURE, Bundle, Manifest, open_bundle
from device_runtime.bundle_cache import BundleCache
from device_runtime.cli import main
from device_runtime.commands.options import TRUSTED_KEYS
from device_runtime.errors import IntegrityError, TurnedAwayError
from device_runtime.keys import key_id, public_path, write_key_pair
from device_runtime.messages import bundle_path
from device_runtime.server_client import ServerClient
from device_runtime.signature import TrustedKeys, sign_manifest
from tests.device_runtime.file_server import serve_files

Capture = pytest.CaptureFixture[str]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
ID, OTHER_ID = key_id(KEY.public_key()), key_id(OTHER.public_key())
TRUSTED = TrustedKeys([KEY.public_key()])
UNSIGNED = "missing: the bundle is not signed, and only signed ones are taken; sign it with 'pocketfed sign'"
DAMAGED = "not a signature, or damaged; copy it again or sign the bundle anew"
NOT_BY = f"the key {ID} did not sign this manifest: changed or damaged; get the bundle again"
UNKNOWN = f"signed with the key {OTHER_ID}, which is not trusted; trusted: {ID}"


def sign(path: Path, key: Ed25519PrivateKey = KEY) -> None:
    (path / MANIFEST_SIGNATURE).write_bytes(sign_manifest((path / MANIFEST).read_bytes(), key))


def flip(path: Path, where: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)


@pytest.fixture
def signed(digits_copy: Path) -> Path:
    """The path of a bundle that `KEY` has signed, to be damaged."""
    sign(digits_copy)
    return digits_copy


@pytest.fixture
def key_files(tmp_path: Path) -> dict[str, Path]:
    """Public keys: ``trusted`` is that of `KEY`, ``other`` that of `OTHER`."""
    for name, key in (("trusted", KEY), ("other", OTHER)):
        write_key_pair(tmp_path / name, key)
    return {name: public_path(tmp_path / name) for name in ("trusted", "other")}


def refusal(path: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        open_bundle(path, TRUSTED)
    return str(caught.value)


def test_a_signed_bundle(signed: Path, digits_bundle: Bundle) -> None:
    bundle = open_bundle(signed.parent, TRUSTED)
    assert (bundle.signer, bundle.identity, bundle.manifest) == (ID, digits_bundle.identity, digits_bundle.manifest)


def test_without_trusted_keys_signatures_are_not_looked_at(signed: Path) -> None:
    (signed / MANIFEST_SIGNATURE).write_bytes(b"nonsense")
    assert open_bundle(signed).signer is None


def test_a_bundle_that_is_not_signed(digits_copy: Path) -> None:
    assert refusal(digits_copy) == f"{digits_copy / MANIFEST_SIGNATURE}: {UNSIGNED}"


def test_a_bundle_of_somebody_else(digits_copy: Path) -> None:
    sign(digits_copy, OTHER)
    assert refusal(digits_copy) == f"{digits_copy / MANIFEST_SIGNATURE}: {UNKNOWN}"


def test_a_truncated_signature(signed: Path) -> None:
    path = signed / MANIFEST_SIGNATURE
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(signed) == f"{path}: {DAMAGED}"


def test_a_signature_that_is_no_file(signed: Path) -> None:
    path = signed / MANIFEST_SIGNATURE
    path.unlink()
    path.mkdir()
    assert refusal(signed) == f"{path}: Is a directory; the bundle is incomplete"


@pytest.mark.parametrize("name", [*FILES, MANIFEST, MANIFEST_HASH, MANIFEST_SIGNATURE])
def test_one_flipped_bit_is_refused(signed: Path, name: str) -> None:
    flip(signed / name, 0.7)
    expected = {
        MANIFEST: f"{signed / MANIFEST_SIGNATURE}: {NOT_BY}",
        MANIFEST_HASH: f"{signed / MANIFEST}: does not match {MANIFEST_HASH}: changed or damaged; copy it again",
        MANIFEST_SIGNATURE: f"{signed / MANIFEST_SIGNATURE}: ",
    }
    damaged = f"{signed / name}: its SHA-256 is not the manifest's: changed or damaged; copy it again"
    assert refusal(signed).startswith(expected.get(name, damaged))


def test_a_forger_who_makes_all_hashes_fit(signed: Path, rehash: Callable[..., Bundle]) -> None:
    flip(signed / "weights.safetensors", 1)
    rehash(signed)
    assert refusal(signed) == f"{signed / MANIFEST_SIGNATURE}: {NOT_BY}"


def test_the_signature_comes_before_everything_else(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is wrong with a bundle that nobody trusted has signed, nothing of it is parsed."""

    def parsed(*_arguments: object) -> Manifest:
        raise AssertionError("the manifest was parsed")

    monkeypatch.setattr(Manifest, "load", parsed)
    (signed / MANIFEST).write_bytes(b"{" * 100_000)
    (signed / MANIFEST_HASH).unlink()
    assert refusal(signed) == f"{signed / MANIFEST_SIGNATURE}: {NOT_BY}"


class Files:
    """Serves the files of a bundle's folder as they are when they are asked for."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.prefix = bundle_path(identity, "")
        self.asked: list[str] = []
        self.failing = False

    def find(self, path: str) -> bytes | int | None:
        name = path.removeprefix(self.prefix)
        self.asked.append(name)
        if self.failing and name == MANIFEST_SIGNATURE:
            return 403
        file = self.path / name
        return file.read_bytes() if file.is_file() else None


@pytest.fixture
def files(signed: Path, digits_bundle: Bundle) -> Files:
    return Files(signed, digits_bundle.identity)


@pytest.fixture
def fetch(files: Files, digits_bundle: Bundle, tmp_path: Path) -> Iterator[Callable[..., Bundle]]:
    """`fetch(trusted)`: the bundle from the test's only cache, or else from `files`."""
    with serve_files(files.find) as server:

        def get(trusted: TrustedKeys | None = TRUSTED) -> Bundle:
            cache = BundleCache(tmp_path / "cache", trusted)
            return cache.get(digits_bundle.identity, ServerClient(server.transport()))

        yield get


def test_a_download_carries_its_signature(fetch: Callable[..., Bundle], files: Files) -> None:
    bundle = fetch()
    assert bundle.signer == ID
    assert files.asked[:2] == [MANIFEST, MANIFEST_SIGNATURE]
    assert bundle.file(MANIFEST_SIGNATURE).read_bytes() == (files.path / MANIFEST_SIGNATURE).read_bytes()
    files.asked.clear()
    assert (fetch().signer, files.asked) == (ID, [])


def test_keys_that_are_trusted_later_find_the_signature(fetch: Callable[..., Bundle], files: Files) -> None:
    assert fetch(None).signer is None
    files.asked.clear()
    assert (fetch().signer, files.asked) == (ID, [])


def _unsigned(path: Path) -> None:
    path.unlink()


def _of_somebody_else(path: Path) -> None:
    sign(path.parent, OTHER)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def _of_another_manifest(path: Path) -> None:
    path.write_bytes(sign_manifest(b"{}", KEY))


FORGERIES = [
    (_unsigned, UNSIGNED),
    (_of_somebody_else, UNKNOWN),
    (_truncated, DAMAGED),
    (_of_another_manifest, NOT_BY),
]


@pytest.mark.parametrize(("forge", "message"), FORGERIES)
def test_a_download_that_nobody_trusted_signed(
    fetch: Callable[..., Bundle], files: Files, tmp_path: Path, forge: Callable[[Path], None], message: str
) -> None:
    forge(files.path / MANIFEST_SIGNATURE)
    with pytest.raises(IntegrityError) as caught:
        fetch()
    assert str(caught.value) == f"{files.prefix}{MANIFEST_SIGNATURE}: {message}"
    assert files.asked == [MANIFEST, MANIFEST_SIGNATURE]  # nothing else was fetched
    assert list((tmp_path / "cache").iterdir()) == []
    assert fetch(None).signer is None  # as ever where no keys are trusted


@pytest.mark.parametrize(("forge", "_message"), FORGERIES)
def test_a_cached_bundle_is_checked_again(
    fetch: Callable[..., Bundle], files: Files, forge: Callable[[Path], None], _message: str
) -> None:
    cached = fetch().file(MANIFEST_SIGNATURE)
    forge(cached)
    files.asked.clear()
    assert fetch().signer == ID
    assert len(files.asked) == 2 + len(FILES)
    forge(cached)
    forge(files.path / MANIFEST_SIGNATURE)
    with pytest.raises(IntegrityError):
        fetch()


def test_a_server_that_does_not_say_whether_there_is_a_signature(fetch: Callable[..., Bundle], files: Files) -> None:
    files.failing = True
    for trusted in (TRUSTED, None):
        with pytest.raises(TurnedAwayError) as caught:
            fetch(trusted)
        assert str(caught.value) == f"{files.prefix}{MANIFEST_SIGNATURE}: the server answers with status 403"


def one_line(capsys: Capture) -> str:
    """The only line on standard error, and nothing on standard output."""
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line.removeprefix("pocketfed-device: ")


@pytest.fixture(params=["option", "variable"])
def trust(
    request: pytest.FixtureRequest, key_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """`trust("trusted", …)`: arguments that name these keys, or none because the environment variable does."""

    def name(*names: str) -> list[str]:
        files = [str(key_files[name]) for name in names]
        if request.param == "variable":
            monkeypatch.setenv(TRUSTED_KEYS, os.pathsep.join(files))
            return []
        return [argument for file in files for argument in ("--trusted-key", file)]

    return name


@pytest.fixture(params=["selftest", "train"])
def command(request: pytest.FixtureRequest, examples_file: Callable[[int, int], Path], tmp_path: Path) -> list[str]:
    """A command that lacks its bundle only."""
    if request.param == "selftest":
        return ["selftest"]
    return ["train", "--data", str(examples_file(9, 0)), "--out", str(tmp_path / "update")]


def test_a_command_takes_what_a_trusted_key_signed(
    command: list[str], trust: Callable[..., list[str]], signed: Path, capsys: Capture
) -> None:
    assert main([*command, str(signed), *trust("other", "trusted")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("forge", "message"), FORGERIES)
def test_a_command_refuses_all_else(
    command: list[str],
    trust: Callable[..., list[str]],
    signed: Path,
    tmp_path: Path,
    capsys: Capture,
    forge: Callable[[Path], None],
    message: str,
) -> None:
    forge(signed / MANIFEST_SIGNATURE)
    assert main([*command, str(signed), *trust("trusted")]) == 4
    assert one_line(capsys) == f"{signed / MANIFEST_SIGNATURE}: {message}"
    assert not (tmp_path / "update").exists()


def test_a_key_that_is_not_there_ends_a_command(
    command: list[str], signed: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main([*command, str(signed), "--trusted-key", str(tmp_path / "no")]) == 2
    assert one_line(capsys) == f"{tmp_path / 'no'}: can't read the key: No such file or directory"


def test_the_option_takes_the_variable_s_place(
    signed: Path, key_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv(TRUSTED_KEYS, str(key_files["trusted"]))
    assert main(["selftest", str(signed), "--trusted-key", str(key_files["other"])]) == 4
    expected = f"signed with the key {ID}, which is not trusted; trusted: {OTHER_ID}"
    assert one_line(capsys) == f"{signed / MANIFEST_SIGNATURE}: {expected}"


@pytest.mark.parametrize("value", ["", os.pathsep, f"key{os.pathsep}", f"{os.pathsep}key"])
def test_a_variable_that_lost_its_value_opens_nothing(
    value: str, signed: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv(TRUSTED_KEYS, value)
    assert main(["selftest", str(signed)]) == 2
    assert one_line(capsys) == (
        f"{TRUSTED_KEYS}: expected FILE or FILE{os.pathsep}FILE, not {value!r}; unset it to trust any bundle"
    )


def test_a_private_key_is_not_to_be_on_a_device(
    signed: Path, key_files: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    assert main(["selftest", str(signed), "--trusted-key", str(tmp_path / "trusted")]) == 2
    expected = "this is a private key; expected the public one, trusted.pub"
    assert one_line(capsys) == f"{tmp_path / 'trusted'}: {expected}"


_SERVE = """
import sys
from pathlib import Path
from aggregation_server.rounds import RoundConfig
from aggregation_server.task import Task
from benchmarks.sides.serving import serve_here
from device_runtime.work import ClientWork
task = Task(RoundConfig(1, over_selection=1.0), ClientWork(), rounds=1, retry_seconds=0.05, poll_seconds=0.05)
serve_here(Path(sys.argv[1]), Path(sys.argv[2]), task)
"""


def test_a_device_and_a_real_server(
    signed: Path, key_files: dict[str, Path], examples_file: Callable[[int, int], Path], tmp_path: Path
) -> None:
    """The signature is put down, taken away and put back under a running server."""
    environment = {name: value for name, value in os.environ.items() if name != TRUSTED_KEYS}
    program = Path(sys.executable).with_name("pocketfed-device")
    arguments = [sys.executable, "-c", _SERVE, str(signed), str(tmp_path)]
    signature = (signed / MANIFEST_SIGNATURE).read_bytes()
    with subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()

            def run(key: str) -> tuple[int, str]:
                options = ["--server", url, "--population", "digits_mlp", "--data", str(examples_file(9, 0))]
                names = ["--client", "a", "--cache", str(tmp_path / "cache"), "--trusted-key", str(key_files[key])]
                process = subprocess.run(
                    [program, "run", *options, *names], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                    timeout=120, env=environment,
                )  # fmt: skip
                return process.returncode, process.stderr

            identity = open_bundle(signed).identity
            where = f"pocketfed-device: {bundle_path(identity, MANIFEST_SIGNATURE)}: "
            (signed / MANIFEST_SIGNATURE).unlink()
            assert run("trusted") == (4, f"{where}{UNSIGNED}\n")
            (signed / MANIFEST_SIGNATURE).write_bytes(signature)
            refused = f"signed with the key {ID}, which is not trusted; trusted: {OTHER_ID}"
            assert run("other") == (4, f"{where}{refused}\n")
            assert [path.name for path in (tmp_path / "cache").iterdir()] == ["rounds"]
            assert run("trusted") == (0, "")
            assert open_bundle(tmp_path / "cache" / identity, TRUSTED).signer == ID
        finally:
            server.terminate()
    assert server.returncode == 0


def test_cryptography_is_loaded_only_where_keys_are_trusted(signed: Path, key_files: dict[str, Path]) -> None:
    script = (
        "import sys; from device_runtime.cli import main; code = main(sys.argv[1:]);"
        " print('cryptography' in sys.modules); sys.exit(code)"
    )
    for options, loaded in (([], "False"), (["--trusted-key", str(key_files["trusted"])], "True")):
        arguments = [sys.executable, "-c", script, "selftest", str(signed), *options]
        run = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        assert (run.returncode, run.stdout.splitlines()[-1]) == (0, loaded)
