"""experiment.toml: what is written is read back, and what is wrong is named by file and key in one line."""

from __future__ import annotations

import functools
import json
import re
import typing
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import experiment_options
from cli.experiment_options import SECTIONS
from cli.settings import Setting
from cli.simulate import simulate
from device_runtime.codec import CODECS
from device_runtime.errors import InputError
from device_runtime.work import ClientWork
from models.losses import LOSSES
from models.optimizers import ClientOptimizer
from tff_sim.algorithms import algorithm, schedules
from tff_sim.algorithms.algorithm import Algorithm, ServerOptimizer
from tff_sim.algorithms.schedules import Schedule
from tff_sim.experiments.data_settings import Data
from tff_sim.experiments.experiment import ENGINES, Experiment
from tff_sim.experiments.file import dump_experiment, experiment_tables, load_experiment
from tff_sim.experiments.own_model import OwnModel
from tff_sim.experiments.settings import differences, flat, nested
from tff_sim.world import FAULTS, Availability, Faults, Stragglers, World

FLAGS = {setting.key: setting.flag for setting in experiment_options.ALL}
EXPERIMENTS = st.builds(
    Experiment,
    fraction=st.floats(0, 1),
    rounds=st.integers(1, 10**6),
    target_accuracy=st.none() | st.floats(0.01, 1),
    data=st.builds(Data, clients=st.integers(1, 1000), data_dir=st.sampled_from([None, Path("/data/mnist")])),
    work=st.builds(
        ClientWork,
        epochs=st.integers(1, 50),
        batch_size=st.none() | st.integers(1, 1000),
        learning_rate=st.floats(1e-6, 100),
        seed=st.integers(0, 2**53 - 1),
    ),
    optimizer=st.builds(ClientOptimizer, clip_norm=st.none() | st.floats(0.1, 10)),
    schedule=st.sampled_from([Schedule(), Schedule("step", decay_rounds=7), Schedule("cosine", rounds=50, warmup=3)]),
    algorithm=st.builds(
        Algorithm,
        optimizer=st.sampled_from([ServerOptimizer(), ServerOptimizer("fedyogi", learning_rate=0.1, tau=1e-4)]),
        clip_norm=st.none() | st.floats(0.1, 10),
    ),
    keras=st.none()
    | st.builds(OwnModel, source=st.sampled_from(["m:f", "/a/m.keras"]), loss=st.sampled_from([*LOSSES])),
    world=st.builds(
        World,
        drop_out=st.floats(0, 1),
        availability=st.builds(Availability, share=st.floats(0.1, 1)),
        stragglers=st.builds(Stragglers, deadline_seconds=st.none() | st.floats(1, 100)),
        faults=st.builds(Faults, corrupt=st.floats(0, 1)),
    ),
)


@given(experiment=EXPERIMENTS)
def test_what_is_written_is_read_back(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "experiment.toml"
    path.write_bytes(dump_experiment(experiment))
    assert load_experiment(path, {}) == experiment


def test_a_file_says_what_is_otherwise_and_an_option_more(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(
        'seed = 7\nmodel = "mnist_2nn"\n[data]\ndata_dir = "mnist"\n[work]\nbatch_size = "all"\nlearning_rate = 1\n'
        '[optimizer]\nclip_norm = "none"\n[world.stragglers]\ndeadline_seconds = 3\n'
    )
    experiment = load_experiment(path, {"work": {"epochs": 5, "learning_rate": 0.5}, "fraction": 0.2})
    assert experiment == Experiment(
        model="mnist_2nn",
        fraction=0.2,
        data=Data(data_dir=tmp_path / "mnist"),  # relative to the file
        work=ClientWork(epochs=5, batch_size=None, learning_rate=0.5, seed=7),
        world=World(stragglers=Stragglers(deadline_seconds=3.0)),
    )
    assert load_experiment(None, {}) == Experiment()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3", "unknown key 'epochs'; known here: seed, model, fraction, "),
        ("[work]\nepoch = 3", "unknown key 'work.epoch'; known here: epochs, batch_size, "),
        ("[work]\nlr = 3", "unknown key 'work.lr'; known here: epochs, batch_size, learning_rate, proximal, codec"),
        ("[work]\nseed = 3", "unknown key 'work.seed'; the seed stands at the top, before all tables"),
        ("[work]\ndeadline_seconds = 3", "unknown key 'work.deadline_seconds'"),
        ("[world.weather]\nrain = true", "unknown key 'world.weather'; known here: over_selection, "),
        ("rounds = 'many'", "rounds should be a whole number, not 'many'"),
        ("rounds = true", "rounds should be a whole number, not True"),
        ("rounds = 1.5", "rounds should be a whole number, not 1.5"),
        ("rounds = 0", "rounds should be at least 1, not 0"),
        ("seed = 'x'", "seed should be a whole number from 0 to 2**53 - 1, not 'x'"),
        ("seed = -1", "seed should be a whole number from 0 to 2**53 - 1, not -1"),
        ("fraction = 2", "fraction should be from 0 to 1, not 2.0"),
        ("fraction = 'half'", "fraction should be a number, not 'half'"),
        ("target_accuracy = 97", "target_accuracy should be above 0 and at most 1, not 97.0"),
        ("engine = 'gpu'", "engine should be one of tff, device, not 'gpu'"),
        ("[work]\ncodec = 'zip'", "codec should be one of f32, f16, q8, q4, q2, q1, not 'zip'"),
        ("model = 3", "model should be a text, not 3"),
        ("work = 3", "work should be a table, [work], not 3"),
        ("[work]\nbatch_size = 'some'", "work.batch_size should be a whole number, or 'all', not 'some'"),
        ("[work]\nepochs = 0", "[work] epochs should be a whole number of at least 1, not 0"),
        ("[optimizer]\nmomentum = 2", "[optimizer] momentum should be a number of at least 0 and below 1, not 2.0"),
        ("[data]\ndata_dir = 3", "data.data_dir should be a path, or 'none', not 3"),
        ("[world]\ndrop_out = 2", "[world] drop_out should be from 0 to 1, not 2.0"),
        ("[world.faults]\ncorrupt = 2", "[world.faults] corrupt should be from 0 to 1, not 2.0"),
        ("[work]\nbatch_size = 0", "[work] batch_size should be a whole number from 1 to 2**31 - 1, or 'all' for "),
        (
            "[algorithm.optimizer]\nbeta_1 = 2",
            "[algorithm.optimizer] beta_1 does not go with name sgd: leave it out, or choose fedadagrad or",
        ),
        ("[algorithm]\ntrim = 0.2", "[algorithm] trim is for aggregator trimmed_mean, not mean: leave it out"),
        ("[schedule]\nname = 'x'", "[schedule] name should be one of constant, "),
        ("[schedule]\nname = 'cosine'\nrounds = 3\nwarmup = 3", "[schedule] warmup should be below rounds, 3, not 3"),
        ("[data]\nalpha = 0.3", "[data] alpha is a parameter of a partition: name that with partition"),
        ("[data]\npartition = 'iid'\nalpha = 0.3", "[data] partition 'iid' has no alpha: leave it out"),
        ("[data]\npresent = 2.0", "[data] present should be from 0 to 1, not 2.0"),
        (f"x = {'[' * 10_000}", "not a TOML file: maximum recursion depth exceeded"),
        ("rounds = ", "not a TOML file: "),
        ("[keras]\nloss = 'huber'", "[keras] source should be a .keras file or module:function, not ''"),
        ("[keras]\nsource = 'a.keras'", "[keras] loss should be one of binary_crossentropy, categorical_"),
        (
            "[keras]\nsource = 'a.keras'\nloss = 'hinge'",
            "[keras] loss should be one of binary_crossentropy, categorical_crossentropy, huber, mean_absolute_error,"
            " mean_squared_error, sparse_categorical_crossentropy, not 'hinge'",
        ),
        ("[keras]\nsource = 3\nloss = 'huber'", "keras.source should be a text, not 3"),
        ("[keras]\nmetric = 'accuracy'", "unknown key 'keras.metric'; known here: source, loss, sha256"),
        ("[keras]", "[keras] source should be a .keras file or module:function, not ''"),
        ("[keras]\nsource = 'none'\nfoo = 1", "unknown key 'keras.foo'; known here: source, loss, sha256"),
        ("model = ''", "model should be a model's name, not ''"),
        ("keras = 'a.keras'", "keras should be a table, [keras]"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_experiment(path, {}, FLAGS)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path / 'x.toml'}: can't read it: No such file or directory$"):
        load_experiment(tmp_path / "x.toml", {})
    (tmp_path / "y.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=rf"^{tmp_path / 'y.toml'}: not a TOML file: "):
        load_experiment(tmp_path / "y.toml", {})


def test_each_option_is_a_key_of_the_file_with_the_default_that_its_help_shows() -> None:
    """The help can't ask the experiment, which takes seconds to load."""
    defaults = dict(flat(experiment_tables(Experiment())))
    settings = [setting for section in SECTIONS.values() for setting in section]
    assert {setting.key: defaults.get(setting.key) for setting in settings} == {s.key: s.default for s in settings}
    for setting in settings:
        value = {"work.batch_size": "all"}.get(setting.key, setting.default)
        if value is not None:
            load_experiment(None, nested({setting.key: value}))


def test_the_help_has_the_names_that_there_are() -> None:
    assert tuple(schedules.SCHEDULES) == experiment_options.SCHEDULES
    assert tuple(algorithm.SERVER_OPTIMIZERS) == experiment_options.SERVER_OPTIMIZERS
    assert algorithm.AGGREGATORS == experiment_options.AGGREGATORS
    assert algorithm.WEIGHTINGS == experiment_options.WEIGHTINGS
    assert tuple(CODECS) == experiment_options.CODECS
    assert ENGINES == experiment_options.ENGINES
    assert FAULTS == experiment_options.FAULTS


def test_every_key_of_the_file_but_a_few_has_an_option() -> None:
    keys = set(dict(flat(everything(Experiment))))
    without = {"work.deadline_seconds", "optimizer.beta_1", "optimizer.beta_2", "optimizer.epsilon", "keras.sha256"}
    assert keys - without == {setting.key for setting in experiment_options.ALL} - {"seed"} | {"work.seed"}


@pytest.mark.parametrize("setting", experiment_options.ALL, ids=lambda setting: setting.flag)
def test_what_a_file_has_and_may_be_without_is_taken_back_with_none(setting: Setting) -> None:
    parsed = functools.partial(simulate.make_context, "simulate", [setting.flag, "none"])
    if setting.default is None:
        assert parsed().params[setting.parameter] == "none"
        assert load_experiment(None, nested({setting.key: "none"})) == Experiment()
    elif setting.type is str:  # a name is looked up where it counts
        assert parsed().params[setting.parameter] == "none"
    else:
        with pytest.raises(click.UsageError):
            parsed()


def test_a_flag_of_the_file_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text("[data]\naugment = true")
    for flag, value in (("--no-augment", False), ("--augment", True)):
        said = simulate.make_context("simulate", [flag]).params["data__augment"]
        assert experiment_options.experiment_of(path, {"data__augment": said}).data.augment is value


_OWN = "model = 'mine'\n[keras]\nsource = 'a.keras'\nloss = 'huber'\nsha256 = '00'"


@pytest.mark.parametrize(
    ("before", "choice", "after"),
    [
        (
            "[schedule]\nname = 'step'\ndecay = 0.5\ndecay_rounds = 3\nwarmup = 2",
            {"schedule": {"name": "exponential"}},
            {"schedule": Schedule("exponential", decay=0.5, decay_rounds=3, warmup=2)},
        ),
        (
            "[schedule]\nname = 'step'\ndecay = 0.5\nwarmup = 2",
            {"schedule": {"name": "cosine", "final": 0.3}},
            {"schedule": Schedule("cosine", final=0.3, rounds=100, warmup=2)},
        ),
        (
            "[schedule]\nname = 'cosine'\nfinal = 0.3\nrounds = 40",
            {"schedule": {"name": "constant"}},
            {"schedule": Schedule("constant")},
        ),
        (
            "[algorithm.optimizer]\nname = 'momentum'\nmomentum = 0.7\nlearning_rate = 0.6",
            {"algorithm": {"optimizer": {"name": "sgd"}}},
            {"algorithm": Algorithm(ServerOptimizer("sgd", learning_rate=0.6))},
        ),
        (
            "[algorithm]\naggregator = 'trimmed_mean'\ntrim = 0.3\nclip_norm = 2",
            {"algorithm": {"aggregator": "mean"}},
            {"algorithm": Algorithm(aggregator="mean", clip_norm=2.0)},
        ),
        (
            "[algorithm]\nweighting = 'examples'",
            {"algorithm": {"aggregator": "median"}},
            {"algorithm": Algorithm(aggregator="median")},
        ),
        (
            "[data]\npartition = 'dirichlet'\nalpha = 0.3\nclients = 20",
            {"data": {"partition": "iid"}},
            {"data": Data(partition="iid", clients=20)},
        ),
        (
            "[data]\npartition = 'dirichlet'\nalpha = 0.3\nclients = 20",
            {"data": {"partition": "none"}},
            {"data": Data(clients=20)},
        ),
        (
            "[data]\npartition = 'dirichlet'\nalpha = 0.3\nclients = 20\npresent = 0.5",
            {"data": {"partition_file": "hands.npz"}},
            {"data": Data(partition_file=Path("hands.npz"), present=0.5)},
        ),
        (
            "[data]\npartition_file = 'hands.npz'",
            {"data": {"partition": "shards"}},
            {"data": Data(partition="shards")},
        ),
        (_OWN, {"model": "mnist_2nn"}, {"model": "mnist_2nn"}),
        (_OWN, {"keras": {"source": "none"}}, {}),
        (_OWN, {"keras": {"source": "b.keras"}}, {"model": "", "keras": OwnModel("b.keras", "huber")}),
        (
            _OWN,
            {"model": "named", "keras": {"source": "b.keras", "loss": "binary_crossentropy"}},
            {"model": "named", "keras": OwnModel("b.keras", "binary_crossentropy")},
        ),
        (
            "model = 'mnist_2nn'",
            {"keras": {"source": "m:f", "loss": "huber"}},
            {"model": "", "keras": OwnModel("m:f", "huber")},
        ),
    ],
)
def test_another_choice_leaves_out_parameters_that_it_has_not(
    before: str, choice: dict[str, Any], after: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(before)
    assert load_experiment(path, choice) == Experiment(**after)
    assert load_experiment(path, {"fraction": 0.2}) == replace(load_experiment(path, {}), fraction=0.2)


def test_what_does_not_go_together_is_refused_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text("[schedule]\nname = 'cosine'\nfinal = 0.3")
    with pytest.raises(InputError, match=r"^--lr-final does not go with --lr-schedule constant: "):
        load_experiment(path, {"schedule": {"name": "constant", "final": 0.2}})
    with pytest.raises(InputError, match=r"^--lr-schedule should be one of constant, "):
        load_experiment(path, {"schedule": {"name": "none"}})


def test_an_option_goes_with_what_gives_it_an_effect() -> None:
    values: dict[str, Any] = {
        "optimizer__momentum": 0.5, "optimizer__name": "momentum",
        "world__availability__label_hours": 3.0, "world__availability__share": 0.5,
        "world__stragglers__device_spread": 1.0, "world__over_selection": 1.5,
        "world__stragglers__round_spread": 1.0, "world__stragglers__deadline_seconds": 3.0,
        "world__faults__scale": 3.0, "world__faults__corrupt_kind": "scaled", "world__faults__corrupt": 0.1,
        "world__faults__malicious_kind": "nan", "world__faults__malicious": 0.1,
    }  # fmt: skip
    experiment = experiment_options.experiment_of(None, values)
    assert experiment.optimizer.momentum == 0.5
    assert experiment.world.faults.scale == 3.0
    unknown = set(experiment_options._GOES_WITH) - {setting.key for setting in experiment_options.ALL}
    assert unknown == set()


def everything(kind: Any) -> dict[str, Any]:
    """All keys, also those whose default is None."""
    inner = {}
    for name, hint in typing.get_type_hints(kind).items():
        tables = [part for part in (hint, *typing.get_args(hint)) if is_dataclass(part)]
        inner[name] = everything(tables[0]) if tables else None
    return {field.name: inner[field.name] for field in fields(kind)}


def test_a_cosine_ends_with_the_experiment_unless_said_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    cosine = "rounds = 40\n[schedule]\nname = 'cosine'"

    def rounds(text: str, changes: dict[str, Any]) -> int | None:
        path.write_text(text)
        written = load_experiment(path, {})
        path.write_bytes(dump_experiment(written))
        assert load_experiment(path, {}) == written
        return load_experiment(path, changes).schedule.rounds

    assert rounds(cosine, {}) == 40
    assert rounds(cosine, {"rounds": 50}) == 50
    assert rounds(cosine, {"rounds": 50, "schedule": {"rounds": 30}}) == 30
    assert rounds(f"{cosine}\nrounds = 30", {"rounds": 50}) == 30
    assert rounds(f"{cosine}\nrounds = 30", {"rounds": 50, "schedule": {"rounds": "none"}}) == 50
    assert rounds("rounds = 40", {"schedule": {"name": "cosine"}}) == 40
    assert load_experiment(None, {"rounds": 50, "schedule": {"name": "cosine"}}).schedule.rounds == 50
    path.write_text("\ufeffrounds = 7")  # as some editors begin a file
    assert load_experiment(path, {}).rounds == 7


def test_paths_are_written_whole_so_that_the_file_can_be_read_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = Experiment(data=Data(data_dir=Path("mnist"), partition_file=Path("shards.npz")))
    data = experiment_tables(experiment)["data"]
    assert (data["data_dir"], data["partition_file"]) == (str(tmp_path / "mnist"), str(tmp_path / "shards.npz"))


def test_differences_are_told_by_key() -> None:
    one, other = {"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3, "d": 4}}
    assert differences(one, other) == {"b.c": (2, 3), "b.d": (None, 4)}
    assert differences(one, one) == {}


def test_the_page_s_file_is_an_experiment(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "experiment.toml"
    path.write_text(block)
    experiment = load_experiment(path, {})
    assert (experiment.model, experiment.data.data_dir) == ("mnist_2nn", tmp_path / "mnist")
    assert experiment.world.drop_out == 0.1


def test_numpy_s_numbers_and_paths_as_texts_are_taken() -> None:
    plain = Experiment(
        fraction=0.25,
        rounds=2,
        data=Data("mnist", Path("mnist"), clients=20, present=0.5),
        work=ClientWork(2, 5, 0.5, 0.25, 3),
        schedule=Schedule("cosine", final=0.5, rounds=2, warmup=1),
        algorithm=Algorithm(ServerOptimizer("momentum", learning_rate=0.5), clip_norm=2.0),
        world=World(drop_out=0.25, faults=Faults(corrupt=0.5)),
    )
    text: Any = "mnist"
    numpys: tuple[Any, ...] = (np.float32(0.5), np.float16(0.25), np.int64(2), np.uint8(20))
    half, quarter, two, twenty = numpys
    given = Experiment(
        fraction=quarter,
        rounds=two,
        data=Data("mnist", text, clients=twenty, present=half),
        work=ClientWork(two, 5, half, quarter, two + 1),
        schedule=Schedule("cosine", final=half, rounds=two, warmup=two - 1),
        algorithm=Algorithm(ServerOptimizer("momentum", learning_rate=half), clip_norm=half * 4),
        world=World(drop_out=quarter, faults=Faults(corrupt=half)),
    )
    assert dump_experiment(given) == dump_experiment(plain)
    assert json.dumps([given.work.to_json(), given.algorithm.to_json()]) == json.dumps(
        [plain.work.to_json(), plain.algorithm.to_json()]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": "0.1"}, "--fraction should be from 0 to 1, not '0.1'"),
        ({"rounds": 3.0}, "--rounds should be a whole number, not 3.0"),
        ({"target_accuracy": "0.9"}, "--target-accuracy should be above 0 and at most 1, not '0.9'"),
    ],
)
def test_what_is_no_number_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Experiment(**changes)
    assert str(caught.value) == message
