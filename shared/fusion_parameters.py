"""What each fusion method can be told, checked at the door: no torch is needed here.

The methods themselves are in `shared.ml.fusion`.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from shared.errors import InvalidRequestError
from shared.queues import Modality
from shared.schemas import FusionMethod, Weights
from shared.strict import Strict

#: Of what a learned fusion makes.
_Dimension = Annotated[int, Field(ge=1, le=4096, description="of the fused vector")]


class NoParameters(Strict):
    """`none` and `concat` can be told nothing."""


class WeightedParameters(Strict):
    """`weighted` scales each vector to the length w of its modality, then joins them."""

    weights: Weights = Field(default_factory=dict, description="w of each modality; 1 if none is given")
    learned: bool = Field(False, description="the weights are where training starts")


class AlignParameters(Strict):
    """`align` projects all modalities into one space."""

    dimension: int = Field(128, ge=1, le=512, description="of the shared space; an index takes up to 512")
    learned_by: Literal["contrast", "cca"] = Field(
        "contrast", description="`cca`: in closed form, without training, by canonical correlation analysis"
    )
    regularisation: float = Field(
        1.0, ge=0, le=1e6, description="of `cca`: added to the variances, in units of a modality's mean variance"
    )


class GatedParameters(Strict):
    """`gated` lets learned gates decide how much of each modality passes."""

    dimension: _Dimension = 128


class LowRankParameters(Strict):
    """`low_rank` uses all products of components across modalities."""

    dimension: _Dimension = 128
    rank: int = Field(4, ge=1, le=64, description="of the weight tensor: how many products are added up")


class AttentionParameters(Strict):
    """`attention` is a transformer whose tokens are the modalities."""

    dimension: _Dimension = 128
    heads: int = Field(4, ge=1, le=64, description="of attention; `dimension` must be a multiple")
    layers: int = Field(2, ge=1, le=12)
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the values set to zero while training")

    @model_validator(mode="after")
    def _heads_divide_the_dimension(self) -> Self:
        if self.dimension % self.heads:
            raise ValueError(f"dimension ({self.dimension}) must be a multiple of heads ({self.heads})")
        return self


class LateParameters(Strict):
    """`late` averages the decisions of the modalities, with weights, over those that an item has."""

    weights: dict[Modality, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        default_factory=dict, description="of each modality's decision; 1 if none is given; their ratios matter"
    )
    learned: bool = Field(True, description="the weights are where training starts")


Parameters = (
    NoParameters
    | WeightedParameters
    | AlignParameters
    | GatedParameters
    | LowRankParameters
    | AttentionParameters
    | LateParameters
)

PARAMETERS: Mapping[FusionMethod, type[Parameters]] = {
    FusionMethod.NONE: NoParameters,
    FusionMethod.CONCAT: NoParameters,
    FusionMethod.WEIGHTED: WeightedParameters,
    FusionMethod.ALIGN: AlignParameters,
    FusionMethod.GATED: GatedParameters,
    FusionMethod.LOW_RANK: LowRankParameters,
    FusionMethod.ATTENTION: AttentionParameters,
    FusionMethod.LATE: LateParameters,
}


def validate_parameters(
    method: FusionMethod,
    parameters: Mapping[str, Any],
    modalities: Collection[Modality],
    *,
    param: str = "fusion.parameters",
) -> Parameters:
    """The parameters of a method as its model, defaults filled in.

    `param` is where they stand in the request. Raises InvalidRequestError if one is unknown or out of bounds, or if
    there is a weight for a modality that is not fused.
    """
    try:
        valid = PARAMETERS[method].model_validate(parameters)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join([param, *map(str, first["loc"])])
        words = first["msg"].removeprefix("Value error, ")
        raise InvalidRequestError(f"{place}: {words} (fusion method {method}).", param=place) from error
    for modality in getattr(valid, "weights", ()):
        if modality not in modalities:
            message = (
                f"There is a weight for {modality}, but no {modality} encoder: drop the weight or choose an encoder."
            )
            raise InvalidRequestError(message, param=f"{param}.weights.{modality}")
    return valid
