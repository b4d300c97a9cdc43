"""Signatures: the documented vector, and that nothing but what was signed with a trusted key is taken."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import IntegrityError
from device_runtime.keys import key_id, public_path, read_private_key, read_public_key, write_key_pair
from device_runtime.signature import TrustedKeys, sign_manifest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "bundle.md").read_text(encoding="utf-8")

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
ID, OTHER_ID = key_id(KEY.public_key()), key_id(OTHER.public_key())
TRUSTED = TrustedKeys([KEY.public_key()])
MANIFEST = b'{"name":"tiny","version":1}'
SIGNATURE = sign_manifest(MANIFEST, KEY)
DAMAGED = "S: not a signature, or damaged; copy it again or sign the bundle anew"


def refusal(manifest: bytes, signature: bytes | None, trusted: TrustedKeys = TRUSTED) -> str:
    with pytest.raises(IntegrityError) as caught:
        trusted.verify(manifest, signature, "S")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _block(start: str) -> bytes:
    """The content of the document's code block that starts so."""
    (content,) = re.findall(rf"^```\n({start}.*?)```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return str(content).encode()


def _cell(name: str) -> bytes:
    """The value in the document's table row of this name."""
    (content,) = re.findall(rf"^\| {name} \| `(.*)` \|$", DOCUMENT, re.MULTILINE)
    return str(content).encode()


def test_the_documented_vector(tmp_path: Path) -> None:
    write_key_pair(tmp_path / "KEY", KEY)
    assert (tmp_path / "KEY").read_bytes() == _block("-----BEGIN PRIVATE KEY-----")
    assert (tmp_path / "KEY.pub").read_bytes() == _block("-----BEGIN PUBLIC KEY-----")
    assert KEY.public_key().public_bytes_raw().hex().encode() == _cell("raw public key")
    assert ID.encode() == _cell("key id")
    manifest, signature = _cell("manifest's bytes, without a newline"), _block("pocketfed-signature")
    assert sign_manifest(manifest, read_private_key(tmp_path / "KEY")) == signature
    trusted = TrustedKeys([read_public_key(public_path(tmp_path / "KEY"))])
    assert trusted.verify(manifest, signature, "S") == ID


def test_the_documented_layout() -> None:
    rows = [(int(at), int(size)) for at, size in re.findall(r"^\| (\d+) \| (\d+) \| ", DOCUMENT, re.MULTILINE)]
    parts = [SIGNATURE[at : at + size] for at, size in rows]
    raw = KEY.sign(MANIFEST).hex().encode()
    assert parts == [b"pocketfed-signature 1 ", ID.encode(), b" ", raw, b"\n"]
    assert b"".join(parts) == SIGNATURE
    assert f"\n{len(SIGNATURE)} bytes of ASCII" in DOCUMENT


@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("xxd")), reason="needs openssl and xxd")
def test_the_documented_commands_of_openssl(tmp_path: Path) -> None:
    write_key_pair(tmp_path / "KEY", KEY)
    (tmp_path / "manifest.json").write_bytes(MANIFEST)
    (tmp_path / "manifest.sig").write_bytes(SIGNATURE)
    script = "\n".join(re.findall(r"^    ((?:cut|openssl) .*)$", DOCUMENT, re.MULTILINE))
    assert len(script.splitlines()) == 2

    def verdict() -> tuple[int, str]:
        run = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return run.returncode, run.stdout

    assert verdict() == (0, "Signature Verified Successfully\n")
    (tmp_path / "manifest.json").write_bytes(MANIFEST + b"\n")
    assert verdict()[0] != 0


def test_a_signature_holds_for_any_of_the_trusted_keys() -> None:
    both = TrustedKeys([OTHER.public_key(), KEY.public_key()])
    assert both.verify(MANIFEST, SIGNATURE, "S") == ID
    assert both.verify(MANIFEST, sign_manifest(MANIFEST, OTHER), "S") == OTHER_ID


def test_a_missing_signature() -> None:
    assert refusal(MANIFEST, None) == (
        "S: missing: the bundle is not signed, and only signed ones are taken; sign it with 'pocketfed sign'"
    )


def test_a_key_that_is_not_trusted() -> None:
    expected = f"S: signed with the key {OTHER_ID}, which is not trusted; trusted: {ID}"
    assert refusal(MANIFEST, sign_manifest(MANIFEST, OTHER)) == expected


def test_a_forger_who_names_a_trusted_key() -> None:
    forged = sign_manifest(MANIFEST, OTHER).replace(OTHER_ID.encode(), ID.encode())
    expected = f"S: the key {ID} did not sign this manifest: changed or damaged; get the bundle again"
    assert refusal(MANIFEST, forged) == expected
    assert refusal(MANIFEST + b" ", SIGNATURE) == expected


def test_without_keys_nothing_is_trusted() -> None:
    assert (
        refusal(MANIFEST, SIGNATURE, TrustedKeys([])) == f"S: signed with the key {ID}, which is not trusted; trusted: "
    )


def test_a_later_version() -> None:
    later = SIGNATURE.replace(b"signature 1", b"signature 2")
    assert refusal(MANIFEST, later) == "S: this runtime reads signatures of version 1"
    assert refusal(MANIFEST, b"pocketfed-signature 12 anything") == "S: this runtime reads signatures of version 1"


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        SIGNATURE[:-1],
        SIGNATURE[:100],
        SIGNATURE + b"\n",
        SIGNATURE * 2,
        b" " + SIGNATURE,
        SIGNATURE.upper(),
        SIGNATURE.replace(b"\n", b"\r\n"),
        SIGNATURE.replace(b" ", b"  "),
        b"\xef\xbb\xbf" + SIGNATURE,
        SIGNATURE[:55] + SIGNATURE[55:183].upper() + b"\n",
    ],
)
def test_a_signature_of_another_form(signature: bytes) -> None:
    assert refusal(MANIFEST, signature) == DAMAGED


def test_a_truncated_signature() -> None:
    assert {refusal(MANIFEST, SIGNATURE[:length]) for length in range(len(SIGNATURE))} == {DAMAGED}


@given(st.data())
def test_any_other_byte_is_refused(data: st.DataObject) -> None:
    whole = MANIFEST + SIGNATURE
    position = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != whole[position]))
    changed = whole[:position] + bytes([value]) + whole[position + 1 :]
    refusal(changed[: len(MANIFEST)], changed[len(MANIFEST) :])


@given(st.binary(), st.binary(max_size=200))
def test_any_bytes_are_refused_with_an_integrity_error(manifest: bytes, signature: bytes) -> None:
    refusal(manifest, signature)


@given(st.binary())
def test_any_manifest_can_be_signed(manifest: bytes) -> None:
    assert TRUSTED.verify(manifest, sign_manifest(manifest, KEY), "S") == ID


def test_the_value_of_a_malleable_signature_is_refused() -> None:
    """S + L has the same effect in the group; RFC 8032 refuses it, so that a signature has one form."""
    order = 2**252 + 27742317777372353535851937790883648493
    raw = KEY.sign(MANIFEST)
    scalar = int.from_bytes(raw[32:], "little") + order
    other = raw[:32] + scalar.to_bytes(32, "little")
    refusal(MANIFEST, SIGNATURE.replace(raw.hex().encode(), other.hex().encode()))
