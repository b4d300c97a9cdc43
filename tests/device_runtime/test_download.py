"""Downloads that break off, from servers that go wrong, and the real server's ranges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_runtime.download import fetch
from device_runtime.errors import InputError, IntegrityError, NetworkError, TurnedAwayError
from device_runtime.tensors import sha256
from tests.device_runtime.file_server import FileServer, serve_files

CONTENT = bytes(range(256)) * 800  # more than three pieces
IDENTITY = sha256(CONTENT)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_files(lambda path: CONTENT if path == "/f" else None) as serving:
        yield serving


def get(server: FileServer, target: Path, attempts: int = 1, limit: int = len(CONTENT)) -> bytes:
    fetch(server.transport(attempts), "/f", IDENTITY, limit, target)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    return target.read_bytes()


def test_a_file_comes_whole(server: FileServer, tmp_path: Path) -> None:
    assert get(server, tmp_path / "f") == CONTENT
    assert server.ranges == [""]


def test_what_breaks_off_goes_on_however_often(server: FileServer, tmp_path: Path) -> None:
    """Attempts that brought something are not failures: five of them don't end a download of many pieces."""
    server.cut = [1000, 70_000, 1, 0, 50_000, 0, 20_000]
    assert get(server, tmp_path / "f", attempts=2) == CONTENT
    held = [0, 1000, 71_000, 71_001, 71_001, 121_001, 121_001, 141_001]
    assert server.ranges == ["", *(f"bytes={start}-" for start in held[1:])]


def test_what_brings_nothing_fails_after_the_policy_s_attempts(server: FileServer, tmp_path: Path) -> None:
    server.cut = [1000, 0, 0, 0, 0]
    with pytest.raises(NetworkError, match=r"/f: the answer broke off, 203800 bytes too early \(5 attempts\)$"):
        get(server, tmp_path / "f", attempts=4)
    assert (tmp_path / "f.part").read_bytes() == CONTENT[:1000]
    assert not (tmp_path / "f").exists()


def test_another_process_goes_on(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT[:5000])
    assert get(server, tmp_path / "f") == CONTENT
    assert server.ranges == ["bytes=5000-"]


def test_a_part_that_is_whole_needs_no_server(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert get(server, tmp_path / "f") == CONTENT
    assert server.asked == []


def test_a_part_of_other_bytes_is_begun_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(b"?" * 5000)
    assert get(server, tmp_path / "f") == CONTENT
    assert server.ranges == ["bytes=5000-", ""]


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 1, 2 * len(CONTENT)])
def test_a_part_that_is_too_long_is_begun_again(server: FileServer, tmp_path: Path, size: int) -> None:
    (tmp_path / "f.part").write_bytes(b"?" * size)
    assert get(server, tmp_path / "f", attempts=2) == CONTENT
    assert server.ranges[-1] == ""


def test_content_that_changed_comes_from_the_start_and_is_refused(server: FileServer, tmp_path: Path) -> None:
    """If-Range: the server sends all of what it has by now. It is not what was asked for."""
    (tmp_path / "f.part").write_bytes(CONTENT[:5000])
    server.find = lambda path: b"other"
    with pytest.raises(IntegrityError, match=f"^/f: what the server sent does not have the SHA-256 {IDENTITY}$"):
        get(server, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "where", "body"),
    [
        (206, "", CONTENT[5000:]),
        (206, "bytes", CONTENT[5000:]),
        (206, f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}", CONTENT),
        (206, f"bytes 4999-{len(CONTENT) - 1}/{len(CONTENT)}", CONTENT[4999:]),
        (206, f"bytes 5000-5009/{len(CONTENT)}", CONTENT[5000:5010]),
        (206, f"bytes 5000-{len(CONTENT) - 1}/{len(CONTENT)}", CONTENT[5000:5010]),
        (206, f"bytes 5000-{len(CONTENT) - 1}/*", CONTENT[5000:]),
        (206, "bytes 5000-" + "9" * 30 + "/" + "9" * 30, CONTENT[5000:]),
        (416, f"bytes */{len(CONTENT)}", b""),
    ],
)
def test_an_answer_to_a_range_that_is_none_begins_again(
    server: FileServer, tmp_path: Path, status: int, where: str, body: bytes
) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT[:5000])
    server.garbage = [(status, where, body)]
    assert get(server, tmp_path / "f", attempts=2) == CONTENT
    assert server.ranges == ["bytes=5000-", ""]


def test_a_right_range_of_wrong_bytes_begins_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT[:5000])
    server.garbage = [(206, f"bytes 5000-{len(CONTENT) - 1}/{len(CONTENT)}", b"?" * (len(CONTENT) - 5000))]
    assert get(server, tmp_path / "f") == CONTENT
    assert server.ranges == ["bytes=5000-", ""]


def test_no_more_is_taken_than_there_may_be(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"^/f: the answer is longer than 100000 bytes$"):
        get(server, tmp_path / "f", limit=100_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "kind"), [(404, NetworkError), (403, TurnedAwayError), (302, NetworkError)])
def test_a_file_that_the_server_does_not_give(
    server: FileServer, tmp_path: Path, status: int, kind: type[Exception]
) -> None:
    server.find = lambda path: status
    with pytest.raises(kind, match=f"^/f: the server answers with status {status}$"):
        get(server, tmp_path / "f")


def test_a_folder_that_is_gone(server: FileServer, tmp_path: Path) -> None:
    where = tmp_path / "no" / "f"
    with pytest.raises(InputError) as caught:
        fetch(server.transport(), "/f", IDENTITY, len(CONTENT), where)
    expected = f"{where}.part: can't write it: No such file or directory; make room there, or change --cache or --state"
    assert str(caught.value) == expected
