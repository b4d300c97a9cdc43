"""`pocketfed flash`: what may be a target, dry runs, folders, phones, and many targets at a time."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.main import main
from device_runtime import cli as device_cli
from device_runtime.bundle import WEIGHTS, Bundle, open_bundle
from device_runtime.errors import InputError, IntegrityError, NetworkError
from device_runtime.keys import read_private_key
from export.flashing import adb
from export.flashing.adb import Phone
from export.flashing.plan import Command, Finished, Load, Runner, check_hashes
from export.flashing.targets import FORMS, parse_target
from export.signing import sign_bundle

Capture = pytest.CaptureFixture[str]
needs_adb = pytest.mark.skipif(shutil.which("adb") is None, reason="adb is missing: install Debian's adb")


def line(arguments: list[object], code: int, capsys: Capture) -> str:
    """Run a flash that is to fail before it begins; the one line that it says."""
    assert main(["flash", *map(str, arguments)]) == code
    output = capsys.readouterr()
    assert output.out == ""
    (told,) = output.err.splitlines()
    return told.removeprefix("pocketfed: ")


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "dir:", "ssh://host", "ssh://host/", "ssh://host//", "ssh:///path", "ssh://-oProxyCommand=x/path",
        "ssh://-l@host/path", "ssh://a@-b/path", "ssh://host:0/path", "ssh://host:70000/path", "ssh://host:x/path",
        "ssh://host/a\nb", "adb:", "adb:-s", "adb:a/", "adb:a/b", "adb:a/com.example;rm", "adb:a/-x.y", "ftp://a/b",
    ],
)  # fmt: skip
def test_what_is_no_target(text: str, digits_bundle: Bundle, capsys: Capture) -> None:
    assert line([digits_bundle.path, "--", text], 2, capsys) == f"target {text!r}: expected {FORMS}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ssh://pi@board.local:2222/home/pi/p f", ["-p", "2222", "--", "pi@board.local"]),
        ("ssh://board/srv/p", ["--", "board"]),
        ("ssh://[fe80::1%eth0]:22/srv/p", ["-p", "22", "--", "fe80::1%eth0"]),
        ("adb:192.168.1.7:5555/com.example.app_2", ["adb", "-s", "192.168.1.7:5555"]),
        ("adb:0123456789ABCDEF", ["adb", "-s", "0123456789ABCDEF"]),
    ],
)
def test_what_is_a_target(text: str, wanted: list[str], digits_bundle: Bundle, capsys: Capture) -> None:
    assert main(["flash", str(digits_bundle.path), text, "--dry-run", "--json"]) == 0
    (target,) = json.loads(capsys.readouterr().out)["targets"]
    assert target["target"] == text
    for step in target["steps"]:
        words = " ".join(step["command"])
        assert " ".join(wanted) in words


@given(st.text(max_size=40) | st.builds("{}{}".format, st.sampled_from(["ssh://", "adb:"]), st.text(max_size=40)))
def test_any_text_is_a_target_or_refused_and_never_an_option(text: str) -> None:
    try:
        target = parse_target(text, "pocketfed-device", None)
    except InputError:
        return
    for attribute in ("destination", "serial", "package"):
        assert not getattr(target, attribute, "").startswith("-")


def test_targets_of_a_file(digits_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "targets"
    file.write_text(f"# boards\n\ndir:{tmp_path}/a#1  # the first\n  adb:x/com.example\n")
    arguments = ["flash", str(digits_bundle.path), f"dir:{tmp_path}", "--targets", str(file), "--dry-run", "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)["targets"]
    assert [target["target"] for target in told] == [f"dir:{tmp_path}", f"dir:{tmp_path}/a#1", "adb:x/com.example"]
    base: list[object] = [digits_bundle.path, "--targets", file]
    file.write_text("dir:/a\nssh://nowhere\n")
    assert line(base, 2, capsys) == f"{file}:2: target 'ssh://nowhere': expected {FORMS}"
    file.write_text("dir:/a\n\ndir:/a\n")
    assert line(base, 2, capsys) == f"{file}:3: target 'dir:/a': named twice"
    file.write_bytes(b"\xff")
    assert line(base, 2, capsys) == f"{file}: expected text in UTF-8, with one target a line"
    file.write_text("# none\n")
    expected = f"no targets: name some, as {FORMS}, or a file of them with --targets"
    assert line(base, 2, capsys) == expected == line(base[:1], 2, capsys)
    file.unlink()
    assert line(base, 2, capsys) == f"{file}: can't read the targets: No such file or directory"


def test_what_is_verified_before_anything_is_sent(digits_copy: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["keygen", "--out", str(tmp_path / "k")]) == main(["keygen", "--out", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    card = tmp_path / "card"
    card.mkdir()
    base: list[object] = [digits_copy, f"dir:{card}", "--trusted-key", f"{tmp_path / 'k.pub'}"]
    assert "missing: the bundle is not signed" in line(base, 4, capsys)
    sign_bundle(open_bundle(digits_copy), read_private_key(tmp_path / "other"))
    assert "which is not trusted" in line(base, 4, capsys)
    assert line([*base[:-1], digits_copy / "no.pub"], 2, capsys).endswith(
        "can't read the key: No such file or directory"
    )
    sign_bundle(open_bundle(digits_copy), read_private_key(tmp_path / "k"))
    weights = digits_copy / WEIGHTS
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + b"!")
    assert line(base, 4, capsys).startswith(f"{weights}: its SHA-256 is not the manifest's")
    assert list(card.iterdir()) == []
    weights.write_bytes(before)
    assert main(["flash", *map(str, base)]) == 0
    assert {path.name for path in (card / digits_copy.name).iterdir()} == {path.name for path in digits_copy.iterdir()}


def test_a_name_that_is_no_file_s(
    release: Callable[..., Bundle], rehash: Callable[..., Bundle], capsys: Capture
) -> None:
    bundle = release(1)
    rehash(bundle.path, name="../evil")
    assert line([bundle.path, "dir:/"], 2, capsys) == (
        f"{bundle.path}: the model's name '../evil' is to be part of a file's name: expected letters, digits, '_', '-'"
        " and '.'; export it with another --name"
    )


def flashed(arguments: list[object], code: int, capsys: Capture) -> dict[str, dict[str, object]]:
    """Run a flash; what it says of each target."""
    assert main(["flash", *map(str, arguments), "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] == (code == 0)
    return {target["target"]: target for target in told["targets"]}


def test_a_folder(digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path, capsys: Capture) -> None:
    target, home = f"dir:{tmp_path}", tmp_path / "digits_mlp-1.bundle"

    def detail(bundle: Bundle = digits_bundle, code: int = 0) -> object:
        told = flashed([bundle.path, target], code, capsys)[target]
        assert told["exit_code"] == code
        return told["detail"]

    assert detail() == f"{home}: copied and verified"
    assert open_bundle(home).identity == digits_bundle.identity
    assert detail() == f"{home}: was there already; verified anew"
    (home / WEIGHTS).write_bytes(b"damaged")
    (home / "rest").write_bytes(b"")
    assert detail() == f"{home}: copied and verified"
    assert open_bundle(home).identity == digits_bundle.identity and not (home / "rest").exists()
    assert detail(digits_2) == f"{tmp_path / 'digits_mlp-2.bundle'}: copied and verified"
    shutil.rmtree(home)
    shutil.copytree(digits_2.path, home)
    expected = f"{home}: is another bundle of the same version; remove it, or export with a larger --bundle-version"
    assert detail(code=2) == expected
    old, young = tmp_path / ".flash-old", tmp_path / ".flash-young"
    for folder, age in ((old, 100_000), (young, 100)):
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    shutil.rmtree(home)
    detail()
    assert {path.name for path in tmp_path.iterdir()} == {"digits_mlp-1.bundle", "digits_mlp-2.bundle", ".flash-young"}


def test_folders_that_cannot_be_written(
    digits_bundle: Bundle, digits_2: Bundle, small_disk: Path, tmp_path: Path, capsys: Capture
) -> None:
    targets = [f"dir:{tmp_path / 'no'}", "dir:/proc", f"dir:{small_disk}"]
    flashed([digits_bundle.path, targets[2]], 0, capsys)
    told = flashed([digits_2.path, *targets], 2, capsys)
    assert [told[target]["detail"] for target in targets] == [
        f"{tmp_path / 'no'}: no such folder; is the card mounted?",
        "/proc: can't write there: No such file or directory; nothing was changed",
        f"{small_disk}: can't write there: No space left on device; nothing was changed",
    ]
    assert [path.name for path in small_disk.iterdir()] == ["digits_mlp-1.bundle"]


def test_one_that_fails_stops_no_other(digits_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    targets = [f"dir:{tmp_path / name}" for name in ("a", "no", "b", "c")]
    assert main(["flash", str(digits_bundle.path), *targets, "--jobs", "2"]) == 2
    output = capsys.readouterr()
    words = re.sub(r"[\s│]+", "", output.out)
    assert words.count("done") == 3 and words.count("FAILED(2)") == 1
    assert "nosuchfolder;isthecardmounted?" in words
    assert output.out.endswith("3 of 4 flashed\n")
    progress = output.err.splitlines()
    assert [text.split()[1] for text in progress if text.startswith("flashing ")] == ["1/4", "2/4", "3/4", "4/4"]
    assert all((tmp_path / name / "digits_mlp-1.bundle").is_dir() for name in "abc")


def test_a_dry_run_touches_nothing(digits_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    card = tmp_path / "card"
    card.mkdir()
    targets = [f"dir:{card}", f"ssh://nobody@127.0.0.1:1{tmp_path}/root", "adb:nothing/com.example.app"]
    assert main(["flash", str(digits_bundle.path), *targets, "--dry-run"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert main(["flash", str(digits_bundle.path), *targets, "--dry-run", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["targets"]
    commands = [step["command"] for plan in plans for step in plan["steps"] if "command" in step]
    shown = [shlex.split(text) for text in output.out.splitlines() if not text.startswith("# ")]
    tokens = [re.findall(r"flash-(\w+)", str(lines)) for lines in (shown, commands)]  # new each time
    assert re.sub(tokens[0][0], tokens[1][0], str(shown)) == str(commands)
    comments = [text for text in output.out.splitlines() if text.startswith("# ")]
    assert comments[1] == f"# copy {digits_bundle.path} to {card}/digits_mlp-1.bundle, and verify what the medium holds"
    assert [text for text in comments if text[2:] in targets] == [f"# {target}" for target in targets]
    assert "# on its standard input, a tar archive of " in output.out
    assert list(card.iterdir()) == [] and list(tmp_path.iterdir()) == [card]


def load(bundle: Bundle) -> Load:
    return Load(bundle, (), "token")


def test_hashes_that_differ(digits_bundle: Bundle) -> None:
    """The check itself, on what the real sha256sum prints."""
    names = list(load(digits_bundle).hashes)

    def told(names: list[str]) -> str:
        done = Runner().run(["sh", "-c", f"cd {digits_bundle.path} && sha256sum {shlex.join(names)}"], {})
        with pytest.raises(IntegrityError) as refused:
            check_hashes(load(digits_bundle), "there")(done)
        return str(refused.value)

    count = len(names)
    assert told(names[:-1]) == f"there: expected {count} hashes from sha256sum there, got {count - 1}"
    assert told(["--version"]) == f"there: expected {count} hashes from sha256sum there, got 0"
    swapped = [names[0], *names[2:], names[1]]
    assert told(swapped) == f"there: {names[1]} was damaged on the way: its SHA-256 is not the manifest's"


@pytest.fixture
def own_adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server of adb for this test alone, with keys of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    subprocess.run(["adb", "kill-server"], capture_output=True, timeout=60, check=False)


@needs_adb
@pytest.mark.usefixtures("own_adb")
def test_a_phone_that_is_not_there(digits_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "card").mkdir()
    targets = ["adb:emulator-5554/com.example.app", f"dir:{tmp_path / 'card'}"]
    told = flashed([digits_bundle.path, *targets], 3, capsys)
    expected = "error: device 'emulator-5554' not found; 'adb devices' lists what is connected"
    assert [(told[target]["exit_code"], told[target]["detail"]) for target in targets[:1]] == [(3, expected)]
    assert told[targets[1]]["ok"]


def test_a_phone_without_adb(digits_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    told = flashed([digits_bundle.path, "adb:x"], 2, capsys)["adb:x"]["detail"]
    assert told == "adb: can't be run: No such file or directory; install it, or name a folder on PATH that has it"


@needs_adb
@pytest.mark.parametrize("package", ["", "com.example.app"])
def test_adb_knows_the_commands(package: str, digits_bundle: Bundle) -> None:
    text = subprocess.run(["adb", "help"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert re.search(r"^ -s SERIAL ", text, re.MULTILINE)
    usage = {
        "get-state": r"^ get-state ",
        "shell": r"^ shell .*\[COMMAND\.\.\.\]",
        "push": r"^ push .*LOCAL\.\.\. REMOTE",
    }
    for step in Phone("adb:x", "x", package).plan(load(digits_bundle)).all:
        assert isinstance(step, Command)
        program, option, serial, command, *arguments = step.argv
        assert (program, option, serial) == ("adb", "-s", "x")
        assert re.search(usage[command], text, re.MULTILINE)
        if command == "get-state":
            assert arguments == []
        elif command == "push":
            *local, remote = arguments
            assert {Path(path).name for path in local} == {path.name for path in digits_bundle.path.iterdir()}
            assert all(Path(path).is_file() for path in local) and remote.endswith("/")
        else:
            assert len(arguments) == 1  # adb would join several with spaces, unquoted


@pytest.mark.parametrize("package", ["", "com.example.app"])
def test_the_scripts_for_a_phone_in_a_real_shell(
    package: str, digits_bundle: Bundle, digits_2: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but adb's own part and ``run-as``: in a folder of this machine, by its shell."""
    shared, app = tmp_path / "shared", tmp_path / "app"
    shared.mkdir()
    app.mkdir()
    monkeypatch.setattr(adb, "_SHARED", str(shared))
    runner = Runner()
    home = (app / "files" if package else shared) / "pocketfed" / "digits_mlp-1.bundle"
    home.mkdir(parents=True)
    (home / "old").write_text("what was there before")
    plan = Phone("adb:x", "x", package).plan(load(digits_bundle))
    details = []
    for step in plan.all:
        assert isinstance(step, Command)
        command, *arguments = step.argv[3:]
        if command == "push":
            for path in arguments[:-1]:
                shutil.copy(path, arguments[-1])
        elif command == "shell":
            words = shlex.split(arguments[0])
            script = words[4] if words[:2] == ["run-as", package] else arguments[0]
            done = runner.run(["sh", "-c", f"cd {app}; {script}"], {})
            assert done.code == 0, done.errors
            details.append(step.check(done))
    assert open_bundle(home).identity == digits_bundle.identity
    assert {path.name for path in home.iterdir()} == set(digits_bundle.files)
    assert [path.name for path in home.parent.iterdir()] == [home.name]
    assert [path.name for path in shared.iterdir()] == ([] if package else ["pocketfed"])
    where = f"files/pocketfed/{home.name}" if package else str(home)
    assert [text for text in details if text] == [f"{where}: verified there"]


@pytest.mark.parametrize(
    ("code", "output", "errors", "exit_code", "message"),
    [
        (1, "", "error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n", 3,
         "adb:x: error: device unauthorized.: the phone does not trust this computer; answer the question on its"
         " screen"),
        (1, "", "error: device offline\n", 3, "adb:x: error: device offline; 'adb devices' lists what is connected"),
        (1, "run-as: unknown package: com.example\n", "", 2,
         "adb:x: run-as: unknown package: com.example; expected an app that is installed there and debuggable"),
        (1, "", "run-as: package not debuggable: com.example\n", 2,
         "adb:x: run-as: package not debuggable: com.example; expected an app that is installed there and debuggable"),
        (1, "", "cp: /data/local/tmp/x: No space left on device\n", 2,
         "adb:x: cp: /data/local/tmp/x: No space left on device"),
        (7, "", "", 2, "adb:x: adb ended with status 7"),
    ],
)  # fmt: skip
def test_what_goes_wrong_on_a_phone(code: int, output: str, errors: str, exit_code: int, message: str) -> None:
    """What adb and Android are known to print; no phone is here to print it."""
    error = Phone("adb:x", "x", "com.example")._failed(Finished(code, output, errors))
    assert (error.exit_code, str(error)) == (exit_code, message)


def test_a_phone_in_another_state() -> None:
    with pytest.raises(NetworkError) as refused:
        Phone("adb:x", "x", "")._found(Finished(0, "recovery\n", ""))
    assert str(refused.value) == "adb:x: the phone is in the state 'recovery'; 'adb devices' lists what is connected"


def test_the_page_s_commands_are_understood(digits_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    page = (Path(__file__).parents[2] / "docs" / "flashing.md").read_text(encoding="utf-8")
    lines = [shlex.split(text) for text in re.findall(r"^    (?:/\S*/)?(pocketfed.*?)(?: >.*)?$", page, re.MULTILINE)]
    device = [words[1:] for words in lines if words[0] == "pocketfed-device"]
    flashes = [words[1:] for words in lines if words[0] == "pocketfed"]
    assert [words[0] for words in device] == ["install"] * 3 + ["systemd-unit"]
    for words in device:
        device_cli._parser().parse_args(words)
    (tmp_path / "fleet.txt").write_text("adb:x\n")
    assert main(["keygen", "--out", str(tmp_path / "release.key")]) == 0
    assert len(flashes) == 2
    for words in flashes:
        wanted = [str(tmp_path / word) if word in ("fleet.txt", "release.key.pub") else word for word in words]
        code = main([*(str(digits_bundle.path) if word == "bundles" else word for word in wanted), "--dry-run"])
        assert code == (4 if "--trusted-key" in words else 0)  # the tests' bundle is not signed
    for program in re.findall(r"`(--[a-z-]+)", page):
        assert program in "".join(help_texts(capsys))


def help_texts(capsys: Capture) -> list[str]:
    capsys.readouterr()
    assert main(["flash", "--help"]) == 0
    for command in ("install", "run"):
        with pytest.raises(SystemExit):
            device_cli.main([command, "--help"])
    return [capsys.readouterr().out]


def test_an_interrupt_ends_what_runs(
    digits_bundle: Bundle, tmp_path: Path, processes_of: Callable[[Path], dict[int, str]]
) -> None:
    config = tmp_path / "config"
    config.write_text("")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes the connection, and never says a word
        target = f"ssh://127.0.0.1:{silent.getsockname()[1]}/x"
        command = [Path(sys.executable).with_name("pocketfed"), "flash", digits_bundle.path, target]
        # Whoever runs the tests in a shell's background passes on that SIGINT is to be ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            [*map(str, command), "--ssh-config", str(config)],
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        signal.signal(signal.SIGINT, before)
        silent.settimeout(120)
        try:
            connection, _ = silent.accept()
        except TimeoutError:
            process.kill()
            pytest.fail("ssh did not connect")
        assert any(text.startswith("ssh ") for text in processes_of(config).values())
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
        connection.close()
    assert (process.returncode, errors.splitlines()[-1]) == (130, "pocketfed: interrupted")
    assert not any(text.startswith("ssh ") for text in processes_of(config).values())
