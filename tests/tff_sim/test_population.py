"""Populations: the same examples by name, number and cohort, from memory, from disk, and as they change."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from tff_sim import datasets
from tff_sim.client_names import ListedNames, NumberedNames
from tff_sim.errors import DatasetError
from tff_sim.federated_data import DataSpec, make_population
from tff_sim.partition import deal, partition, scheme
from tff_sim.plan import random_cohorts
from tff_sim.population import (
    DealtPopulation,
    GrowingPopulation,
    Growth,
    Population,
    StoredPopulation,
    on_disk,
    write_population,
)

EXPECTED = "expected a population that 'pocketfed data export --packed' or tff_sim.population.write_population wrote"


def _same(first: Examples, second: Examples) -> None:
    np.testing.assert_array_equal(first.x, second.x)
    np.testing.assert_array_equal(first.y, second.y)
    assert (first.x.dtype, first.y.dtype) == (second.x.dtype, second.y.dtype)


def _clients(count: int) -> Iterator[tuple[str, Examples]]:
    """Clients of 1 to 5 examples of three features and a label."""
    for number in range(count):
        rng = np.random.default_rng(number)
        size = 1 + number % 5
        yield f"phone-{count - number}", Examples(rng.random((size, 3), np.float32), rng.integers(0, 7, size, np.int32))


def _test() -> Examples:
    return Examples(np.ones((4, 3), np.float32), np.arange(4, dtype=np.int32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_population(tmp_path / "fleet", _clients(30), _test(), "phones")
    return tmp_path / "fleet"


@pytest.fixture(scope="module")
def dealt() -> DealtPopulation:
    data = datasets.load("digits")
    return DealtPopulation(data.train, deal(data, scheme("dirichlet"), 20, 3))


# In memory


def test_a_dealt_population_has_the_partition_s_hands(dealt: DealtPopulation) -> None:
    expected = partition(datasets.load("digits").train, "dirichlet", 20, 3)
    assert list(dealt) == list(expected)
    for name, hand in expected.items():
        _same(dealt[name], hand)
    assert dealt.sizes.tolist() == [len(hand) for hand in expected.values()]
    assert dealt.at(7) is dealt
    assert dealt.example_types == (("float32", (8, 8, 1)), ("int32", ()))
    counts = dealt.label_counts
    assert counts is not None
    for row, hand in zip(counts, expected.values(), strict=True):
        assert row.tolist() == np.bincount(hand.y, minlength=10).tolist()


def test_nobody_changes_another_s_examples(dealt: DealtPopulation) -> None:
    for array in (dealt.examples(0).x, dealt.examples(0).y):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    data = datasets.load("digits")
    natural = DealtPopulation(data.train, deal(_halves(data), scheme("natural"), None, 0))
    assert np.shares_memory(natural.examples(1).x, data.train.x)  # no second copy of a large data set
    data.train.y[0] = 3  # the data set's owner may still


def _halves(data: datasets.Dataset) -> datasets.Dataset:
    of = (np.arange(len(data.train)) // 719).astype(np.int32)
    return replace(data, owners=datasets.Owners(("a", "b"), of))


def test_a_client_that_is_not_there_is_a_key_error(dealt: DealtPopulation, folder: Path) -> None:
    for population in (dealt, StoredPopulation(folder)):
        assert "nobody" not in population
        with pytest.raises(KeyError, match="nobody"):
            population["nobody"]


# Names


@given(st.integers(1, 2000), st.data())
def test_numbered_names_are_found_by_name_and_number(count: int, data: st.DataObject) -> None:
    names = NumberedNames(count)
    number = data.draw(st.integers(0, count - 1))
    assert names.find(names[number]) == number == names.index(names[number])
    assert names[number - count] == names[number]
    assert names[number] in names
    assert names.find(f"client-{count:0{max(3, len(str(count - 1)))}d}") is None
    assert names.find(f"client-{number}x") is None
    assert names.find(f"client-0000000{number}") is None
    assert len(names) == count


@given(st.lists(st.from_regex(r"[A-Za-z0-9._-]{1,9}", fullmatch=True), min_size=1, max_size=50, unique=True))
def test_listed_names_are_found_by_name_and_number(listed: list[str]) -> None:
    names = ListedNames.of(listed)
    assert list(names) == listed
    assert [names.find(name) for name in listed] == list(range(len(listed)))
    assert names.find("a name that is not there") is None
    assert names.find("") is None
    assert names[1:3] == listed[1:3]
    assert names.fault() is None


def test_numbers_that_are_too_large_are_an_index_error() -> None:
    names = NumberedNames(3)
    for number in (3, -4):
        with pytest.raises(IndexError):
            names[number]
    with pytest.raises(ValueError, match="no client 'x'"):
        names.index("x")


def test_a_cohort_of_names_is_a_cohort_of_the_list() -> None:
    for count in (30, 20_000):
        names = NumberedNames(count)
        for number in (1, 2, 50):
            assert random_cohorts(names, 0.1, 4)(number) == random_cohorts(list(names), 0.1, 4)(number)


# On disk


def test_what_is_written_is_read(folder: Path) -> None:
    population = StoredPopulation(folder)
    expected = dict(_clients(30))
    assert list(population) == list(expected)
    for number, (name, examples) in enumerate(expected.items()):
        _same(population[name], examples)
        _same(population.examples(number), examples)
        assert name in population
    assert population.sizes.tolist() == [len(examples) for examples in expected.values()]
    assert population.description.name == "phones"
    test = population.test()
    assert test is not None
    _same(test, _test())
    counts = population.label_counts
    assert counts is not None
    assert [row.tolist() for row in counts] == [np.bincount(e.y, minlength=7).tolist() for e in expected.values()]
    assert population.summary().examples == sum(len(examples) for examples in expected.values())


def test_a_population_goes_to_another_process(folder: Path) -> None:
    population = StoredPopulation(folder)
    again = pickle.loads(pickle.dumps(population))
    assert len(pickle.dumps(population)) < 10_000
    _same(again["phone-7"], population["phone-7"])


def test_sequences_and_numbers_as_labels_are_stored_too(tmp_path: Path) -> None:
    text = Examples(np.zeros((3, 80), np.int32), np.full((3, 80), 5, np.int32))
    stored = write_population(tmp_path / "text", [("a", text), ("b", text)])
    _same(stored["b"], text)
    counts = stored.label_counts
    assert counts is not None
    assert counts.tolist() == [[0, 0, 0, 0, 0, 240]] * 2
    assert stored.test() is None
    numbers = Examples(np.zeros((3, 2), np.float32), np.zeros((3, 1), np.float32))
    assert write_population(tmp_path / "numbers", [("a", numbers)]).label_counts is None
    words = Examples(np.zeros((3, 2), np.int32), np.array([[7, 9], [8, 9999], [9, 8]], np.int32))
    assert write_population(tmp_path / "words", [("a", words)]).label_counts is None


def test_bounds_of_labels_are_known_without_a_table_too(
    dealt: DealtPopulation, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_disk, "_ROWS", 2)  # at a time
    assert dealt.label_bounds == (0, 9) == GrowingPopulation(dealt, Growth(0.5), 0).label_bounds
    stored = StoredPopulation(folder)
    counts = stored.label_counts
    assert counts is not None
    assert stored.label_bounds == (0, counts.shape[1] - 1)
    for title, labels in {"words": [[7, 9], [8, 9999], [9, 8]], "signs": [[1, 2], [3, 4], [-1, 0]]}.items():
        part = Examples(np.zeros((3, 2), np.int32), np.array(labels, np.int32))
        bounds = write_population(tmp_path / title, [("a", part)]).label_bounds
        assert bounds == (np.min(labels), np.max(labels))
    numbers = Examples(np.zeros((3, 2), np.float32), np.zeros((3, 1), np.float32))
    assert write_population(tmp_path / "numbers", [("a", numbers)]).label_bounds is None


def test_label_counts_of_many_rows_are_right(tmp_path: Path) -> None:
    # More examples than are looked at in one go, in clients that are larger and smaller than that.
    rng = np.random.default_rng(0)
    sizes = [70_000, 1, 65_536, 3, 200_000]
    parts = [Examples(np.zeros((n, 1), np.float32), rng.integers(0, 5, n, np.int32)) for n in sizes]
    stored = write_population(tmp_path / "p", ((f"c{number}", part) for number, part in enumerate(parts)))
    counts = stored.label_counts
    assert counts is not None
    assert counts.tolist() == [np.bincount(part.y, minlength=5).tolist() for part in parts]


def _refusal(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        StoredPopulation(folder)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_folder_that_is_no_population_is_named(folder: Path, tmp_path: Path) -> None:
    assert _refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such folder; {EXPECTED}"
    path = folder / "population.json"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    assert _refusal(folder) == f"{path}: it can't be read, or is damaged; {EXPECTED}"
    path.write_text("[" * 100_000)
    assert _refusal(folder) == f"{path}: it can't be read, or is damaged; {EXPECTED}"
    path.unlink()
    assert _refusal(folder) == f"{path}: no such file: the folder is no population, or not finished; {EXPECTED}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2; this version reads 1: write it again"),
        ({"clients": 0}, f"a field is missing or out of its range; {EXPECTED}"),
        ({"clients": "30"}, f"a field is missing or out of its range; {EXPECTED}"),
        ({"examples": 3}, f"a field is missing or out of its range; {EXPECTED}"),
        ({"x": {"dtype": "object", "shape": [3]}}, f"'x' or 'y' is no dtype and shape of an example; {EXPECTED}"),
        ({"y": {"dtype": "int32", "shape": [-1]}}, f"'x' or 'y' is no dtype and shape of an example; {EXPECTED}"),
        ({"x": {"dtype": "float32", "shape": [1] * 32}}, f"'x' or 'y' is no dtype and shape of an example; {EXPECTED}"),
        ({"x": {"dtype": "float32", "shape": [2**40]}}, f"'x' or 'y' is no dtype and shape of an example; {EXPECTED}"),
        ({"examples": 10**400}, f"a field is missing or out of its range; {EXPECTED}"),
        ({"labels": 0}, f"a field is missing or out of its range; {EXPECTED}"),
        ({"identity": 5}, f"'identity' is no SHA-256 in hex; {EXPECTED}"),
        ({"identity": "0" * 63 + "X"}, f"'identity' is no SHA-256 in hex; {EXPECTED}"),
    ],
)
def test_a_description_of_another_form_is_named(folder: Path, change: dict[str, Any], message: str) -> None:
    path = folder / "population.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert _refusal(folder) == f"{path}: {message}"


def test_what_was_written_has_an_identity(tmp_path: Path) -> None:
    def written(name: str, *clients: Examples) -> str | None:
        parts = [(f"phone-{number}", part) for number, part in enumerate(clients)]
        return write_population(tmp_path / name, parts).identity

    one, other = (Examples(np.full((3, 2), value, np.float32), np.arange(3, dtype=np.int32)) for value in (0, 1))
    first = written("first", one, other)
    assert first is not None
    assert written("again", one, other) == first
    swapped = Examples(other.x, other.y[::-1].copy())
    assert len({first, written("other", other, one), written("labels", one, swapped)}) == 3


def test_a_description_of_an_earlier_version_has_no_identity(folder: Path) -> None:
    path = folder / "population.json"
    content = json.loads(path.read_text())
    assert StoredPopulation(folder).identity == content.pop("identity")
    path.write_text(json.dumps(content))
    assert StoredPopulation(folder).identity is None


@pytest.mark.parametrize("name", ["x", "y", "offsets", "names", "order", "label_counts"])
def test_a_file_that_is_missing_short_or_something_else_is_named(folder: Path, name: str) -> None:
    path = folder / f"{name}.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert _refusal(folder) == f"{path}: {len(whole) - 1} bytes; its header says {len(whole)}: write it again"
    path.write_bytes(whole + b"x")
    assert _refusal(folder) == f"{path}: {len(whole) + 1} bytes; its header says {len(whole)}: write it again"
    path.write_bytes(b"something else")
    assert _refusal(folder) == f"{path}: it can't be read, or is no .npy file; {EXPECTED}"
    np.save(path, np.zeros((2, 2), np.complex64))
    assert _refusal(folder).startswith(f"{path}: complex64[2, 2]; by population.json it should be ")
    path.unlink()
    assert _refusal(folder) == f"{path}: no such file; {EXPECTED}"


ALLOWED = "a client's name is empty, or has other characters than letters, digits, '-', '_' and '.'"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("offsets", lambda a: a + 1, f"not rising from 0 to 90; {EXPECTED}"),
        ("offsets", lambda a: np.concatenate([a[:5], a[4:5], a[6:]]), f"not rising from 0 to 90; {EXPECTED}"),
        ("order", lambda a: a * 0, f"not each client's number once; {EXPECTED}"),
        ("order", lambda a: a - 1, f"not each client's number once; {EXPECTED}"),
        ("order", lambda a: a + 1, f"not each client's number once; {EXPECTED}"),
        ("order", lambda a: np.where(a == 0, -3, a), f"not each client's number once; {EXPECTED}"),
        ("order", lambda a: a[::-1], f"it does not sort the names; {EXPECTED}"),
        ("names", lambda a: np.full_like(a, b"phone-1"), f"two clients are named 'phone-1'; {EXPECTED}"),
        ("names", lambda a: np.full_like(a, b"a/b"), f"{ALLOWED}; {EXPECTED}"),
    ],
)
def test_numbers_that_don_t_fit_are_named(folder: Path, name: str, change: Callable[[Any], Any], message: str) -> None:
    path = folder / f"{name}.npy"
    np.save(path, change(np.load(path)))
    assert _refusal(folder) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", np.nan, "client 'phone-27' has values that are not finite: write it again without those examples"),
        ("x", -np.inf, "client 'phone-27' has values that are not finite: write it again without those examples"),
        ("y", -3, "client 'phone-27' has labels from -3 to "),
        ("y", 7, " to 7; by population.json expected 0 to 6: write it again"),
        ("test_x", np.nan, "the test set has values that are not finite: write it again without those examples"),
    ],
)
def test_values_are_looked_at_when_they_are_read(folder: Path, name: str, value: float, message: str) -> None:
    path = folder / f"{name}.npy"
    array = np.load(path)
    array[3 if name == "test_x" else 9] = value  # of the fourth client, which has the examples 6 to 9
    np.save(path, array)
    population = StoredPopulation(folder)
    with pytest.raises(DatasetError) as caught:
        population.test() if name == "test_x" else population["phone-27"]
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert len(population["phone-26"]) == 5  # the others are as they were


def test_labels_that_are_numbers_are_looked_at_too(tmp_path: Path) -> None:
    numbers = Examples(np.zeros((3, 2), np.float32), np.zeros((3, 1), np.float32))
    write_population(tmp_path / "numbers", [("a", numbers), ("b", numbers)], numbers)
    for name, whose in (("y", "client 'b'"), ("test_y", "the test set")):
        path = tmp_path / "numbers" / f"{name}.npy"
        array = np.load(path)
        array[-1] = np.inf
        np.save(path, array)
        stored = StoredPopulation(tmp_path / "numbers")
        with pytest.raises(DatasetError) as caught:
            stored["b"] if name == "y" else stored.test()
        assert str(caught.value) == (
            f"{path}: {whose} has values that are not finite: write it again without those examples"
        )
        assert len(stored["a"]) == 3


@pytest.mark.parametrize("change", [-1, 1])
def test_a_table_of_labels_that_clients_have_not_is_refused(folder: Path, change: int) -> None:
    path = folder / "label_counts.npy"
    counts = np.load(path)
    counts[7, 2] += change
    np.save(path, counts)
    with pytest.raises(DatasetError) as caught:
        StoredPopulation(folder).summary()
    assert str(caught.value) == f"{path}: not as many labels as clients have; {EXPECTED}"


def test_a_file_that_is_cut_short_while_it_is_open_is_named(folder: Path) -> None:
    population = StoredPopulation(folder)
    path = folder / "x.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DatasetError) as caught:
        population.examples(29)
    assert str(caught.value) == f"{path}: it has become shorter since it was opened: write it again"
    path.unlink()
    with pytest.raises(DatasetError) as caught:
        population.examples(0)
    assert str(caught.value) == f"{path}: can't read it: No such file or directory"


def _unwritable(folder: Path, clients: list[tuple[str, Examples]]) -> str:
    with pytest.raises(InputError) as caught:
        write_population(folder, clients)
    assert not folder.exists() or folder.name == "fleet"
    assert not folder.with_name(f"{folder.name}.new").exists()
    return str(caught.value)


X, Y = np.zeros((2, 3), np.float32), np.zeros(2, np.int32)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([("a", Examples(X, Y[:1]))], "a: 2 rows of x and 1 of y; expected as many of both, at least one"),
        ([("a", Examples(X[:0], Y[:0]))], "a: 0 rows of x and 0 of y; expected as many of both, at least one"),
        ([("a", Examples(X.astype(np.float64), Y))], "a: x is float64[2, 3]; expected float32 or int32"),
        (
            [("a", Examples(X, Y)), ("b", Examples(X[:, :2], Y))],
            "b: x is float32[2, 2]; expected the first client's float32[2, 3]",
        ),
        (
            [("a", Examples(X, Y)), ("b", Examples(X + np.inf, Y))],
            "b: x holds values that are not finite; leave those examples out",
        ),
        (
            [("a", Examples(X, np.array([[0], [np.nan]], np.float32)))],
            "a: y holds values that are not finite; leave those examples out",
        ),
        ([("a", Examples(X, Y)), ("a", Examples(X, Y))], "can't write a population: two clients are named 'a'"),
        ([("a b", Examples(X, Y))], f"can't write a population: {ALLOWED}"),
    ],
)
def test_clients_that_can_t_be_stored_are_named(
    tmp_path: Path, clients: list[tuple[str, Examples]], message: str
) -> None:
    assert _unwritable(tmp_path / "new", clients) == message


def test_where_it_can_t_be_written_is_said(folder: Path, tmp_path: Path) -> None:
    assert _unwritable(tmp_path / "new", []) == "can't write a population: it needs at least one client"
    assert _unwritable(folder, [("a", Examples(X, Y))]) == (
        f"{folder}: exists already, so that it is not overwritten; choose another folder"
    )
    (tmp_path / "file").write_text("mine")
    inside = tmp_path / "file" / "new"
    assert _unwritable(inside, [("a", Examples(X, Y))]) == (
        f"{inside}: can't write it: Not a directory; choose another folder, or make room"
    )


def test_an_interrupted_writing_leaves_nothing_that_is_taken_for_a_population(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, Examples]]:
        yield "a", Examples(X, Y)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_population(tmp_path / "p", broken())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "p.new").mkdir()  # of a process that was killed
    (tmp_path / "p.new" / "x.npy").write_text("half")
    assert len(write_population(tmp_path / "p", [("a", Examples(X, Y))])) == 1


# Examples that come and go

growths = st.builds(Growth, *[st.sampled_from([0.0, 0.01, 0.3, 1.0])] * 3)


@given(growths, st.integers(1, 60), st.integers(0, 2**53 - 1), st.integers(1, 10**6))
def test_what_exists_follows_from_seed_client_and_round(growth: Growth, count: int, seed: int, number: int) -> None:
    found = growth.existing(count, seed, "client-001", number)
    np.testing.assert_array_equal(found, growth.existing(count, seed, "client-001", number))
    assert 1 <= len(found) == len(set(found.tolist()))
    assert 0 <= found.min() <= found.max() < count
    assert (np.diff(found) > 0).all()


@given(growths, st.integers(2, 60), st.integers(0, 1000))
def test_what_is_deleted_does_not_come_back(growth: Growth, count: int, seed: int) -> None:
    rounds = [set(growth.existing(count, seed, "a", number).tolist()) for number in range(1, 40)]
    for example in range(count):
        there = "".join("x" if example in found else "." for found in rounds)
        # Nobody is without any example: the last that there was may bridge a gap, and so does the first to come.
        if all(len(found) > 1 for found in rounds):
            assert len(there.strip(".").split(".")) == 1


def test_rates_are_those_that_are_asked_for() -> None:
    growth = Growth(present=0.4, added=0.1, deleted=0.05)
    first, second = (set(growth.existing(100_000, 0, "a", number).tolist()) for number in (1, 2))
    assert len(first) == pytest.approx(40_000, rel=0.03)
    assert len(first - second) == pytest.approx(0.05 * 40_000, rel=0.1)
    assert len(second - first) == pytest.approx(0.1 * 60_000, rel=0.1)
    later = set(growth.existing(100_000, 0, "a", 30).tolist())
    # Of those of round 1, 0.95 to the power of 29 are left.
    assert len(first & later) == pytest.approx(40_000 * 0.95**29, rel=0.05)


def test_nothing_changes_by_default_and_clients_change_apart() -> None:
    assert Growth().existing(9, 0, "a", 1000).tolist() == list(range(9))
    growth = Growth(present=0.5)
    first, other, third = (growth.existing(100, *whose, 1).tolist() for whose in ((0, "a"), (0, "b"), (1, "a")))
    assert first != other
    assert first != third


def test_the_last_example_stays() -> None:
    growth = Growth(present=0.2, deleted=1.0)  # all are gone in round 2
    for count in (1, 5, 50):
        (kept,) = growth.existing(count, 0, "a", 2)
        assert kept in growth.existing(count, 0, "a", 1)
    (only,) = Growth(present=0.0, added=0.2).existing(10, 0, "a", 1)  # none is there yet
    assert 0 <= only < 10


@pytest.mark.parametrize("name", ["present", "added", "deleted"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_rates_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(InputError) as caught:
        Growth(**{name: value})
    assert str(caught.value) == f"--{name} should be from 0 to 1, not {value}"


def test_a_growing_population_gives_what_exists_in_a_round(dealt: DealtPopulation, folder: Path) -> None:
    growth = Growth(0.5, 0.2, 0.1)
    for base in (dealt, StoredPopulation(folder)):
        growing: Population = GrowingPopulation(base, growth, seed=9)
        name = base.names[3]
        for number in (1, 4, 2):
            there = growth.existing(len(base[name]), 9, name, number)
            _same(growing.at(number)[name], Examples(base[name].x[there], base[name].y[there]))
            chosen = np.array([3, 0, 3])
            assert growing.at(number).sizes_now(chosen).tolist() == [
                len(growing.at(number).examples(client)) for client in chosen.tolist()
            ]
        _same(growing[name], growing.at(1)[name])
        assert list(growing.at(3)) == list(base)
        assert growing.sizes.tolist() == base.sizes.tolist()
        assert growing.at(2).label_counts is not None


def test_a_folder_may_be_a_text(tmp_path: Path) -> None:
    folder = str(tmp_path / "written")
    write_population(folder, [("a", Examples(X, Y))], Examples(X, Y))
    assert list(StoredPopulation(folder)) == ["a"]
    text: Any = folder
    assert list(make_population(DataSpec("packed", text)).clients) == ["a"]


def test_a_mapping_is_written_as_its_items_are(tmp_path: Path) -> None:
    pairs = list(_clients(5))
    written = write_population(tmp_path / "mapping", dict(pairs), _test())
    assert written.identity == write_population(tmp_path / "pairs", pairs, _test()).identity
    assert list(written.names) == [name for name, _ in pairs]
