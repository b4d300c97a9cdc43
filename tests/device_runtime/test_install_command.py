"""``pocketfed-device install``: what it says, its exit codes, and that what goes wrong leaves what was there."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_runtime.bundle import MANIFEST, MANIFEST_SIGNATURE, Bundle, open_bundle
from device_runtime.cli import main
from device_runtime.installation_state import Release
from device_runtime.keys import write_key_pair
from device_runtime.signature import sign_manifest

Capture = pytest.CaptureFixture[str]
PROGRAM = str(Path(sys.executable).with_name("pocketfed-device"))


def line(arguments: list[object], code: int, capsys: Capture) -> str:
    """Run an install that is to fail; the one line that it says."""
    assert main(["install", *map(str, arguments)]) == code
    output = capsys.readouterr()
    assert output.out == ""
    (told,) = output.err.splitlines()
    return told.removeprefix("pocketfed-device: ")


def test_in_words(digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path, capsys: Capture) -> None:
    root = ["--root", str(tmp_path / "root")]
    one, two = Release.of(digits_bundle), Release.of(digits_2)

    def told(*arguments: object) -> list[str]:
        assert main(["install", *map(str, arguments), *root]) == 0
        output = capsys.readouterr()
        assert output.err == ""
        return [text.partition("; self-test passed on ")[0] for text in output.out.splitlines()]

    assert told("--list") == [f"{tmp_path / 'root'}: nothing is installed"]
    assert not (tmp_path / "root").exists()
    assert told(digits_bundle.path) == [f"{one}: installed", "previous: none"]
    assert told(digits_2.path) == [f"{two}: installed", f"previous: {one}"]
    assert told(digits_2.path) == [f"{two}: is installed already; verified anew", f"previous: {one}"]
    assert told("--rollback") == [f"{one}: is current again", f"previous: {two}"]
    open_bundle(tmp_path / "root" / "previous").file(MANIFEST).unlink()
    assert told("--list") == [f"current: {one}", f"previous: {two}, DAMAGED: install it again"]


def test_in_json(digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--root", str(tmp_path), "--json"]
    slots = [
        {
            "name": "digits_mlp",
            "version": bundle.manifest.version,
            "identity": bundle.identity,
            "path": str(tmp_path / "bundles" / folder),
            "intact": True,
        }
        for bundle, folder in ((digits_bundle, "1"), (digits_2, "3"))
    ]
    base: dict[str, object] = {"root": str(tmp_path)}
    listed = [
        base | {"current": None, "previous": None, "newest": {}},
        base | {"current": slots[0], "previous": None, "newest": {"digits_mlp": 1}},
        base | {"current": slots[1], "previous": slots[0], "newest": {"digits_mlp": 2}},
        base | {"current": slots[0], "previous": slots[1], "newest": {"digits_mlp": 2}},
    ]
    for expected, action, command in (
        (listed[1], "installed", str(digits_bundle.path)),
        (listed[1], "unchanged", str(digits_bundle.path)),
        (listed[2], "installed", str(digits_2.path)),
        (listed[3], "rolled back", "--rollback"),
    ):
        assert main(["install", command, *arguments]) == 0
        told = json.loads(capsys.readouterr().out)
        selftest = told.pop("selftest")
        assert told == expected | {"action": action}
        assert selftest["max_rel"] < 1e-4 and selftest["runtime"] and selftest["tensor"]
        assert main(["install", "--list", *arguments]) == 0
        assert json.loads(capsys.readouterr().out) == expected


def test_the_folder_by_default(
    digits_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert main(["install", str(digits_bundle.path)]) == 0
    assert (tmp_path / "data" / "pocketfed-device" / "current").is_dir()
    assert main(["selftest", str(tmp_path / "data" / "pocketfed-device" / "current")]) == 0
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    capsys.readouterr()
    assert main(["install", "--list"]) == 0
    expected = f"{tmp_path}/.local/share/pocketfed-device: nothing is installed\n"
    assert capsys.readouterr().out == expected

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    expected = "this user has no home folder; name a folder for what is installed with --root"
    assert line(["--list"], 2, capsys) == expected


@pytest.mark.parametrize("arguments", [[], ["bundle", "--rollback"], ["--rollback", "--list"], ["bundle", "--list"]])
def test_not_exactly_one_thing_to_do(arguments: list[object], capsys: Capture) -> None:
    assert line(arguments, 2, capsys) == "install: expected one of BUNDLE, --rollback and --list"


def test_keys_are_checked_before_anything(digits_copy: Path, tmp_path: Path, capsys: Capture) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    for name, one in (("key", key), ("other", other)):
        write_key_pair(tmp_path / name, one)
    trusting: list[object] = [digits_copy, "--root", tmp_path / "root", "--trusted-key", tmp_path / "key.pub"]
    assert line(trusting, 4, capsys).startswith(
        f"{digits_copy / MANIFEST_SIGNATURE}: missing: the bundle is not signed"
    )
    assert not (tmp_path / "root").exists()
    manifest = (digits_copy / MANIFEST).read_bytes()
    (digits_copy / MANIFEST_SIGNATURE).write_bytes(sign_manifest(manifest, other))
    assert "which is not trusted" in line(trusting, 4, capsys)
    (digits_copy / MANIFEST_SIGNATURE).write_bytes(sign_manifest(manifest, key))
    assert main(["install", *map(str, trusting)]) == 0
    installed = tmp_path / "root" / "current"
    assert (installed / MANIFEST_SIGNATURE).read_bytes() == sign_manifest(manifest, key)
    assert main(["selftest", str(installed), "--trusted-key", str(tmp_path / "key.pub")]) == 0
    (digits_copy / MANIFEST_SIGNATURE).unlink()  # and it was installed before any key was trusted
    assert main(["install", str(digits_copy), "--root", str(tmp_path / "late")]) == 0
    capsys.readouterr()
    assert "the bundle is not signed" in line([*trusting[:2], tmp_path / "late", *trusting[3:]], 4, capsys)


def test_another_install_at_work(digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path, capsys: Capture) -> None:
    for bundle in (digits_bundle, digits_2):
        assert main(["install", str(bundle.path), "--root", str(tmp_path)]) == 0
    capsys.readouterr()
    with (tmp_path / "installation.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for what in (digits_2.path, "--rollback"):
            told = line([what, "--root", tmp_path], 2, capsys)
            assert told == f"{tmp_path}: another install is at work there; try again when it is done"
        assert main(["install", "--list", "--root", str(tmp_path)]) == 0
    assert main(["install", "--rollback", "--root", str(tmp_path)]) == 0


def test_many_at_once(digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "root"
    processes = [
        subprocess.Popen(
            [PROGRAM, "install", str(bundle.path), "--root", str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for bundle in (digits_bundle, digits_2) * 3
    ]  # fmt: skip
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in processes]
    assert any(code == 0 for _, code in ends)
    for told, code in ends:
        assert code == 0 or "another install is at work" in told or "downgrades are refused" in told
    assert open_bundle(root / "current").identity in (digits_bundle.identity, digits_2.identity)


def test_another_install_makes_the_folder_first(
    digits_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "device" / "root"
    made: list[Path] = []
    mkdir = Path.mkdir

    def late(path: Path, *arguments: Any, **options: Any) -> None:
        if path == root and not made:
            made.append(path)
            root.parent.mkdir()
            os.mkdir(root)  # noqa: PTH102 - as the other process does
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    assert main(["install", str(digits_bundle.path), "--root", str(root)]) == 0
    assert made == [root]
    assert open_bundle(root / "current").identity == digits_bundle.identity


def stays(root: Path, bundle: Bundle) -> None:
    assert open_bundle(root / "current").identity == bundle.identity
    assert [path.name for path in (root / "bundles").iterdir()] == ["1"]


CANNOT = "; what was installed stays; make room or name another folder with --root"


@pytest.mark.parametrize("most", [100, 10_000, 25_000])
def test_no_room(most: int, digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path) -> None:
    """The kernel lets no file grow beyond a limit, and so writing fails for real, in the first file or a later one."""
    root = tmp_path / "root"
    assert main(["install", str(digits_bundle.path), "--root", str(root)]) == 0
    failed = subprocess.run(
        [PROGRAM, "install", str(digits_2.path), "--root", str(root)], capture_output=True, text=True, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )  # fmt: skip
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == f"pocketfed-device: {root}: can't install there: File too large{CANNOT}\n"
    stays(root, digits_bundle)


def test_a_full_disk(digits_bundle: Bundle, digits_2: Bundle, small_disk: Path, capsys: Capture) -> None:
    assert main(["install", str(digits_bundle.path), "--root", str(small_disk)]) == 0
    capsys.readouterr()
    told = line([digits_2.path, "--root", small_disk], 2, capsys)
    assert told == f"{small_disk}: can't install there: No space left on device{CANNOT}"
    stays(small_disk, digits_bundle)


def test_where_nothing_can_be_written(digits_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "root"
    told = line([digits_bundle.path, "--root", root], 2, capsys)
    assert told == f"{root}: can't install there: Not a directory{CANNOT}"


def test_a_missing_bundle(tmp_path: Path, capsys: Capture) -> None:
    told = line([tmp_path / "no", "--root", tmp_path / "root"], 2, capsys)
    assert told == f"{tmp_path / 'no'}: no such bundle; make one with 'pocketfed export'"
    assert not (tmp_path / "root").exists()


def test_nothing_to_go_back_to(tmp_path: Path, capsys: Capture) -> None:
    told = line(["--rollback", "--root", tmp_path], 2, capsys)
    assert told == f"{tmp_path}: no previous bundle to go back to"


def test_a_failing_self_test_has_exit_code_1(wrong_3: Bundle, tmp_path: Path, capsys: Capture) -> None:
    told = line([wrong_3.path, "--root", tmp_path, "--json"], 1, capsys)
    assert "self-test FAILED on " in told and told.endswith(" (logits), tolerance 1e-04; nothing is installed")


def test_a_system_without_locks(digits_bundle: Bundle, tmp_path: Path) -> None:
    program = "import sys; sys.modules['fcntl'] = None; from device_runtime.cli import main; sys.exit(main())"
    arguments = [sys.executable, "-c", program, "install", str(digits_bundle.path), "--root", str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (
        2,
        "pocketfed-device: installing needs a POSIX system, such as Linux\n",
    )
