"""The registry, and what every model in it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

import models
from models.losses import LOSSES

# Keras seeds its layers with random.randint(1, 1e9).
pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

PARAMETERS = {
    "cifar_cnn": 1_068_298,
    "digits_mlp": 4_810,
    "mnist_2nn": 199_210,
    "mnist_cnn": 1_663_370,
    "shakespeare_lstm": 866_578,
    "word_lstm": 4_950_544,
}
WEIGHTS = {
    "kernel", "bias", "embeddings", "recurrent_kernel", "input_peephole", "forget_peephole", "output_peephole",
}  # fmt: skip
OUTPUTS = dict.fromkeys(PARAMETERS, (10,)) | {"shakespeare_lstm": (80, 258), "word_lstm": (10, 10_000)}


def test_names_are_sorted_and_each_can_be_got() -> None:
    assert models.names() == tuple(PARAMETERS) == tuple(sorted(PARAMETERS))
    for name in models.names():
        spec = models.get(name)
        assert isinstance(spec, models.ModelSpec)
        assert spec.name == name
        assert spec.build().name == name


def test_an_unknown_model_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(models.UnknownModelError) as caught:
        models.get("resnet")
    known = "cifar_cnn, digits_mlp, mnist_2nn, mnist_cnn, shakespeare_lstm, word_lstm"
    assert str(caught.value) == f"unknown model 'resnet'; known models: {known}"


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_exactly(name: str) -> None:
    weights = models.initial_weights(models.get(name), 0)
    assert sum(math.prod(weight.shape) for weight in weights) == PARAMETERS[name]
    assert all(weight.dtype == np.float32 for weight in weights)


@pytest.mark.parametrize("name", models.names())
def test_the_output_is_logits_without_softmax(name: str) -> None:
    spec = models.get(name)
    model = models.seeded_model(spec, 0)
    assert model.layers[-1].activation is tf.keras.activations.linear
    rng = np.random.default_rng(0)
    shape = (3, *spec.input.shape[1:])
    x = rng.random(shape, np.float32) if spec.input.dtype == tf.float32 else rng.integers(0, 258, shape, np.int32)
    logits = model(x).numpy()
    assert logits.shape == (3, *OUTPUTS[name])
    assert logits.dtype == np.float32
    assert (logits < 0).any()
    assert not np.allclose(logits.sum(axis=-1), 1)
    model.layers[-1].set_weights([50 * value for value in model.layers[-1].get_weights()])
    np.testing.assert_allclose(model(x).numpy(), 50 * logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", models.names())
def test_the_spec_fits_the_model_and_the_loss(name: str) -> None:
    spec = models.get(name)
    assert spec.build().input_shape == tuple(spec.input.shape)
    assert spec.label.dtype == tf.int32
    assert spec.label.shape.as_list() == [None, *OUTPUTS[name][:-1]]  # one label a prediction
    assert spec.loss in LOSSES
    assert spec.metric == "accuracy"


@pytest.mark.parametrize("name", models.names())
def test_a_user_s_settings_of_keras_change_no_model(name: str) -> None:
    spec = models.get(name)
    shapes = [(layer.output_shape, [w.shape for w in layer.weights]) for layer in spec.build().layers]
    before = tf.keras.backend.image_data_format()
    tf.keras.backend.set_image_data_format("channels_first")
    try:
        again = [(layer.output_shape, [w.shape for w in layer.weights]) for layer in spec.build().layers]
        layered = [layer for layer in spec.build().layers if hasattr(layer, "data_format")]
    finally:
        tf.keras.backend.set_image_data_format(before)
    assert again == shapes
    assert [layer.data_format for layer in layered] == ["channels_last"] * len(layered)


@pytest.mark.parametrize("name", models.names())
def test_tensor_names_are_unique_and_the_same_in_every_build(name: str) -> None:
    spec = models.get(name)
    names = models.tensor_names(spec.build())
    assert len(set(names)) == len(names) == len(spec.build().trainable_variables)
    assert names == models.tensor_names(spec.build())
    assert all(":" not in tensor and tensor.split("/")[-1] in WEIGHTS for tensor in names)
    assert len({variable.name for variable in spec.build().variables}) == len(names)


@pytest.mark.parametrize("name", models.names())
def test_initial_weights_follow_from_the_seed_alone(name: str) -> None:
    spec = models.get(name)
    first = models.initial_weights(spec, 7)
    spec.build()  # whatever was built in between changes nothing
    again, other = models.initial_weights(spec, 7), models.initial_weights(spec, 8)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1]
    assert all((a != b).any() for a, b in kernels)


def test_the_largest_seed_of_the_protocol_is_taken() -> None:
    spec = models.get("digits_mlp")
    largest, zero = models.initial_weights(spec, 2**53 - 1), models.initial_weights(spec, 0)
    assert (largest[0] != zero[0]).any()
