"""A user's own model: from a .keras file or a function, exported and checked without any code for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cli.main import main
from device_runtime.bundle import INFER_ARTIFACT, TRAIN_ARTIFACT, Bundle, open_bundle
from device_runtime.errors import InputError
from export.inference import compare_inference
from export.parity import check_parity
from export.user_model import read_representative, user_spec
from tests.small_model import make_small

keras = tf.keras.layers
CE = "sparse_categorical_crossentropy"


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a user saves it."""
    path = tmp_path_factory.mktemp("keras") / "small.keras"
    make_small().save(path)
    return path


@pytest.fixture(scope="module")
def small_bundle(small_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles")
    assert main(["export", "--keras", str(small_file), "--loss", CE, "--optimizer", "adam", "--out", str(out)]) == 0
    return open_bundle(out)


def test_a_file_is_exported_with_its_weights(small_file: Path, small_bundle: Bundle) -> None:
    manifest = small_bundle.manifest
    assert (manifest.name, manifest.loss, manifest.metric, manifest.optimizer["name"]) == (
        "small", CE, "accuracy", "adam",
    )  # fmt: skip
    model = tf.keras.models.load_model(small_file, compile=False)
    saved = {variable.name.split(":")[0]: variable.numpy() for variable in model.weights}
    for spec, weights in zip(manifest.tensors, small_bundle.initial_weights(), strict=True):
        np.testing.assert_array_equal(weights, saved[spec.name])
    assert [spec.name for spec in manifest.tensors][-2:] == ["norm/moving_mean", "norm/moving_variance"]
    assert "seed" in [spec.name for spec in manifest.signatures["train"].inputs]


def test_parity_of_a_users_model(small_file: Path, small_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(small_bundle.path), "--keras", str(small_file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["steps"], report["layer"]) == (True, 60, None)
    assert report["inference"]["computes_in"] == "float32"
    assert report["inference"]["difference"] == 0.0


def test_parity_of_a_users_model_needs_the_model(small_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(small_bundle.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pocketfed: unknown model 'small'; known models: cifar_cnn, ")
    assert line.endswith("; name a model of your own with --keras, as it was exported")


def test_frozen_layers_stay_at_home(tmp_path: Path) -> None:
    """Only the head travels; the frozen weights are constants, once in each artifact, the same at every build."""
    with _module("frozen_model", _frozen, tmp_path):
        spec = user_spec("frozen_model:build", CE)
        from export.bundle_writer import export_bundle

        bundle = export_bundle(spec, tmp_path / "out")
        assert [tensor.name for tensor in bundle.manifest.tensors] == ["head/kernel", "head/bias"]
        assert check_parity(bundle, spec=user_spec("frozen_model:build", CE)).ok
    frozen = 64 * 500 * 4
    assert frozen < bundle.file(TRAIN_ARTIFACT).stat().st_size < 1.5 * frozen


def _frozen() -> Any:
    base = tf.keras.Sequential([keras.Flatten(), keras.Dense(500, "relu")], name="base")
    base.trainable = False
    return tf.keras.Sequential([keras.Input((8, 8, 1)), base, keras.Dense(10, name="head")], name="mine")


class _module:  # noqa: N801  # a context manager that reads like a function
    """A module with the function `build`, that can be imported by its name."""

    def __init__(self, name: str, build: Callable[[], Any], folder: Path) -> None:
        self._name, self._build = name, build

    def __enter__(self) -> None:
        module = type(sys)(self._name)
        module.build = self._build  # type: ignore[attr-defined]
        sys.modules[self._name] = module

    def __exit__(self, *error: object) -> None:
        del sys.modules[self._name]


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Callable[[Any], str]]:
    """Makes a source of a function that returns the given object."""
    made: list[_module] = []

    def make(model: Any) -> str:
        made.append(_module("odd_model", lambda: model, tmp_path))
        made[-1].__enter__()
        return "odd_model:build"

    yield make
    for module in made:
        module.__exit__()


def _sequential(*layers: Any, shape: tuple[int | None, ...] = (4,), dtype: str = "float32") -> Any:
    return tf.keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def _two_outputs() -> Any:
    x = keras.Input((4,))
    return tf.keras.Model(x, [keras.Dense(2)(x), keras.Dense(2)(x)])


def _not_finite() -> Any:
    model = _sequential(keras.Dense(2, name="sick"))
    model.set_weights([np.full((4, 2), np.nan, np.float32), np.zeros(2, np.float32)])
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 7, "expected a tf.keras.Model, got int"),
        (_two_outputs, "2 outputs; a model that devices train has one"),
        (lambda: tf.keras.Sequential([keras.Dense(2)]), "its input's shape is not known; begin the model with"),
        (lambda: _sequential(keras.LSTM(2), shape=(None, 3)), "has a free dimension besides the batch; give Input a"),
        (lambda: _sequential(keras.Dense(2), dtype="float64"), "input of type float64; use one of float32, int32"),
        (_not_finite, "weight 'sick/kernel:0' holds values that are not finite"),
        (lambda: _sequential(keras.Dense(2, "softmax", name="out")), "layer 'out': ends in softmax; sparse_categ"),
        (lambda: _sequential(keras.Dense(2), keras.Softmax(name="out")), "layer 'out': ends in softmax"),
        (
            lambda: _sequential(keras.Dense(2, kernel_regularizer="l2", name="held")),
            "layer 'held': its regularizer is no part of what a device trains; leave it out",
        ),
        (
            lambda: _sequential(keras.Dense(2, activity_regularizer="l1", name="held")),
            "layer 'held': its regularizer is no part",
        ),
    ],
)
def test_models_that_devices_cant_train_are_refused(
    odd: Callable[[Any], str], make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        user_spec(odd(make()), CE)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.keras", "absent.keras: no such file; give a model that Keras saved as .keras, or module:function"),
        ("model.h5", "--keras model.h5: expected a file that ends in .keras, or module:function"),
        ("no_such_module:build", "--keras no_such_module:build: can't import no_such_module: No module named"),
        ("json:no_such_function", "--keras json:no_such_function: json has no function no_such_function"),
        ("json:loads", "json:loads: can't make the model: loads() missing 1 required positional argument"),
    ],
)
def test_sources_that_give_no_model(source: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        user_spec(source, CE)
    assert str(caught.value).startswith(message)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "broken.keras"
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"broken\.keras: can't make the model: "):
        user_spec(str(path), CE)


def test_a_file_may_not_bring_code(tmp_path: Path) -> None:
    path = tmp_path / "code.keras"
    _sequential(keras.Lambda(lambda x: x), keras.Dense(2)).save(path)
    with pytest.raises(InputError, match="can't make the model: "):
        user_spec(str(path), CE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("hinge", None, None), "--loss hinge: unknown; known losses: binary_crossentropy, "),
        (("huber", None, "accuracy"), "--metric accuracy: not a metric for the loss huber; use one of"),
        (
            ("huber", "a/b", None),
            "odd_model:build: the model's name 'a/b' should be of letters, digits, '_', '-' and '.'",
        ),
    ],
)
def test_settings_that_are_none(
    odd: Callable[[Any], str], settings: tuple[str, str | None, str | None], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        user_spec(odd(_sequential(keras.Dense(2))), *settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either MODEL or --keras"),
        (["digits_mlp", "--keras", "my.keras"], "give either MODEL or --keras"),
        (["--keras", "my.keras"], "--keras needs --loss"),
        (["digits_mlp", "--loss", "huber"], "--loss is for a model of your own; digits_mlp has its own"),
        (["digits_mlp", "--int8"], "--int8 and --representative go together"),
        (["digits_mlp", "--clip-norm", "-1"], "clip_norm should be a finite number above 0, or none, not -1.0"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_int8_is_smaller_and_nearly_as_good(small_file: Path, tmp_path: Path) -> None:
    spec = user_spec(str(small_file), CE)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "r.npz", x=rng.standard_normal((64, 8, 8, 1)).astype(np.float32))
    arguments = ["--keras", str(small_file), "--loss", CE, "--out", str(tmp_path)]
    assert main(["export", *arguments, "--int8", "--representative", str(tmp_path / "r.npz")]) == 0
    assert main(["export", *arguments, "--bundle-version", "2"]) == 0
    quantised, plain = (open_bundle(tmp_path / f"small-{version}.bundle") for version in (1, 2))
    assert (quantised.manifest.inference, plain.manifest.inference) == ("int8", "float32")
    report = compare_inference(quantised, spec, spec.build(), None, 0)
    assert (report.computes_in, report.synthetic, report.ok) == ("int8", True, True)
    assert 1e-4 < report.max_rel < 0.2  # it is quantised, and not noise
    assert abs(report.artifact - report.keras) < 0.1
    sizes = [bundle.file(INFER_ARTIFACT).stat().st_size for bundle in (quantised, plain)]
    assert sizes[0] < sizes[1]


def test_parity_measures_the_artifact_on_real_examples(
    small_file: Path, small_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (digits.images[:100, :, :, None] / 16).astype(np.float32), digits.target[:100].astype(np.int32)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    options = ["--keras", str(small_file), "--data", str(tmp_path / "d.npz")]
    assert main(["parity", str(small_bundle.path), *options]) == 0
    assert "infer.tflite (float32), 100 examples: accuracy 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(3)}, "expected an .npz file with an array x of examples"),
        ({"x": np.zeros((3, 4))}, "x should be float32[n, 8, 8, 1] with at least one example, but is float64[3, 4]"),
        ({"x": np.zeros((0, 8, 8, 1), np.float32)}, "with at least one example, but is float32[0, 8, 8, 1]"),
    ],
)
def test_representative_examples_that_are_none(
    arrays: dict[str, Any], message: str, small_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "r.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError) as caught:
        read_representative(path, user_spec(str(small_file), CE))
    assert message in str(caught.value)
