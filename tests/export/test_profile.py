"""A training step's profile: all of its operators are in it, each timed, with its layer."""

from __future__ import annotations

import pytest

from device_runtime.bundle import TRAIN_ARTIFACT, Bundle
from device_runtime.errors import InputError
from export.flatbuffer import subgraph_index, unpack
from export.operators import BUILTIN_NAMES
from export.profile import REST, Profile, profile_bundle


@pytest.fixture(scope="module")
def profile(digits_bundle: Bundle) -> Profile:
    return profile_bundle(digits_bundle, batch_size=7)


def _train_operators(bundle: Bundle) -> list[str]:
    artifact = bundle.file(TRAIN_ARTIFACT).read_bytes()
    model = unpack(artifact)
    index = subgraph_index(model, "train")
    codes = [model.operatorCodes[operator.opcodeIndex] for operator in model.subgraphs[index].operators]
    return [BUILTIN_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in codes]


def test_every_operator_of_the_step_is_counted(digits_bundle: Bundle, profile: Profile) -> None:
    names = _train_operators(digits_bundle)
    counted = {name: count for name, (count, _) in profile.by_type.items()} | profile.rest
    assert counted == {name: names.count(name) for name in set(names)}
    assert set(profile.rest) <= REST


def test_times_add_up(profile: Profile) -> None:
    assert profile.step_ms > 0
    assert profile.sum_ms == pytest.approx(sum(total for _, total in profile.by_type.values()))
    assert profile.sum_ms > 0
    totals = [operator.total_ms for operator in profile.operators]
    assert totals == sorted(totals, reverse=True)
    assert min(totals) >= 0


def test_products_carry_layer_and_the_shapes_of_the_batch(profile: Profile) -> None:
    products = [one for one in profile.operators if one.operator in ("BATCH_MATMUL", "FULLY_CONNECTED")]
    assert {one.layer for one in products} == {"hidden", "logits"}
    assert all("7" in one.inputs.replace("×", " ").split() for one in products)


def test_batches_have_an_example(digits_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="--batch-size should be at least 1, not 0"):
        profile_bundle(digits_bundle, batch_size=0)
