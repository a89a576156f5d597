"""How far an upload or download is, on stderr, if that is a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from services.client.uploads import OnBytes


@contextmanager
def upload_bar(console: Console) -> Iterator[OnBytes]:
    """A bar that appears with the first bytes; what it yields is told how far the upload is."""
    columns = (TextColumn("upload "), BarColumn(bar_width=32), DownloadColumn(), TransferSpeedColumn())
    with _bar(console, *columns, TimeRemainingColumn()) as on_bytes:
        yield on_bytes


@contextmanager
def download_bar(console: Console) -> Iterator[OnBytes]:
    """Of a download, whose size may not be known."""
    with _bar(console, SpinnerColumn(), TextColumn("download"), DownloadColumn(), TransferSpeedColumn()) as on_bytes:
        yield on_bytes


@contextmanager
def _bar(console: Console, *columns: ProgressColumn) -> Iterator[OnBytes]:
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    bar = progress.add_task("", total=None, visible=False)

    def on_bytes(done: int, total: int | None) -> None:
        progress.update(bar, completed=done, total=total, visible=True)

    with progress:
        yield on_bytes
