"""A bundle is whole or refused: every byte of every file, every field of the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.bundle import (
    FILES,
    GOLDEN,
    MANIFEST,
    MANIFEST_HASH,
    WEIGHTS,
    Bundle,
    FileEntry,
    Footprint,
    Manifest,
    Signature,
    StoredVariable,
    manifest_hash_file,
    open_bundle,
)
from device_runtime.errors import InputError, IntegrityError
from device_runtime.tensors import TensorSpec, canonical_json, sha256

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@cache
def manifest() -> Manifest:
    batch = TensorSpec("x", (None, 4))
    return Manifest(
        name="größe",
        version=3,
        files={name: FileEntry(index, f"{index:064x}") for index, name in enumerate(FILES)},
        signatures={"train": Signature((batch, TensorSpec("y", (None,), "int32")), (TensorSpec("loss", ()),))},
        tensors=(TensorSpec("kernel", (4, 2)), TensorSpec("bias", (2,))),
        variables=(StoredVariable(0, 0, 5), StoredVariable(0, 5, 3), StoredVariable(1, 0, 2)),
        loss="mse",
        metric="mae",
        optimizer={"name": "sgd"},
        inference="float32",
        runtime="tflite-builtins",
        created={"at": "now"},
        optimizer_state=((4, 2), (2,), ()),
        footprint=Footprint(1000, 20),
    )


def refusal(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    with pytest.raises(IntegrityError) as caught:
        Manifest.load(data, "M")
    return str(caught.value)


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """The manifest as JSON with one value replaced."""
    value: dict[str, Any] = json.loads(manifest().dump())
    place: Any = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return value


def test_a_manifest_comes_back() -> None:
    back = Manifest.load(manifest().dump())
    assert back == manifest()
    assert back.dump() == manifest().dump()
    assert (back.parameters, len(back.model_id)) == (10, 32)
    assert back.signatures["train"].input("y").dtype == "int32"
    with pytest.raises(KeyError):
        back.signatures["train"].input("z")


def test_a_manifest_says_what_an_example_is() -> None:
    assert [str(spec) for spec in manifest().examples] == ["float32[n, 4]", "int32[n]"]
    for signatures, missing in (({}, "train"), ({"train": Signature((), ())}, "x")):
        with pytest.raises(IntegrityError) as caught:
            _ = replace(manifest(), signatures=signatures).examples
        assert str(caught.value) == f"manifest.json.signatures: '{missing}' is missing; export the bundle again"


def test_the_manifest_is_canonical() -> None:
    data = manifest().dump()
    assert data == canonical_json(json.loads(data))
    assert b"gr\xc3\xb6\xc3\x9fe" in data


def test_the_model_id_is_of_name_and_ordered_tensors() -> None:
    kernel, bias = manifest().tensors
    layouts = [("a", (kernel, bias)), ("a", (bias, kernel)), ("b", (kernel, bias)), ("a", (kernel,))]
    ids = {Manifest(name, 1, {}, {}, tensors, (), "", "", {}, "", "", {}).model_id for name, tensors in layouts}
    assert len(ids) == 4


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_not_json(data: bytes) -> None:
    assert refusal(data) == "M: not JSON"


def test_a_manifest_that_is_no_object() -> None:
    assert refusal([]) == "M: expected a JSON object"


UNCOVERED = "M.variables: they do not hold every value of every weight once"
FIELDS = {
    "format_version": "a whole number",
    "name": "a string",
    "version": "a whole number",
    "files": "an object",
    "signatures": "an object",
    "tensors": "a list",
    "variables": "a list",
    "loss": "a string",
    "metric": "a string",
    "optimizer": "an object",
    "inference": "a string",
    "runtime": "a string",
    "created": "an object",
    "optimizer_state": "a list",
    "footprint": "an object",
    "model_id": "a string",
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(field: str) -> None:
    value = json.loads(manifest().dump())
    del value[field]
    assert refusal(value) == f"M.{field}: expected {FIELDS[field]}"


@pytest.mark.parametrize("value", [None, True, 1.5], ids=str)
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_type_is_named(field: str, value: Any) -> None:
    assert refusal(changed(field, to=value)) == f"M.{field}: expected {FIELDS[field]}"


def test_every_field_of_a_manifest_is_tested() -> None:
    assert set(json.loads(manifest().dump())) == set(FIELDS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (changed("format_version", to=2), "M.format_version: this runtime reads version 4"),
        (changed("version", to=-1), "M.version: expected a whole number of at least 0"),
        (changed("files", WEIGHTS, to=1), f"M.files.{WEIGHTS}: expected a JSON object"),
        (changed("files", WEIGHTS, "size", to="1"), f"M.files.{WEIGHTS}.size: expected a whole number"),
        (changed("files", WEIGHTS, "sha256", to=1), f"M.files.{WEIGHTS}.sha256: expected a string"),
        (changed("files", to={}), "M.files: golden.npz, infer.tflite, train.tflite, weights.safetensors missing"),
        (changed("signatures", "train", to=[]), "M.signatures.train: expected a JSON object"),
        (changed("signatures", "train", "inputs", to={}), "M.signatures.train.inputs: expected a list"),
        (changed("signatures", "train", "outputs", 0, "name", to=""), "M.signatures.train.outputs[0].name: expected a"),
        (changed("tensors", 1, to=[]), "M.tensors[1]: expected an object with name, shape and dtype"),
        (changed("tensors", 1, "name", to=3), "M.tensors[1].name: expected a non-empty string"),
        (changed("tensors", 0, "shape", to=[0]), "M.tensors[0].shape: expected a list of positive integers or null"),
        (changed("tensors", 0, "shape", to=[True]), "M.tensors[0].shape: expected a list of positive integers or null"),
        (changed("tensors", 0, "shape", to="4"), "M.tensors[0].shape: expected a list of positive integers or null"),
        (changed("tensors", 0, "dtype", to="int8"), "M.tensors[0].dtype: expected one of float32, int32"),
        (changed("tensors", 0, "dtype", to=[]), "M.tensors[0].dtype: expected one of float32, int32"),
        (changed("tensors", 0, "shape", to=[None]), "M.tensors: a weight's shape has a free dimension"),
        (changed("variables", 0, to=1), "M.variables[0]: expected a JSON object"),
        (changed("variables", 0, "size", to="5"), "M.variables[0].size: expected a whole number"),
        (changed("variables", 0, "transposed", to=0), "M.variables[0].transposed: expected true or false"),
        (changed("variables", 0, "transposed", to=True), UNCOVERED),  # it is a part of the weight
        (changed("variables", 0, "size", to=4), UNCOVERED),
        (changed("variables", 1, "size", to=4), UNCOVERED),
        (changed("variables", 1, "size", to=0), UNCOVERED),
        (changed("variables", 2, "tensor", to=0), UNCOVERED),
        (changed("variables", 2, "tensor", to=2), UNCOVERED),
        (changed("variables", to=[]), UNCOVERED),
        (changed("optimizer_state", to=[3]), "M.optimizer_state[0]: expected a list of whole numbers above 0"),
        (changed("optimizer_state", to=[[], [0]]), "M.optimizer_state[1]: expected a list of whole numbers above 0"),
        (changed("optimizer_state", to=[[True]]), "M.optimizer_state[0]: expected a list of whole numbers above 0"),
        (changed("footprint", "fixed", to=-1), "M.footprint.fixed: expected a whole number of at least 0"),
        (changed("footprint", "per_example", to=1.5), "M.footprint.per_example: expected a whole number"),
        (changed("model_id", to="0" * 32), "M.model_id: does not fit the name and tensors"),
        (changed("name", to="other"), "M.model_id: does not fit the name and tensors"),
        (changed("name", to="\ud800"), "M.model_id: does not fit the name and tensors"),
        (changed("tensors", 0, "name", to="\ud800"), "M.model_id: does not fit the name and tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_within_a_field_is_named(value: object, message: str) -> None:
    assert refusal(value).startswith(message)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "\ud800", "a\nb"], ids=repr)
def test_a_file_name_that_leaves_the_bundle_is_refused(name: str) -> None:
    value = changed("files", name, to={"size": 1, "sha256": ""})
    assert refusal(value) == f"M.files: {name!r} is not a plain file name"


@given(st.binary(max_size=50), json_values)
def test_any_bytes_are_refused_with_an_integrity_error(data: bytes, value: object) -> None:
    refusal(data)
    refusal(value)


@given(
    st.sampled_from(
        [(field,) for field in FIELDS]
        + [
            ("files", WEIGHTS),
            ("files", WEIGHTS, "size"),
            ("signatures", "train"),
            ("signatures", "train", "inputs", 0),
        ]
        + [("tensors", 0, "name"), ("tensors", 0, "shape"), ("tensors", 0, "dtype"), ("created", "at")]
    ),
    json_values,
)
def test_any_value_of_a_field_is_read_or_refused(path: tuple[str | int, ...], value: object) -> None:
    with suppress(IntegrityError):
        Manifest.load(json.dumps(changed(*path, to=value)).encode())


def test_tensor_specs_say_what_they_accept(digits_bundle: Bundle) -> None:
    x = digits_bundle.manifest.signatures["train"].input("x")
    assert str(x) == "float32[n, 8, 8, 1]"
    with pytest.raises(ValueError, match=r"^x: the number of elements of \(None, 8, 8, 1\) is not known$"):
        _ = x.size


def test_a_bundle_is_opened_by_its_path_or_its_folder(digits_bundle: Bundle, digits_copy: Path) -> None:
    for path in (digits_copy, digits_copy.parent):
        bundle = open_bundle(path)
        assert (bundle.path, bundle.identity) == (digits_copy, digits_bundle.identity)
        assert bundle.manifest == digits_bundle.manifest
    assert digits_bundle.identity == sha256((digits_copy / MANIFEST).read_bytes())
    assert [tensor.shape for tensor in digits_bundle.initial_weights()] == [(64, 64), (64,), (64, 10), (10,)]
    assert {"x", "y", "learning_rate", "steps", "logits", "losses", "w0", "w3"} <= set(digits_bundle.golden())


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{tmp_path}: expected a bundle, or a folder .* exactly one; found none$"):
        open_bundle(tmp_path)
    missing = tmp_path / "missing"
    with pytest.raises(InputError, match=f"^{missing}: no such bundle; make one with 'pocketfed export'$"):
        open_bundle(missing)


def test_two_bundles_are_named(digits_copy: Path) -> None:
    shutil.copytree(digits_copy, digits_copy.with_name("another.bundle"))
    with pytest.raises(InputError, match=r"exactly one; found another.bundle, digits_mlp-1.bundle$"):
        open_bundle(digits_copy.parent)


@pytest.mark.parametrize("where", [0, 0.3, 0.7, 1])
@pytest.mark.parametrize("name", [*FILES, MANIFEST, MANIFEST_HASH])
def test_one_flipped_bit_is_refused(digits_copy: Path, name: str, where: float) -> None:
    path = digits_copy / name
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    if name in FILES:
        expected = f"{path}: its SHA-256 is not the manifest's: changed or damaged; copy it again"
    else:
        expected = f"{digits_copy / MANIFEST}: does not match {MANIFEST_HASH}: changed or damaged; copy it again"
    with pytest.raises(IntegrityError) as caught:
        open_bundle(digits_copy)
    assert str(caught.value) == expected


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_length_is_refused(digits_copy: Path, name: str) -> None:
    path = digits_copy / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError) as caught:
        open_bundle(digits_copy)
    assert str(caught.value) == f"{path}: {size - 1} bytes, the manifest says {size}; copy it again"


@pytest.mark.parametrize("name", [*FILES, MANIFEST_HASH])
def test_a_missing_file_is_named(digits_copy: Path, name: str) -> None:
    (digits_copy / name).unlink()
    with pytest.raises(IntegrityError) as caught:
        open_bundle(digits_copy)
    assert str(caught.value) == f"{digits_copy / name}: No such file or directory; the bundle is incomplete"


def test_a_bundle_without_its_manifest_is_none(digits_copy: Path) -> None:
    (digits_copy / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"found none$"):
        open_bundle(digits_copy)


def test_the_hash_file_is_what_sha256sum_reads() -> None:
    # echo -n abc | sha256sum
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest_hash_file(b"abc") == f"{digest}  manifest.json\n".encode()


def test_files_beyond_the_known_ones_are_verified_too(digits_copy: Path, rehash: Callable[..., Bundle]) -> None:
    data = (digits_copy / GOLDEN).read_bytes()
    files = {name: FileEntry(len(data), sha256(data)) for name in (GOLDEN, "extra.bin")}
    known = dict(open_bundle(digits_copy).manifest.files)
    (digits_copy / "extra.bin").write_bytes(data)
    rehash(digits_copy, files=known | files)
    (digits_copy / "extra.bin").write_bytes(data + b"!")
    with pytest.raises(IntegrityError, match=r"extra.bin"):
        open_bundle(digits_copy)
