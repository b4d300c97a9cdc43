"""From what is said to clients and test examples; and the files that devices and simulations get."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from tff_sim import datasets
from tff_sim.federated_data import DataSpec, make_partition, make_population
from tff_sim.partition import partition, scheme
from tff_sim.partition.file import save_partition
from tff_sim.pixels import PixelExamples
from tff_sim.population import Growth, Population
from tff_sim.population.export import export_files, export_packed
from tff_sim.population.figure import client_shares, population_figure


def _equal(first: Population, second: Population) -> None:
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(first[name].x, second[name].x)
        np.testing.assert_array_equal(first[name].y, second[name].y)


@pytest.fixture
def plays(tmp_path: Path) -> Path:
    folder = tmp_path / "plays"
    folder.mkdir()
    speeches = [f"ROLE {role}:\n" + f"a line that is as long as lines are {role}\n" * 20 for role in range(7)]
    (folder / "input.txt").write_text("\n".join(speeches))
    return folder


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar"
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = rng.integers(0, 256, (4, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


@pytest.fixture
def digits28(tmp_path: Path) -> Path:
    """Forty images in the four files of MNIST."""
    rng = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        for kind, shape in (("images-idx3", (40, 28, 28)), ("labels-idx1", (40,))):
            header = struct.pack(f">{1 + len(shape)}I", 0x800 | len(shape), *shape)
            array = rng.integers(0, 256 if kind == "images-idx3" else 10, shape, np.uint8)
            (tmp_path / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return tmp_path


def test_images_are_kept_as_bytes_and_given_as_models_take_them(digits28: Path) -> None:
    spec = DataSpec("mnist", digits28, scheme("shards"), clients=4, seed=3)
    made = make_population(spec)
    data, dealt = make_partition(spec)
    assert isinstance(data.train, PixelExamples)
    assert made.clients.sizes.tolist() == [10] * 4
    for number, name in enumerate(made.clients.names):
        hand = dealt.hand(number)
        assert isinstance(made.clients[name], PixelExamples)
        assert made.clients[name].identity == Examples(data.train.x[hand], data.train.y[hand]).identity
    np.testing.assert_array_equal(data.train.x, data.train.pixels.astype(np.float32) / np.float32(255))
    assert data.train.identity == Examples(data.train.x, data.train.y).identity
    counts = made.clients.label_counts
    assert counts is not None
    assert counts.sum(axis=0).tolist() == np.bincount(data.train.y, minlength=counts.shape[1]).tolist()


def test_hands_are_those_that_partition_deals() -> None:
    made = make_population(DataSpec(scheme=scheme("shards"), clients=20, seed=7))
    expected = partition(datasets.load("digits").train, "shards", 20, 7)
    assert list(made.clients) == list(expected)
    for name, hand in expected.items():
        assert made.clients[name].identity == hand.identity
    assert made.test.identity == datasets.load("digits").test.identity
    assert made.about["partition"]["scheme"] == {"name": "shards", "shards_per_client": 2}
    assert json.loads(json.dumps(made.about)) == made.about


def test_without_a_scheme_it_is_natural_where_that_goes(plays: Path) -> None:
    assert len(make_population(DataSpec()).clients) == 100
    made = make_population(DataSpec("shakespeare", plays))
    assert list(made.clients) == [f"ROLE_{role}" for role in range(7)]
    balanced = make_population(DataSpec("shakespeare", plays, scheme("iid")))
    assert len(balanced.clients) == 7
    assert balanced.clients.sizes.sum() == made.clients.sizes.sum()


def test_a_partition_s_file_gives_the_same_clients(tmp_path: Path) -> None:
    spec = DataSpec(scheme=scheme("dirichlet", alpha=0.2), clients=11, seed=5)
    path = tmp_path / "p.npz"
    save_partition(make_partition(spec)[1], path)
    _equal(make_population(DataSpec(partition_file=path)).clients, make_population(spec).clients)


def test_growth_and_augmentation_are_of_seed_and_round(cifar: Path) -> None:
    spec = DataSpec("cifar10", cifar, clients=3, growth=Growth(0.5, 0.3, 0.1), augment=True, seed=2)
    made, again = make_population(spec), make_population(spec)
    plain = make_population(DataSpec("cifar10", cifar, clients=3, seed=2))
    for number in (1, 2, 9):
        _equal(made.clients.at(number), again.clients.at(number))
        for name in made.clients:
            found = made.clients.at(number)[name]
            there = Growth(0.5, 0.3, 0.1).existing(len(plain.clients[name]), 2, name, number)
            np.testing.assert_array_equal(found.y, plain.clients[name].y[there])
            assert found.x.shape == (len(there), 24, 24, 3)
            assert found.x.dtype == np.float32
            assert (found.x != plain.clients[name].x[there]).any()
    name = made.clients.names[0]
    first, second = (make_population(DataSpec("cifar10", cifar, clients=3, augment=True)).clients.at(n) for n in (1, 2))
    assert (first[name].x != second[name].x).any()
    np.testing.assert_array_equal(made.test.x, plain.test.x)
    assert made.about["growth"] == {"present": 0.5, "added": 0.3, "deleted": 0.1}


def test_files_for_devices_are_read_by_devices_and_by_the_simulation(tmp_path: Path) -> None:
    made = make_population(DataSpec(scheme=scheme("dirichlet"), clients=5, seed=1))
    told: list[tuple[int, str]] = []
    export_files(made, tmp_path / "out", lambda done, name: told.append((done, name)))
    assert told == list(enumerate(made.clients, start=1))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{name}.npz" for name in made.clients} | {
        "_test.npz"
    }
    again = make_population(DataSpec("npz", tmp_path / "out"))
    _equal(again.clients, made.clients)
    assert again.test.identity == made.test.identity


def test_a_device_takes_its_file(tmp_path: Path, digits_bundle: Any) -> None:
    from device_runtime.examples import load_examples

    made = make_population(DataSpec(clients=5))
    export_files(made, tmp_path)
    found = load_examples(tmp_path / "client-003.npz", digits_bundle.manifest)
    assert found.identity == made.clients["client-003"].identity


def test_a_packed_population_is_the_same(tmp_path: Path) -> None:
    made = make_population(DataSpec(scheme=scheme("power-law"), clients=50, seed=1))
    told: list[int] = []
    export_packed(made, tmp_path / "out", lambda done, name: told.append(done))
    assert told == list(range(2, 51, 2))
    again = make_population(DataSpec("packed", tmp_path / "out"))
    _equal(again.clients, made.clients)
    assert again.test.identity == made.test.identity
    assert again.name == "digits"
    assert again.about["partition"] is None


def _message(spec: DataSpec) -> str:
    with pytest.raises(InputError) as caught:
        make_population(spec)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_what_does_not_go_together_is_said(tmp_path: Path, cifar: Path) -> None:
    packed = tmp_path / "packed"
    export_packed(make_population(DataSpec(clients=4)), packed)
    assert _message(DataSpec("packed")) == (
        "data set 'packed': --data-dir is missing; it names the folder of a population"
    )
    for spec in (DataSpec("packed", packed, scheme("iid")), DataSpec("packed", packed, partition_file=tmp_path / "x")):
        assert _message(spec) == (
            "data set 'packed' has its clients already: leave out --partition and --partition-file"
        )
    assert _message(DataSpec("packed", packed, clients=3)) == f"{packed}: has 4 clients, not 3: leave out --clients"
    assert len(make_population(DataSpec("packed", packed, scheme("natural"), clients=4)).clients) == 4
    for name, folder in (("digits", None), ("packed", packed)):
        assert _message(DataSpec(name, folder, augment=True)) == (
            f"--augment is for data set 'cifar10', not {name!r}: leave it out"
        )
    with pytest.raises(InputError) as caught:
        make_partition(DataSpec("packed", packed))
    assert str(caught.value) == "data set 'packed' has its clients already: there is nothing to deal"


def test_a_population_without_tests_is_refused(tmp_path: Path) -> None:
    from tff_sim.population import write_population

    write_population(tmp_path / "p", [("a", Examples(np.zeros((1, 2), np.float32), np.zeros(1, np.int32)))])
    assert _message(DataSpec("packed", tmp_path / "p")) == (
        f"{tmp_path / 'p'}: has no examples to test with: write it with some"
    )


def test_files_are_not_mixed_with_others(tmp_path: Path) -> None:
    made = make_population(DataSpec(clients=2))
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError) as caught:
        export_files(made, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: not empty, so that nothing is mixed or overwritten; choose another --out"
    )
    with pytest.raises(InputError) as caught:
        export_files(made, tmp_path / "mine")
    assert str(caught.value) == f"{tmp_path / 'mine'}: can't write there: File exists; change --out"


def test_the_picture_shows_sizes_labels_and_who_has_which() -> None:
    clients = make_population(DataSpec(scheme=scheme("shards"), clients=20)).clients
    figure = population_figure(clients.sizes, clients.label_counts, "digits")
    axes = figure.axes
    assert [line.get_ydata().tolist() for line in axes[0].lines] == [sorted(clients.sizes.tolist(), reverse=True)]
    counts = clients.label_counts
    assert counts is not None
    assert [patch.get_height() for patch in axes[1].patches] == counts.sum(axis=0).tolist()
    np.testing.assert_array_equal(axes[2].images[0].get_array(), client_shares(counts))
    assert len(population_figure(clients.sizes, None, "no labels").axes) == 1


def test_many_clients_are_put_together_for_the_picture() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (12_345, 10)).astype(np.int32)
    shares = client_shares(counts)
    assert shares.shape == (300, 10)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (np.diff(shares.argmax(axis=1)) >= 0).mean() > 0.9  # sorted by the commonest label
    np.testing.assert_allclose(client_shares(counts[:5]).sum(axis=1), 1)
