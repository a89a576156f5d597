"""The embedded Postgres, Redis and S3, as they really run."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import psutil
import psycopg
import pytest
import redis
from minio import Minio
from minio.error import S3Error
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local.process import StartError
from deploy.local.s3 import PORT_OFFSETS
from deploy.local.servers import Servers
from deploy.local.stack import Stack

MIB = 1024**2


def connect(servers: Servers, database: str = "trivium") -> psycopg.Connection:
    url = servers.postgres.url(database).replace("postgresql+psycopg://", "postgresql://")
    return psycopg.connect(url, autocommit=True)


def redis_client(servers: Servers) -> redis.Redis:
    return redis.Redis.from_url(servers.redis.url())


def put(client: Minio, key: str, content: bytes) -> None:
    client.put_object("trivium", key, io.BytesIO(content), len(content))


def get(client: Minio, key: str, offset: int = 0, length: int = 0) -> bytes:
    with client.get_object("trivium", key, offset=offset, length=length) as answer:
        return answer.read()


def ports(servers: Servers) -> set[int]:
    return {servers.postgres.port, servers.redis.port, *(servers.s3.port + offset for offset in PORT_OFFSETS)}


def family(servers: Servers) -> list[psutil.Process]:
    """The servers' processes and all that they started."""
    heads = [psutil.Process(server.pid) for server in (servers.postgres, servers.redis, servers.s3)]
    return [*heads, *(child for head in heads for child in head.children(recursive=True))]


def listening(servers: Servers) -> set[tuple[str, int]]:
    """The addresses and ports on which the servers listen."""
    found = set()
    for process in family(servers):
        with suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            found |= {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Stack.servers_only(tmp_path_factory.mktemp("data"), durable=False) as running:
        yield running


@pytest.fixture
def s3(servers: Servers) -> Minio:
    return servers.s3.client()


def test_an_empty_stack_is_small(tmp_path: Path) -> None:
    with Stack.servers_only(tmp_path):
        size = sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("*"))
    assert size < 64 * MIB


def test_all_listen_on_loopback_only(servers: Servers) -> None:
    eventually(lambda: ports(servers) <= {port for _, port in listening(servers)})
    assert listening(servers) == {("127.0.0.1", port) for port in ports(servers)}


def test_secrets_are_not_on_command_lines_nor_readable_by_others(servers: Servers) -> None:
    secrets = json.loads((servers.folder.path / "secrets.json").read_text()).values()
    commands = " ".join(" ".join(process.cmdline()) for process in family(servers))
    assert not any(secret in commands for secret in secrets)
    assert servers.folder.path.stat().st_mode & 0o077 == 0
    assert (servers.folder.path / "secrets.json").stat().st_mode & 0o077 == 0


def test_postgres_has_pgvector(servers: Servers) -> None:
    servers.postgres.create_database("vectors")
    servers.postgres.create_database("vectors")
    with connect(servers, "vectors") as connection:
        connection.execute("CREATE EXTENSION vector")
        distance = connection.execute("SELECT '[1,2]'::vector <-> '[4,6]'::vector").fetchone()
        assert distance == (5.0,)
        assert connection.execute("SELECT lower('ÄÖ')").fetchone() == ("äö",)
        assert connection.execute("SHOW server_version_num").fetchone() >= ("180000",)  # type: ignore[operator]


@pytest.mark.parametrize("password", ["", "wrong"])
def test_postgres_and_redis_want_their_password(servers: Servers, password: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host="127.0.0.1", port=servers.postgres.port, user="trivium", password=password)
    once = Retry(NoBackoff(), retries=0)
    client = redis.Redis(port=servers.redis.port, password=password or None, retry=once)
    with client, pytest.raises(redis.AuthenticationError):
        client.get("key")


def test_s3_wants_its_key(servers: Servers) -> None:
    stranger = Minio(servers.s3.endpoint.removeprefix("http://"), "someone", "something", secure=False)
    with pytest.raises(S3Error, match="InvalidAccessKeyId"):
        stranger.list_buckets()


def test_s3_puts_gets_lists_and_deletes(s3: Minio) -> None:
    put(s3, "a/one", b"0123456789")
    put(s3, "a/two", b"")
    assert get(s3, "a/one") == b"0123456789"
    assert get(s3, "a/one", offset=2, length=3) == b"234"
    assert [entry.object_name for entry in s3.list_objects("trivium", "a/", recursive=True)] == ["a/one", "a/two"]
    s3.remove_object("trivium", "a/one")
    with pytest.raises(S3Error, match="NoSuchKey"):
        get(s3, "a/one")


def test_s3_refuses_to_overwrite_when_asked(s3: Minio) -> None:
    headers = {"If-None-Match": "*"}
    s3._put_object("trivium", "once", b"first", headers=headers)
    with pytest.raises(S3Error) as refused:
        s3._put_object("trivium", "once", b"second", headers=headers)
    assert refused.value.response.status == 412
    assert get(s3, "once") == b"first"


def test_s3_links_work_without_keys(s3: Minio) -> None:
    put(s3, "linked", b"for everyone who has the link")
    with urlopen(s3.presigned_get_object("trivium", "linked")) as answer:
        assert answer.read() == b"for everyone who has the link"


def test_s3_takes_streams_of_unknown_length(s3: Minio) -> None:
    content = os.urandom(20 * MIB)
    s3.put_object("trivium", "stream", io.BytesIO(content), length=-1, part_size=5 * MIB)
    assert get(s3, "stream") == content
    assert s3.stat_object("trivium", "stream").size == len(content)


def test_the_parts_behind_s3_serve_no_strangers(servers: Servers, s3: Minio) -> None:
    put(s3, "private", b"secret")
    filer = servers.s3.port + 3
    with pytest.raises(OSError, match="HTTP Error 401"):
        urlopen(f"http://127.0.0.1:{filer}/buckets/trivium/private")


def test_each_server_recovers_from_a_kill_on_the_same_port(servers: Servers, s3: Minio) -> None:
    put(s3, "kept", b"across a kill")
    with connect(servers) as connection:
        connection.execute("CREATE TABLE kept (value int)")
        connection.execute("INSERT INTO kept VALUES (42)")
        for server in (servers.postgres, servers.redis, servers.s3):
            server.kill()
            assert not server.healthy()
            server.start()
            assert server.healthy()
    with connect(servers) as again:
        assert again.execute("SELECT value FROM kept").fetchone() == (42,)
    with redis_client(servers) as client:
        assert client.ping()
    assert get(s3, "kept") == b"across a kill"
    put(s3, "new", b"writable at once")


def test_a_server_that_crashes_comes_back_by_itself(servers: Servers) -> None:
    before = servers.redis.pid
    os.kill(before, signal.SIGKILL)
    eventually(lambda: servers.redis.pid != before and servers.redis.healthy())


def test_two_stacks_run_side_by_side(servers: Servers, tmp_path: Path) -> None:
    with Stack.servers_only(tmp_path, durable=False) as other:
        assert servers.postgres.healthy()
        assert other.postgres.healthy()
        assert not ports(servers) & ports(other)
        with redis_client(other) as theirs, redis_client(servers) as ours:
            theirs.set("whose", "theirs")
            assert ours.get("whose") is None
        put(other.s3.client(), "whose", b"theirs")
        with pytest.raises(S3Error):
            get(servers.s3.client(), "whose")
    assert servers.s3.healthy()


def test_a_folder_takes_one_stack_only(servers: Servers) -> None:
    with pytest.raises(StartError, match=f"another stack .*{os.getpid()}.* runs in"):
        Stack.servers_only(servers.folder.path)


def test_a_second_run_keeps_data_secrets_and_ports(tmp_path: Path) -> None:
    with Stack.servers_only(tmp_path, durable=False) as first:
        environment = first.environment
        put(first.s3.client(), "kept", b"from run to run")
    with Stack.servers_only(tmp_path, durable=False) as second:
        assert second.environment == environment
        assert get(second.s3.client(), "kept") == b"from run to run"


def test_s3_keeps_its_objects_when_its_port_changes(tmp_path: Path) -> None:
    with Stack.servers_only(tmp_path, durable=False) as first:
        put(first.s3.client(), "kept", b"on any port")
    (tmp_path / "ports.json").unlink()
    with Stack.servers_only(tmp_path, durable=False) as second:
        assert second.s3.port != first.s3.port
        assert get(second.s3.client(), "kept") == b"on any port"
        put(second.s3.client(), "more", b"writable")


RUN = """
import sys
from deploy.local.stack import Stack

with Stack.servers_only(sys.argv[1], durable=False) as servers:
    print(servers.postgres.pid, servers.postgres.healthy(), servers.s3.healthy(), flush=True)
    sys.stdin.read()
"""


def test_a_killed_supervisor_leaves_nothing_and_the_next_one_carries_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().endswith("True True\n")
        descendants = psutil.Process(holder.pid).children(recursive=True)
        holder.kill()
    with Stack.servers_only(tmp_path, durable=False) as servers:  # waits for the lock, which goes with the last of them
        _, left = psutil.wait_procs(descendants, timeout=0.0)
        assert all(process.status() == psutil.STATUS_ZOMBIE for process in left)
        assert servers.postgres.healthy()


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test runs as an ordinary user already")
def test_servers_run_as_an_ordinary_user() -> None:
    as_nobody = [
        *("setpriv", "--reuid=nobody", "--clear-groups", "--securebits=+no_setuid_fixup"),
        *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),  # Python may live below /root
    ]
    folder = Path(tempfile.mkdtemp())
    try:
        shutil.chown(folder, "nobody")
        command = [*as_nobody, sys.executable, "-c", RUN, str(folder / "data")]
        done = subprocess.run(command, input="", capture_output=True, text=True, timeout=60.0, check=False)
        assert done.stdout.endswith("True True\n"), done.stderr
        assert (folder / "data" / "s3").owner() == "nobody"
    finally:
        shutil.rmtree(folder)
