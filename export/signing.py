"""Sign a bundle that exists."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime.bundle import MANIFEST, MANIFEST_SIGNATURE, Bundle
from device_runtime.errors import InputError, IntegrityError
from device_runtime.signature import sign_manifest
from device_runtime.tensors import sha256


def sign_bundle(bundle: Bundle, key: Ed25519PrivateKey) -> Path:
    """Write the signature of a verified bundle, in place of another that it has; the path of the signature.

    Raises:
        InputError: it can't be written.
        IntegrityError: the manifest is not the one that was verified any more.
    """
    path = bundle.file(MANIFEST_SIGNATURE)
    fresh = path.with_name(f".{path.name}.new")
    try:
        manifest = bundle.file(MANIFEST).read_bytes()
        if sha256(manifest) != bundle.identity:
            raise IntegrityError(f"{bundle.file(MANIFEST)}: changed while it was to be signed; nothing was signed")
        try:
            fresh.write_bytes(sign_manifest(manifest, key))
            fresh.replace(path)  # whoever reads the bundle meanwhile sees the old signature or the new one
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: can't write the signature: {error.strerror}") from None
    return path
