"""What training tells the outside, and what it asks of it."""

from typing import Any, Protocol


class Progress(Protocol):
    """The outside of a training run: signals to stop, events, checkpoints."""

    def check(self) -> None:
        """Raises what should stop the run. Called at least once a batch."""
        ...

    def report(self, kind: str, **facts: Any) -> None:
        """Something happened: `split`, `warning`, `epoch`, `trial`, `model`, `step`, each with small JSON facts."""
        ...

    def save(self, name: str, state: bytes) -> None:
        """Keeps a checkpoint under `name`, instead of the one before."""
        ...

    def restore(self, name: str) -> bytes | None:
        """What was saved last under `name`, by this run or by one that was stopped; None if nothing was."""
        ...


class Silence:
    """Nobody listens, nothing is kept."""

    def check(self) -> None:
        """Never stops."""

    def report(self, kind: str, **facts: Any) -> None:
        """Forgets."""

    def save(self, name: str, state: bytes) -> None:
        """Forgets."""

    def restore(self, name: str) -> bytes | None:  # noqa: ARG002
        """Nothing."""
        return None
