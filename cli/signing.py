"""`pocketfed keygen`, `sign` and `verify`: who made a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import BUNDLE, JSON, print_json


@click.command(short_help="Make a pair of keys for signing.")
@click.option("--out", metavar="KEY", type=click.Path(path_type=Path), required=True, help="File of the private key.")
@JSON
def keygen(out: Path, as_json: bool) -> None:
    """Make an Ed25519 key for signing bundles: the private one in KEY, the public one in KEY.pub.

    The private key is to be kept secret; whoever has it can sign for you. The public key goes to the devices, which
    then take only what was signed with it. Files that exist are never overwritten.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from device_runtime.keys import key_id, public_path, write_key_pair

    key = Ed25519PrivateKey.generate()
    write_key_pair(out, key)
    name = key_id(key.public_key())
    if as_json:
        print_json({"private_key": str(out), "public_key": str(public_path(out)), "key_id": name})
    else:
        click.echo(f"{out}: private key, to be kept secret")
        click.echo(f"{public_path(out)}: public key {name}, for devices")


@click.command(short_help="Sign a bundle.")
@BUNDLE
@click.option("--key", type=click.Path(path_type=Path), required=True, help="File of the private key.")
@JSON
def sign(bundle: Path, key: Path, as_json: bool) -> None:
    """Verify BUNDLE's hashes, then sign its manifest, and with it every byte, as the file manifest.sig.

    A signature that the bundle has already is replaced.
    """
    from device_runtime.bundle import open_bundle
    from device_runtime.keys import key_id, read_private_key
    from export.signing import sign_bundle

    private = read_private_key(key)
    opened = open_bundle(bundle)
    path = sign_bundle(opened, private)
    name = key_id(private.public_key())
    if as_json:
        print_json({"bundle": str(opened.path), "identity": opened.identity, "signature": str(path), "key_id": name})
    else:
        click.echo(f"{path}: identity {opened.identity[:16]}… signed with the key {name}")


@click.command(short_help="Check a bundle's signature.")
@BUNDLE
@click.option(
    "--key",
    "keys",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    help="File of a public key that is trusted; may be given again.",
)
@JSON
def verify(bundle: Path, keys: tuple[Path, ...], as_json: bool) -> None:
    """Check that BUNDLE was signed with one of the keys, and that every file is what was signed.

    Exit code 4 where it was not. Devices check the same.
    """
    from device_runtime.bundle import open_bundle
    from device_runtime.keys import read_public_key
    from device_runtime.signature import TrustedKeys

    opened = open_bundle(bundle, TrustedKeys(map(read_public_key, keys)))
    if as_json:
        print_json({"bundle": str(opened.path), "identity": opened.identity, "key_id": opened.signer})
    else:
        click.echo(f"{opened.path}: identity {opened.identity[:16]}… was signed with the key {opened.signer}")
