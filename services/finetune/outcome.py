"""What a fine_tune job leaves."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """`files`: the model, its card, plots, logs. `metrics`: what is shown of it. `spec`: what prediction must know.

    `kind`: what the registry says that it is; None: what the method is called.
    """

    files: dict[str, bytes]
    metrics: dict[str, Any]
    spec: dict[str, Any]
    kind: str | None = None
