"""Ed25519 keys in PEM files: a private one that signs bundles, and its public one that devices trust.

A private key is PKCS #8 without a passphrase, a public key is SubjectPublicKeyInfo (RFC 8410).
docs/bundle.md shows one of each.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from device_runtime.errors import InputError
from device_runtime.tensors import sha256

KEY_ID_DIGITS = 32


def key_id(key: Ed25519PublicKey) -> str:
    """First 32 hexadecimal digits of the SHA-256 of the raw public key, which has 32 bytes."""
    return sha256(key.public_bytes_raw())[:KEY_ID_DIGITS]


def public_path(path: Path) -> Path:
    """Where `write_key_pair` puts the public key of the private key at `path`."""
    return path.with_name(f"{path.name}.pub")


def write_key_pair(path: Path, key: Ed25519PrivateKey) -> None:
    """Write the private key to `path`, for its owner alone (mode 0600), and the public key to ``path.pub``.

    Raises:
        InputError: one of the files exists already or can't be written; neither is left behind half made.
    """
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _create(path, private, 0o600)
    try:
        _create(public_path(path), public, 0o644)
    except InputError:
        path.unlink()
        raise


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in the file.

    Raises:
        InputError: it can't be read, or holds anything else.
    """
    data = _read(path)
    if b"PUBLIC KEY" in data:
        raise InputError(f"{path}: this is a public key; signing takes the private one, which has no .pub")
    if b"ENCRYPTED" in data:
        raise InputError(f"{path}: this key has a passphrase; expected one without, as 'pocketfed keygen' makes it")
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: expected an Ed25519 private key in PEM; make one with 'pocketfed keygen'")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """The public key in the file.

    Raises:
        InputError: it can't be read, or holds anything else.
    """
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise InputError(f"{path}: this is a private key; expected the public one, {public_path(path).name}")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: expected an Ed25519 public key in PEM; 'pocketfed keygen' makes it as KEY.pub")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't read the key: {error.strerror}") from None


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not be there yet, with this mode from the first byte on."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise InputError(f"{path}: exists already, and keys are never overwritten; choose another --out") from None
    except OSError as error:
        raise InputError(f"{path}: can't write the key: {error.strerror}; change --out") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        path.unlink()
        raise InputError(f"{path}: can't write the key: {error.strerror}; change --out") from None
