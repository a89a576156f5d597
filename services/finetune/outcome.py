"""What a fine_tune job leaves."""

import math
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


def as_json(value: Any) -> Any:
    """With null for what is no number, since JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: as_json(entry) for key, entry in value.items()}
    return [as_json(entry) for entry in value] if isinstance(value, list | tuple) else value
