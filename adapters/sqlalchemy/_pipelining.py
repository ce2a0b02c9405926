"""
PostgreSQL's pipeline mode, through psycopg: what only controls a transaction is sent together with the next statement.

BEGIN, SAVEPOINT, RELEASE and ROLLBACK TO answer nothing that a unit would wait for. Each statement still waits for its
own answer, so an error surfaces where it was made. https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html

Without a pipeline they are one text, which is sent before the statement.
"""

import weakref
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from uow import Options

__all__ = ["PIPELINE", "Rider", "begin_of", "drop", "ride", "serve", "supported", "take_joined", "waiting"]

PIPELINE = "uow_pipeline"
"""The execution option of an engine that switches this off."""

_waiting: weakref.WeakKeyDictionary[Any, list[str]] = weakref.WeakKeyDictionary()
_joined: weakref.WeakSet[Any] = weakref.WeakSet()  # those that are to use no pipeline; engines may share a pool


class Rider(str):
    """
    A command that a cursor keeps for the next statement.
    """

    __slots__ = ()


def supported() -> bool:
    """Tell whether libpq has a pipeline mode."""
    import psycopg

    return psycopg.Pipeline.is_supported()


def serve(own: Any, *, pipeline: bool = True) -> bool:
    """
    Let the cursors of *own*, a connection of psycopg's, send what rides with them; False if they are the user's own.

    Without a *pipeline* it is sent before them, as one text.
    """
    import psycopg

    asynchronous = isinstance(own, psycopg.AsyncConnection)
    plain = psycopg.AsyncCursor if asynchronous else psycopg.Cursor
    server = psycopg.AsyncServerCursor if asynchronous else psycopg.ServerCursor
    if own.cursor_factory is plain and own.server_cursor_factory is server:
        make = _riding_async if asynchronous else _riding
        own.cursor_factory, own.server_cursor_factory = make(plain, plain), make(server, plain)
    (_joined.discard if pipeline else _joined.add)(own)
    return getattr(own.cursor_factory, "rides", False)


def begin_of(own: Any, options: Options) -> str:
    """Return the BEGIN that psycopg would send: with the modes of *own*, and what a unit asks for instead."""
    level = options.isolation or (own.isolation_level and own.isolation_level.name.replace("_", " "))
    words = ["BEGIN"]
    if level:
        words.append(f"ISOLATION LEVEL {level}")
    if (read_only := options.read_only or own.read_only) is not None:
        words.append("READ ONLY" if read_only else "READ WRITE")
    if (deferrable := options.deferrable or own.deferrable) is not None:
        words.append("DEFERRABLE" if deferrable else "NOT DEFERRABLE")
    return " ".join(words)


def ride(own: Any, command: str) -> None:
    """Let *command* be sent with the next statement on *own*."""
    _waiting.setdefault(own, []).append(command)


def waiting(own: Any) -> Sequence[str]:
    """Return what was not sent yet."""
    return _waiting.get(own, ())


def take_joined(own: Any) -> Sequence[str]:
    """Return what was not sent yet, for the caller to send in one text with more; nothing if a pipeline does it."""
    return _waiting.pop(own, ()) if own in _joined else ()


def drop(own: Any) -> None:
    """Let nothing be sent that was not sent yet."""
    _waiting.pop(own, None)


@cache
def _riding(base: Any, plain: Any) -> Any:
    """Make a class of *base* cursors that send what waits; *plain* ones send it for them."""

    class Riding(base):  # type: ignore[misc]
        __slots__ = ()
        rides = True

        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            if isinstance(query, Rider):
                ride(self.connection, query)
                return self
            commands = _waiting.pop(self.connection, None)
            if commands is None:
                return base.execute(self, query, params, **options)
            statement = partial(base.execute, self, query, params, **options)
            if query and base is plain and _together(query, params):
                self._send(commands, statement)
                return self
            self._send(commands, None)
            return statement() if query else self

        def executemany(self, *args: Any, **options: Any) -> Any:
            commands = _waiting.pop(self.connection, None)
            statement = partial(base.executemany, self, *args, **options)
            if commands is None:
                return statement()
            return self._send(commands, statement)

        def _send(self, commands: list[str], statement: Any) -> None:
            control = None
            if self.connection in _joined:
                try:
                    plain(self.connection).execute("; ".join(commands), prepare=False)
                except Exception as error:
                    _blamed(error, commands, control)
                    raise
                if statement is not None:
                    statement()
                return
            failure: Exception | None = None
            pipeline = None
            try:
                with self.connection.pipeline() as pipeline:
                    try:
                        begins = _begin(pipeline, commands[0])
                        for command in commands[begins:]:
                            control = control or plain(self.connection)
                            control.execute(command, prepare=False)
                        if statement is not None:
                            statement()
                    except Exception as error:  # the end of the pipeline would only say that it was aborted
                        failure = error
            except Exception as error:
                failure = failure or error
            except BaseException:
                _abandon(pipeline)
                raise
            if failure is not None:
                raise _blamed(failure, commands, control)

    return Riding


@cache
def _riding_async(base: Any, plain: Any) -> Any:
    """Make what `_riding` makes, to be awaited: a cursor of psycopg's has one face or the other."""

    class Riding(base):  # type: ignore[misc]
        __slots__ = ()
        rides = True

        async def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            if isinstance(query, Rider):
                ride(self.connection, query)
                return self
            commands = _waiting.pop(self.connection, None)
            if commands is None:
                return await base.execute(self, query, params, **options)
            statement = partial(base.execute, self, query, params, **options)
            if query and base is plain and _together(query, params):
                await self._send(commands, statement)
                return self
            await self._send(commands, None)
            return await statement() if query else self

        async def executemany(self, *args: Any, **options: Any) -> Any:
            commands = _waiting.pop(self.connection, None)
            statement = partial(base.executemany, self, *args, **options)
            if commands is None:
                return await statement()
            return await self._send(commands, statement)

        async def _send(self, commands: list[str], statement: Any) -> None:
            control = None
            if self.connection in _joined:
                try:
                    await plain(self.connection).execute("; ".join(commands), prepare=False)
                except Exception as error:
                    _blamed(error, commands, control)
                    raise
                if statement is not None:
                    await statement()
                return
            failure: Exception | None = None
            pipeline = None
            try:
                async with self.connection.pipeline() as pipeline:
                    try:
                        begins = _begin(pipeline, commands[0])
                        for command in commands[begins:]:
                            control = control or plain(self.connection)
                            await control.execute(command, prepare=False)
                        if statement is not None:
                            await statement()
                    except Exception as error:  # the end of the pipeline would only say that it was aborted
                        failure = error
            except Exception as error:
                failure = failure or error
            except BaseException:
                _abandon(pipeline)
                raise
            if failure is not None:
                raise _blamed(failure, commands, control)

    return Riding


def _together(query: object, params: object) -> bool:
    """Tell whether a statement can be part of a pipeline: a text with several of them cannot."""
    return bool(params) or not isinstance(query, str) or ";" not in query


def _begin(pipeline: Any, command: str) -> bool:
    """Send *command* if it is BEGIN, as psycopg sends its own, but without waiting for the answer."""
    begins = command.startswith("BEGIN")
    if begins:
        pipeline.pgconn.send_query_params(command.encode(), None)
        pipeline.result_queue.append(None)
    return begins


def _abandon(pipeline: Any) -> None:
    """Let psycopg ask for no answer any more: the wait was cut off, so SQLAlchemy throws the connection away."""
    if pipeline is not None:
        pipeline.result_queue.clear()


def _blamed(failure: Exception, commands: Sequence[str], control: Any) -> Exception:
    """Say so in *failure* if one of the commands that rode met it, and not the statement."""
    last, done = commands[-1], control and control.statusmessage
    if not last.startswith((done or "BEGIN").split()[0]):
        failure.add_note(f"One of {', '.join(commands)} failed, which were sent together with this statement.")
    return failure
