"""CIFAR-10: both public formats are read alike, damage is named, and the crops are those of the tutorial."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tff_sim import datasets
from tff_sim.datasets.cifar10 import load_raw
from tff_sim.datasets.cifar_images import central, distorted, whitened
from tff_sim.datasets.restricted_pickle import read_pickle
from tff_sim.errors import DatasetError

TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
HOLDS = "CIFAR-10's data_batch_1.bin to data_batch_5.bin and test_batch.bin, or the same without .bin"
BINARY = "expected a binary batch of CIFAR-10: records of 3073 bytes, a label and an image"
PYTHON = "expected a batch of CIFAR-10 for Python: 'data' of n×3072 bytes and n 'labels'"


def _batch(seed: int, count: int = 4) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Pixels as in the files, [n, 3072]: red, green, blue planes; and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, 10, count).tolist()


def _write_binary(path: Path, pixels: npt.NDArray[np.uint8], labels: list[int]) -> None:
    path.write_bytes(np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1).tobytes())


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """Six binary batches of four images."""
    for seed, name in enumerate([*TRAIN, "test_batch"]):
        _write_binary(tmp_path / f"{name}.bin", *_batch(seed))
    return tmp_path


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The same as pickles, of protocol 2 as the genuine ones."""
    folder = tmp_path / "python"
    folder.mkdir()
    for seed, name in enumerate([*TRAIN, "test_batch"]):
        pixels, labels = _batch(seed)
        batch = {b"data": pixels, b"labels": labels, b"batch_label": b"a batch", b"filenames": [b"a.png"] * 4}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def _message(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        datasets.load("cifar10", folder)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_both_formats_give_the_same_images(binary: Path, python: Path) -> None:
    first, second = load_raw(binary), load_raw(python)
    assert first.train.x.shape == (20, 32, 32, 3)
    for part, other in ((first.train, second.train), (first.test, second.test)):
        np.testing.assert_array_equal(part.x, other.x)
        np.testing.assert_array_equal(part.y, other.y)
    pixels, labels = _batch(5)
    np.testing.assert_array_equal(first.test.y, labels)
    # Pixel (row 3, column 7) of the third image, in green, stands in the second of its planes.
    assert first.test.x[2, 3, 7, 1] == pixels[2, 1024 + 3 * 32 + 7]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_pickles_of_other_protocols_are_read_too(python: Path, protocol: int) -> None:
    pixels, labels = _batch(5)
    batch = {"data": pixels, "labels": labels}
    (python / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    np.testing.assert_array_equal(load_raw(python).test.y, labels)
    np.testing.assert_array_equal(load_raw(python).test.x[0, :, :, 2].ravel(), pixels[0, 2048:])


def test_arrays_in_the_order_of_fortran_are_read_too(python: Path) -> None:
    pixels, labels = _batch(5)
    batch = {b"data": np.asfortranarray(pixels), b"labels": labels}
    (python / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    np.testing.assert_array_equal(load_raw(python).test.x[1, :, :, 0].ravel(), pixels[1, :1024])


def test_a_pickle_as_python_2_wrote_it_is_read(python: Path) -> None:
    # Byte strings of Python 2 have opcodes of their own, which today's pickle reads and never writes.
    pixels, _ = _batch(5, count=1)
    data = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b"
        b"\x87Rq\x05(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + pixels.tobytes() + b"tb"
        b"U\x06labelsq\x08]q\x09K\x07au."
    )
    (python / "test_batch").write_bytes(data)
    found = load_raw(python).test
    assert found.y.tolist() == [7]
    np.testing.assert_array_equal(found.x[0, :, :, 0].ravel(), pixels[0, :1024])


class _Runs:
    """Pickled, it asks to call a function with arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def _hostile(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would make `marker` if they were run, and what they are refused for."""
    import builtins
    import os

    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": (pickle.dumps({b"data": _Runs(os.system, command)}), f"{os.name}.system"),
        "eval": (pickle.dumps(_Runs(builtins.eval, code)), "builtins.eval"),
        "exec in a list": (pickle.dumps([1, [_Runs(builtins.exec, code)]]), "builtins.exec"),
        "protocol 0": (pickle.dumps(_Runs(os.system, command), protocol=0), f"{os.name}.system"),
        "by INST": (b"(S" + repr(command).encode() + b"\nios\nsystem\n.", "os.system"),
        "getattr": (
            b"cbuiltins\ngetattr\n.",
            "builtins.getattr",
        ),
        "a submodule of what is allowed": (b"cnumpy\ntestsing.os.system\n.", "numpy.testsing.os.system"),
        "dotted": (b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.x.y.z\x93.", "numpy.dtype.x.y.z"),
        "what a terminal obeys": (b"cnumpy\n\x1b[2J\xc2\x85\n.", r"numpy.\x1b[2J\x85"),
        "numpy's loader": (b"cnumpy\nload\n(S" + repr(str(marker)).encode() + b"\ntR.", "numpy.load"),
    }


@pytest.mark.parametrize("kind", list(_hostile(Path("marker"))))
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(python: Path, tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "marker"
    content, name = _hostile(marker)[kind]
    (python / "data_batch_1").write_bytes(content)
    assert _message(python) == (f"{python / 'data_batch_1'}: refused, nothing of it was run: it holds {name}; {PYTHON}")
    assert not marker.exists()


def test_the_hostile_pickles_are_hostile(tmp_path: Path) -> None:
    """Python's own unpickler does run them: else the test above would show nothing."""
    marker = tmp_path / "marker"
    for kind in ("system", "eval", "exec in a list", "protocol 0", "by INST"):
        pickle.loads(_hostile(marker)[kind][0])
        assert marker.exists()
        marker.unlink()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps([1, 2]), "a list instead of a dictionary"),
        (pickle.dumps({b"data": np.zeros((2, 3072))}, protocol=2), "arrays of 'f8'"),
        (pickle.dumps({b"data": np.array([None, {}])}, protocol=2), "arrays of 'O8'"),
        # An array whose shape promises more than its bytes hold.
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftcnumpy\ndtype\n(S'u1'\ntR"
            b"I00\nC\x02hitb}(C\x04datau.".replace(b"cnumpy.core", b"}(C\x04datacnumpy.core").replace(
                b"tb}(C\x04datau.", b"tbu."
            ),
            "an array that does not fit its data",
        ),
        (b"\x80\x05\x96\x00\x00\x00\x00\x08\x00\x00\x00.", "a byte array or a set"),  # of 32 gigabytes
        (b"\x80\x04\x8f.", "a byte array or a set"),
        (b"cnumpy\ndtype\n((lK\x00K\x01tR.", "arrays of no type"),
        (b"}K\x01K\x02s.", "a dictionary whose keys are not text"),
        (b"(K\x01K\x02d.", "a dictionary whose keys are not text"),
        # Tuples of tuples, 2**60 in the last one, as a key: to hash it would take years.
        (b"})" + b"2\x86" * 60 + b"K\x01s.", "a dictionary whose keys are not text"),
        (b"](})" + b"2\x86" * 60 + b"K\x01ue.", "a dictionary whose keys are not text"),
        (b"c_codecs\nencode\n(S'x'\nS'bz2'\ntR.", "text in another encoding than Latin-1"),
    ],
    ids=[
        "list",
        "floats",
        "objects",
        "short",
        "bytes",
        "set",
        "no type",
        "number",
        "numbers",
        "hash",
        "hashes",
        "codec",
    ],
)
def test_what_is_no_batch_is_refused_with_the_reason(python: Path, content: bytes, reason: str) -> None:
    (python / "data_batch_1").write_bytes(content)
    assert _message(python) == (
        f"{python / 'data_batch_1'}: refused, nothing of it was run: it holds {reason}; {PYTHON}"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        b"\x80\x02}",  # broken off
        b"\x80\x02}r\xff\xff\xff\xff.."[:-2],
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"cnumpy\ndtype\n}S'x'\nS'y'\nsb.",  # sets attributes of what stands for numpy.dtype
        b"cnumpy\nndarray\n(tR.",
        b"Pid\n.",  # a persistent id
        b"\x82\x01.",  # an extension's code
    ],
)
def test_a_damaged_pickle_is_named(python: Path, content: bytes) -> None:
    (python / "data_batch_1").write_bytes(content)
    message = _message(python)
    assert message.startswith(f"{python / 'data_batch_1'}: ")
    assert message.endswith(PYTHON)


@given(st.data())
def test_no_change_of_a_pickle_does_more_than_be_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    pixels = np.zeros((1, 12), np.uint8)
    content = bytearray(pickle.dumps({b"data": pixels, b"labels": [1], b"filenames": [b"a"]}, protocol=2))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(content)
    try:
        found = read_pickle(path, "a batch")
    except DatasetError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert all(isinstance(key, bytes) for key in found)


def test_a_truncated_pickle_is_named(python: Path) -> None:
    path = python / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1000])
    assert _message(python) == f"{path}: truncated, damaged or not a pickle; {PYTHON}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({b"data": None}, "'data' is missing"),
        ({b"data": np.zeros((4, 100), np.uint8)}, "'data' is (4, 100)"),
        ({b"labels": [1, 2]}, "'labels' is not a list of 4"),
        ({b"labels": None}, "'labels' is not a list of 4"),
        ({b"labels": [1, 2, "3", 4]}, "'labels' holds something else than small numbers"),
        ({b"labels": [1, 2, -3, 4]}, "'labels' holds something else than small numbers"),
    ],
)
def test_a_batch_for_python_of_another_form_is_refused(python: Path, change: dict[bytes, Any], reason: str) -> None:
    pixels, labels = _batch(1)
    (python / "data_batch_2").write_bytes(pickle.dumps({b"data": pixels, b"labels": labels} | change, protocol=2))
    assert _message(python) == f"{python / 'data_batch_2'}: {reason}; {PYTHON}"


def test_a_label_out_of_range_is_shown(binary: Path, python: Path) -> None:
    pixels, _ = _batch(1)
    _write_binary(binary / "data_batch_2.bin", pixels, [1, 2, 10, 4])
    assert _message(binary) == f"{binary / 'data_batch_2.bin'}: a label is 10; expected 0 to 9"
    batch = {b"data": pixels, b"labels": [1, 11, 3, 4]}
    (python / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=2))
    assert _message(python) == f"{python / 'data_batch_2'}: a label is 11; expected 0 to 9"


@pytest.mark.parametrize("size", [0, 3072, 4 * 3073 - 1])
def test_a_truncated_binary_batch_is_named(binary: Path, size: int) -> None:
    path = binary / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:size])
    assert _message(binary) == f"{path}: truncated or of another format: {size} bytes; {BINARY}"


def test_missing_files_are_named(binary: Path, python: Path, tmp_path: Path) -> None:
    (binary / "data_batch_4.bin").unlink()
    assert _message(binary) == f"{binary / 'data_batch_4.bin'}: no such file; {BINARY}"
    (python / "test_batch").unlink()
    assert _message(python) == f"{python / 'test_batch'}: no such file; {PYTHON}"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert _message(empty) == (f"{empty}: neither data_batch_1.bin nor data_batch_1 in it; it should hold {HOLDS}")
    nowhere = tmp_path / "nowhere"
    assert _message(nowhere) == f"{nowhere}: no such folder; --data-dir should hold {HOLDS}"


def test_a_batch_that_is_a_folder_is_named(binary: Path) -> None:
    path = binary / "data_batch_1.bin"
    path.unlink()
    path.mkdir()
    assert _message(binary) == f"{path}: can't read it: Is a directory; {BINARY}"


def test_the_model_gets_whitened_crops_of_the_middle(binary: Path) -> None:
    import models

    data, raw = datasets.load("cifar10", binary), load_raw(binary)
    assert data.train.x.shape[1:] == tuple(models.get("cifar_cnn").input.shape[1:])
    assert data.train.x.dtype == np.float32
    np.testing.assert_allclose(data.train.x.mean(axis=(1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(data.train.x.std(axis=(1, 2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(
        data.test.x, whitened(raw.test.x[:, 4:28, 4:28].astype(np.float32)), rtol=1e-6, atol=1e-7
    )


@pytest.mark.filterwarnings("ignore")
def test_whitening_is_tensorflow_s() -> None:
    import tensorflow as tf

    images = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3)).astype(np.float32)
    images[1] = 77  # a constant image has no deviation
    images[2] = 77 + images[2] % 2 * 1e-3  # and this one less than 1/√pixels
    expected = tf.image.per_image_standardization(images).numpy()
    np.testing.assert_allclose(whitened(images), expected, rtol=1e-4, atol=1e-3)


def test_distorted_images_are_mirrored_crops_of_the_image() -> None:
    # Without brightness and contrast, which whitening takes out where nothing is lost, only place and side are left.
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    found = distorted(images, np.random.default_rng(1))
    assert found.shape == (40, 24, 24, 3)
    places = []
    for image, crop in zip(images.astype(np.float32), found, strict=True):
        # A crop is, channel by channel, an increasing linear function of what it is cut from: correlation 1.
        fits = []
        for top in range(9):
            for left in range(9):
                for side in (1, -1):
                    piece = image[top : top + 24, left : left + 24][:, ::side]
                    if np.corrcoef(piece[..., 0].ravel(), crop[..., 0].ravel())[0, 1] > 0.9999:
                        fits.append((top, left, side))
        assert len(fits) == 1
        places += fits
    assert len(set(places)) > 30
    assert {side for _, _, side in places} == {1, -1}
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), 0, atol=1e-5)


def test_distortion_follows_from_its_generator() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    first, again, other = (distorted(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != central(images)).any()
