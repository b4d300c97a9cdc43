"""A sum of updates: its value, its error, that it does not grow, and that its parts may be summed anywhere."""

from __future__ import annotations

import gc
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation_server.aggregation.aggregate import PART, aggregate, in_order, merged, parts, sum_of
from aggregation_server.aggregation.partial_sum import PartialSum, Tally
from device_runtime import codec
from device_runtime.codec import EncodedUpdate
from device_runtime.errors import IntegrityError
from device_runtime.tensors import TensorSpec
from device_runtime.update import ClientUpdate

SPECS = (TensorSpec("kernel", (3, 2)), TensorSpec("bias", (2,)))


MODEL = "ab" * 16


def sent(update: ClientUpdate, name: str = "f32", seed: int = 0, specs: Sequence[TensorSpec] = SPECS) -> EncodedUpdate:
    """An update as the server has it."""
    return codec.read_update(codec.encode(update, specs, MODEL, name, seed), specs, MODEL)


def random_updates(count: int) -> list[ClientUpdate]:
    rng = np.random.default_rng(3)
    return [
        ClientUpdate(
            (rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=2).astype(np.float32)),
            int(rng.integers(1, 100)),
            1,
            {"loss": float(rng.uniform())},
        )
        for _ in range(count)
    ]


def test_result_is_the_mean_weighted_by_examples() -> None:
    updates = random_updates(20)
    total = PartialSum(SPECS)
    for update in updates:
        total.add(sent(update))
    weights = [update.weight for update in updates]
    for index, tensor in enumerate(total.result()):
        expected = np.average([u.delta[index].astype(np.float64) for u in updates], axis=0, weights=weights)
        assert tensor.dtype == np.float32
        np.testing.assert_allclose(tensor, expected, rtol=1e-6)
    assert (total.clients, total.examples) == (20, sum(weights))
    assert total.loss == pytest.approx(np.average([u.metrics["loss"] for u in updates], weights=weights))


def test_a_weight_without_dimensions_and_the_largest_weights_that_a_report_can_carry() -> None:
    total = PartialSum([TensorSpec("scale", ())])
    for value in (1.0, 3.0):
        update = ClientUpdate((np.array(value, np.float32),), 2**64 - 1, 1)
        total.add(sent(update, specs=[TensorSpec("scale", ())]))
    (mean,) = total.result()
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, np.float32(2))


def test_small_deltas_survive_a_large_sum(make_update: Callable[..., ClientUpdate]) -> None:
    """A float32 sum would lose all of the 1s beside 2**24."""
    total = PartialSum(SPECS)
    total.add(sent(make_update(2.0**24)))
    for _ in range(2**10):
        total.add(sent(make_update(1.0)))
    expected = np.float32((2.0**24 + 2**10) / (2**10 + 1))
    assert all((tensor == expected).all() for tensor in total.result())


def test_a_large_delta_times_its_weight_does_not_overflow(make_update: Callable[..., ClientUpdate]) -> None:
    total = PartialSum(SPECS)
    total.add(sent(make_update(3e38, weight=2**64 - 1)))
    assert all((tensor == np.float32(3e38)).all() for tensor in total.result())


def test_mean_of_no_updates_is_an_error_and_not_zeros() -> None:
    with pytest.raises(ValueError, match="the mean of no updates is not defined"):
        PartialSum(SPECS).result()


def test_loss_is_none_where_nobody_reported_one_or_it_overflows(make_update: Callable[..., ClientUpdate]) -> None:
    total = PartialSum(SPECS)
    total.add(sent(ClientUpdate(make_update().delta, 1, 1)))
    assert total.loss is None
    total.add(sent(make_update(loss=2.0)))
    assert total.loss == 2.0
    total.add(sent(make_update(loss=1e308, weight=1000)))
    assert total.loss is None


@pytest.mark.parametrize("name", codec.CODECS)
def test_the_sum_is_that_of_the_decoded_updates(name: str) -> None:
    """Rotated updates are added as they are; more of them than go into float32 at a time."""
    updates = random_updates(37)
    total = PartialSum(SPECS)
    decoded = []
    for seed, update in enumerate(updates):
        encoded = sent(update, name, seed)
        total.add(encoded)
        decoded.append(encoded.values().astype(np.float64))
    expected = np.average(decoded, axis=0, weights=[update.weight for update in updates])
    mean = np.concatenate([tensor.reshape(-1) for tensor in total.result()])
    np.testing.assert_allclose(mean, expected, atol=2e-6)
    assert [tensor.shape for tensor in total.result()] == [(3, 2), (2,)], "asking again changes nothing"
    np.testing.assert_array_equal(np.concatenate([tensor.reshape(-1) for tensor in total.result()]), mean)


def test_updates_of_several_codecs_are_averaged_together() -> None:
    updates = random_updates(len(codec.CODECS))
    total = PartialSum(SPECS)
    for update, name in zip(updates, codec.CODECS, strict=True):
        total.add(sent(update, name))
    decoded = [sent(update, name).values() for update, name in zip(updates, codec.CODECS, strict=True)]
    expected = np.average(decoded, axis=0, weights=[update.weight for update in updates])
    np.testing.assert_allclose(np.concatenate([tensor.reshape(-1) for tensor in total.result()]), expected, atol=2e-6)


@pytest.mark.parametrize("name", ["f32", "q8", "q1"])
def test_memory_does_not_grow_with_the_number_of_reports(name: str) -> None:
    specs = (TensorSpec("kernel", (50_000,)),)
    total = PartialSum(specs)
    update = ClientUpdate((np.ones(50_000, np.float32),), 1, 1, {"loss": 1.0})
    for _ in range(16):  # as many as are added in float32
        total.add(sent(update, name, specs=specs))
    data = codec.encode(update, specs, MODEL, name, 0)
    tracemalloc.start()
    try:
        kept = []
        for _ in range(2):
            for _ in range(100):
                total.add(codec.read_update(data, specs, MODEL))
            gc.collect()
            kept.append(tracemalloc.get_traced_memory()[0])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept[1] - kept[0] < 5_000
    assert peak < 4 * update.delta[0].nbytes, "more than one update in float32 and in float64"


@pytest.mark.parametrize("name", ["q8", "q4", "q2", "q1"])
def test_a_sum_of_hostile_updates_that_overflows_is_not_finite_and_says_nothing(name: str) -> None:
    """Each is finite, with the largest scale and weight that there are; warnings are errors in the tests."""
    specs = (TensorSpec("t", (100,)),)
    values = (np.random.default_rng(0).normal(size=100) * 2.0**57).astype(np.float32)
    total = PartialSum(specs)
    for seed in range(33):
        update = ClientUpdate((values * np.float32((-1) ** seed),), 2**64 - 1, 7)
        content = bytearray(codec.encode(update, specs, MODEL, name, seed)[:-4])
        content[-4:] = struct.pack("<hH", 496, 0xFFFF)  # the exponent, and the levels of four blocks
        report = codec.read_update(bytes(content) + struct.pack("<I", zlib.crc32(content)), specs, MODEL)
        assert report.finite
        total.add(report)
    assert total.result()[0].shape == (100,)


def bits(total: PartialSum) -> tuple[bytes, Tally]:
    """All that a sum says, to the bit."""
    return b"".join(tensor.tobytes() for tensor in total.result()), total.tally


def cohort(codecs: Sequence[str], seed: int = 0) -> list[EncodedUpdate]:
    """One update of each of these codecs, in which nothing is alike."""
    rng = np.random.default_rng(seed)
    updates = []
    for number, name in enumerate(codecs):
        values = (rng.normal(size=8) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)
        metrics = {"loss": float(rng.uniform())} if rng.random() < 0.8 else {}
        update = ClientUpdate(tuple(codec.shaped(values, SPECS)), int(rng.integers(1, 1000)), 1, metrics)
        updates.append(sent(update, name, number))
    return updates


def itself(update: EncodedUpdate) -> EncodedUpdate:
    return update


LONG = st.tuples(st.lists(st.sampled_from(codec.CODECS), min_size=1, max_size=6), st.integers(1, 3 * PART + 1))


@given(which=LONG, seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=15)
def test_parts_that_several_servers_sum_are_merged_to_the_bits_of_one(
    which: tuple[list[str], int], seed: int, data: st.DataObject
) -> None:
    """Each part is summed by some server, which hands over bytes; so is the total before the last part."""
    codecs, count = which
    updates = cohort([codecs[number % len(codecs)] for number in range(count)], seed)
    want = bits(aggregate(updates, itself, SPECS))
    cut = list(parts(updates))
    assert [len(part) for part in cut] == [PART] * (count // PART) + [count % PART] * (count % PART > 0)
    order = data.draw(st.permutations(range(len(cut))))
    handed_over = {number: sum_of(cut[number], itself, SPECS).to_bytes() for number in order}
    received = [PartialSum.from_bytes(handed_over[number], SPECS, MODEL, 1) for number in range(len(cut))]
    assert bits(merged(received, SPECS)) == want
    first = merged(received[:-1], SPECS)
    if first.clients:
        first = PartialSum.from_bytes(first.to_bytes(), SPECS, MODEL, 1)
    first.merge(received[-1])
    assert bits(first) == want


@pytest.mark.parametrize("name", ["f16", "q4", "q1"])
def test_a_round_of_one_part_is_the_sum_of_its_updates_one_after_the_other(name: str) -> None:
    updates = cohort([name] * PART)
    total = PartialSum(SPECS)
    for update in updates:
        total.add(update)
    assert bits(total) == bits(aggregate(iter(updates), itself, SPECS))


def test_the_bits_are_those_of_one_thread_for_any_number_of_them() -> None:
    updates = cohort(["q4", "f32", "q1"] * 300)
    want = bits(aggregate(updates, itself, SPECS))
    for threads in (2, 3, 8):
        assert bits(aggregate(iter(updates), itself, SPECS, threads=threads)) == want


def test_the_order_of_parts_is_the_one_thing_that_matters() -> None:
    """Else the test of merging would hold of any sum: here the largest are taken away in another order."""
    updates = [sent(ClientUpdate(codec.shaped(np.full(8, v, np.float32), SPECS), 1, 1)) for v in (1e30, -1e30, 1.0)]
    one, two, three = (sum_of([update], itself, SPECS) for update in updates)
    forward, backward = merged([one, two, three], SPECS), merged([three, two, one], SPECS)
    assert forward.result()[1][0] == np.float32(1 / 3)
    assert backward.result()[1][0] == 0


def test_no_more_sums_are_begun_than_there_are_threads() -> None:
    """What is begun and not yet taken is counted, with items that take long in turn."""
    alive, most, lock = 0, 0, threading.Lock()

    def compute(number: int) -> int:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        threading.Event().wait(0.001 * (number % 3))
        return number

    taken = []
    for number in in_order(compute, range(40), 3):
        taken.append(number)
        with lock:
            alive -= 1
    assert taken == list(range(40))
    assert 2 <= most <= 4, "three, and one more may begin before the one that was given is counted as taken"


def test_what_reading_a_report_raises_comes_through() -> None:
    def read(number: int) -> EncodedUpdate:
        if number == PART + 3:
            raise OSError("the spool is gone")
        return updates[0]

    updates = cohort(["f32"])
    for threads in (1, 2):
        with pytest.raises(OSError, match="the spool is gone"):
            aggregate(range(3 * PART), read, SPECS, threads=threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_that_of_a_few_sums_whatever_the_number_of_reports(threads: int) -> None:
    specs = (TensorSpec("kernel", (50_000,)),)
    data = codec.encode(ClientUpdate((np.ones(50_000, np.float32),), 1, 1, {"loss": 1.0}), specs, MODEL, "q4", 0)

    def read(_place: int) -> EncodedUpdate:
        return codec.read_update(data[:-1] + data[-1:], specs, MODEL)  # a copy, as of a file

    peaks = []
    for count in (2 * PART, 8 * PART):
        tracemalloc.start()
        try:
            total = aggregate(range(count), read, specs, threads=threads)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert total.clients == count
    decoding = 1_300_000  # buffers of a chunk
    assert max(peaks) < (threads + 1) * 12.2 * 50_000 + threads * (decoding + len(data))
    assert peaks[1] < 1.1 * peaks[0] or threads > 1


def test_updates_of_another_round_or_model_are_no_part_of_a_sum() -> None:
    delta = codec.shaped(np.ones(8, np.float32), SPECS)
    total = sum_of([sent(ClientUpdate(delta, 1, 1))], itself, SPECS)
    message = f"an update of round 2 of {MODEL} in a sum of round 1 of {MODEL}"
    with pytest.raises(ValueError, match=message):
        total.add(sent(ClientUpdate(delta, 1, 2)))
    with pytest.raises(ValueError, match=message):
        total.merge(sum_of([sent(ClientUpdate(delta, 1, 2))], itself, SPECS))
    with pytest.raises(
        ValueError, match="the sums are of other models, or one of them weighs its updates and the other"
    ):
        total.merge(sum_of([], itself, SPECS, weighted=False))
    assert total.clients == 1


def test_without_weights_all_count_alike() -> None:
    updates = cohort(["f32"] * 5)
    total = sum_of(updates, itself, SPECS, weighted=False)
    expected = np.mean([update.values().astype(np.float64) for update in updates], axis=0)
    np.testing.assert_array_equal(total.mean(), expected.astype(np.float32))
    assert total.examples == sum(update.header.weight for update in updates)


def test_only_what_can_be_read_again_is_written() -> None:
    for total in (PartialSum(SPECS), sum_of(cohort(["f32"]), itself, SPECS, weighted=False)):
        with pytest.raises(ValueError, match="only a weighted sum of at least one update is written"):
            total.to_bytes()


def refusal(data: bytes, specs: Sequence[TensorSpec] = SPECS, model: str = MODEL, round_number: int = 1) -> str:
    with pytest.raises(IntegrityError) as caught:
        PartialSum.from_bytes(data, specs, model, round_number, "part 3")
    return str(caught.value)


def resealed(data: bytes, place: int, change: bytes) -> bytes:
    content = data[:place] + change + data[place + len(change) : -4]
    return content + struct.pack("<I", zlib.crc32(content))


def test_bytes_that_are_no_sum_of_this_round_are_refused() -> None:
    data = sum_of(cohort(["q4", "f32"]), itself, SPECS).to_bytes()
    assert PartialSum.from_bytes(data, SPECS, MODEL, 1).clients == 2
    assert refusal(b"PFPS") == "part 3: not a partial sum (4 bytes)"
    assert refusal(b"NOPE" + data[4:]) == f"part 3: not a partial sum ({len(data)} bytes)"
    assert refusal(data[:-1] + b"\0") == "part 3: the checksum does not match the content"
    assert refusal(resealed(data, 4, b"\2")) == "part 3: written in version 2 of the format, expected 1"
    other = (TensorSpec("kernel", (9,)),)
    assert refusal(data, other) == f"part 3: of the model {MODEL} with 8 values, expected {MODEL} with 9"
    assert refusal(data, model="cd" * 16).startswith(f"part 3: of the model {MODEL} with 8 values, expected cdcd")
    assert refusal(data, round_number=2) == "part 3: of round 1, expected 2"
    for flags in (b"\0", b"\1", b"\7"):
        assert refusal(resealed(data, 6, flags)) == "part 3: 128 bytes of values do not fit its header"
    for clients in (0, 2**63):
        message = refusal(resealed(data, 28, struct.pack("<Q", clients)))
        assert message.startswith(f"part 3: {clients} clients can't have ")


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_any_flipped_byte_of_a_sum_is_noticed(position: int, flip: int) -> None:
    data = bytearray(sum_of(cohort(["q4"]), itself, SPECS).to_bytes())
    data[position % len(data)] ^= flip
    refusal(bytes(data))


@given(data=st.binary(max_size=250))
def test_any_bytes_with_a_right_checksum_are_a_sum_or_refused(data: bytes) -> None:
    content = sum_of(cohort(["f32"]), itself, SPECS).to_bytes()[:26] + data
    try:
        total = PartialSum.from_bytes(content + struct.pack("<I", zlib.crc32(content)), SPECS, MODEL, 1)
    except IntegrityError:
        pass
    else:
        assert 1 <= total.clients <= total.examples
