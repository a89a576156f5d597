"""What `make learn` prints: one JSON object a line."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Result:
    """A figure with its 95 % interval, `low` to `high`, from `n` units: items, or rounds of training and testing."""

    name: str
    metric: str
    value: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Of a difference: whether its interval leaves no doubt who is better."""
        return self.low > 0 or self.high < 0

    def line(self) -> str:
        """As JSON, rounded to what the interval allows to tell."""
        return json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()})
