"""A model that is in no registry: simulated by both engines, exported with what it learned, repeated by its file."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

import models
from cli.main import main
from device_runtime.bundle import open_bundle
from device_runtime.errors import InputError
from models import ModelSpec
from tests.small_model import make_small
from tff_sim import Data, Experiment, run_experiment
from tff_sim.experiments.file import load_experiment
from tff_sim.experiments.own_model import OwnModel

pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

CE = "sparse_categorical_crossentropy"


_GROWING = """
import numpy as np
import tensorflow as tf
k = tf.keras.layers
calls = []
def make():
    calls.append(1)
    return tf.keras.Sequential([k.Input((8, 8, 1)), k.Flatten(), k.Dense(10 + len(calls))])
def draw():
    x = k.Input((8, 8, 1))
    return tf.keras.Model(x, k.Dense(10)(k.Flatten()(x) * np.random.default_rng().random(64)))
"""


def _save(path: Path, seed: int = 1) -> Path:
    tf.keras.utils.set_random_seed(seed)
    make_small().save(path)
    return path


def _simulate(file: Path, out: Path, *more: str) -> int:
    return main(["simulate", "--keras", str(file), "--loss", CE, "--clients", "10", "--out", str(out), *more])


def _losses(out: Path) -> list[float]:
    with (out / "metrics.csv").open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream) for name in ("train_loss", "test_loss")]


def _line(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("pocketfed: ")


def test_what_is_simulated_is_what_the_device_runs(tmp_path: Path) -> None:
    file, tff, device = _save(tmp_path / "small.keras"), tmp_path / "tff", tmp_path / "device"
    assert _simulate(file, tff, "--rounds", "3") == 0
    assert _simulate(file, device, "--rounds", "3", "--engine", "device") == 0
    np.testing.assert_allclose(_losses(tff), _losses(device), rtol=1e-5)
    assert _losses(tff)[-1] < _losses(tff)[1]  # it learned
    learned, also = (safetensors.numpy.load_file(out / "weights.safetensors") for out in (tff, device))
    assert list(learned) == list(also)
    for name, value in learned.items():
        np.testing.assert_allclose(value, also[name], atol=1e-5)
    # The bundle that devices get begins with what the simulation learned.
    exported = ["export", "--keras", str(file), "--loss", CE, "--weights", str(tff / "weights.safetensors")]
    assert main([*exported, "--out", str(tmp_path / "bundles")]) == 0
    bundle = open_bundle(tmp_path / "bundles")
    for tensor, value in zip(bundle.manifest.tensors, bundle.initial_weights(), strict=True):
        np.testing.assert_array_equal(value, learned[tensor.name])


def test_the_file_of_a_run_repeats_it_with_the_same_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, again = tmp_path / "first", tmp_path / "again"
    assert _simulate(_save(Path("small.keras")), first, "--rounds", "2") == 0
    experiment = load_experiment(first / "experiment.toml", {})
    assert experiment.keras is not None
    assert (experiment.model, experiment.keras.source) == ("small", str(tmp_path / "small.keras"))
    monkeypatch.chdir(first)
    repeat = ["simulate", "--config", str(first / "experiment.toml"), "--out", str(again)]
    assert main(repeat) == 0
    assert (again / "weights.safetensors").read_bytes() == (first / "weights.safetensors").read_bytes()
    # In another place it is the same model still; with other weights it is not.
    moved = (tmp_path / "small.keras").rename(tmp_path / "moved.keras")
    assert _simulate(moved, first, "--rounds", "3", "--resume") == 0
    _save(moved, seed=2)
    content = (first / "metrics.csv").read_bytes()
    resumed = [
        "simulate",
        "--keras",
        moved,
        "--loss",
        CE,
        "--clients",
        "10",
        "--out",
        first,
        "--rounds",
        "4",
        "--resume",
    ]
    assert _line(resumed, capsys) == (
        f"{first}: holds another experiment: its model has other layers or weights than the one here; choose another"
        " --out, or remove this one"
    )
    assert (first / "metrics.csv").read_bytes() == content
    refused = (
        f"{moved}: its layers or weights are not those that the experiment was made with (their SHA-256 differs): give"
        " it its own model, or take sha256 out of the experiment's file"
    )
    assert _line(repeat, capsys) == _line(["sweep", *repeat[1:]], capsys) == refused


def test_a_function_in_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which imports another module, and names no layer: they have the same names in every process and run."""
    source = (
        "import tensorflow as tf\n"
        "def make():\n"
        "    k = tf.keras.layers\n"
        "    return tf.keras.Sequential([k.Input((8, 8, 1)), k.Flatten(), k.Dense(UNITS), k.Dense(10)])\n"
    ).replace("    k =", "    from simulated_units import UNITS\n    k =")
    (tmp_path / "simulated_units.py").write_text("UNITS = 5")
    (tmp_path / "simulated_model.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    own = ["--keras", "simulated_model:make", "--loss", CE, "--model", "named", "--clients", "10", "--rounds", "1"]
    assert main(["sweep", *own, "--lowest", "0.1", "--highest", "0.3", "--out", "sweep"]) == 0
    runs = sorted(Path("sweep").glob("lr-*"))
    assert [run.name for run in runs] == ["lr-0.1", "lr-0.2154"]
    assert {load_experiment(run / "experiment.toml", {}).model for run in runs} == {"named"}
    learned = runs[0] / "weights.safetensors"
    assert main(["export", *own[:4], "--weights", str(learned), "--out", "bundles"]) == 0
    assert main(["parity", "bundles", "--keras", "simulated_model:make"]) == 0
    names = ["dense/bias", "dense/kernel", "dense_1/bias", "dense_1/kernel"]
    assert sorted(safetensors.numpy.load_file(learned)) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keras", "small.keras"], "--keras needs --loss, such as --loss sparse_categorical_crossentropy"),
        (["--loss", CE], "--loss is of a model of your own: give --keras too, or leave it out"),
        (["--keras", "none", "--loss", CE], "--loss has no effect without --keras: leave it out, or give that too"),
        (
            ["--keras", "small.keras", "--loss", "hinge"],
            "--loss should be one of binary_crossentropy, categorical_cross",
        ),
        (
            ["--keras", "small.keras", "--loss", CE, "--model", "a b"],
            "small.keras: the model's name 'a b' should be of letters, digits, '_', '-' and '.'",
        ),
        (["--model", ""], "--model should be a model's name, not ''"),
        (["--keras", "code:make", "--loss", CE], "--keras code:make: another module has the name code: rename code.py"),
        (["--keras", "growing:make", "--loss", CE], "growing:make: can't make the model again: "),
        (["--keras", "growing:draw", "--loss", CE], "growing:draw: makes another model each time; a function should"),
        (
            ["--keras", "none.keras", "--loss", CE],
            "none.keras: no such file; give a model that Keras saved as .keras, or",
        ),
        (
            ["--keras", "small.keras", "--loss", "huber"],
            "model 'small': its metric is mean_absolute_error, and experiments follow the accuracy: take a loss over",
        ),
        (
            ["--keras", "small.keras", "--loss", CE, "--dataset", "npz", "--data-dir", "clients"],
            "model 'small' takes examples of (8, 8, 1), data set 'npz' has (3,): choose another model, or",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    _save(Path("small.keras"))
    (tmp_path / "code.py").write_text("def make(): ...")
    (tmp_path / "growing.py").write_text(_GROWING)
    monkeypatch.delitem(sys.modules, "growing", raising=False)
    (tmp_path / "clients").mkdir()
    x, y = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
    np.savez(tmp_path / "clients" / "one.npz", x=x, y=y, x_test=x, y_test=y)
    assert _line(["simulate", *arguments], capsys).startswith(message)
    assert not (tmp_path / "runs").exists()


def test_a_script_s_own_spec(tmp_path: Path) -> None:
    registered = models.get("digits_mlp")
    spec = ModelSpec("mine", make_small, registered.input, registered.label, CE, "accuracy", source="a script")
    experiment = Experiment(rounds=1, data=Data(clients=10))
    assert run_experiment(experiment, tmp_path / "run", own=spec)["model"] == "mine"
    written = load_experiment(tmp_path / "run" / "experiment.toml", {})
    assert written.keras is not None
    assert (written.model, written.keras.source, written.keras.loss) == ("mine", "a script", CE)
    # It goes on in another process, where other draws came before.
    tf.keras.utils.set_random_seed(99)
    longer = Experiment(rounds=2, data=Data(clients=10))
    assert run_experiment(longer, tmp_path / "run", own=spec, resume=True)["rounds"] == 2
    with pytest.raises(InputError, match=r"^the experiment's model is a script: give it to run_experiment, as own$"):
        run_experiment(written, tmp_path / "again")
    assert OwnModel("a", CE).within(tmp_path).source == "a"
