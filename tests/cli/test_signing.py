"""`pocketfed keygen`, `sign`, `verify` and `export --sign`: keys and bundles, and all that is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import main
from device_runtime.bundle import FILES, MANIFEST, MANIFEST_SIGNATURE, Bundle, open_bundle
from device_runtime.errors import IntegrityError
from device_runtime.keys import key_id, read_private_key
from export.signing import sign_bundle

Capture = pytest.CaptureFixture[str]
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")


@pytest.fixture
def key(tmp_path: Path, capsys: Capture) -> Path:
    """A private key that `keygen` made; the public one is beside it."""
    assert main(["keygen", "--out", str(tmp_path / "k")]) == 0
    capsys.readouterr()
    return tmp_path / "k"


def public(key: Path) -> str:
    return f"{key}.pub"


def name(key: Path) -> str:
    return key_id(read_private_key(key).public_key())


def line(arguments: list[str], code: int, capsys: Capture) -> str:
    """Run a command that is to fail; the one line that it says."""
    assert main(arguments) == code
    output = capsys.readouterr()
    assert output.out == ""
    (told,) = output.err.splitlines()
    return told.removeprefix("pocketfed: ")


def test_keygen_in_words(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "k"
    assert main(["keygen", "--out", str(path)]) == 0
    expected = f"{path}: private key, to be kept secret\n{path}.pub: public key {name(path)}, for devices\n"
    assert capsys.readouterr() == (expected, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keygen_in_json(tmp_path: Path, capsys: Capture) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        assert main(["keygen", "--out", str(path), "--json"]) == 0
        made = json.loads(capsys.readouterr().out)
        assert made == {"private_key": str(path), "public_key": public(path), "key_id": name(path)}
    assert name(paths[0]) != name(paths[1])


@pytest.mark.parametrize("suffix", ["", ".pub"])
def test_keygen_does_not_overwrite(key: Path, suffix: str, capsys: Capture) -> None:
    taken = Path(f"{key}{suffix}")
    (Path(public(key)) if suffix == "" else key).unlink()
    before = taken.read_bytes()
    told = line(["keygen", "--out", str(key)], 2, capsys)
    assert told == f"{taken}: exists already, and keys are never overwritten; choose another --out"
    assert taken.read_bytes() == before
    assert [path.name for path in key.parent.iterdir() if path.name.startswith("k")] == [taken.name]


def test_sign_and_verify_in_words(key: Path, digits_copy: Path, digits_bundle: Bundle, capsys: Capture) -> None:
    short = digits_bundle.identity[:16]
    assert main(["sign", str(digits_copy.parent), "--key", str(key)]) == 0  # the folder that holds exactly one
    signature = digits_copy / MANIFEST_SIGNATURE
    assert capsys.readouterr() == (f"{signature}: identity {short}… signed with the key {name(key)}\n", "")
    assert main(["verify", str(digits_copy.parent), "--key", public(key)]) == 0
    assert capsys.readouterr() == (f"{digits_copy}: identity {short}… was signed with the key {name(key)}\n", "")
    assert {path.name for path in digits_copy.iterdir()} == {*FILES, MANIFEST, "manifest.sha256", MANIFEST_SIGNATURE}


def test_sign_and_verify_in_json(key: Path, digits_copy: Path, digits_bundle: Bundle, capsys: Capture) -> None:
    made = {"bundle": str(digits_copy), "identity": digits_bundle.identity, "key_id": name(key)}
    assert main(["sign", str(digits_copy), "--key", str(key), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == made | {"signature": str(digits_copy / MANIFEST_SIGNATURE)}
    assert main(["verify", str(digits_copy), "--key", public(key), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == made


def test_a_bundle_is_signed_anew_with_another_key(
    key: Path, digits_copy: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "other"
    assert main(["keygen", "--out", str(other)]) == 0
    for signing in (key, other):
        assert main(["sign", str(digits_copy), "--key", str(signing)]) == 0
    assert main(["verify", str(digits_copy), "--key", public(key), "--key", public(other)]) == 0
    assert capsys.readouterr().out.endswith(f"was signed with the key {name(other)}\n")
    expected = f"signed with the key {name(other)}, which is not trusted; trusted: {name(key)}"
    told = line(["verify", str(digits_copy), "--key", public(key)], 4, capsys)
    assert told == f"{digits_copy / MANIFEST_SIGNATURE}: {expected}"


def test_verify_of_a_bundle_that_is_not_signed(key: Path, digits_copy: Path, capsys: Capture) -> None:
    told = line(["verify", str(digits_copy), "--key", public(key), "--json"], 4, capsys)
    assert told == (
        f"{digits_copy / MANIFEST_SIGNATURE}: missing: the bundle is not signed, and only signed ones are taken;"
        " sign it with 'pocketfed sign'"
    )


def test_what_was_changed_after_it_was_signed(key: Path, digits_copy: Path, capsys: Capture) -> None:
    assert main(["sign", str(digits_copy), "--key", str(key)]) == 0
    capsys.readouterr()
    signature, manifest, weights = (digits_copy / file for file in (MANIFEST_SIGNATURE, MANIFEST, FILES[2]))
    lost = f"{signature}: the key {name(key)} did not sign this manifest: changed or damaged; get the bundle again"
    damaged = f"{signature}: not a signature, or damaged; copy it again or sign the bundle anew"
    changed = f"{weights}: its SHA-256 is not the manifest's: changed or damaged; copy it again"

    def cut(data: bytes) -> bytes:
        return data[:-1]

    def flipped(data: bytes) -> bytes:
        return data[:100] + (b"0" if data[100:101] != b"0" else b"1") + data[101:]

    for path, change, expected in (
        (manifest, flipped, lost),
        (manifest, cut, lost),
        (signature, flipped, lost),
        (signature, cut, damaged),
        (weights, flipped, changed),
    ):
        before = path.read_bytes()
        path.write_bytes(change(before))
        assert line(["verify", str(digits_copy), "--key", public(key)], 4, capsys) == expected
        path.write_bytes(before)
    assert main(["verify", str(digits_copy), "--key", public(key)]) == 0


def test_a_damaged_bundle_is_not_signed(key: Path, digits_copy: Path, capsys: Capture) -> None:
    weights = digits_copy / FILES[2]
    weights.write_bytes(weights.read_bytes() + b"!")
    told = line(["sign", str(digits_copy), "--key", str(key)], 4, capsys)
    assert told.startswith(f"{weights}: ") and told.endswith("; copy it again")
    assert not (digits_copy / MANIFEST_SIGNATURE).exists()


def test_a_bundle_that_changes_meanwhile_is_not_signed(key: Path, digits_copy: Path) -> None:
    bundle = open_bundle(digits_copy)
    (digits_copy / MANIFEST).write_bytes(b"{}")
    with pytest.raises(IntegrityError) as caught:
        sign_bundle(bundle, read_private_key(key))
    assert str(caught.value) == f"{digits_copy / MANIFEST}: changed while it was to be signed; nothing was signed"
    assert not (digits_copy / MANIFEST_SIGNATURE).exists()


def test_a_signature_that_cannot_be_written(key: Path, digits_copy: Path, capsys: Capture) -> None:
    path = digits_copy / MANIFEST_SIGNATURE
    path.mkdir()
    told = line(["sign", str(digits_copy), "--key", str(key)], 2, capsys)
    assert told == f"{path}: can't write the signature: Is a directory"
    assert {child.name for child in digits_copy.iterdir()} == {*FILES, MANIFEST, "manifest.sha256", path.name}


def test_keys_that_are_none(key: Path, digits_copy: Path, tmp_path: Path, capsys: Capture) -> None:
    bundle, text, no = str(digits_copy), tmp_path / "text", tmp_path / "no"
    text.write_text("secret")
    export = ["export", "digits_mlp", "--out", str(tmp_path / "out"), "--sign"]
    wrong_private = {
        public(key): "this is a public key; signing takes the private one, which has no .pub",
        str(text): "expected an Ed25519 private key in PEM; make one with 'pocketfed keygen'",
        str(no): "can't read the key: No such file or directory",
    }
    for path, expected in wrong_private.items():
        for command in (["sign", bundle, "--key"], export):
            assert line([*command, path], 2, capsys) == f"{path}: {expected}"
    wrong_public = {
        str(key): "this is a private key; expected the public one, k.pub",
        str(text): "expected an Ed25519 public key in PEM; 'pocketfed keygen' makes it as KEY.pub",
        str(no): "can't read the key: No such file or directory",
    }
    for path, expected in wrong_public.items():
        assert line(["verify", bundle, "--key", public(key), "--key", path], 2, capsys) == f"{path}: {expected}"
    assert not (digits_copy / MANIFEST_SIGNATURE).exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sign", "verify"])
def test_a_missing_bundle(command: str, key: Path, tmp_path: Path, capsys: Capture) -> None:
    missing = tmp_path / "nowhere.bundle"
    file = str(key) if command == "sign" else public(key)
    told = line([command, str(missing), "--key", file], 2, capsys)
    assert told == f"{missing}: no such bundle; make one with 'pocketfed export'"


@pytest.mark.parametrize(
    ("arguments", "missing"), [(["keygen"], "--out"), (["sign", "b"], "--key"), (["verify", "b"], "--key")]
)
def test_a_missing_option(arguments: list[str], missing: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"Error: Missing option '{missing}'."


def test_what_the_readme_says_about_signing(tmp_path: Path) -> None:
    """As a newcomer types it, with the real programs; and the same with the environment variable."""
    section = README.partition("**Sign bundles**")[2].partition("\n**")[0]
    commands = [shlex.split(line) for line in re.findall(r"^    (pocketfed.*)$", section, re.MULTILINE)]
    assert [command[1] for command in commands] == ["keygen", "export", "verify", "selftest"]
    (assignment,) = re.findall(r"`(POCKETFED_TRUSTED_KEYS=\S+)`", section)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}

    def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name(command[0])
        return subprocess.run(
            [program, *command[1:]], cwd=tmp_path, env=environment | variables, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    for command in commands:
        done = run(command)
        assert (done.returncode, done.stderr) == (0, "")
        if command[1] == "export":
            signer = name(tmp_path / "release.key")
            assert done.stdout.endswith(f", signed with the key {signer}\n")
    by_variable, trusted = commands[-1][:-2], dict([assignment.split("=")])
    assert run(by_variable, **trusted).returncode == 0
    assert run(["pocketfed", "keygen", "--out", "other.key"]).returncode == 0
    refused = run([*by_variable, "--trusted-key", "other.key.pub"])
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (4, "", 1)
    (bundle,) = (tmp_path / "signed").iterdir()
    shutil.copy(bundle / "weights.safetensors", bundle / "golden.npz")
    assert run(commands[2]).returncode == run(by_variable, **trusted).returncode == 4


def test_an_exported_bundle_is_signed_in_json(key: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["export", "digits_mlp", "--out", str(tmp_path / "out"), "--sign", str(key), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["key_id"] == name(key)
    assert main(["verify", made["bundle"], "--key", public(key), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {key: made[key] for key in ("bundle", "identity", "key_id")}
    assert main(["inspect", made["bundle"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][MANIFEST_SIGNATURE] == 184
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["digits_mlp-1.bundle"]
