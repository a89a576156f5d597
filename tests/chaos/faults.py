"""The faults: each does its harm, waits, makes it good again, and returns how often it did it."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import redis

from deploy.local.process import Process, StartError
from tests.chaos.points import POINTS, SERVICES, file_of, points_of
from tests.chaos.stack import DISKS, REPLICAS, ChaosStack, keeper_of, send
from tests.chaos.watch import Held, Watch
from tests.chaos.workload import Workload

#: A lease of 30 s, renewed at any moment before the freeze, and the sweep.
PAST_THE_LEASE = 36.0


@dataclass
class Ground:
    """Where faults are done."""

    stack: ChaosStack
    watch: Watch
    workload: Workload
    stopping: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float) -> None:
        """Sleeps, but not past the end of the attack."""
        self.stopping.wait(seconds)


#: Returns how many times it was done.
Fault = Callable[[Ground, random.Random], int]


def busy_worker(ground: Ground, choice: random.Random, seconds: float = 6.0) -> tuple[Process, list[Held]] | None:
    """A worker that holds a lease just now, if one does within `seconds`.

    Not one that tries an item on which another died already: a second death would condemn that item, rightly.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not ground.stopping.is_set():
        workers = [worker for worker in ground.stack.workers() if worker.running]
        for worker in choice.sample(workers, len(workers)):
            held = ground.watch.held_by(worker.pid)
            if held and not ground.watch.struck_items(worker.pid):
                return worker, held
        time.sleep(0.05)
    return None


def kill_worker(ground: Ground, choice: random.Random, *, with_keeper: bool) -> int:
    """SIGKILL to a busy worker; with its keeper nobody gives the leases up, as when a machine is lost."""
    found = busy_worker(ground, choice)
    if found is None:
        return 0
    time.sleep(choice.uniform(0, 0.1))
    return _kill(ground, found[0], with_keeper=with_keeper, alone=False)


def kill_alone(ground: Ground, choice: random.Random, *, with_keeper: bool) -> int:
    """A busy worker of each pool is killed; nothing else is done until their shards are in other hands."""
    found = busy_worker(ground, choice)
    if found is None:
        return 0
    pools = [pool for pool in REPLICAS if not found[0].name.startswith(pool)]
    others = [choice.choice(ground.stack.workers(pool)) for pool in pools]
    victims = [found[0], *(worker for worker in others if worker.running and ground.watch.held_by(worker.pid))]
    killed = sum(_kill(ground, victim, with_keeper=with_keeper, alone=True) for victim in victims)
    deadline = time.monotonic() + 2 * PAST_THE_LEASE
    while ground.watch.waiting() and time.monotonic() < deadline:  # past the end of the attack too
        time.sleep(0.1)
    ground.stack.wait_all_workers()
    return killed


def _kill(ground: Ground, worker: Process, *, with_keeper: bool, alone: bool) -> int:
    pid = worker.pid
    send(pid, signal.SIGSTOP)  # it would start another keeper; and what it holds now is what it dies with
    held = ground.watch.held_by(pid)
    if with_keeper:
        send(keeper_of(pid), signal.SIGKILL)
    if not send(pid, signal.SIGKILL):
        return 0
    ground.watch.died("kill -9: worker and keeper" if with_keeper else "kill -9: worker", held, alone=alone)
    return 1


def kill_keeper(ground: Ground, choice: random.Random) -> int:
    """SIGKILL to a keeper: its worker starts another."""
    found = busy_worker(ground, choice)
    return found is not None and send(keeper_of(found[0].pid), signal.SIGKILL)


def kill_service(ground: Ground, choice: random.Random, *, name: str) -> int:
    """SIGKILL to the gateway or the dispatcher."""
    process = ground.stack.services[name]
    return process.running and send(process.pid, signal.SIGKILL)


def drain_worker(ground: Ground, choice: random.Random) -> int:
    """SIGTERM to a busy worker, as in a rolling upgrade; another takes its place."""
    found = busy_worker(ground, choice)
    return found is not None and send(found[0].pid, signal.SIGTERM)


def crash_at(ground: Ground, choice: random.Random, *, point: str, services: Sequence[str]) -> int:
    """Whoever comes to this point next, in one of the services, dies there."""
    armed = file_of(ground.stack.points, point, choice.choice(services))
    armed.touch()
    deadline = time.monotonic() + 20.0
    while armed.exists() and time.monotonic() < deadline and not ground.stopping.is_set():
        time.sleep(0.05)
    return _disarmed(armed)


def _disarmed(file: Path) -> bool:
    """Removes what is still armed; True if somebody took it, and died."""
    try:
        file.unlink()
    except FileNotFoundError:
        return True
    return False


def freeze_worker(ground: Ground, choice: random.Random, *, with_keeper: bool) -> int:
    """SIGSTOP to a busy worker until it has lost its leases, then SIGCONT: what it does then must count for nothing."""
    found = busy_worker(ground, choice)
    if found is None:
        return False
    worker, _ = found
    pids = [worker.pid, keeper_of(worker.pid) if with_keeper else None]
    frozen = [pid for pid in pids if send(pid, signal.SIGSTOP)]
    held = ground.watch.held_by(worker.pid)
    try:
        ground.wait(PAST_THE_LEASE)
        ground.watch.froze(held)
    finally:
        for pid in frozen:
            send(pid, signal.SIGCONT)
    return bool(frozen)


def restart_postgres(ground: Ground, choice: random.Random) -> int:
    """`-m immediate`: every session is dropped, and Postgres goes through its recovery."""
    ground.stack.servers.postgres.send_signal(signal.SIGQUIT)
    return True


def kill_redis(ground: Ground, choice: random.Random) -> int:
    """SIGKILL: the supervisor starts it again, empty."""
    ground.stack.servers.redis.send_signal(signal.SIGKILL)
    return True


def flush_redis(ground: Ground, choice: random.Random) -> int:
    """FLUSHALL: every hint is gone."""
    try:
        with redis.Redis.from_url(ground.stack.servers.redis.url()) as client:
            client.flushall()
    except redis.RedisError:
        return False
    return True


def without_redis(ground: Ground, choice: random.Random) -> int:
    """Redis is off until a job that began without it has ended (or half a minute is over)."""
    server = ground.stack.servers.redis
    server.kill()
    began = time.monotonic()
    try:
        while not ground.stopping.is_set() and time.monotonic() < began + 30:
            if any(run.began > began and run.ended for run in list(ground.workload.runs)):
                return True
            time.sleep(0.2)
    finally:
        start(server)
    return False


def stop_s3(ground: Ground, choice: random.Random) -> int:
    """Object storage is killed and comes back after some seconds."""
    server = ground.stack.servers.s3
    server.kill()
    try:
        ground.wait(choice.uniform(0.5, 8))
    finally:
        start(server)
    return True


def freeze_s3(ground: Ground, choice: random.Random) -> int:
    """SIGSTOP: object storage takes connections and says nothing."""
    server = ground.stack.servers.s3
    server.send_signal(signal.SIGSTOP)
    try:
        ground.wait(choice.uniform(2, 15))
    finally:
        server.send_signal(signal.SIGCONT)
    return True


def fill_disk(ground: Ground, choice: random.Random, *, name: str) -> int:
    """A file system is full for some seconds: object storage's, Postgres's, or that of temporary files."""
    disk = ground.stack.disks.get(name)
    if disk is None:
        return False
    ballast = disk / "ballast"
    try:
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            free = os.statvfs(disk)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
            while True:
                file.write(b"\0" * 4096)
        ground.wait(choice.uniform(3, 8))
    finally:
        ballast.unlink(missing_ok=True)
    return True


def cut_connections(ground: Ground, choice: random.Random, *, server: str) -> int:
    """RST on every connection."""
    return ground.stack.proxies[server].cut() > 0


def delay(ground: Ground, choice: random.Random, *, server: str) -> int:
    """Every packet takes longer."""
    proxy = ground.stack.proxies[server]
    proxy.delay = choice.uniform(0.05, 0.5)
    try:
        ground.wait(choice.uniform(2, 6))
    finally:
        proxy.delay = 0.0
    return True


def half_open(ground: Ground, choice: random.Random, *, server: str) -> int:
    """Connections carry nothing for a while, and those of that time never will again.

    Those to Postgres are cut at the end: its client notices a silent peer by TCP alone, which this proxy acknowledges.
    """
    proxy = ground.stack.proxies[server]
    proxy.silence()
    try:
        ground.wait(choice.uniform(2, 12))
    finally:
        proxy.speak()
        if server == "postgres":
            proxy.heal()
    return True


def cut_after(ground: Ground, choice: random.Random, *, server: str) -> int:
    """Three times, the connection that carries the n-th byte from now on is cut in the middle of its packet."""
    proxy = ground.stack.proxies[server]
    hits = 0
    for _ in range(3):
        proxy.budget = choice.randint(1, 20_000)
        deadline = time.monotonic() + 2
        while proxy.budget is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        hits += proxy.budget is None
        proxy.budget = None
    return hits


def start(server: Process) -> None:
    """Starts a server, however long that takes on a busy machine."""
    while True:
        try:
            server.start(timeout=60)
            return
        except StartError:
            time.sleep(1)


PROCESSES: dict[str, Fault] = {
    "kill -9: worker": partial(kill_worker, with_keeper=False),
    "kill -9: worker and keeper": partial(kill_worker, with_keeper=True),
    "kill -9: keeper": kill_keeper,
    "kill -9: dispatcher": partial(kill_service, name="dispatcher"),
    "kill -9: gateway": partial(kill_service, name="gateway"),
    "SIGTERM: worker": drain_worker,
    **{f"crash: {point}": partial(crash_at, point=point, services=services) for point, services in POINTS.items()},
}
SERVERS: dict[str, Fault] = {
    "postgres: restart immediate": restart_postgres,
    "redis: kill -9": kill_redis,
    "redis: FLUSHALL": flush_redis,
    "redis: off for a whole job": without_redis,
    "s3: stopped": stop_s3,
    "s3: frozen": freeze_s3,
    **{f"{name}: disk full": partial(fill_disk, name=name) for name in DISKS},
}
NETWORK: dict[str, Fault] = {
    f"{server}: {words}": partial(fault, server=server)
    for server in ("postgres", "redis", "s3")
    for words, fault in {
        "connections cut": cut_connections,
        "connections delayed": delay,
        "connections half-open": half_open,
        "connections cut after n bytes": cut_after,
    }.items()
}
FREEZES: dict[str, Fault] = {
    "SIGSTOP: worker": partial(freeze_worker, with_keeper=False),
    "SIGSTOP: worker and keeper": partial(freeze_worker, with_keeper=True),
}
#: Kills with nothing else about: what the recovery time is promised for.
ALONE: dict[str, Fault] = {
    "kill -9: worker": partial(kill_alone, with_keeper=False),
    "kill -9: worker and keeper": partial(kill_alone, with_keeper=True),
}

#: What goes on at the same time, with the pause between two faults, in seconds: in every service, its points in turn.
CRASHES: Mapping[str, tuple[Mapping[str, Fault], tuple[float, float]]] = {
    service: (
        {f"crash: {point}": partial(crash_at, point=point, services=[service]) for point in points_of(service)},
        (0.5, 1.0),
    )
    for service in SERVICES
}

#: The same, with all faults at once.
LANES: Mapping[str, tuple[Mapping[str, Fault], tuple[float, float]]] = {
    "processes": (PROCESSES, (2.0, 6.0)),
    "servers": (SERVERS, (3.0, 8.0)),
    "network": (NETWORK, (1.0, 5.0)),
    "freezes": (FREEZES, (1.0, 5.0)),
}
