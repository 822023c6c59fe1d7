"""The tests' own TCP proxy does what it says: else the tests of the network would show nothing."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from threading import Thread
from time import monotonic

import pytest

from tests.support.tcp_proxy import DOWN, UP, TcpProxy


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that says back what it hears."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def attend(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(1 << 16):
                        connection.sendall(data)
                except OSError:
                    pass

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                Thread(target=attend, args=(connection,), daemon=True).start()

        Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", echo) as proxy:
        yield proxy


def dial(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def said_back(connection: socket.socket, words: bytes) -> bytes:
    connection.sendall(words)
    back = b""
    while len(back) < len(words):
        data = connection.recv(1 << 16)
        if not data:
            break
        back += data
    return back


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1 << 16) == b""
    except ConnectionResetError:
        return True


def test_it_hands_on_and_counts(proxy):
    with closing(dial(proxy)) as connection:
        assert said_back(connection, bytes(100_000)) == bytes(100_000)
    assert proxy.passed == {UP: 100_000, DOWN: 100_000}
    assert proxy.connections == 1


def test_a_cut_ends_what_is_open_and_nothing_else(proxy):
    with closing(dial(proxy)) as connection:
        assert said_back(connection, b"x") == b"x"
        proxy.cut()
        assert ended(connection)
    with closing(dial(proxy)) as connection:
        assert said_back(connection, b"y") == b"y"


def test_a_cut_comes_after_exactly_so_many_bytes(proxy):
    proxy.cut_after(10_001)
    with closing(dial(proxy)) as connection:
        connection.sendall(bytes(50_000))
        while not ended(connection):
            pass
    assert proxy.passed[UP] == 10_001
    with closing(dial(proxy)) as connection:
        assert said_back(connection, bytes(50_000)) == bytes(50_000)


def test_a_delay_and_a_throttle_hold_bytes_back_and_lose_none(proxy):
    words = bytes(range(256)) * 40
    with closing(dial(proxy)) as connection:
        proxy.delay(0.1)
        began = monotonic()
        assert said_back(connection, words) == words
        assert monotonic() - began >= 0.2
        proxy.clear()
        proxy.throttle(20_000, UP)
        began = monotonic()
        assert said_back(connection, words) == words
        assert monotonic() - began >= 0.4


def test_a_bit_is_flipped_in_one_of_so_many_pieces(proxy):
    proxy.corrupt(1)
    with closing(dial(proxy)) as connection:
        assert said_back(connection, bytes(4)) == b"\0\0\1\0"
        proxy.clear()
        assert said_back(connection, bytes(4)) == bytes(4)


@pytest.mark.parametrize("how", ["swallow", "freeze"])
def test_a_half_open_connection_stays_and_says_nothing(proxy, how):
    with closing(dial(proxy)) as connection:
        assert said_back(connection, b"x") == b"x"
        getattr(proxy, how)()
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            said_back(connection, b"y")


def test_refused_and_answered_by_another(proxy):
    with closing(dial(proxy)) as connection:
        assert said_back(connection, b"x") == b"x"
        proxy.refuse()
        assert ended(connection)
    with pytest.raises(ConnectionRefusedError):
        dial(proxy)
    proxy.answer(b"HTTP/1.1 503 Busy\r\n\r\n")
    with closing(dial(proxy)) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"HTTP/1.1 503 Busy\r\n\r\n"
        assert ended(connection)
    proxy.clear()
    with closing(dial(proxy)) as connection:
        assert said_back(connection, b"z") == b"z"


def test_the_command_obeys_line_by_line(echo):
    arguments = [sys.executable, "-m", "tests.support.tcp_proxy", f"127.0.0.1:{echo}"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())

        def order(line: str) -> str:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        with closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as connection:
            assert said_back(connection, b"x" * 5) == b"x" * 5
            assert order("count") == "5 5"
            for line in ("delay 0.01", "throttle 100000", "throttle none down", "corrupt 2 down", "clear", "cut"):
                assert order(line) == "ok"
            assert ended(connection)
        assert order("answer HTTP/1.1 200 OK\\r\\n") == "ok"
        with closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as connection:
            connection.sendall(b"?")
            assert connection.recv(100) == b"HTTP/1.1 200 OK\r\n"
        process.stdin.close()
        assert process.wait(10) == 0
