"""A platform for as long as a demo lasts, and a clock for its steps."""

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from deploy.local.stack import Stack


@dataclass
class Times:
    """How long each step took, in seconds, in order."""

    steps: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Measures one step."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.steps[step] = round(time.monotonic() - begin, 2)

    @property
    def total(self) -> float:
        """All steps together."""
        return round(sum(self.steps.values()), 2)

    def __str__(self) -> str:
        """For people, in rich's markup."""
        steps = " · ".join(f"{step} {seconds:.1f} s" for step, seconds in self.steps.items())
        return f"{steps} · [bold]all together {self.total:.1f} s[/]"


@contextmanager
def data_folder(given: Path | None) -> Iterator[Path]:
    """The given folder, or a temporary one, which stays only if there is an error to look into."""
    if given is not None:
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="trivium-demo-"))
    try:
        yield folder
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


@contextmanager
def running_stack(
    folder: Path, console: Console, times: Times, replicas: Mapping[str, int] | None = None
) -> Iterator[str]:
    """The URL of a platform that runs in `folder` as long as the context lasts; `replicas` as the Stack takes them."""
    console.print("Starting Postgres, Redis, S3, gateway, dispatcher and a worker for each pool …")
    stack = Stack(folder, replicas=replicas)
    with times.of("start"):
        stack.start()
    try:
        with times.of("gateway"):
            stack.wait_ready()
        console.print(f"The gateway answers at {stack.gateway_url}; data and logs are in {folder}.")
        yield stack.gateway_url
    finally:
        with times.of("stop"):
            stack.stop()


def wait_for_interrupt(url: str, console: Console) -> None:
    """Until Ctrl-C; says how the stack is reached meanwhile."""
    console.print(f"The stack runs on at {url}: [bold]export TRIVIUM_URL={url}[/] and try [bold]trivium jobs[/].")
    console.print("Ctrl-C stops it.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print()
