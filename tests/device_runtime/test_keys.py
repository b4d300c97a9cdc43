"""Key files: what is written, with what mode, and what is refused, both ways round."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from device_runtime.errors import InputError
from device_runtime.keys import key_id, public_path, read_private_key, read_public_key, write_key_pair

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where `KEY` was written."""
    write_key_pair(tmp_path / "release.key", KEY)
    return tmp_path / "release.key"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pair_comes_back(path: Path) -> None:
    assert public_path(path) == path.parent / "release.key.pub"
    assert read_private_key(path).private_bytes_raw() == KEY.private_bytes_raw()
    assert read_public_key(public_path(path)).public_bytes_raw() == KEY.public_key().public_bytes_raw()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_the_private_key_is_its_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_key_pair(tmp_path / "k", KEY)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "k", tmp_path / "k.pub")]
    assert modes == [0o600, 0o644]


@pytest.mark.parametrize("name", ["k", "k.pub"])
def test_a_file_that_exists_is_never_overwritten(tmp_path: Path, name: str) -> None:
    taken = tmp_path / name
    taken.write_text("mine")
    expected = f"{taken}: exists already, and keys are never overwritten; choose another --out"
    assert refusal(lambda: write_key_pair(tmp_path / "k", KEY)) == expected
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(taken, "mine")]


def test_a_link_to_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "k").symlink_to(tmp_path / "elsewhere")
    assert refusal(lambda: write_key_pair(tmp_path / "k", KEY)).startswith(f"{tmp_path / 'k'}: exists already")
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "no" / "k"
    expected = f"{path}: can't write the key: No such file or directory; change --out"
    assert refusal(lambda: write_key_pair(path, KEY)) == expected


def test_a_full_disk_leaves_no_half_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, mode: str) -> None:
        os.close(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdopen", full)
    expected = f"{tmp_path / 'k'}: can't write the key: No space left on device; change --out"
    assert refusal(lambda: write_key_pair(tmp_path / "k", KEY)) == expected
    assert list(tmp_path.iterdir()) == []


def test_a_public_key_in_the_private_one_s_place(path: Path) -> None:
    public = public_path(path)
    expected = f"{public}: this is a public key; signing takes the private one, which has no .pub"
    assert refusal(lambda: read_private_key(public)) == expected


def test_a_private_key_in_the_public_one_s_place(path: Path) -> None:
    expected = f"{path}: this is a private key; expected the public one, release.key.pub"
    assert refusal(lambda: read_public_key(path)) == expected


def test_a_key_with_a_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    expected = f"{path}: this key has a passphrase; expected one without, as 'pocketfed keygen' makes it"
    assert refusal(lambda: read_private_key(path)) == expected


def _rsa() -> tuple[bytes, bytes]:
    key = rsa.generate_private_key(65537, 2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("kind", ["empty", "text", "zeros", "raw", "cut", "rsa"])
def test_a_file_that_holds_no_such_key(path: Path, kind: str) -> None:
    private, public = path.read_bytes(), public_path(path).read_bytes()
    contents = {
        "empty": (b"", b""),
        "text": (b"secret\n", b"open\n"),
        "zeros": (bytes(64), bytes(64)),
        "raw": (KEY.private_bytes_raw(), KEY.public_key().public_bytes_raw()),
        "cut": (private[:60], public[:60]),
        "rsa": _rsa(),
    }
    for file, data in zip((path, public_path(path)), contents[kind], strict=True):
        file.write_bytes(data)
    expected = f"{path}: expected an Ed25519 private key in PEM; make one with 'pocketfed keygen'"
    assert refusal(lambda: read_private_key(path)) == expected
    expected = f"{path}.pub: expected an Ed25519 public key in PEM; 'pocketfed keygen' makes it as KEY.pub"
    assert refusal(lambda: read_public_key(public_path(path))) == expected


@pytest.mark.parametrize("read", [read_private_key, read_public_key])
def test_a_missing_file_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    assert refusal(lambda: read(tmp_path / "no")) == f"{tmp_path / 'no'}: can't read the key: No such file or directory"


def test_the_id_is_that_of_the_raw_key() -> None:
    assert key_id(KEY.public_key()) == "56475aa75463474c0285df5dbf2bcab7"  # printf … | xxd -r -p | sha256sum
