"""What is installed: which bundle may follow which, what is kept, and that a copy is what is tested."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from device_runtime import installation as module
from device_runtime.bundle import MANIFEST, WEIGHTS, Bundle, open_bundle
from device_runtime.bundle_cache import BundleCache
from device_runtime.bundle_copy import copy_bundle
from device_runtime.device_bundles import DeviceBundles
from device_runtime.errors import CheckFailedError, InputError, IntegrityError
from device_runtime.installation import Installation
from device_runtime.installation_state import Release, Slot, State, dump_state, parse_state, refuse_downgrade
from device_runtime.selftest import SelfTestResult
from device_runtime.server_client import ServerClient
from device_runtime.signature import TrustedKeys
from device_runtime.transport import Transport
from tests.device_runtime.conftest import Script

releases = st.builds(Release, st.just("m"), st.integers(0, 5), st.sampled_from("abc"))
slots = st.builds(Slot, releases, st.integers(1, 99).map(str))
states = st.builds(
    State, st.none() | slots, st.none() | slots, st.lists(releases).map(lambda all_: {one.name: one for one in all_})
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def installed(root: Path) -> Installation:
    return Installation(root)


def identities(installation: Installation) -> tuple[str | None, str | None]:
    """Of the current and the previous bundle, as their links lead to them; None where there is none."""
    links = [installation.root / name for name in ("current", "previous")]
    found = [open_bundle(link).identity if link.exists() else None for link in links]
    state = installation.read()
    assert found == [slot and slot.release.identity for slot in (state.current, state.previous)]
    return found[0], found[1]


def test_one_after_the_other(installed: Installation, release: Callable[..., Bundle]) -> None:
    one, two, three = (release(version) for version in (1, 2, 3))
    assert identities(installed) == (None, None)
    for bundle, previous in ((one, None), (two, one), (three, two)):
        change = installed.install(bundle.path.parent)  # the folder that holds exactly one
        assert (change.action, change.selftest.ok) == ("installed", True)
        assert change.state == installed.read()
        assert identities(installed) == (bundle.identity, previous and previous.identity)
    kept = [open_bundle(path).identity for path in (installed.root / "bundles").iterdir()]
    assert sorted(kept) == sorted([two.identity, three.identity])
    assert len(list((installed.root / "states").iterdir())) == 1


def test_the_same_again_changes_nothing(installed: Installation, digits_bundle: Bundle) -> None:
    installed.install(digits_bundle.path)
    before = sorted((path, path.lstat().st_mtime_ns) for path in installed.root.rglob("*/*"))
    change = installed.install(digits_bundle.path)
    assert (change.action, change.selftest.ok) == ("unchanged", True)
    assert before == sorted((path, path.lstat().st_mtime_ns) for path in installed.root.rglob("*/*"))


def test_downgrades(installed: Installation, release: Callable[..., Bundle]) -> None:
    one, two, three, other_3 = release(1), release(2), release(3), release(3, loss="other")
    installed.install(two.path)
    installed.install(three.path)
    names = [str(Release.of(bundle)) for bundle in (one, two, other_3, three)]
    advice = "downgrades are refused: export with a larger --bundle-version, or go back with --rollback"
    expected = {
        one: f"{names[0]}: older than {names[3]}, the newest that was installed here; {advice}",
        two: f"{names[1]}: older than {names[3]}, the newest that was installed here; {advice}",
        other_3: f"{names[2]}: another bundle of the same version as {names[3]}, the newest that was installed here;"
        f" {advice}",
    }
    for bundle, message in expected.items():
        with pytest.raises(IntegrityError) as refused:
            installed.install(bundle.path)
        assert str(refused.value) == message
    assert identities(installed) == (three.identity, two.identity)

    assert installed.rollback().action == "rolled back"
    for bundle in (one, other_3):  # the newest stays the measure, although version 2 is current
        with pytest.raises(IntegrityError, match="the newest that was installed here"):
            installed.install(bundle.path)
    assert installed.install(two.path).action == "unchanged"
    assert installed.install(three.path).action == "installed"  # forward again
    assert identities(installed) == (three.identity, two.identity)


def test_there_and_back(installed: Installation, digits_bundle: Bundle, digits_2: Bundle) -> None:
    with pytest.raises(InputError, match=f"{installed.root}: no previous bundle to go back to"):
        installed.rollback()
    assert not installed.root.exists()
    installed.install(digits_bundle.path)
    with pytest.raises(InputError, match=f"{installed.root}: no previous bundle to go back to"):
        installed.rollback()
    installed.install(digits_2.path)
    for expected in ((digits_bundle, digits_2), (digits_2, digits_bundle)):
        assert installed.rollback().selftest.ok
        assert identities(installed) == (expected[0].identity, expected[1].identity)


def test_another_model_takes_its_place_and_is_measured_apart(
    installed: Installation, digits_2: Bundle, release: Callable[..., Bundle], digits_bundle: Bundle
) -> None:
    other = release(1, name="other")
    installed.install(digits_2.path)
    installed.install(other.path)
    installed.install(release(2, name="other").path)  # nothing of version 2 of the first model is left but its number
    with pytest.raises(IntegrityError, match=r"digits_mlp version 1 .*: older than digits_mlp version 2 "):
        installed.install(digits_bundle.path)


def test_a_failing_self_test_changes_nothing(
    installed: Installation, digits_bundle: Bundle, digits_2: Bundle, wrong_3: Bundle
) -> None:
    with pytest.raises(CheckFailedError, match=r"; nothing is installed$"):
        installed.install(wrong_3.path)
    assert identities(installed) == (None, None)
    installed.install(digits_bundle.path)
    with pytest.raises(CheckFailedError) as failed:
        installed.install(wrong_3.path)
    told = str(failed.value)
    assert told.startswith(f"{Release.of(wrong_3)}: self-test FAILED on ")
    assert told.endswith(f" (logits), tolerance 1e-04; {Release.of(digits_bundle)} stays")
    assert identities(installed) == (digits_bundle.identity, None)
    assert len(list((installed.root / "bundles").iterdir())) == 1
    installed.install(digits_2.path)  # version 3 was never installed, so it is no measure


def test_a_device_that_has_changed_since(
    installed: Installation, digits_bundle: Bundle, wrong_3: Bundle, release: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What passed its self-test once fails it now, as after an update of the interpreter."""
    installed.install(digits_bundle.path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_self_tested", lambda *_: SelfTestResult(True, 0.0, ""))
        installed.install(wrong_3.path)
    with pytest.raises(
        CheckFailedError, match=r"self-test FAILED .*; it is installed, and the previous one is the way"
    ):
        installed.install(wrong_3.path)
    assert installed.rollback().state.current == installed.read().current
    with pytest.raises(CheckFailedError) as failed:
        installed.rollback()
    assert str(failed.value).endswith(f"; {Release.of(digits_bundle)} stays")
    assert identities(installed) == (digits_bundle.identity, wrong_3.identity)


def test_what_is_tested_and_installed_is_the_copy(
    installed: Installation, digits_copy: Path, digits_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tested = module._self_tested, []

    def spoil_the_source(bundle: Bundle, threads: int, otherwise: str) -> SelfTestResult:
        shutil.rmtree(digits_copy)
        tested.append(bundle.path)
        return real(bundle, threads, otherwise)

    monkeypatch.setattr(module, "_self_tested", spoil_the_source)
    installed.install(digits_copy)
    assert tested == [open_bundle(installed.root / "current").path]
    assert tested[0].is_relative_to(installed.root)
    assert identities(installed) == (digits_bundle.identity, None)


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_a_source_that_changes_while_it_is_copied(
    name: str, installed: Installation, digits_copy: Path, digits_2: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = copy_bundle

    def swap(bundle: Bundle, folder: Path, trusted: object) -> Bundle:
        if name == WEIGHTS:
            bundle.file(WEIGHTS).write_bytes(bundle.file(WEIGHTS).read_bytes()[::-1] + b"more")
        else:
            shutil.rmtree(bundle.path)
            shutil.copytree(digits_2.path, bundle.path)
        return real(bundle, folder)

    monkeypatch.setattr(module, "copy_bundle", swap)
    wanted = {
        WEIGHTS: r"weights.safetensors: its SHA-256 is not the manifest's: changed or damaged; copy it again",
        MANIFEST: f"^{digits_copy}: changed while it was copied; try again$",
    }
    with pytest.raises(IntegrityError, match=wanted[name]):
        installed.install(digits_copy)
    assert identities(installed) == (None, None)
    assert list((installed.root / "bundles").iterdir()) == []


def test_a_damaged_bundle_is_repaired_and_never_gone_back_to(
    installed: Installation, digits_bundle: Bundle, digits_2: Bundle, release: Callable[..., Bundle]
) -> None:
    def damage() -> None:
        path = open_bundle(installed.root / "current").file(WEIGHTS)
        path.write_bytes(path.read_bytes()[:-1] + b"!")

    installed.install(digits_bundle.path)
    damage()
    assert installed.install(digits_bundle.path).action == "installed"
    assert identities(installed) == (digits_bundle.identity, None)
    installed.install(digits_2.path)
    damage()
    installed.install(release(3).path)
    assert identities(installed)[1] == digits_bundle.identity  # the last good one


def test_a_previous_bundle_that_is_damaged(installed: Installation, digits_bundle: Bundle, digits_2: Bundle) -> None:
    installed.install(digits_bundle.path)
    installed.install(digits_2.path)
    open_bundle(installed.root / "previous").file(WEIGHTS).unlink()
    with pytest.raises(IntegrityError, match="No such file or directory; the bundle is incomplete"):
        installed.rollback()
    assert open_bundle(installed.root / "current").identity == digits_2.identity


@pytest.mark.parametrize("lost", ["{}", "", '{"current": {"folder": "../.."}, "previous": null, "newest": {}}'])
def test_a_lost_record_wedges_nothing(
    lost: str, installed: Installation, digits_bundle: Bundle, digits_2: Bundle, release: Callable[..., Bundle]
) -> None:
    installed.install(digits_bundle.path)
    installed.install(digits_2.path)
    state = installed.read()
    (installed.root / "state" / "state.json").write_text(lost)
    assert installed.read() == state
    with pytest.raises(IntegrityError, match="older than digits_mlp version 2"):
        installed.install(release(1, loss="other").path)
    assert installed.rollback().state.current == state.previous


def test_an_installation_that_this_user_may_not_read(installed: Installation, digits_bundle: Bundle) -> None:
    installed.install(digits_bundle.path)
    states, user = installed.root / "states", os.geteuid()
    states.chmod(0)
    if user == 0:
        os.seteuid(65534)  # whom the kernel does refuse
    try:
        with pytest.raises(InputError) as refused:
            installed.refuse_older(digits_bundle.manifest)
    finally:
        os.seteuid(user)
        states.chmod(0o755)
    assert str(refused.value) == f"{installed.root}: can't read what is installed there: Permission denied"


def test_what_does_not_belong_there_is_no_hindrance(
    installed: Installation, digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path
) -> None:
    installed.install(digits_bundle.path)
    for part in ("bundles", "states"):
        (installed.root / part / "file").write_text("")
        (installed.root / part / "99").mkdir()
        (installed.root / part / "link").symlink_to(tmp_path)
    (installed.root / ".state").symlink_to("nowhere")
    installed.install(digits_2.path)
    assert identities(installed) == (digits_2.identity, digits_bundle.identity)
    assert len(list((installed.root / "bundles").iterdir())) == 2
    assert len(list((installed.root / "states").iterdir())) == 1
    assert tmp_path.exists()


def test_a_folder_of_somebody_else(tmp_path: Path, digits_bundle: Bundle) -> None:
    theirs = tmp_path / "bundles" / "theirs"
    theirs.mkdir(parents=True)
    with pytest.raises(InputError) as refused:
        Installation(tmp_path).install(digits_bundle.path)
    expected = f"{tmp_path}: holds 'bundles', and is not an installation; name another folder with --root"
    assert str(refused.value) == expected
    assert theirs.exists()


def test_a_reader_s_bundle_stays_while_another_is_installed(
    installed: Installation, digits_bundle: Bundle, digits_2: Bundle
) -> None:
    installed.install(digits_bundle.path)
    opened = open_bundle(installed.root / "current")
    installed.install(digits_2.path)
    assert open_bundle(opened.path).identity == opened.identity == digits_bundle.identity
    assert len(opened.initial_weights()) > 0


def test_a_server_s_bundle_may_not_be_older(
    installed: Installation, script: Script, digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path
) -> None:
    server = ServerClient(Transport(script.url))
    bundles = DeviceBundles(BundleCache(tmp_path / "cache"), installed)

    def offer(bundle: Bundle) -> None:
        script.answers = [(200, bundle.file(MANIFEST).read_bytes()), (404, b"")]
        script.answers += [(200, bundle.file(name).read_bytes()) for name in bundle.manifest.files]
        script.requests.clear()

    offer(digits_bundle)  # where nothing is installed, any
    assert bundles.get(digits_bundle.identity, server).path.is_relative_to(tmp_path / "cache")
    installed.install(digits_bundle.path)
    offer(digits_2)
    assert bundles.get(digits_2.identity, server).path.is_relative_to(tmp_path / "cache")  # a newer one
    installed.install(digits_2.path)
    for cache in ("cache", "another"):  # an older one, downloaded before or now
        offer(digits_bundle)
        with pytest.raises(IntegrityError) as refused:
            DeviceBundles(BundleCache(tmp_path / cache), installed).get(digits_bundle.identity, server)
        assert str(refused.value) == (
            f"the server's bundle is digits_mlp version 1, older than {Release.of(digits_2)}, which is installed in"
            f" {installed.root}; serve that or a newer one, or go back here with --rollback"
        )
    script.requests.clear()
    for bundle in (digits_2, digits_bundle):  # what is installed is not downloaded, and a rollback lets the older one
        assert bundles.get(bundle.identity, server).path.is_relative_to(installed.root)
        installed.rollback()
    assert script.requests == []


def test_a_model_that_another_one_has_replaced(
    installed: Installation, digits_bundle: Bundle, digits_2: Bundle, release: Callable[..., Bundle]
) -> None:
    installed.install(digits_2.path)
    installed.install(release(1, name="other").path)
    installed.refuse_older(digits_2.manifest)
    with pytest.raises(IntegrityError, match="older than digits_mlp version 2"):
        installed.refuse_older(digits_bundle.manifest)
    installed.refuse_older(release(1, name="third").manifest)


def test_what_is_installed_is_used_only_where_its_signature_is_trusted(
    installed: Installation, script: Script, digits_bundle: Bundle, tmp_path: Path
) -> None:
    installed.install(digits_bundle.path)
    trusted = TrustedKeys([Ed25519PrivateKey.generate().public_key()])
    bundles = DeviceBundles(BundleCache(tmp_path / "cache", trusted), installed)
    script.answers = [(200, digits_bundle.file(MANIFEST).read_bytes()), (404, b"")]
    with pytest.raises(IntegrityError, match="missing: the bundle is not signed"):
        bundles.get(digits_bundle.identity, ServerClient(Transport(script.url)))


@given(states)
def test_a_state_is_read_as_it_was_written(state: State) -> None:
    assert parse_state(dump_state(state)) == state


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(
    st.sampled_from(["current", "previous", "newest", "name", "version", "identity", "folder"]), inner), max_leaves=9
))  # fmt: skip
def test_a_record_of_another_form(value: object) -> None:
    try:
        parse_state(json.dumps(value).encode())
    except ValueError:
        return


@given(releases, st.none() | releases)
def test_only_newer_ones_and_the_newest_itself_may_follow(release: Release, newest: Release | None) -> None:
    allowed = newest is None or release == newest or release.version > newest.version
    if allowed:
        refuse_downgrade(release, newest)
    else:
        with pytest.raises(IntegrityError):
            refuse_downgrade(release, newest)
