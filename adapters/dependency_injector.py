"""
Containers for dependency-injector: configuration, an engine that is disposed of, and a check for units that are shared.

A unit is a cheap handle, so its provider is a ``Factory``: a use case gets one, and its repositories share the session.
"""

import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Self, TypeVar, cast, get_type_hints

from uow import AsyncUnitOfWork, UnitOfWork
from uow.errors import ConfigurationError, DefinitionError

try:
    from dependency_injector import containers, providers
    from sqlalchemy import URL, Engine, create_engine, make_url
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
except ModuleNotFoundError as error:
    msg = f"uow.adapters.dependency_injector needs {error.name}, which is missing. Install uow[dependency-injector]."
    raise ModuleNotFoundError(msg, name=error.name) from error

__all__ = ["AsyncSqlAlchemyContainer", "SqlAlchemyContainer", "check_units"]

E = TypeVar("E", Engine, AsyncEngine)

_SHARED: Any = (providers.BaseSingleton, providers.BaseResource, providers.Object)
_CONTAINER: Any = providers.Container  # Any: with the library's own types every use of what it holds is unknown

# One resource that is asynchronous makes a container await the shutdown of all.
_AWAITED = providers.Resource(lambda: None)
_AWAITED.enable_async_mode()


def _open(create: Callable[..., E], config: Any) -> E:
    """Make the engine that *config* asks for; no error shows a password."""
    source = config.last_overriding
    name = (source if isinstance(source, providers.ConfigurationOption) else config).get_name()
    values: dict[str, Any] = config() or {}
    if not (url := values.get("database_url")):
        raise ConfigurationError(
            f"{name}.database_url is not set", 'Set it first: container.config.database_url.from_env("DATABASE_URL").'
        )
    try:
        url = url if isinstance(url, URL) else make_url(str(url))
    except (SQLAlchemyError, ValueError):
        raise ConfigurationError(
            f"{name}.database_url is no database URL",
            "Write dialect+driver://user:password@host:port/database, and quote what the password has of :/@%.",
        ) from None
    try:
        return create(url, **(values.get("engine") or {}))
    except (SQLAlchemyError, TypeError) as error:
        problem = f"{name} makes no engine: {error}".rstrip(".")
        raise ConfigurationError(problem, f"Correct {name}.database_url or {name}.engine.") from error


class _EngineResource(providers.Resource[E]):
    """An engine, made once whichever thread asks first."""

    _lock = threading.RLock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return super().__call__(*args, **kwargs)

    def shutdown(self) -> Awaitable[None] | None:
        resource: Any = super()
        engine = resource._provide((), {}) if self.initialized else None  # its own, should it be overridden now
        resource.shutdown()
        return cast("Awaitable[None] | None", engine and engine.dispose())


class _AsyncEngineResource(_EngineResource[AsyncEngine]):
    """Made at once: an asynchronous resource of the library makes a future of every unit that takes it."""

    @property
    def related(self) -> Iterator[Any]:
        yield _AWAITED
        resource: Any = super()
        yield from resource.related


class _Container(containers.DeclarativeContainer):
    config = providers.Configuration()

    def __new__(cls, **overriding_providers: Any) -> Self:
        container: Self = cast("Any", super().__new__)(cls, **overriding_providers)
        container.config.set_name(f"{cls.__name__}.config")
        for provider in container.providers.values():
            if isinstance(provider, _EngineResource):  # a subclass may have declared a configuration of its own
                provider.set_kwargs(config=container.config.provider)
        check_units(container)
        return container


class SqlAlchemyContainer(_Container):
    """
    A container with an engine, to inherit or, as ``providers.Container(SqlAlchemyContainer, config=...)``, to compose.

    .. code-block:: python

        class Container(SqlAlchemyContainer):
            bank = providers.Factory(SqlBank, SqlAlchemyContainer.engine)
            transfers = providers.Factory(Transfers, uow=bank)

    ``config.database_url`` is the database; ``config.engine`` has further arguments of ``create_engine()``, such as
    ``pool_size``. ``shutdown_resources()`` disposes of the engine.

    Raises:
        uow.errors.DefinitionError: A unit is shared: see `check_units`.

        uow.errors.ConfigurationError: When the engine is asked for: an option is missing or wrong.
    """

    engine: providers.Resource[Engine] = _EngineResource(partial(_open, create_engine))


class AsyncSqlAlchemyContainer(_Container):
    """
    A `SqlAlchemyContainer` with an ``AsyncEngine``: ``await container.shutdown_resources()``, and nothing else of it.
    """

    engine: providers.Resource[AsyncEngine] = _AsyncEngineResource(partial(_open, create_async_engine))


def check_units(container: containers.Container, name: str | None = None) -> None:
    """
    Refuse a container with a unit that is shared, in which two use cases would meet.

    A container of this module is checked when it is instantiated: what it then holds is what runs, overrides included.
    What overrides a provider of the instance later is seen only if this is called again, and what a function without
    a return annotation makes is never seen.

    Args:
        container: An instance, with the containers that it is composed of.

        name: What errors call it; by default the name of its class.

    Raises:
        uow.errors.DefinitionError: A unit is no ``Factory`` but some ``Singleton``, ``Resource`` or ``Object``, or one
            of these keeps a unit that was made for it.
    """
    name = name or container.parent_name
    for key, declared in cast("dict[str, Any]", container.providers).items():
        if isinstance(declared, _CONTAINER):
            check_units(declared.container, f"{name}.{key}")
        else:
            _check_provider(declared, f"{name}.{key}")


def _check_provider(declared: Any, name: str) -> None:
    parts = list(_walk(declared, lambda provider: True))
    for part in parts:
        kept = next(filter(_makes_unit, _walk(part, _passes_on)), None) if isinstance(part, _SHARED) else None
        if kept is None:
            continue
        kind = f"providers.{type(part).__name__}"
        which = f"it is a {kind}" if part is parts[0] else f"it takes a {kind} of {_made(part).__name__}"
        hint = "Make it a providers.Factory: a unit is a cheap handle."
        if kept is not part:
            which += f" that keeps the unit {_made(kept).__name__}"
            hint = "Make it a providers.Factory, or let it take the .provider of the unit and make one a use case."
        raise DefinitionError(name, f"{which}, and a unit serves one use case at a time", hint)


def _walk(provider: Any, enter: Callable[[Any], bool]) -> Iterator[Any]:
    """Yield *provider* and what it is made of, as it is overridden, each once."""
    found: dict[int, Any] = {}
    waiting = [provider]
    while waiting:
        provider = waiting.pop()
        provider = provider.last_overriding or provider
        if id(provider) not in found:
            found[id(provider)] = provider
            yield provider
            waiting.extend(provider.related if enter(provider) else ())


def _passes_on(provider: Any) -> bool:
    """Tell whether what *provider* makes keeps what it is given: a function may have used it up."""
    return isinstance(getattr(provider, "provides", object), type)


def _makes_unit(provider: Any) -> bool:
    return issubclass(_made(provider), UnitOfWork | AsyncUnitOfWork)


def _made(provider: Any) -> type:
    """Return the class of what *provider* makes, object if that is not known."""
    provides: object = getattr(provider, "provides", None)
    if isinstance(provider, providers.Object):
        return type(provides)
    if inspect.isfunction(provides):
        with suppress(Exception):  # a name that only type checkers import, say
            provides = get_type_hints(provides).get("return")
    return provides if isinstance(provides, type) else object
