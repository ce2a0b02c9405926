"""
The bank as a web service, with FastAPI.

A path function does its work with ``bank.run()``, which commits, and tries again after a transient error. So the
response is sent when the work is durable, and tells if it is not. What a dependency does behind its ``yield`` would
come too late for that: FastAPI runs it when the response was sent.

The paths are there twice, over the same services: as functions, which FastAPI runs in threads, and as coroutines.
"""

import logging
from typing import Annotated

from dependency_injector.ext.starlette import Lifespan
from dependency_injector.wiring import Provide, inject
from fastapi import APIRouter, Depends, FastAPI, Path, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from uow.errors import (
    AfterCommitFailed,
    CommitOutcomeUnknown,
    ConnectionLost,
    ConnectionUnavailable,
    DatabaseError,
    EntityNotFound,
    IntegrityViolation,
    StatementTimeout,
    UnitOfWorkError,
    UnitOfWorkRolledBack,
)

from .adapters import make_tables, with_driver
from .container import AsyncContainer, Container
from .domain import BankError
from .port import AsyncBank, Bank
from .teller import Teller

__all__ = [
    "Balance",
    "NewAccount",
    "NewTransfer",
    "create_app",
    "create_async_app",
    "open_account",
    "open_account_async",
    "read_balance",
    "read_balance_async",
    "serve",
    "show_failure",
    "show_refusal",
    "transfer_money",
    "transfer_money_async",
]

_log = logging.getLogger(__name__)

_NAME = r"^[\w.-]{1,40}$"
Name = Annotated[str, Field(pattern=_NAME)]
PathName = Annotated[str, Path(pattern=_NAME)]


class NewAccount(BaseModel):
    """
    An account to open.
    """

    number: Name


class NewTransfer(BaseModel):
    """
    Money to move, in cents; without a *source* it is paid in.
    """

    reference: Name
    source: Name | None = None
    target: Name
    amount: Annotated[int, Field(gt=0, lt=10**14)]


class Balance(BaseModel):
    """
    What an account holds, in cents.
    """

    number: str
    balance: int


# ------------------------------------------------------------------------------------------------ the paths, in threads

router = APIRouter()
TheBank = Annotated[Bank, Depends(Provide[Container.bank])]
TheTeller = Annotated[Teller, Depends(Provide[Container.teller])]


@router.post("/accounts", status_code=201)
@inject
def open_account(new: NewAccount, bank: TheBank, teller: TheTeller) -> Balance:
    """Open an account."""
    account = bank.run(teller.open_account, new.number)
    return Balance(number=account.number, balance=account.balance)


@router.post("/transfers", status_code=201)
@inject
def transfer_money(new: NewTransfer, bank: TheBank, teller: TheTeller) -> NewTransfer:
    """Move money. Who gets no answer sends the same reference again: it is never moved twice."""
    bank.run(teller.transfer, new.reference, new.source, new.target, new.amount)
    return new


@router.get("/accounts/{number}")
@inject
def read_balance(number: PathName, bank: TheBank, teller: TheTeller) -> Balance:
    """Read what an account holds."""
    return Balance(number=number, balance=bank.run(teller.balance, number))


# --------------------------------------------------------------------------------------------------- the paths, awaited

async_router = APIRouter()
TheAsyncBank = Annotated[AsyncBank, Depends(Provide[AsyncContainer.bank])]
TheAsyncTeller = Annotated[Teller, Depends(Provide[AsyncContainer.teller])]


@async_router.post("/accounts", status_code=201)
@inject
async def open_account_async(new: NewAccount, bank: TheAsyncBank, teller: TheAsyncTeller) -> Balance:
    """Open an account."""
    account = await bank.run(teller.open_account, new.number)
    return Balance(number=account.number, balance=account.balance)


@async_router.post("/transfers", status_code=201)
@inject
async def transfer_money_async(new: NewTransfer, bank: TheAsyncBank, teller: TheAsyncTeller) -> NewTransfer:
    """Move money. Who gets no answer sends the same reference again: it is never moved twice."""
    await bank.run(teller.transfer, new.reference, new.source, new.target, new.amount)
    return new


@async_router.get("/accounts/{number}")
@inject
async def read_balance_async(number: PathName, bank: TheAsyncBank, teller: TheAsyncTeller) -> Balance:
    """Read what an account holds."""
    return Balance(number=number, balance=await bank.run(teller.balance, number))


# ---------------------------------------------------------------------------------------------------------- what failed


def show_refusal(request: Request, error: Exception) -> JSONResponse:
    """Tell that the bank refused."""
    return _problem(422, "Refused", str(error))


def show_failure(request: Request, error: Exception) -> JSONResponse:
    """
    Tell what became of the work; what the database said stays inside, for it quotes data.

    A constraint, and what may go well another time, is a matter of the client. All else is a fault of this server.
    """
    match error.__cause__ if isinstance(error, UnitOfWorkRolledBack) else error:
        case EntityNotFound() as missing:
            return _problem(404, "Not found", f"There is no {missing.entity.__name__} {missing.key!r}.")
        case CommitOutcomeUnknown():
            return _problem(503, "Outcome unknown", "The work may be done or not. Read before you send it again.")
        case (ConnectionLost() | ConnectionUnavailable() | StatementTimeout()) as failure:
            return _problem(503, "Unavailable", f"{failure.headline}; nothing was done. Try again later.")
        case AfterCommitFailed() as failed:
            _log.error("what follows a commit failed", exc_info=failed)
            return _problem(500, "Done", "The work is done, but what follows it failed. Do not send it again.")
        case (IntegrityViolation() | DatabaseError(transient=True)) as failure:
            return _problem(409, "Conflict", f"{failure.headline}; nothing was done.")
        case _:
            raise error


def _problem(status: int, title: str, detail: str) -> JSONResponse:
    """Make a problem of RFC 9457."""
    content = {"title": title, "status": status, "detail": detail}
    return JSONResponse(content, status, media_type="application/problem+json")


# ------------------------------------------------------------------------------------------------------ the application


def create_app(container: Container) -> FastAPI:
    """
    Make the application on what *container* provides; its resources live as long as the server runs.
    """
    return _assemble(container, router)


def create_async_app(container: AsyncContainer) -> FastAPI:
    """
    Make the application whose paths are awaited.
    """
    return _assemble(container, async_router)


def serve() -> FastAPI:
    """
    Make the application for ``uvicorn --factory uow.examples.bank.web:serve``, on the database of ``DATABASE_URL``.
    """
    container = Container()
    container.config.database_url.from_env("DATABASE_URL", "sqlite:///bank.db", as_=with_driver)
    make_tables(container.engine())
    return create_app(container)


def _assemble(container: Container | AsyncContainer, paths: APIRouter) -> FastAPI:
    container.wire(modules=[__name__])
    app = FastAPI(title="Bank", lifespan=Lifespan(container))
    app.include_router(paths)
    app.add_exception_handler(BankError, show_refusal)
    app.add_exception_handler(UnitOfWorkError, show_failure)
    return app
