"""A training that is stopped and goes on takes the very steps that it would have taken."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle import WEIGHTS, Bundle
from device_runtime.errors import InputError, IntegrityError
from device_runtime.examples import Examples
from device_runtime.progress import Position, Progress, SavePolicy, kept_task
from device_runtime.sealed import open_sealed, seal
from device_runtime.trainer import StoppedError, Trainer
from device_runtime.update import ClientUpdate
from device_runtime.weights import WeightsFile
from device_runtime.work import ClientWork

TASK = {"token": "t"}
OFTEN = SavePolicy(1, 0.0)
Make = Callable[[int, int], Examples]


@pytest.fixture(scope="module", params=["sgd", "momentum", "adam"])
def bundle(request: pytest.FixtureRequest, digits_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`digits_mlp` with each optimiser."""
    if request.param == "sgd":
        return digits_bundle
    import models
    from export.bundle_writer import export_bundle
    from models.optimizers import ClientOptimizer

    spec = replace(models.get("digits_mlp"), optimizer=ClientOptimizer(request.param))
    return export_bundle(spec, tmp_path_factory.mktemp(request.param), seed=0)


def make_progress(bundle: Bundle, folder: Path, task: dict[str, str] | None = None, **options: object) -> Progress:
    sizes = Trainer(bundle).variable_sizes
    return Progress(folder / "progress", task or TASK, sizes, **({"policy": OFTEN} | options))  # type: ignore[arg-type]


def same(first: ClientUpdate, second: ClientUpdate) -> bool:
    tensors = zip(first.delta, second.delta, strict=True)
    return first.metrics == second.metrics and all(np.array_equal(a, b) for a, b in tensors)


def stop_after(steps: int) -> Callable[[Position], str | None]:
    counter = itertools.count(1)
    return lambda position: "enough" if next(counter) == steps else None


@pytest.mark.parametrize("proximal", [0.0, 0.5])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_training_that_is_stopped_again_and_again(
    bundle: Bundle, digits_examples: Make, tmp_path: Path, proximal: float, every: int
) -> None:
    """In a new interpreter each time, at any batch of any epoch, the last and smaller one of an epoch among them."""
    examples, work = digits_examples(23, 0), ClientWork(3, 7, 0.05, proximal, seed=3)
    with WeightsFile(bundle.file(WEIGHTS), bundle.manifest.tensors) as weights:
        undisturbed = Trainer(bundle).train(weights, examples, work, 1).collect()
        for stops in itertools.count():
            progress = make_progress(bundle, tmp_path)
            try:
                update = Trainer(bundle).train(weights, examples, work, 1, stop_after(every), progress).collect()
                break
            except StoppedError as stopped:
                assert stopped.position.steps == (stops + 1) * every
        assert stops == 12 // every
        assert same(update, undisturbed)


def test_a_manifest_counts_the_optimiser_s_state(bundle: Bundle) -> None:
    slots = {"sgd": 0, "momentum": 4, "adam": 9}[bundle.manifest.optimizer["name"]]
    assert len(bundle.manifest.optimizer_state) == slots
    assert Trainer(bundle).variable_sizes[:4] == (4096, 64, 640, 10)


def test_an_update_s_tensors_come_one_at_a_time_and_outlast_the_interpreter(
    digits_bundle: Bundle, digits_examples: Make, tmp_path: Path
) -> None:
    examples, work = digits_examples(20, 1), ClientWork(seed=1)
    with WeightsFile(digits_bundle.file(WEIGHTS), digits_bundle.manifest.tensors) as weights:
        expected = Trainer(digits_bundle).train(weights, examples, work, 1).collect()
        trainer = Trainer(digits_bundle)
        trained = trainer.train(weights, examples, work, 1, progress=make_progress(digits_bundle, tmp_path))
        trainer.set_weights(weights)
        del trainer
        assert all(np.array_equal(a, b) for a, b in zip(trained.deltas(), expected.delta, strict=True))


def test_progress_that_is_damaged_before_the_update_is_made(
    digits_bundle: Bundle, digits_examples: Make, tmp_path: Path
) -> None:
    with WeightsFile(digits_bundle.file(WEIGHTS), digits_bundle.manifest.tensors) as weights:
        progress = make_progress(digits_bundle, tmp_path)
        trained = Trainer(digits_bundle).train(weights, digits_examples(9, 0), ClientWork(), 1, progress=progress)
        (tmp_path / "progress").write_bytes(b"?")
        with pytest.raises(IntegrityError) as caught:
            trained.collect()
        assert str(caught.value) == f"{tmp_path / 'progress'}: changed or damaged since it was written"


@pytest.mark.parametrize("damage", ["cut", "flip", "other task", "other sizes", "no position", "gone", "empty"])
def test_progress_that_does_not_hold_is_not_gone_on_from(
    digits_bundle: Bundle, digits_examples: Make, tmp_path: Path, damage: str
) -> None:
    examples, work, path = digits_examples(20, 0), ClientWork(1, 5, seed=1), tmp_path / "progress"
    with WeightsFile(digits_bundle.file(WEIGHTS), digits_bundle.manifest.tensors) as weights:
        undisturbed = Trainer(digits_bundle).train(weights, examples, work, 1).collect()
        with pytest.raises(StoppedError):
            Trainer(digits_bundle).train(
                weights, examples, work, 1, stop_after(2), make_progress(digits_bundle, tmp_path)
            )
        data = path.read_bytes()
        if damage == "cut":
            path.write_bytes(data[:-1])
        elif damage == "flip":
            path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
        elif damage == "other task":
            make_progress(digits_bundle, tmp_path, {"token": "another"}).save(Position(2), [])
        elif damage == "other sizes":
            make_progress(digits_bundle, tmp_path).save(Position(2), [np.zeros(3, np.float32)])
        elif damage == "no position":
            seal(path, {"task": TASK})
        elif damage == "gone":
            path.unlink()
        else:
            path.write_bytes(b"")
        asked: list[int] = []
        trained = Trainer(digits_bundle).train(
            weights,
            examples,
            work,
            1,
            lambda position: asked.append(position.steps),
            make_progress(digits_bundle, tmp_path),
        )
        assert asked == [1, 2, 3, 4]
        assert same(trained.collect(), undisturbed)


@pytest.mark.skipif(
    os.name != "posix" or (os.geteuid() == 0 and not Path("/dev/full").exists()), reason="needs /dev/full"
)
def test_a_disk_that_is_full_costs_the_progress_alone(
    digits_bundle: Bundle, digits_examples: Make, tmp_path: Path
) -> None:
    (tmp_path / "progress.new").symlink_to("/dev/full")
    told: list[tuple[str, dict[str, object]]] = []
    examples, work = digits_examples(20, 0), ClientWork(1, 5, seed=1)
    with WeightsFile(digits_bundle.file(WEIGHTS), digits_bundle.manifest.tensors) as weights:
        undisturbed = Trainer(digits_bundle).train(weights, examples, work, 1).collect()
        progress = make_progress(
            digits_bundle,
            tmp_path,
            notice=lambda event, **fields: told.append((event, fields)),
            policy=SavePolicy(9, 0),
        )
        trainer = Trainer(digits_bundle)
        assert same(trainer.train(weights, examples, work, 1, progress=progress).collect(), undisturbed)
    ((event, fields),) = told
    assert (event, fields["steps"]) == ("progress_not_saved", 4)
    assert str(fields["reason"]).startswith(f"{tmp_path / 'progress'}: can't write it: No space left on device; make ")
    assert list(tmp_path.iterdir()) == []


def test_progress_is_saved_after_steps_and_seconds(digits_bundle: Bundle, tmp_path: Path) -> None:
    now = [0.0]
    progress = make_progress(digits_bundle, tmp_path, policy=SavePolicy(10, 5.0), clock=lambda: now[0])
    assert not progress.due(100)  # no time has passed
    now[0] = 5.0
    assert [progress.due(steps) for steps in (9, 10, 11)] == [False, True, True]
    progress.save(Position(11), [])
    assert not progress.due(30)
    now[0] = 9.9
    assert not progress.due(30)
    now[0] = 10.0
    assert [progress.due(steps) for steps in (20, 21)] == [False, True]
    progress.discard()
    progress.discard()
    assert list(tmp_path.iterdir()) == []


def test_what_kept_progress_is_of(digits_bundle: Bundle, tmp_path: Path) -> None:
    assert kept_task(tmp_path / "progress") == {}
    make_progress(digits_bundle, tmp_path, {"token": "t", "last": "7"}).save(Position(2), [])
    assert kept_task(tmp_path / "progress") == {"token": "t", "last": "7"}
    seal(tmp_path / "progress", {"task": 3})
    assert kept_task(tmp_path / "progress") == {}


def test_a_sealed_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "f"
    seal(path, {"größe": [1, None]}, [b"ab", b"", b"cde"])
    sealed = open_sealed(path)
    assert sealed is not None
    with sealed:
        assert (sealed.header, sealed.size) == ({"größe": [1, None]}, 5)
        assert sealed.read(1) == b"a"
        sealed.skip(2)
        assert sealed.read(9)[:2] == b"de"
    assert [name.name for name in tmp_path.iterdir()] == ["f"]


def test_no_byte_of_a_sealed_file_can_change_or_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    seal(path, {"a": 1}, [b"payload"])
    data = path.read_bytes()
    for index in range(len(data)):
        for damaged in (data[:index], data[:index] + bytes([data[index] ^ 4]) + data[index + 1 :]):
            path.write_bytes(damaged)
            assert open_sealed(path) is None
    assert open_sealed(tmp_path / "no") is None


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_header_that_is_none(tmp_path: Path, text: bytes) -> None:
    import hashlib
    import struct

    body = b"PFSTATE1" + struct.pack("<I", len(text)) + text
    (tmp_path / "f").write_bytes(body + hashlib.sha256(body).digest())
    assert open_sealed(tmp_path / "f") is None


def test_what_can_t_be_written_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "f"
    seal(path, {"a": 1})
    (tmp_path / "f.new").symlink_to("/dev/full")
    with pytest.raises(InputError) as caught:
        seal(path, {"a": 2}, [b"x" * 100_000])
    expected = "can't write it: No space left on device; make room there, or change --cache or --state"
    assert str(caught.value) == f"{path}: {expected}"
    sealed = open_sealed(path)
    assert sealed is not None
    with sealed:
        assert sealed.header == {"a": 1}
