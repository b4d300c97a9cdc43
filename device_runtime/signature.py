"""The signature of a bundle, ``manifest.sig``: Ed25519 (RFC 8032) over the exact bytes of ``manifest.json``.

One line of ASCII: the words ``pocketfed-signature 1``, the id of the key and the signature, both in lowercase
hexadecimal digits. docs/bundle.md specifies it to the byte, with a test vector.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from device_runtime.errors import IntegrityError
from device_runtime.keys import KEY_ID_DIGITS, key_id

FORMAT_VERSION = 1
_LINE = re.compile(rb"pocketfed-signature 1 ([0-9a-f]{%d}) ([0-9a-f]{128})\n" % KEY_ID_DIGITS)
_OTHER_VERSION = re.compile(rb"pocketfed-signature (?!1 )[0-9]+ ")


def sign_manifest(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The content of ``manifest.sig`` for these bytes of ``manifest.json``; the same key gives the same."""
    signature = key.sign(manifest).hex()
    return f"pocketfed-signature {FORMAT_VERSION} {key_id(key.public_key())} {signature}\n".encode()


class TrustedKeys:
    """The public keys of those whose bundles are used; without any key, nobody's are."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys = {key_id(key): key for key in keys}

    def verify(self, manifest: bytes, signature: bytes | None, where: str) -> str:
        """Check a signature, which is None where there is none; the id of the key that made it.

        Args:
            manifest: the bytes of ``manifest.json``, not parsed yet.
            signature: the content of ``manifest.sig``.
            where: the place of the signature, for messages.

        Raises:
            IntegrityError: there is no signature, it is malformed, its key is not trusted, or it does not hold.
        """
        if signature is None:
            raise IntegrityError(
                f"{where}: missing: the bundle is not signed, and only signed ones are taken;"
                " sign it with 'pocketfed sign'"
            )
        match = _LINE.fullmatch(signature)
        if match is None:
            if _OTHER_VERSION.match(signature):
                raise IntegrityError(f"{where}: this runtime reads signatures of version {FORMAT_VERSION}")
            raise IntegrityError(f"{where}: not a signature, or damaged; copy it again or sign the bundle anew")
        signer = match[1].decode()
        if signer not in self._keys:
            raise IntegrityError(
                f"{where}: signed with the key {signer}, which is not trusted; trusted: {', '.join(self._keys)}"
            )
        try:
            self._keys[signer].verify(bytes.fromhex(match[2].decode()), manifest)
        except InvalidSignature:
            raise IntegrityError(
                f"{where}: the key {signer} did not sign this manifest: changed or damaged; get the bundle again"
            ) from None
        return signer
