"""Seeded dropout: the same masks everywhere, and as random as dropout needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tflite_runtime.interpreter import Interpreter

from models.dropout import has_dropout, seeded_dropout, uniform
from models.state import all_layers

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

layers = tf.keras.layers


@tf.function(input_signature=[tf.TensorSpec((), tf.int32), tf.TensorSpec((), tf.int32)], autograph=False)
def _streams(seed: Any, size: Any) -> Any:
    """Ones through four dropout layers of rate 0.25, seen apart; float32 [4, size]."""
    ones = tf.ones([1, size])
    model = tf.keras.Sequential([layers.Dropout(0.25)])
    with seeded_dropout(model, seed):
        return tf.concat([model(ones, training=True) for _ in range(4)], axis=0)


def _keep(seeds: range, size: int) -> Any:
    """Which elements are kept; 0 or 1, [seeds, 4 streams, size]."""
    return np.stack([(_streams(seed, size).numpy() > 0).astype(np.float32) for seed in seeds])


def _correlations(a: Any, b: Any) -> Any:
    """Of the last axis, each near a standard normal number for independent masks."""
    n = a.shape[-1]
    a, b = a - 0.75, b - 0.75
    return (a * b).sum(axis=-1) / (0.75 * 0.25 * np.sqrt(n))


def test_mean_and_variance_are_those_of_a_uniform_number() -> None:
    for seed in (0, 1, 2**31 - 1):
        values = uniform(tf.constant([100_000]), tf.constant(seed, tf.uint32), 0).numpy().astype(np.float64)
        assert 0 <= values.min() < 1e-3
        assert 1 - 1e-3 < values.max() < 1
        assert values.mean() == pytest.approx(0.5, abs=5 / np.sqrt(12 * 1e5))
        assert values.var() == pytest.approx(1 / 12, abs=5 * np.sqrt(1 / 180 / 1e5))
        counts, _ = np.histogram(values, 256, (0, 1))
        expected = 1e5 / 256
        assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * np.sqrt(2 * 255)


def test_each_position_is_kept_as_often_over_many_seeds() -> None:
    keep = _keep(range(1000), 512)
    counts = keep.sum(axis=0)  # [4, 512], each binomial (1000, 0.75)
    chi_square = ((counts - 750) ** 2 / (1000 * 0.75 * 0.25)).sum()
    degrees = counts.size
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)
    assert np.abs(counts - 750).max() < 5.5 * np.sqrt(1000 * 0.75 * 0.25)


def test_seeds_streams_and_neighbours_are_independent() -> None:
    keep = _keep(range(200), 4096)
    pairs = {
        "next seed": (keep[1:], keep[:-1]),
        "next but one": (keep[2:], keep[:-2]),
        "stream": (keep[:, 1:], keep[:, :-1]),
        "stream of the next seed": (keep[1:, 1:], keep[:-1, :-1]),
        **{f"neighbour {by}": (keep[..., by:], keep[..., :-by]) for by in (1, 2, 3, 8, 64, 512)},
        **{f"next seed, shifted by {by}": (keep[1:, :, by:], keep[:-1, :, :-by]) for by in (1, 2)},
    }
    for name, (a, b) in pairs.items():
        scores = _correlations(a, b)
        assert np.abs(scores).max() < 5.5, name
        assert scores.std() == pytest.approx(1, abs=0.15), name
        assert abs(scores.mean()) < 5 / np.sqrt(scores.size), name


def test_no_two_masks_are_alike() -> None:
    masks = {mask.tobytes() for mask in _keep(range(300), 256).reshape(-1, 256)}
    assert len(masks) == 1200


def _model() -> Any:
    """Dropout of every kind, in a wrapper, inside of attention, and in a nested model; used with [B, 6, 8]."""
    inputs = layers.Input((6, 8))
    x = layers.TimeDistributed(layers.Dropout(0.3))(inputs)
    x = layers.MultiHeadAttention(2, 4, dropout=0.2)(x, x)
    x = tf.keras.Sequential([layers.Input((6, 8)), layers.SpatialDropout1D(0.5)])(x)
    x = layers.Dropout(0.5, noise_shape=(None, 6, 1))(x)
    return tf.keras.Model(inputs, layers.Dropout(0.0)(x))


def _function(model: Any, shape: tuple[int, ...]) -> Any:
    @tf.function(
        input_signature=[
            tf.TensorSpec((None, *shape), tf.float32, name="x"), tf.TensorSpec((), tf.int32, name="seed"),
        ],
        autograph=False,
    )  # fmt: skip
    def step(x: Any, seed: Any) -> Any:
        with seeded_dropout(model, seed):
            return {"out": model(x, training=True)}

    return step


ONE_LAYER: list[tuple[Callable[[], Any], tuple[int, ...]]] = [
    (lambda: layers.Dropout(0.3), (50,)),
    (lambda: layers.Dropout(0.3, noise_shape=(None, 1, 7)), (5, 7)),
    (lambda: layers.SpatialDropout1D(0.4), (5, 30)),
    (lambda: layers.SpatialDropout2D(0.4, data_format="channels_last"), (4, 3, 30)),
    (lambda: layers.SpatialDropout2D(0.4, data_format="channels_first"), (30, 4, 3)),
    (lambda: layers.SpatialDropout3D(0.4), (2, 3, 2, 30)),
]


@pytest.mark.parametrize(("make", "shape"), ONE_LAYER)
def test_a_mask_has_keras_s_shape_and_scale(make: Callable[[], Any], shape: tuple[int, ...]) -> None:
    layer = make()
    model = tf.keras.Sequential([layers.Input(shape), layer])
    x = np.ones((40, *shape), np.float32)
    ours, keras = _function(model, shape)(x, 3)["out"].numpy(), layer(x, training=True).numpy()
    assert set(np.unique(ours)) == set(np.unique(keras))  # 0 and 1/(1 − rate)
    for axis in range(ours.ndim):  # along which axes a mask is shared
        assert (np.ptp(ours, axis=axis) == 0).all() == (np.ptp(keras, axis=axis) == 0).all()
    assert (ours > 0).mean() == pytest.approx(1 - layer.rate, abs=0.08)


def test_the_seed_decides_whatever_the_size_of_the_batch() -> None:
    model = tf.keras.Sequential([layers.Input((20,)), layers.Dropout(0.5)])
    step = _function(model, (20,))
    x = np.ones((8, 20), np.float32)
    first = step(x, 1)["out"].numpy()
    np.testing.assert_array_equal(step(x, 1)["out"], first)
    np.testing.assert_array_equal(step(x[:3], 1)["out"], first[:3])
    assert (step(x, 2)["out"].numpy() != first).any()


def test_tflite_draws_the_same_masks() -> None:
    model = _model()
    step = _function(model, (6, 8))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([step.get_concrete_function()], model)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    lite = Interpreter(model_content=converter.convert()).get_signature_runner()
    rng = np.random.default_rng(0)
    for size, seed in ((1, 0), (7, 5), (50, 2**31 - 1)):
        x = rng.standard_normal((size, 6, 8)).astype(np.float32)
        ours, theirs = step(x, seed)["out"].numpy(), lite(x=x, seed=np.int32(seed))["out"]
        np.testing.assert_array_equal(ours == 0, theirs == 0)
        assert 0.5 < (ours == 0).mean() < 0.95
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_outside_of_the_context_a_model_is_as_it_was() -> None:
    model = _model()
    x = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
    before = model(x, training=False).numpy()
    with seeded_dropout(model, 0):
        np.testing.assert_array_equal(model(x, training=False), before)
    with pytest.raises(KeyError), seeded_dropout(model, 0):
        raise KeyError
    dropouts = [layer for layer in all_layers(model) if isinstance(layer, layers.Dropout)]
    assert len(dropouts) == 5
    assert not any("call" in vars(layer) for layer in dropouts)
    np.testing.assert_array_equal(model(x), before)
    assert (model(x, training=True).numpy() != model(x, training=True).numpy()).any()  # Keras's own again


def test_a_rate_of_one_leaves_nothing() -> None:
    model = tf.keras.Sequential([layers.Input((5,)), layers.Dropout(1.0)])
    np.testing.assert_array_equal(_function(model, (5,))(np.ones((2, 5), np.float32), 0)["out"], np.zeros((2, 5)))


def test_whether_a_model_has_dropout() -> None:
    assert has_dropout(_model())
    assert not has_dropout(tf.keras.Sequential([layers.Input((5,)), layers.Dropout(0.0), layers.Dense(2)]))
    assert not has_dropout(tf.keras.Sequential([layers.Input((5, 2)), layers.LSTM(3), layers.GaussianNoise(0.0)]))


SUPPORTED = "Dropout, SpatialDropout1D, SpatialDropout2D, SpatialDropout3D"


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (lambda: layers.GaussianDropout(0.1, name="it"), "GaussianDropout"),
        (lambda: layers.GaussianNoise(0.1, name="it"), "GaussianNoise"),
        (lambda: layers.AlphaDropout(0.1, name="it"), "AlphaDropout"),
        (lambda: layers.LSTM(3, dropout=0.1, name="it"), "LSTM"),
        (lambda: layers.GRU(3, recurrent_dropout=0.1, name="it"), "GRU"),
    ],
)
def test_other_random_layers_are_refused_by_name(layer: Callable[[], Any], kind: str) -> None:
    model = tf.keras.Sequential([layers.Input((5, 2)), layer()])
    expected = f"layer 'it': {kind} draws random numbers that a device can't repeat; supported are {SUPPORTED}"
    for use in (has_dropout, lambda model: seeded_dropout(model, 0).__enter__()):
        with pytest.raises(ValueError) as caught:
            use(model)
        assert str(caught.value) == expected
