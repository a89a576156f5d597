"""Any request of a job, told by its `type` and, of training, its `method`."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from shared.fine_tuning import FineTuneRequest, IndexRequest, PredictRequest
from shared.language_tuning import InstructionRequest, PromptRequest
from shared.schemas import FeaturesRequest, JobType

#: Methods of training that have requests of their own.
_OF_METHOD = ("instruction", "prompt")

#: What requests are told by: the first part of the place of an error in one of them, which is no field.
TAGS = frozenset({*JobType, *(f"fine_tune/{method}" for method in _OF_METHOD)})


def _tag_of(value: Any) -> str:
    def given(name: str, default: str) -> str:
        found = value.get(name, default) if isinstance(value, dict) else getattr(value, name, default)
        return str(found)

    type, method = given("type", JobType.FEATURES), given("method", "")
    return f"{type}/{method}" if type == JobType.FINE_TUNE and method in _OF_METHOD else type


#: Without a `type` it is a features job.
JobRequest = Annotated[
    Annotated[FeaturesRequest, Tag("features")]
    | Annotated[FineTuneRequest, Tag("fine_tune")]
    | Annotated[InstructionRequest, Tag("fine_tune/instruction")]
    | Annotated[PromptRequest, Tag("fine_tune/prompt")]
    | Annotated[PredictRequest, Tag("predict")]
    | Annotated[IndexRequest, Tag("index")],
    Discriminator(_tag_of),
]
