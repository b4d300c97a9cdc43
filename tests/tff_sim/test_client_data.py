"""TFF's own ClientData objects as populations."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_runtime.errors import InputError
from device_runtime.examples import Examples
from tff_sim.federated_data import DataSpec, make_population
from tff_sim.population import from_client_data, write_population

pytestmark = pytest.mark.filterwarnings("ignore")


def _arrays(number: int) -> Any:
    rng = np.random.default_rng(number)
    count = 3 + number
    return collections.OrderedDict(
        label=rng.integers(0, 4, count, np.int32), pixels=rng.random((count, 28, 28), np.float32)
    )


@pytest.fixture(scope="module")
def client_data() -> Any:
    import tensorflow_federated as tff

    return tff.simulation.datasets.TestClientData({f"writer {number}": _arrays(number) for number in range(5)})


def _with_channel(found: Examples) -> Examples:
    return Examples(found.x[..., None], found.y)


def test_its_clients_have_what_they_have_there(client_data: Any) -> None:
    population = from_client_data(client_data, "pixels", "label", _with_channel)
    assert list(population) == [f"writer_{number}" for number in range(5)]
    for number in range(5):
        found, expected = population[f"writer_{number}"], _arrays(number)
        np.testing.assert_array_equal(found.x, expected["pixels"][..., None])
        np.testing.assert_array_equal(found.y, expected["label"])
    assert population.example_types == (("float32", (28, 28, 1)), ("int32", ()))
    assert population.sizes.tolist() == [3, 4, 5, 6, 7]
    counts = population.label_counts
    assert counts is not None
    assert counts.tolist() == [np.bincount(_arrays(number)["label"], minlength=4).tolist() for number in range(5)]


def test_tuples_are_taken_by_number() -> None:
    import tensorflow as tf
    import tensorflow_federated as tff

    def dataset(name: str) -> tf.data.Dataset:
        count = int(name)
        return tf.data.Dataset.from_tensor_slices((np.ones((count, 2), np.float32), np.zeros(count, np.float32)))

    data = tff.simulation.datasets.ClientData.from_clients_and_tf_fn(["5000", "1"], dataset)
    population = from_client_data(data)
    assert population["5000"].x.shape == (5000, 2)  # more than are taken out at a time
    assert list(population) == ["5000", "1"]
    assert population.sizes.tolist() == [5000, 1]
    assert population.label_counts is None


def test_it_is_written_to_disk(client_data: Any, tmp_path: Path) -> None:
    population = from_client_data(client_data, "pixels", "label", _with_channel)
    stored = write_population(tmp_path / "emnist", population.items())
    assert list(stored) == list(population)
    np.testing.assert_array_equal(stored["writer_3"].x, population["writer_3"].x)


def test_what_it_lacks_is_named(client_data: Any) -> None:
    import tensorflow as tf
    import tensorflow_federated as tff

    with pytest.raises(InputError) as caught:
        from_client_data(client_data, "image", "label")["writer_1"]
    assert str(caught.value) == (
        "client 'writer 1': no 'image' or 'label' in its examples, which have 'label', 'pixels'"
    )
    empty = tff.simulation.datasets.ClientData.from_clients_and_tf_fn(
        ["a"], lambda name: tf.data.Dataset.from_tensor_slices((np.ones((0, 2)), np.zeros(0)))
    )
    with pytest.raises(InputError) as caught:
        from_client_data(empty)["a"]
    assert str(caught.value) == "client 'a' of the ClientData has no examples: leave it out of it"


@pytest.mark.parametrize("key", ["pixels", "label"])
def test_values_that_are_not_finite_are_refused(key: str) -> None:
    import tensorflow_federated as tff

    arrays = {"pixels": np.ones((2, 3), np.float32), "label": np.zeros(2, np.float32)}
    arrays[key][1] = np.nan
    data = tff.simulation.datasets.TestClientData({"writer 1": collections.OrderedDict(arrays)})
    with pytest.raises(InputError) as caught:
        from_client_data(data, "pixels", "label")["writer_1"]
    assert str(caught.value) == (
        "client 'writer 1' of the ClientData has values that are not finite: leave those out of it"
    )


def test_the_script_of_the_page_on_data(client_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_federated as tff

    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    # The genuine one downloads.
    monkeypatch.setattr(tff.simulation.datasets.emnist, "load_data", lambda: (client_data, client_data))
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    made = make_population(DataSpec("packed", tmp_path / "emnist"))
    assert (len(made.clients), len(made.test)) == (5, 25)
    assert made.clients.example_types == (("float32", (28, 28, 1)), ("int32", ()))


def test_no_clients_are_no_population() -> None:
    class Nobody:
        client_ids: tuple[str, ...] = ()

    with pytest.raises(InputError) as caught:
        from_client_data(Nobody())
    assert str(caught.value) == "a ClientData without clients is no population"
