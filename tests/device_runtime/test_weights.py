"""Weight files: this project's and the `safetensors` library's are the same; anything else is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import InputError, IntegrityError
from device_runtime.tensors import TensorSpec
from device_runtime.weights import WeightsFile, dump_weights, load_weights, read_weights

SPECS = (TensorSpec("kernel", (3, 2)), TensorSpec("bias", (2,)), TensorSpec("a/scale", ()))
WEIGHTS = (
    np.array([[1, -0.0], [1e-45, 3e38], [np.pi, -2]], np.float32),
    np.array([0.1, 0.2], np.float32),
    np.array(7, np.float32),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "x"]), inner),
    max_leaves=5,
)


def file_bytes(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(start: int = 0, end: int = 8, shape: object = (2,), dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def refusal(data: bytes, specs: tuple[TensorSpec, ...] = SPECS[1:2]) -> str:
    with pytest.raises(IntegrityError) as caught:
        load_weights(data, specs, "w.safetensors")
    return str(caught.value)


def test_weights_come_back_bit_for_bit() -> None:
    back = load_weights(dump_weights(WEIGHTS, SPECS), SPECS)
    assert [(w.shape, w.dtype, w.tobytes()) for w in back] == [(w.shape, w.dtype, w.tobytes()) for w in WEIGHTS]
    assert all(tensor.flags.writeable for tensor in back)


def test_the_bytes_are_canonical() -> None:
    data = dump_weights(WEIGHTS, SPECS)
    (length,) = struct.unpack_from("<Q", data)
    assert (8 + length) % 8 == 0
    assert list(json.loads(data[8 : 8 + length])) == ["kernel", "bias", "a/scale"]
    assert b"__metadata__" not in data
    transposed = np.asfortranarray(WEIGHTS[0])
    assert dump_weights((transposed, *WEIGHTS[1:]), SPECS) == data
    assert dump_weights((WEIGHTS[0] + 1, *WEIGHTS[1:]), SPECS) != data


def test_the_safetensors_library_reads_ours() -> None:
    back = safetensors.numpy.load(dump_weights(WEIGHTS, SPECS))
    assert set(back) == {spec.name for spec in SPECS}
    for spec, tensor in zip(SPECS, WEIGHTS, strict=True):
        assert back[spec.name].shape == tensor.shape
        assert back[spec.name].tobytes() == tensor.tobytes()


def test_ours_reads_the_safetensors_library_s() -> None:
    named = {spec.name: tensor for spec, tensor in zip(SPECS, WEIGHTS, strict=True)}
    data = safetensors.numpy.save(dict(sorted(named.items())), metadata={"format": "np"})
    back = load_weights(data, SPECS)
    assert [tensor.tobytes() for tensor in back] == [tensor.tobytes() for tensor in WEIGHTS]


def test_other_weights_than_the_specs_say_are_not_written() -> None:
    with pytest.raises(IntegrityError, match=r"^weights: expected 3 tensors, found 2$"):
        dump_weights(WEIGHTS[:2], SPECS)
    with pytest.raises(
        IntegrityError, match=r"^weights: tensor 'bias' should be float32\[2\], but is float32\[3, 2\]$"
    ):
        dump_weights((WEIGHTS[0], WEIGHTS[0], WEIGHTS[2]), SPECS)


def test_bytes_that_are_no_safetensors_file() -> None:
    assert refusal(b"1234567") == "w.safetensors: not a safetensors file (7 bytes)"
    truncated = "w.safetensors: not a safetensors file, or truncated (header of 99 bytes)"
    assert refusal(struct.pack("<Q", 99) + b"{}") == truncated
    for header in (b"{", b"\xff\xfe\xff", b"[" * 100_000):
        assert refusal(file_bytes(header)) == "w.safetensors: the safetensors header is not JSON"
    assert refusal(file_bytes([1])) == "w.safetensors: the safetensors header is not a JSON object"


def test_the_weights_of_another_model_are_named() -> None:
    message = "w.safetensors: these are the weights of another model (missing: {}; unexpected: {})"
    assert refusal(dump_weights(WEIGHTS[:1], SPECS[:1])) == message.format("bias", "kernel")
    assert refusal(dump_weights(WEIGHTS, SPECS)) == message.format("none", "a/scale, kernel")
    assert refusal(file_bytes({}), SPECS) == message.format("a/scale, bias, kernel", "none")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (entry(0, 12, [3]), "F32[3]"),
        (entry(0, 8, [1, 2]), "F32[1, 2]"),
        (entry(0, 8, [2], "I32"), "I32[2]"),
        (entry(0, 8, None), "F32None"),
        ({}, "NoneNone"),
        ([1], "[1]"),
        (None, "None"),
    ],
)
def test_a_tensor_of_another_shape_or_dtype(value: object, found: str) -> None:
    expected = f"w.safetensors: tensor 'bias' should be float32[2], but is {found}"
    assert refusal(file_bytes({"bias": value}, bytes(12))) == expected


@pytest.mark.parametrize(
    "offsets",
    [[0, 4], [0, 12], [8, 16], [-8, 0], [8, 0], [0], [0, 8, 8], [0.0, 8.0], [False, 8], "08", None, [0, 2**80]],
)
def test_wrong_data_offsets(offsets: object) -> None:
    data = file_bytes({"bias": entry() | {"data_offsets": offsets}}, bytes(12))
    assert refusal(data) == f"w.safetensors: tensor 'bias' has wrong data offsets {offsets}"


def test_a_truncated_body() -> None:
    data = dump_weights(WEIGHTS, SPECS)
    assert refusal(data[:-1], SPECS) == "w.safetensors: tensor 'a/scale' has wrong data offsets [32, 36]"


@given(st.binary(max_size=64), json_values)
def test_any_bytes_are_refused_with_an_integrity_error(data: bytes, value: object) -> None:
    refusal(data)
    for header in (value, {"bias": value}, {"bias": entry() | {"shape": value}}, {"bias": entry() | {"dtype": value}}):
        refusal(file_bytes(header, data))


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_a_value(position: int, byte: int) -> None:
    data = bytearray(dump_weights(WEIGHTS, SPECS))
    data[position % len(data)] = byte
    try:
        back = load_weights(bytes(data), SPECS)
    except IntegrityError:
        return
    assert [tensor.shape for tensor in back] == [(3, 2), (2,), ()]


def test_a_file_is_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(dump_weights(WEIGHTS, SPECS))
    assert read_weights(path, SPECS)[1].tolist() == WEIGHTS[1].tolist()
    path.write_bytes(b"")
    with pytest.raises(IntegrityError, match=f"^{path}: not a safetensors file \\(0 bytes\\)$"):
        read_weights(path, SPECS)
    with pytest.raises(InputError, match=f"^{path}x: can't read the weights: No such file or directory$"):
        read_weights(Path(f"{path}x"), SPECS)


def test_a_file_is_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(dump_weights(WEIGHTS, SPECS))
    with WeightsFile(path, SPECS) as file:
        path.unlink()  # what was opened stays what is read
        assert file.read(0, 2, 3).tobytes() == WEIGHTS[0].reshape(-1)[2:5].tobytes()
        assert file.read(2, 0, 1).tolist() == [7]
        assert file.read(1, 0, 2).tobytes() == WEIGHTS[1].tobytes()


def test_a_file_of_other_weights_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    data = dump_weights(WEIGHTS, SPECS)
    for broken in (b"", data[:20], data[:-1], file_bytes(b"{"), file_bytes([]), dump_weights(WEIGHTS[:1], SPECS[:1])):
        path.write_bytes(broken)
        with pytest.raises(IntegrityError) as caught:
            load_weights(broken, SPECS, str(path))
        with pytest.raises(IntegrityError) as again:
            WeightsFile(path, SPECS)
        assert str(again.value) == str(caught.value)
    with pytest.raises(InputError, match=f"^{path}x: can't read the weights: No such file or directory$"):
        WeightsFile(Path(f"{path}x"), SPECS)


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path, specs = tmp_path / "w.safetensors", (TensorSpec("kernel", (100, 1000)),)
    path.write_bytes(dump_weights((np.ones((100, 1000), np.float32),), specs))
    with WeightsFile(path, specs) as file:
        with path.open("r+b") as other:
            other.truncate(path.stat().st_size - 1)
        assert file.read(0, 0, 50_000).sum() == 50_000
        with pytest.raises(IntegrityError, match=f"^{path}: became shorter while it was read$"):
            file.read(0, 50_000, 50_000)
