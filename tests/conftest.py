"""Fixtures that all tests share: one thread; real servers, started once; a fresh database and bucket for a module."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest

from deploy.local.servers import Servers
from shared.db import Sessions, make_engine, make_sessions
from shared.ids import new_id
from shared.migrations.upgrade import upgrade
from shared.settings import Settings, load_settings
from shared.storage.objects import ObjectStore, make_store

# The same examples everywhere, and no deadline: a busy machine is no fault of the code.
hypothesis.settings.register_profile("trivium", deadline=None, derandomize=True)
hypothesis.settings.load_profile("trivium")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes in one thread: small models, and threads that wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The embedded servers, without fsync."""
    with Servers(tmp_path_factory.mktemp("servers"), durable=False) as running:
        yield running


@pytest.fixture(scope="module")
def environment(servers: Servers) -> Iterator[dict[str, str]]:
    """`TRIVIUM_*` variables of a fresh, migrated database and a fresh bucket, for services started as processes."""
    name = "t" + new_id("x")[-12:]
    url = servers.environment["TRIVIUM_DATABASE_URL"]
    plain = url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    variables = {
        **servers.environment,
        "TRIVIUM_DATABASE_URL": re.sub(r"/[^/]*$", f"/{name}", url),
        "TRIVIUM_S3_BUCKET": name,
    }
    engine = make_engine(variables["TRIVIUM_DATABASE_URL"])
    upgrade(engine)
    engine.dispose()
    yield variables
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def settings(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings that point at the module's database and bucket, in development mode."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TRIVIUM_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir(tmp_path_factory.mktemp("empty"))
        yield load_settings()


@pytest.fixture(scope="module")
def sessions(settings: Settings) -> Iterator[Sessions]:
    """Sessions on the module's database."""
    engine = make_engine(settings.database_url.get_secret_value(), pool_size=10)
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture(scope="module")
def store(settings: Settings) -> ObjectStore:
    """The module's bucket."""
    bucket = make_store(settings)
    bucket.ensure_bucket()
    return bucket


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).parents[1]
