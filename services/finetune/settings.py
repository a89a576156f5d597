"""How one network is trained, with everything decided that a request leaves open."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from shared.fine_tuning import Optimizer, Schedule, Training


@dataclass(frozen=True)
class Settings:
    """`Training` with nothing left open; what concerns the problem and not the network is not here."""

    epochs: int = 100
    batch_size: int = 64
    optimizer: Optimizer = Optimizer.ADAMW
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Schedule = Schedule.COSINE
    warmup: float = 0.05
    patience: int = 10
    hidden: int = 128
    head: int = 0
    dropout: float = 0.2
    modality_dropout: float = 0.1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_clip: float = 1.0

    def given(self, training: Training) -> "Settings":
        """With what the request gives, whatever stands here."""
        wanted = {field.name: getattr(training, field.name) for field in fields(self)}
        return self.changed(**{name: value for name, value in wanted.items() if value is not None})

    def changed(self, **changes: Any) -> "Settings":
        """With some things different."""
        return replace(self, **changes)

    def as_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: str(value) if isinstance(value, str) else value for name, value in asdict(self).items()}
