"""Numbers as JSON has them."""

import math
from typing import Any


def as_json(value: Any) -> Any:
    """With null for what is no number, since JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: as_json(entry) for key, entry in value.items()}
    return [as_json(entry) for entry in value] if isinstance(value, list | tuple) else value
