"""A stranger at the rendezvous: he reaches the port, and is neither believed nor unpickled."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

from app.elastic.rendezvous import count_start, report_done, report_failure
from app.elastic.signed_store import RunKeyError, SignedStore, connect, read_token, run_key
from tests.jobs import ROOT, environment


@pytest.fixture
def server() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))


def member(server: TCPStore, key: bytes = b"k") -> SignedStore:
    client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=2))
    return SignedStore(client, key)


def test_members_agree_and_a_stranger_is_thrown_away(server: TCPStore, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = member(server), member(server)
    first.set("a", "1")
    assert second.get("a") == b"1"
    server.set("a", "evil")
    assert second.look("a") == b"1"  # what it saw last comes back
    assert first.get("a") == b"1"
    server.set("b", "evil")
    assert first.look("b") is None
    assert first.compare_set("c", "", "mine") == b"mine"
    assert second.compare_set("c", "", "other") == b"mine"
    assert second.compare_set("c", "mine", "other") == b"other"
    server.set("d", "evil")
    assert first.compare_set("d", "", "mine") == b"mine"
    # A true value under another key, or of another run, is a lie too.
    server.set("e", server.get("a"))  # type: ignore[arg-type]  # torch takes bytes too
    assert first.look("e") is None
    assert member(server, b"another key").look("a") is None
    assert "not from this job" in capsys.readouterr().err


def test_torchs_rendezvous_never_unpickles_a_strangers_state(server: TCPStore, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "executed",)

    first, second = (C10dRendezvousBackend(member(server), "job") for _ in range(2))
    assert first.get_state() is None
    answer = first.set_state(b"state one")
    assert answer is not None
    assert answer[2]
    poison = b64encode(pickle.dumps(Evil())).decode()
    server.set("torch.rendezvous.job", poison)
    found = second.get_state()
    assert found is None  # it saw nothing before, and believes nothing
    server.set("torch.rendezvous.job", poison)
    again = first.get_state()
    assert again is None or again[0] == b"state one"
    one, two = member(server), member(server)  # torch keeps no reference to a store written in Python
    PrefixStore("round", one).set("address", "10.0.0.1")
    assert PrefixStore("round", two).get("address") == b"10.0.0.1"
    assert not (tmp_path / "executed").exists()


def test_the_key_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCFACE_RDZV_TOKEN", raising=False)
    monkeypatch.delenv("ARCFACE_RDZV_TOKEN_FILE", raising=False)
    assert read_token() == b""
    without = run_key("job")
    monkeypatch.setenv("ARCFACE_RDZV_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(RunKeyError, match="No such file"):
        read_token()
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("ARCFACE_RDZV_TOKEN_FILE", str(tmp_path / "token"))
    with_file = run_key("job")
    monkeypatch.setenv("ARCFACE_RDZV_TOKEN", "secret")
    assert run_key("job") == with_file
    assert len({without, with_file, run_key("another job")}) == 3


class Rendezvous:
    """A real process, on a free port."""

    def __init__(self, *options: str, token: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "app.elastic.rendezvous", "--rdzv-id", "job", "--port", str(self.port)),
                *("--linger", "0", *options),
            ],
            env={**environment(), "ARCFACE_RDZV_TOKEN": token},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline()

    def end(self) -> tuple[int, str]:
        text = self.process.communicate(timeout=60)[0]
        return self.process.returncode, text


def test_only_who_knows_the_key_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    rendezvous = Rendezvous(token="secret")
    assert "all interfaces" in rendezvous.first
    for token in ("", "guessed"):
        monkeypatch.setenv("ARCFACE_RDZV_TOKEN", token)
        connect("127.0.0.1", rendezvous.port, "job").set("arcface/verdict", "done")
        time.sleep(1.5)
        assert rendezvous.process.poll() is None
    TCPStore("127.0.0.1", rendezvous.port, is_master=False, wait_for_workers=False).set("arcface/verdict", "done")
    time.sleep(1.5)
    assert rendezvous.process.poll() is None
    monkeypatch.setenv("ARCFACE_RDZV_TOKEN", "secret")
    monkeypatch.setenv("ARCFACE_RDZV_ENDPOINT", f"127.0.0.1:{rendezvous.port}")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    count_start(5, budget=1)
    report_failure("a reason\x1b[31m\nand more")
    code, text = rendezvous.end()
    assert code == 65
    assert "training failed: a reason\\x1b[31m\\nand more" in text


def test_done_is_told_to_the_launcher_even_when_nobody_hears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARCFACE_DONE_FILE", str(tmp_path / "done"))
    monkeypatch.setenv("ARCFACE_RDZV_ENDPOINT", "127.0.0.1:9")

    def refuse(*_: object, **__: object) -> TCPStore:
        raise RuntimeError("nobody there")

    monkeypatch.setattr("app.elastic.signed_store.TCPStore", refuse)
    report_done(patience=0)
    assert (tmp_path / "done").exists()
    # Neither is a start that is not counted, or a failure that is not heard, an error.
    count_start(5, budget=1)
    report_failure("again")
    assert capsys.readouterr().err.count("nobody there") == 3


def test_without_a_key_only_this_machine_is_listened_to() -> None:
    rendezvous = Rendezvous("--idle-timeout", "1")
    assert "loopback only" in rendezvous.first
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    at = f":{rendezvous.port:04X} "
    addresses = [line.split()[1] for line in listening.splitlines() if at in line and line.split()[3] == "0A"]
    assert addresses == [f"0100007F:{rendezvous.port:04X}"]
    assert rendezvous.end()[0] == 65  # nobody ever came: to start it again would not help


def test_what_is_cut_off_changed_or_of_another_key_is_no_value(server: TCPStore) -> None:
    first = member(server)
    first.set("a", "1")
    sound = server.get("a").decode()
    lies = ["", "=", sound[:-4], sound[4:], sound[:20], sound.swapcase(), sound + "AAAA", "\x1b[2J", "A" * 10**6]
    for lie in lies:
        server.set("a", lie)
        assert server.get("a").decode() == lie  # the server has it
        assert member(server).look("a") is None
    server.set("a", sound)
    assert server.get("a").decode() == sound
    assert member(server).look("a") == b"1"


def test_what_strangers_leave_is_swept_and_what_members_wrote_stays(server: TCPStore) -> None:
    first, sweeper = member(server), member(server)
    first.set("a", "1")
    PrefixStore("round", first).set("b", "2")
    first.add("count", -3)
    server.set("junk", "x" * (7 << 20))
    server.set("a name" * 1000, "1")
    server.set("a", "evil")
    assert server.get("a") == b"evil"  # the server has it: set does not wait
    suspects = sweeper.sweep(set())
    assert server.num_keys() >= 5  # nothing at first sight: a member may be about to mend it
    first.set("a", "1")
    assert first.get("a") == b"1"
    assert sweeper.sweep(suspects) == set()
    assert sorted(server.list_keys()) == ["a", "count", "round/b"]
    assert sweeper.look("a") == b"1"


def test_a_value_that_is_deleted_at_any_moment_holds_nobody_up(server: TCPStore) -> None:
    first, ended, seen = member(server), threading.Event(), set[bytes | None]()

    def delete_again_and_again() -> None:
        while not ended.is_set():
            first.set("a", "1")
            server.delete_key("a")

    stranger = threading.Thread(target=delete_again_and_again)
    stranger.start()
    try:
        reader = member(server)  # torch's get would wait for two seconds and raise
        seen = {reader.look("a") for _ in range(3000)}
    finally:
        ended.set()
        stranger.join()
    assert seen == {b"1", None}


def test_connections_that_say_nothing_or_nonsense_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rendezvous = Rendezvous(token="secret")
    idle = []
    for number in range(300):
        connection = socket.create_connection(("127.0.0.1", rendezvous.port))
        if number % 3:  # the others never say a word
            connection.sendall(b"\0" if number % 3 == 1 else bytes(range(256)) * 16)
        idle.append(connection)
    monkeypatch.setenv("ARCFACE_RDZV_TOKEN", "secret")
    monkeypatch.setenv("ARCFACE_RDZV_ENDPOINT", f"127.0.0.1:{rendezvous.port}")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    report_done(patience=0)
    code, text = rendezvous.end()
    for connection in idle:
        connection.close()
    assert code == 0, text
    assert "training is done" in text
