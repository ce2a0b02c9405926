"""
What a unit makes of the engines, sessionmakers and sessions that users have.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import (
    URL,
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    create_engine,
    event,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, registry, sessionmaker
from sqlalchemy.pool import StaticPool

from uow import Options, Repository, State, UnitOfWork, entity
from uow.adapters.memory import FakeUnitOfWork
from uow.adapters.sqlalchemy import SqlAlchemyRepository, SqlAlchemyUnitOfWork
from uow.adapters.sqlalchemy._backend import Branch
from uow.adapters.sqlalchemy._backends import backend_of
from uow.errors import (
    AfterCommitFailed,
    AfterRollbackFailed,
    CommitOutcomeUnknown,
    ConfigurationError,
    ConnectionLost,
    DatabaseError,
    ForeignKeyViolation,
    OutsideUnitOfWork,
    ScopeBroken,
    UnmappedEntity,
)


class Loud(TypeDecorator[str]):
    impl = String(20)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value == "whisper":
            raise ValueError("louder")
        return value


class Base(DeclarativeBase):
    pass


class Word(Base):
    __tablename__ = "words"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    said: Mapped[str] = mapped_column(Loud)
    after: Mapped[int | None] = mapped_column(ForeignKey("words.id", initially="DEFERRED", deferrable=True))


class Words(UnitOfWork):
    words: Repository[Word]


class SqlWords(SqlAlchemyUnitOfWork, Words):
    pass


@entity(version="version")
class Versioned:
    id: int
    version: int | None = None


registry().map_imperatively(
    Versioned, Table("versioned", MetaData(), Column("id", Integer, primary_key=True), Column("version", Integer))
)


class VersionedWords(SqlAlchemyUnitOfWork):
    versioned: Repository[Versioned]


class SqlRepository(SqlAlchemyRepository[Word]):
    def everything(self) -> object:
        return self.session.scalars(text("SELECT 1")).all()


class MixedUp(FakeUnitOfWork):
    words: SqlRepository


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    url: URL = request.getfixturevalue(f"{request.param}_url")
    engine = create_engine(url)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


def said(engine: Engine) -> list[str]:
    with SqlWords(engine) as unit:
        return [word.said for word in unit.words.list(order_by=lambda w: w.id)]


def test_a_sessionmaker_gives_the_session_its_class_options_and_events(engine: Engine) -> None:
    """The unit's session is of the sessionmaker's class too; its options and the events on it hold."""

    class Mine(Session):
        def shout(self) -> str:
            return "!"

    factory = sessionmaker(engine, class_=Mine, info={"mine": True}, autoflush=False)
    seen: list[str] = []
    event.listen(factory, "after_commit", lambda session: seen.append("committed"))
    for _ in range(2):
        with SqlWords(factory) as unit:
            session: Any = unit.session
            unit.words.add(Word(id=len(seen), said="x"))

            assert ("!", {"mine": True}, False) == (session.shout(), session.info, session.autoflush)
            assert 1 + len(seen) == unit.words.count()

            unit.commit()

    assert ["committed"] * 2 == seen
    assert ["x", "x"] == said(engine)


def test_a_value_that_cannot_be_bound_breaks_the_scope(engine: Engine) -> None:
    """A flush that fails before the database saw it is an error of ours; around a nested scope, the unit goes on."""
    with SqlWords(engine) as unit:
        with pytest.raises(DatabaseError, match="louder"), unit.nested():
            unit.words.add(Word(id=1, said="whisper"))
        unit.words.add(Word(id=2, said="x"))
        unit.commit()

    assert ["x"] == said(engine)


@pytest.mark.parametrize(("moment", "broken"), [("before_flush", False), ("after_flush", True)])
def test_an_event_that_raises_in_a_flush(engine: Engine, moment: str, broken: bool) -> None:
    """The listener's own error arrives; if SQLAlchemy had begun to write, the scope is broken."""

    def refuse(*args: object) -> None:
        raise ValueError("not on my watch")

    factory = sessionmaker(engine)
    event.listen(factory, moment, refuse)
    unit = SqlWords(factory)
    with pytest.raises(ValueError, match="not on my watch"), unit:
        unit.words.add(Word(id=1, said="x"))
        try:
            unit.flush()
        finally:
            state = unit.state
            if broken:
                with pytest.raises(ScopeBroken):
                    unit.words.count()

    assert (State.BROKEN if broken else State.ACTIVE) is state
    assert [] == said(engine)


def test_a_connection_that_commits_by_itself(engine: Engine) -> None:
    """A transaction that was ended through the connection is reported, not taken for the unit's own."""
    with pytest.raises(CommitOutcomeUnknown, match=r"SqlWords \(root\).*no transaction any more"):
        with SqlWords(engine) as unit:
            unit.words.add(Word(id=1, said="x"))
            unit.flush()
            unit.session.connection().commit()
            unit.commit()


@pytest.mark.parametrize("verb", ["commit", "rollback"])
def test_a_transaction_without_a_statement(engine: Engine, verb: str) -> None:
    """A connection that was asked for and not used is given back."""
    with SqlWords(engine) as unit:
        unit.session.connection()
        getattr(unit, verb)()

    assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]


def test_a_constraint_that_is_checked_at_commit(engine: Engine) -> None:
    """What COMMIT refuses is rolled back for certain, and says which constraint it was."""
    unit = SqlWords(engine)
    with pytest.raises(ForeignKeyViolation), unit:
        unit.words.add(Word(id=1, said="x", after=7))
        unit.flush()
        unit.commit()

    assert State.ROLLED_BACK is unit.state
    assert [] == said(engine)
    assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]


class Deaf:
    """A unit's transaction that nobody tells anything."""

    exposed = False

    def failed(self, error: DatabaseError) -> None: ...


def test_the_tag_of_commit_is_looked_at(postgresql_url: URL) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with ROLLBACK and no error; the adapter makes it one."""
    engine = create_engine(postgresql_url)
    backend, deaf = backend_of(engine), Deaf()
    connection = backend.connect(engine, deaf, Options())
    with pytest.raises(DatabaseError, match="nonsense"):
        connection.exec_driver_sql("nonsense")
    with pytest.raises(DatabaseError, match="answered COMMIT with ROLLBACK"):
        backend.commit(connection, connection.get_transaction())
    backend.release(connection)
    engine.dispose()


def test_a_connection_is_given_back_without_its_transaction(postgresql_url: URL) -> None:
    """Whatever was left open on it is rolled back, and the driver has its own mode again."""
    engine = create_engine(postgresql_url)
    Base.metadata.create_all(engine)
    backend = backend_of(engine)
    connection = backend.connect(engine, Deaf(), Options())
    connection.exec_driver_sql("INSERT INTO words VALUES (1, 'lost')")
    backend.release(connection)

    assert [] == said(engine)

    Base.metadata.drop_all(engine)
    engine.dispose()


def test_a_branch_whose_commit_is_cut_off_is_thrown_away(mariadb_url: URL) -> None:
    """The server ends a branch that was not prepared with its connection, and refuses everything else on it."""
    engine = create_engine(mariadb_url)
    backend = backend_of(engine)
    connection = backend.connect(engine, Deaf(), Options())
    backend.join(connection, Branch(f"d-{uuid4().hex}", "stock"))
    number = connection.exec_driver_sql("SELECT connection_id()").scalar_one()
    with engine.connect() as other:
        other.exec_driver_sql(f"KILL {number}")
    with pytest.raises(ConnectionLost):
        backend.commit(connection, connection.get_transaction())

    assert connection.invalidated

    backend.release(connection)
    engine.dispose()


def test_sqlite_in_memory_is_one_database_for_one_unit() -> None:
    """A second unit would share the first one's connection, and so its transaction: it is refused."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with SqlWords(engine) as first:
        first.words.add(Word(id=1, said="x"))
        first.flush()
        with pytest.raises(ConfigurationError, match=r"another unit is at work.*End the other unit first"):
            with SqlWords(engine) as second:
                second.words.count()
        first.commit()

    assert ["x"] == said(engine)

    engine.dispose()


def test_sqlite_gets_the_mode_of_its_driver_back(sqlite_url: URL) -> None:
    """The next user of the pooled connection finds it as the engine made it."""
    engine = create_engine(sqlite_url)
    with engine.connect() as connection:
        before = connection.connection.dbapi_connection.isolation_level  # type: ignore[union-attr]
    with SqlWords(engine) as unit:
        unit.session.execute(text("SELECT 1"))
    with engine.connect() as connection:
        after = connection.connection.dbapi_connection.isolation_level  # type: ignore[union-attr]
    engine.dispose()

    assert before == after


def test_a_version_that_the_mapping_does_not_count(engine: Engine) -> None:
    """An entity with a version needs a mapping that counts it: otherwise updates would be lost in silence."""
    with VersionedWords(engine) as unit, pytest.raises(UnmappedEntity, match=r"version_id_col=table.c.version"):
        unit.versioned.count()


def test_a_repository_that_speaks_sql_belongs_to_sqlalchemy() -> None:
    """On the fake its session is refused, with what to annotate instead."""
    with MixedUp() as unit, pytest.raises(ConfigurationError, match=r"SqlRepository speaks SQL.*port's own class"):
        unit.words.everything()


def test_several_failures_after_a_rollback_all_arrive(engine: Engine) -> None:
    """With no exception on its way the first is raised, and the others are its notes; the connection is back."""
    with pytest.raises(ConnectionLost) as raised:
        with SqlWords(engine) as unit:
            unit.words.add(Word(id=1, said="x"))
            unit.flush()
            unit.after_rollback(lambda: 1 / 0)
            raw: Any = unit.session.connection().connection.dbapi_connection
            raw.close()
            unit.rollback()

    assert any(AfterRollbackFailed.__name__ in note for note in raised.value.__notes__)
    assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]


def test_a_part_of_a_group_is_such_a_group() -> None:
    """What is left of a split group says the same."""
    group = AfterRollbackFailed("failed", [ValueError("a"), KeyError("b")])
    values, rest = group.split(ValueError)

    assert [AfterRollbackFailed] * 2 == [type(values), type(rest)]


def test_a_listener_that_raises_after_commit_whatever_came_before(engine: Engine) -> None:
    """An error that a nested scope survived does not make a durable unit look rolled back."""

    def refuse(session: Session) -> None:
        if not session.in_nested_transaction():
            raise ValueError("no")

    factory = sessionmaker(engine)
    event.listen(factory, "after_commit", refuse)
    unit = SqlWords(factory)
    with pytest.raises(AfterCommitFailed), unit:
        with pytest.raises(DatabaseError), unit.nested():
            unit.session.execute(text("nonsense"))
        with unit.nested():
            unit.words.add(Word(id=1, said="x"))
        unit.commit()

    assert (State.COMMITTED, ["x"]) == (unit.state, said(engine))


def test_a_listener_that_goes_on_after_commit(engine: Engine) -> None:
    """What it sends then is part of nothing, so it is refused, as a session's own commit() does."""
    factory = sessionmaker(engine)
    event.listen(
        factory, "after_commit", lambda session: session.execute(text("INSERT INTO words (id, said) VALUES (2, 'y')"))
    )
    unit = SqlWords(factory)
    with pytest.raises(AfterCommitFailed) as caught, unit:
        unit.words.add(Word(id=1, said="x"))
        unit.commit()

    assert [OutsideUnitOfWork] == [type(error) for error in caught.value.exceptions]
    assert (State.COMMITTED, ["x"]) == (unit.state, said(engine))


def test_a_listener_of_the_engine_that_stops_commit(sqlite_url: URL) -> None:
    """What raises before COMMIT is sent is no failure after it."""
    engine = create_engine(sqlite_url)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    unit = SqlWords(engine)

    def refuse(connection: object) -> None:
        raise ValueError("no")

    event.listen(engine, "commit", refuse)
    with pytest.raises(ValueError, match="no"), unit:
        unit.words.add(Word(id=1, said="x"))
        unit.commit()
    event.remove(engine, "commit", refuse)

    assert (State.ROLLED_BACK, []) == (unit.state, said(engine))

    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
def test_a_listener_that_raises_around_commit(engine: Engine, moment: str) -> None:
    """Before COMMIT it stops the unit; after it the work is durable, and the unit says both."""

    def refuse(session: Session) -> None:
        raise ValueError("no")

    factory = sessionmaker(engine)
    event.listen(factory, moment, refuse)
    unit = SqlWords(factory)
    with pytest.raises((ValueError, AfterCommitFailed)) as raised, unit:
        unit.words.add(Word(id=1, said="x"))
        unit.commit()

    if moment == "before_commit":
        assert isinstance(raised.value, ValueError)
        assert (State.ROLLED_BACK, []) == (unit.state, said(engine))
    else:
        assert isinstance(raised.value, AfterCommitFailed)
        assert (State.COMMITTED, ["x"]) == (unit.state, said(engine))


@pytest.mark.parametrize("word", ["ROLLBACK", "COMMIT"])
def test_a_transaction_ended_by_a_statement(engine: Engine, word: str) -> None:
    """The unit can do nothing more, and neither ends in silence nor says that it committed."""
    unit = SqlWords(engine)
    with pytest.raises(CommitOutcomeUnknown), unit:
        unit.words.add(Word(id=1, said="x"))
        unit.flush()
        unit.session.execute(text(word))
        with pytest.raises(ScopeBroken, match="a statement of its own ended the transaction"):
            unit.words.count()
        unit.commit()

    assert State.IN_DOUBT is unit.state
    assert (["x"] if word == "COMMIT" else []) == said(engine)


def test_a_transaction_ended_by_a_statement_and_left(engine: Engine) -> None:
    """Leaving the block without commit() does not say that the work was rolled back."""
    with pytest.raises(CommitOutcomeUnknown), SqlWords(engine) as unit:
        unit.words.add(Word(id=1, said="x"))
        unit.flush()
        unit.session.execute(text("COMMIT"))

    assert ["x"] == said(engine)


def test_a_shared_connection_is_refused_before_it_is_touched() -> None:
    """A second unit on a pool of one connection harms the first in nothing."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    with SqlWords(engine) as first:
        first.words.add(Word(id=1, said="x"))
        first.flush()
        with pytest.raises(ConfigurationError, match="another unit is at work"), SqlWords(engine) as second:
            second.words.count()
        first.words.add(Word(id=2, said="y"))
        first.commit()

    assert ["x", "y"] == said(engine)

    engine.dispose()


def test_sqlite_with_a_begin_of_the_user_s_own(sqlite_url: URL) -> None:
    """With the documented recipe too, what COMMIT refuses is rolled back, and the connection is free."""
    engine = create_engine(sqlite_url)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with pytest.raises(ForeignKeyViolation), SqlWords(engine) as unit:
        unit.words.add(Word(id=1, said="x", after=7))
        unit.commit()

    assert [] == said(engine)
    assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]

    Base.metadata.drop_all(engine)
    engine.dispose()


def test_leaving_waits_for_the_operation_of_another_thread(engine: Engine) -> None:
    """With handoff, a block that an exception leaves meanwhile is rolled back, and the exception arrives."""
    inside, go_on = threading.Event(), threading.Event()
    unit = SqlWords(engine, handoff=True)

    def slowly() -> None:
        inside.set()
        go_on.wait(10)

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError, match="original"):
        with unit:
            unit.words.add(Word(id=1, said="x"))
            context = unit._context
            assert context is not None
            pool.submit(context.run, "work", slowly)
            inside.wait(10)
            pool_two = threading.Timer(0.05, go_on.set)
            pool_two.start()
            raise KeyError("original")

    assert State.ROLLED_BACK is unit.state
    assert [] == said(engine)


def test_a_transaction_ended_on_the_connection_and_begun_again(engine: Engine) -> None:
    """What a statement on the connection ended and another one began is no transaction of the unit."""
    with pytest.raises(CommitOutcomeUnknown), SqlWords(engine) as unit:
        unit.words.add(Word(id=1, said="x"))
        unit.flush()
        connection = unit.session.connection()
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("SELECT 1")
        unit.rollback()

    assert [] == said(engine)
