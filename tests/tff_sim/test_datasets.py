"""The embedded digits, and MNIST's files: whole ones are read, and every kind of damage names the file."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tff_sim import datasets
from tff_sim.datasets.idx import read_idx
from tff_sim.errors import DatasetError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
DIGITS_TEST_START = [1, 4, 4, 6, 3, 6, 4, 8, 4, 9, 9, 0]
MNIST_LABELS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # counted in the genuine files
MNIST_TEST_LABELS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def _idx(array: npt.NDArray[Any], magic: int | None = None) -> bytes:
    header = struct.pack(f">{1 + array.ndim}I", 0x800 | array.ndim if magic is None else magic, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def _images(count: int, side: int = 28) -> npt.NDArray[np.int64]:
    return np.random.default_rng(count).integers(0, 256, (count, side, 28))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole data set of seven train and three test images, the latter compressed."""
    (tmp_path / IMAGES).write_bytes(_idx(_images(7)))
    (tmp_path / LABELS).write_bytes(_idx(np.arange(7)))
    (tmp_path / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(_idx(_images(3))))
    (tmp_path / f"{TEST_LABELS}.gz").write_bytes(gzip.compress(_idx(np.array([9, 0, 9]))))
    return tmp_path


def _message(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        datasets.load("mnist", folder)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_digits_have_the_promised_shapes_and_ranges() -> None:
    data = datasets.load("digits")
    assert data.name == "digits"
    assert (len(data.train), len(data.test)) == (1437, 360)
    for part in (data.train, data.test):
        assert part.x.shape == (len(part), 8, 8, 1)
        assert part.x.dtype == np.float32
        assert part.y.dtype == np.int32
        assert (part.x.min(), part.x.max()) == (0, 1)
        assert sorted(set(part.y.tolist())) == list(range(10))


def test_the_split_of_digits_is_disjoint_complete_and_constant() -> None:
    from sklearn.datasets import load_digits

    first, again = datasets.load("digits"), datasets.load("digits")
    np.testing.assert_array_equal(first.train.x, again.train.x)
    np.testing.assert_array_equal(first.test.y, again.test.y)
    assert first.test.y[:12].tolist() == DIGITS_TEST_START
    images, labels = load_digits(return_X_y=True)
    rows = {(*(row / 16), label) for row, label in zip(images, labels, strict=True)}
    parts = [
        {(*x.ravel().tolist(), y) for x, y in zip(p.x, p.y.tolist(), strict=True)} for p in (first.train, first.test)
    ]
    assert len(rows) == 1797  # no image twice: so rows tell examples apart
    assert parts[0] | parts[1] == rows
    assert not parts[0] & parts[1]


def test_mnist_files_are_read_plain_and_compressed(folder: Path) -> None:
    data = datasets.load("mnist", folder)
    assert (data.train.x.shape, data.test.x.shape) == ((7, 28, 28, 1), (3, 28, 28, 1))
    assert data.train.x.dtype == np.float32
    assert data.train.y.dtype == np.int32
    np.testing.assert_allclose(data.train.x[..., 0], _images(7) / 255, rtol=1e-6)
    np.testing.assert_allclose(data.test.x[..., 0], _images(3) / 255, rtol=1e-6)
    assert data.train.y.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert data.test.y.tolist() == [9, 0, 9]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert _message(missing) == f"{missing}: no such folder; --data-dir should hold the four MNIST files"


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert _message(folder) == (
        f"{folder / name}: no such file, nor with .gz; --data-dir should hold the four MNIST files"
    )


def test_a_folder_that_is_not_given_is_asked_for() -> None:
    with pytest.raises(DatasetError) as caught:
        datasets.load("mnist")
    assert str(caught.value) == (
        "data set 'mnist': --data-dir is missing; it names the folder with the four MNIST files"
    )


def test_an_unknown_data_set_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(DatasetError) as caught:
        datasets.load("cifar")
    assert str(caught.value) == (
        "unknown data set 'cifar'; known data sets: digits, mnist, fashion-mnist, kmnist, emnist-balanced,"
        " emnist-byclass, emnist-bymerge, emnist-digits, emnist-letters, emnist-mnist, cifar10, shakespeare,"
        " shakespeare-lines, leaf, npz, packed"
    )
    with pytest.raises(DatasetError) as caught:
        datasets.load("packed")
    assert str(caught.value) == (
        "data set 'packed' is a population on disk: open it with tff_sim.population.StoredPopulation"
    )


def test_a_truncated_file_is_named_with_both_sizes(folder: Path) -> None:
    path = folder / IMAGES
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert _message(folder) == f"{path}: truncated: {len(whole) - 1} bytes, its header says {len(whole)}"


@pytest.mark.parametrize("size", [0, 3, 15])
def test_a_truncated_header_is_named(folder: Path, size: int) -> None:
    path = folder / IMAGES
    path.write_bytes(path.read_bytes()[:size])
    assert _message(folder) == f"{path}: truncated: {size} bytes, the header alone has 16"


def test_a_file_with_something_after_its_end_is_named(folder: Path) -> None:
    path = folder / LABELS
    path.write_bytes(path.read_bytes() + b"\0")
    assert _message(folder) == f"{path}: too long: 16 bytes, its header says 15"


def test_a_header_of_enormous_dimensions_is_not_believed(folder: Path) -> None:
    path = folder / IMAGES
    path.write_bytes(struct.pack(">4I", 0x803, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF))
    assert _message(folder) == f"{path}: truncated: 16 bytes, its header says {16 + 0xFFFFFFFF**3}"


@pytest.mark.parametrize("damage", ["cut", "changed", "plain", "empty trailer"])
def test_a_damaged_compressed_file_is_named(folder: Path, damage: str) -> None:
    path = folder / f"{TEST_IMAGES}.gz"
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "cut": data[:middle],
            "changed": data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :],
            "plain": gzip.decompress(data),
            "empty trailer": data[:-8],
        }[damage]
    )
    assert _message(folder).startswith(f"{path}: truncated or not a gzip file: ")


def test_a_wrong_magic_number_is_shown_beside_the_right_one(folder: Path) -> None:
    path = folder / LABELS
    path.write_bytes(_idx(np.arange(7), magic=0x00000D01))
    assert _message(folder) == (
        f"{path}: wrong magic number 0x00000d01; expected 0x00000801, an IDX file of unsigned bytes with 1 dimension"
    )


def test_labels_where_images_should_be_are_found_out(folder: Path) -> None:
    path = folder / IMAGES
    path.write_bytes(_idx(np.arange(7)) + bytes(10))
    assert _message(folder) == (
        f"{path}: wrong magic number 0x00000801; expected 0x00000803, an IDX file of unsigned bytes with 3 dimensions"
    )


def test_images_of_another_size_are_refused(folder: Path) -> None:
    path = folder / IMAGES
    path.write_bytes(_idx(_images(7, side=27)))
    assert _message(folder) == f"{path}: images of 27×28; expected 28×28"


@pytest.mark.parametrize("count", [6, 8, 0])
def test_counts_that_differ_name_both_files(folder: Path, count: int) -> None:
    path = folder / LABELS
    path.write_bytes(_idx(np.zeros(count)))
    assert _message(folder) == f"{path}: {count} labels for the 7 images in {IMAGES}"


def test_files_without_examples_are_refused(folder: Path) -> None:
    (folder / IMAGES).write_bytes(_idx(np.zeros((0, 28, 28))))
    (folder / LABELS).write_bytes(_idx(np.zeros(0)))
    assert _message(folder) == f"{folder / LABELS}: 0 labels for the 0 images in {IMAGES}"


def test_a_label_out_of_range_is_shown(folder: Path) -> None:
    path = folder / LABELS
    path.write_bytes(_idx(np.array([0, 1, 2, 10, 4, 5, 6])))
    assert _message(folder) == f"{path}: a label is 10; expected 0 to 9"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone"
    with pytest.raises(DatasetError) as caught:
        read_idx(path, 1)
    assert str(caught.value) == f"{path}: can't read it: No such file or directory"


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
def test_kin_with_mnist_s_file_names_are_read_by_their_own_name(folder: Path, name: str) -> None:
    data = datasets.load(name, folder)
    assert data.name == name
    np.testing.assert_array_equal(data.train.x, datasets.load("mnist", folder).train.x)


def test_emnist_s_images_are_put_upright_and_its_labels_begin_with_0(tmp_path: Path) -> None:
    for part, labels in (("train", [1, 26, 13]), ("test", [2, 3])):
        (tmp_path / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(_idx(_images(len(labels))))
        (tmp_path / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(_idx(np.array(labels)))
    data = datasets.load("emnist-letters", tmp_path)
    assert data.train.y.tolist() == [0, 25, 12]
    assert data.test.y.tolist() == [1, 2]
    np.testing.assert_allclose(data.train.x[..., 0], _images(3).transpose(0, 2, 1) / 255, rtol=1e-6)


def test_a_label_below_the_first_is_shown(tmp_path: Path) -> None:
    (tmp_path / "emnist-letters-train-images-idx3-ubyte").write_bytes(_idx(_images(2)))
    path = tmp_path / "emnist-letters-train-labels-idx1-ubyte"
    path.write_bytes(_idx(np.array([1, 0])))
    with pytest.raises(DatasetError) as caught:
        datasets.load("emnist-letters", tmp_path)
    assert str(caught.value) == f"{path}: a label is 0; expected 1 to 26"


def test_a_missing_file_of_emnist_is_asked_for_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        datasets.load("emnist-digits", tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'emnist-digits-train-images-idx3-ubyte'}: no such file, nor with .gz; --data-dir should hold the"
        " four EMNIST digits files"
    )


@pytest.mark.data
def test_the_genuine_mnist(data_dir: Path) -> None:
    data = datasets.load("mnist", data_dir / "mnist")
    assert (data.train.x.shape, data.test.x.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert np.bincount(data.train.y).tolist() == MNIST_LABELS
    assert np.bincount(data.test.y).tolist() == MNIST_TEST_LABELS
    assert (data.train.x.min(), data.train.x.max()) == (0, 1)
    assert data.train.x.mean() == pytest.approx(0.1307, abs=1e-4)  # the mean that everyone normalises with
