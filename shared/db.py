"""Postgres: engines and sessions. One engine per process, built by its entry point."""

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

Sessions = sessionmaker[Session]


class Base(DeclarativeBase):
    """Base of all tables."""


def make_engine(url: str, *, pool_size: int = 5, application: str = "trivium") -> Engine:
    """An engine whose connections notice a dead server within seconds and never wait for ever."""
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,  # statements' values are users' data and have no place in logs
        pool_timeout=10,
        connect_args={
            "application_name": application,
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,  # keepalives are not sent while a statement waits to be acknowledged
            # A process that is frozen within a transaction holds its locks, and up its whole queue, for this long.
            "options": "-c statement_timeout=60000 -c lock_timeout=20000 -c idle_in_transaction_session_timeout=15000",
        },
    )


def make_sessions(engine: Engine) -> Sessions:
    """A factory of sessions; `with sessions.begin() as session:` is one transaction."""
    return sessionmaker(engine, expire_on_commit=False)


def is_outage(error: BaseException) -> bool:
    """True when Postgres is away (restart, network), as opposed to a fault of the statement."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OperationalError | InterfaceError)
