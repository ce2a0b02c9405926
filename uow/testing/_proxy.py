"""
A TCP proxy between a database driver and its server that loses, delays and swallows messages on demand.

It reads the requests of PostgreSQL [1]_ and of MariaDB [2]_ well enough to know which statement a client runs, so a
test names the statement at which the network fails. Encrypted connections cannot be read: PostgreSQL's request for one
is declined, as a server without TLS declines it.

.. [1] PostgreSQL, Frontend/Backend Protocol, Message Formats.
.. [2] MariaDB, Client/Server Protocol, Protocol Packet and COM_QUERY.
"""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # only the helpers for its URLs need SQLAlchemy
    from sqlalchemy import URL

__all__ = ["Fault", "FaultProxy"]

_CHUNK = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, zero seconds


class FaultProxy:
    """
    A proxy on 127.0.0.1 in front of a database server, with faults that a test arms.

    Made for a ``with`` block, at whose end every connection is closed::

        with FaultProxy.to(database_url) as proxy:
            engine = create_engine(proxy.url(database_url))
            fault = proxy.drop_reply(b"COMMIT")
            ...                  # the commit happens, and the client never learns of it
            fault.wait()

    A fault meets a *turn*: what a client sends until it waits for an answer. A turn is met when a statement that it
    executes, or a value bound to it, contains the given bytes as whole words, so that ``COMMIT`` is not found in
    ``SET AUTOCOMMIT = 0``; a regular expression tells ``COMMIT`` from ``COMMIT PREPARED``. Parsing alone executes
    nothing, so it is not met. Faults are tried in the order in which they were armed, on all connections; each meets
    one turn unless ``times`` says otherwise.

    Threads share a proxy safely, but a fault does not know whose turn it meets: a thread that needs a fault of its own
    takes a proxy of its own.

    Args:
        host: Where the server listens: a name or an address; or a path, of the socket or of the folder of PostgreSQL's.

        port: Its port.

        latency: Seconds added in each direction: 0.0005 makes a round trip of one millisecond.
    """

    def __init__(self, host: str, port: int, *, latency: float = 0.0) -> None:
        self._server = _address(host, port)
        self._latency = latency
        self._lock = threading.Lock()
        self._armed: list[Fault] = []
        self._all: list[Fault] = []
        self._links: list[_Link] = []
        self._faults = 0
        self._round_trips = 0

    @classmethod
    def to(cls, url: "URL | str", *, latency: float = 0.0) -> "FaultProxy":
        """
        Make a proxy in front of the server of an SQLAlchemy URL.

        Args:
            url: Names a PostgreSQL or MariaDB server, by address or by socket.

            latency: Seconds added in each direction.
        """
        from sqlalchemy import make_url

        url = make_url(url)
        named = [str(url.query[name]) for name in ("unix_socket", "host") if name in url.query]
        port = url.port or (5432 if url.get_backend_name() == "postgresql" else 3306)
        return cls(named[0] if named else url.host or "127.0.0.1", port, latency=latency)

    def __enter__(self) -> "FaultProxy":
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._port: int = self._listener.getsockname()[1]
        self._bell, self._heard = socket.socketpair()
        self._accepting = threading.Thread(target=self._accept, name="fault proxy", daemon=True)
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection and stop listening; a turn that a delay still holds is lost."""
        self._bell.close()
        self._accepting.join()
        for link in self._links:
            link.cut()
        for fault in self._all:
            fault.release()
        for link in self._links:
            link.join()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def faults(self) -> int:
        """How many turns met a fault so far."""
        return self._faults

    @property
    def round_trips(self) -> int:
        """How many turns the clients took so far; the log-in is not counted."""
        return self._round_trips

    def url(self, url: "URL | str") -> "URL":
        """
        Point an SQLAlchemy URL at this proxy.

        Args:
            url: Its driver, user and database stay.
        """
        from sqlalchemy import make_url

        url = make_url(url).difference_update_query(("host", "port", "unix_socket"))
        return url.set(host="127.0.0.1", port=self.port)

    # --------------------------------------------------------------------------------------------------- the faults

    def drop_request(self, match: "bytes | re.Pattern[bytes]", *, times: int | None = 1) -> "Fault":
        """
        Lose the turn: it does not reach the server, and both connections are closed, the client's by a reset.

        The server rolls back. For a server that does not notice, see `half_open`.

        Args:
            match: Words that a statement or a value contains, or a pattern that is searched in them.

            times: How many turns meet it; ``None`` is every one.
        """
        return self._arm(match, times, _drop_request)

    def drop_reply(self, match: "bytes | re.Pattern[bytes]", *, silent: bool = False, times: int | None = 1) -> "Fault":
        """
        Lose the answer: the server does what the turn asks, then both connections are closed, the client's by a reset.

        Args:
            match: Words that a statement or a value contains, or a pattern that is searched in them.

            silent: Leave the client's connection open and say nothing, until the client's own timeout.

            times: How many turns meet it; ``None`` is every one.
        """
        return self._arm(match, times, partial(_drop_reply, silent=silent))

    def delay(
        self,
        match: "bytes | re.Pattern[bytes]",
        seconds: float | None,
        *,
        reset: bool = False,
        times: int | None = 1,
    ) -> "Fault":
        """
        Hold the turn for a while before the server gets it.

        Args:
            match: Words that a statement or a value contains, or a pattern that is searched in them.

            seconds: How long; ``None`` is until `Fault.release`.

            reset: Reset the client's connection at once: the client asks elsewhere while its statement is under way.

            times: How many turns meet it; ``None`` is every one.
        """
        return self._arm(match, times, partial(_delay, seconds=seconds, reset=reset))

    def half_open(self, match: "bytes | re.Pattern[bytes]", *, silent: bool = False, times: int | None = 1) -> "Fault":
        """
        Lose the turn and reset the client's connection, but not the server's.

        The server keeps the session, its transaction and its locks, until it ends the session or the proxy is closed.

        Args:
            match: Words that a statement or a value contains, or a pattern that is searched in them.

            silent: Leave the client's connection open too and say nothing, until the client's own timeout.

            times: How many turns meet it; ``None`` is every one.
        """
        return self._arm(match, times, partial(_half_open, silent=silent))

    # --------------------------------------------------------------------------------------------------- the plumbing

    def _arm(self, match: "bytes | re.Pattern[bytes]", times: int | None, act: "_Act") -> "Fault":
        pattern = re.compile(rb"(?<!\w)%b(?!\w)" % re.escape(match)) if isinstance(match, bytes) else match
        fault = Fault(pattern, times, act)
        with self._lock:
            self._all.append(fault)
            self._armed.append(fault)
        return fault

    def _meet(self, turn: "_Turn") -> "Fault | None":
        """Count a turn and find the fault that it meets."""
        with self._lock:
            self._round_trips += turn.awaits
            for fault in self._armed:
                if fault._take(turn):
                    self._faults += 1
                    return fault
        return None

    def _accept(self) -> None:
        """Connect each client to the server; only this thread adds links, and it ends before they are cut."""
        with self._listener, self._heard, DefaultSelector() as news:  # whom nobody accepts any more is refused
            news.register(self._listener, EVENT_READ)
            news.register(self._heard, EVENT_READ)
            while all(key.fileobj is self._listener for key, _ in news.select()):
                client, _ = self._listener.accept()
                try:
                    server = _connected(self._server)
                except OSError:
                    _reset(client)
                    continue
                link = _Link(client, server, self._latency, self._meet)
                try:
                    link.start()
                except RuntimeError:  # there is no thread to be had
                    server.close()
                    _reset(client)
                    continue
                self._links = [*(link for link in self._links if link.is_alive()), link]


class Fault:
    """
    A fault that was armed on a `FaultProxy`.
    """

    def __init__(self, pattern: "re.Pattern[bytes]", times: int | None, act: "_Act") -> None:
        self._pattern = pattern
        self._times = times
        self._act = act
        self._changed = threading.Condition()
        self._met = 0
        self._over = 0
        self._released = threading.Event()

    @property
    def met(self) -> int:
        """How many turns met it so far."""
        return self._met

    def wait(self, timeout: float = 30.0) -> None:
        """
        Wait until a turn has met the fault, and until what the fault does to it is done.

        After `FaultProxy.drop_reply`, and a `FaultProxy.delay` with a reset, the server has answered.

        Args:
            timeout: The longest wait, in seconds.

        Raises:
            TimeoutError: No turn met it, or the server does not answer.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: 0 < self._met == self._over, timeout):
                raise TimeoutError(
                    f"After {timeout} s, {self._met} turns met the fault at {self._pattern.pattern!r} "
                    f"and {self._over} of them are over. Does the statement go through the proxy?"
                )

    def release(self) -> None:
        """Let go what a delay holds, now and from now on."""
        self._released.set()

    def disarm(self) -> None:
        """Meet no further turn."""
        with self._changed:
            self._times = self._met

    def _take(self, turn: "_Turn") -> bool:
        with self._changed:
            if self._met == self._times or not any(map(self._pattern.search, turn.executes)):
                return False
            self._met += 1
            return True

    def _strike(self, link: "_Link", turn: "_Turn") -> bool:
        """Do what the fault does, and tell whether the connection goes on."""
        try:
            return self._act(link, turn, self._released)
        finally:
            with self._changed:
                self._over += 1
                self._changed.notify_all()


# ------------------------------------------------------------------------------------------------- what the faults do

_Act = Callable[["_Link", "_Turn", threading.Event], bool]


def _drop_request(link: "_Link", turn: "_Turn", released: threading.Event) -> bool:
    link.lose_client(silent=False)
    return False


def _drop_reply(link: "_Link", turn: "_Turn", released: threading.Event, *, silent: bool) -> bool:
    link.swallow_answers()
    link.request(turn)
    link.answered.wait()
    link.lose_client(silent=silent)
    return False


def _delay(link: "_Link", turn: "_Turn", released: threading.Event, *, seconds: float | None, reset: bool) -> bool:
    if reset:
        link.lose_client(silent=False)
    released.wait(seconds)
    link.request(turn)
    if reset:
        link.answered.wait()
    return not reset


def _half_open(link: "_Link", turn: "_Turn", released: threading.Event, *, silent: bool) -> bool:
    link.keeps_server = True
    link.lose_client(silent=silent)
    return False


# ----------------------------------------------------------------------------------------------------- one connection


class _Link(threading.Thread):
    """
    One client and its connection to the server. This thread carries the requests, another one the answers.

    Only this one reads from the client and closes its socket: a reset is not sent while another
    thread waits for data.
    """

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        latency: float,
        meet: Callable[["_Turn"], Fault | None],
    ) -> None:
        super().__init__(name="fault proxy: requests", daemon=True)
        self._client = client
        self._server = server
        self._latency = latency
        self._meet = meet
        self._requests: _Requests = _MariaDb()
        self._swallowed: bytearray | None = None
        self._awaits_client = False
        self.keeps_server = False
        self.answered = threading.Event()

    def run(self) -> None:
        """Carry requests and answers until both sides have left."""
        answers = threading.Thread(target=self._carry_answers, name="fault proxy: answers", daemon=True)
        with self._client, self._server:
            answers.start()
            with suppress(OSError):
                self._carry_requests()
            if not self.keeps_server:
                _shut(self._server, socket.SHUT_WR)
            if self._awaits_client:
                self._outwait_client()
            answers.join()

    def cut(self) -> None:
        """Close both connections, whatever their threads are waiting for."""
        _shut(self._client, socket.SHUT_RDWR)
        _shut(self._server, socket.SHUT_RDWR)

    # ------------------------------------------------------------------------------------------------ for the faults

    def request(self, turn: "_Turn") -> None:
        """Send a turn to the server."""
        self._server.sendall(turn.data)

    def swallow_answers(self) -> None:
        """Keep what the server says from now on from the client, and that it has left."""
        self._swallowed = bytearray()

    def lose_client(self, *, silent: bool) -> None:
        """Say nothing to the client any more; reset its connection, or leave it waiting."""
        self.swallow_answers()
        if silent:
            self._awaits_client = True
        else:
            _reset(self._client)

    # -------------------------------------------------------------------------------------------------- the transport

    def _carry_requests(self) -> None:
        data = self._receive(self._client)
        if data.startswith(b"\0\0"):  # the length of a start-up packet; no packet of MariaDB is that long
            self._requests = _Postgresql()
        while data:
            for turn in self._requests.read(data):
                if not self._carry_request(turn):
                    return
            data = self._receive(self._client)

    def _carry_request(self, turn: "_Turn") -> bool:
        fault = self._meet(turn)
        if fault is not None:
            return fault._strike(self, turn)
        if turn.declined:
            self._client.sendall(b"N")
        else:
            self.request(turn)
        return True

    def _carry_answers(self) -> None:
        with suppress(OSError):
            while data := self._receive(self._server):
                if self._swallowed is None:
                    self._client.sendall(data)
                    continue
                self._swallowed += data
                if self._requests.is_answer(self._swallowed):
                    self.answered.set()
        self.answered.set()
        if self._swallowed is None:
            _shut(self._client, socket.SHUT_RDWR)

    def _receive(self, source: socket.socket) -> bytes:
        """Wait for data; what comes during the latency goes with it."""
        if self._latency:
            source.recv(1, socket.MSG_PEEK)
            time.sleep(self._latency)
        return source.recv(_CHUNK)

    def _outwait_client(self) -> None:
        with suppress(OSError):
            while self._client.recv(_CHUNK):
                pass


def _address(host: str, port: int) -> tuple[str, int] | str:
    """Tell a socket's path, by the rule of libpq for a folder, or an internet address."""
    if not host.startswith("/"):
        return host, port
    return host if Path(host).is_socket() else f"{host}/.s.PGSQL.{port}"


def _connected(address: tuple[str, int] | str) -> socket.socket:
    if isinstance(address, tuple):
        server = socket.create_connection(address)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
    except OSError:
        server.close()
        raise
    return server


def _reset(client: socket.socket) -> None:
    """Close a connection by a reset, as a network that lost it does."""
    with suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    client.close()


def _shut(side: socket.socket, how: int) -> None:
    with suppress(OSError):  # it is closed already
        side.shutdown(how)


# ------------------------------------------------------------------------------------------------------ the protocols


class _Turn(NamedTuple):
    """What a client sends until it waits for an answer."""

    data: bytes
    executes: tuple[bytes, ...] = ()  # statements and the values bound to them
    awaits: bool = False
    declined: bool = False


class _Requests(Protocol):
    """Splits what a client sends into turns."""

    def read(self, data: bytes) -> Iterator[_Turn]:
        """Take more bytes, and tell the turns that they complete."""
        ...

    def is_answer(self, data: bytes | bytearray) -> bool:
        """Tell whether the server has done what a turn asked when it has answered this."""
        ...


class _Postgresql:
    """
    PostgreSQL, protocol 3: the start-up packet, then messages of a type, a length and a body.
    """

    _ENCRYPTION = frozenset({80877103, 80877104})  # SSLRequest, GSSENCRequest
    _AWAITED = frozenset(b"QSHF")  # Query, Sync, Flush, FunctionCall
    _GATHERED = frozenset(b"PBDEC")  # Parse, Bind, Describe, Execute, Close: answered at a Sync or Flush
    _DONE = frozenset(b"CEZ")  # CommandComplete, ErrorResponse, ReadyForQuery

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._started = False
        self._gathered = bytearray()
        self._executes: list[bytes] = []
        self._statements: dict[bytes, bytes] = {}
        self._portals: dict[bytes, list[bytes]] = {}

    def read(self, data: bytes) -> Iterator[_Turn]:
        self._buffer += data
        while (message := self._next()) is not None:
            if not self._started:
                declined = int.from_bytes(message[4:8]) in self._ENCRYPTION
                self._started = not declined
                yield _Turn(message, declined=declined)
                continue
            self._gather(message)
            if message[0] not in self._GATHERED:
                # A Flush with nothing before it asks again for what the turn before it waits for.
                awaits = message[0] in self._AWAITED and not (message[:1] == b"H" == self._gathered[:1])
                yield _Turn(bytes(self._gathered), tuple(self._executes), awaits)
                self._gathered.clear()
                self._executes.clear()

    def is_answer(self, data: bytes | bytearray) -> bool:
        at = 0
        while at + 5 <= len(data):
            end = at + 1 + int.from_bytes(data[at + 1 : at + 5])
            if data[at] in self._DONE and end <= len(data):
                return True
            at = end
        return False

    def _next(self) -> bytes | None:
        """Cut a complete message from the buffer."""
        kind = int(self._started)  # the start-up packet has no type
        if len(self._buffer) < kind + 4:
            return None
        end = kind + int.from_bytes(self._buffer[kind : kind + 4])
        if len(self._buffer) < end:
            return None
        message = bytes(self._buffer[:end])
        del self._buffer[:end]
        return message

    def _gather(self, message: bytes) -> None:
        """Remember which statement was prepared and bound under which name, until it is executed."""
        self._gathered += message
        kind, body = message[:1], message[5:]
        if kind == b"Q":
            self._executes.append(body.removesuffix(b"\0"))
        elif kind == b"P":
            name, statement, _ = body.split(b"\0", 2)
            self._statements[name] = statement
        elif kind == b"B":
            portal, name, rest = body.split(b"\0", 2)
            self._portals[portal] = [self._statements.get(name, b""), *self._values(rest)]
        elif kind == b"E":
            self._executes.extend(self._portals.get(body.partition(b"\0")[0], ()))

    @staticmethod
    def _values(rest: bytes) -> Iterator[bytes]:
        """Read the values of a Bind message, after its two names: formats come first, a null has the length -1."""
        at = 2 + 2 * int.from_bytes(rest[:2])
        count = int.from_bytes(rest[at : at + 2])
        at += 2
        for _ in range(count):
            length = max(int.from_bytes(rest[at : at + 4], signed=True), 0)
            yield rest[at + 4 : at + 4 + length]
            at += 4 + length


class _MariaDb:
    """
    MariaDB: packets of a length, a number that is 0 where a command starts, and a body.
    """

    _LONGEST = 0xFFFFFF  # a packet of this length goes on in the next one
    _QUERY = 0x03
    _UNANSWERED = frozenset({0x01, 0x18, 0x19})  # COM_QUIT, COM_STMT_SEND_LONG_DATA, COM_STMT_CLOSE

    def __init__(self) -> None:
        self._buffer = bytearray()

    def read(self, data: bytes) -> Iterator[_Turn]:
        self._buffer += data
        while (packets := self._next()) is not None:
            first, body = packets[0], b"".join(packet[4:] for packet in packets)
            command = body[0] if first[3] == 0 and body else None
            executes = (body[1:],) if command == self._QUERY else ()
            yield _Turn(b"".join(packets), executes, command is not None and command not in self._UNANSWERED)

    def is_answer(self, data: bytes | bytearray) -> bool:
        return len(data) >= 4 + int.from_bytes(data[:3], "little")

    def _next(self) -> list[bytes] | None:
        """Cut the packets of one command from the buffer."""
        packets = list(self._complete())
        if not packets or len(packets[-1]) == 4 + self._LONGEST:
            return None
        del self._buffer[: sum(map(len, packets))]
        return packets

    def _complete(self) -> Iterator[bytes]:
        """Walk the complete packets at the start of the buffer, to the end of one command."""
        at = 0
        while at + 4 <= len(self._buffer):
            end = at + 4 + int.from_bytes(self._buffer[at : at + 3], "little")
            if len(self._buffer) < end:
                return
            yield bytes(self._buffer[at:end])
            if end - at < 4 + self._LONGEST:
                return
            at = end
