"""From a method and its parameters to the module."""

from collections.abc import Callable, Mapping
from typing import Any

from shared.fusion_parameters import validate_parameters
from shared.ml.fusion.align import AlignFusion
from shared.ml.fusion.attention import AttentionFusion
from shared.ml.fusion.base import Fusion
from shared.ml.fusion.concat import ConcatFusion
from shared.ml.fusion.gated import GatedFusion
from shared.ml.fusion.late import LateFusion
from shared.ml.fusion.low_rank import LowRankFusion
from shared.ml.fusion.weighted import WeightedFusion
from shared.queues import Modality
from shared.schemas import FusionMethod

#: Their constructors take the parameters by the names they have in `shared.fusion_parameters`.
_FUSIONS: Mapping[FusionMethod, Callable[..., Fusion]] = {
    FusionMethod.CONCAT: ConcatFusion,
    FusionMethod.WEIGHTED: WeightedFusion,
    FusionMethod.ALIGN: AlignFusion,
    FusionMethod.GATED: GatedFusion,
    FusionMethod.LOW_RANK: LowRankFusion,
    FusionMethod.ATTENTION: AttentionFusion,
    FusionMethod.LATE: LateFusion,
}


def make_fusion(
    method: FusionMethod,
    dimensions: Mapping[Modality, int],
    parameters: Mapping[str, Any],
    *,
    outputs: int | None = None,
) -> Fusion:
    """A new fusion of vectors of `dimensions`, its weights drawn from torch's global generator.

    `outputs` is what `late` decides: classes or values. Raises InvalidRequestError if the parameters are not the
    method's, ValueError for `none` and for `late` without `outputs`.
    """
    given = dict(validate_parameters(method, parameters, dimensions))
    if method is FusionMethod.NONE:
        raise ValueError("`none` makes no vector")
    if method is FusionMethod.ALIGN:
        given = {"dimension": given["dimension"]}  # how it is learned makes no other module
    if method is FusionMethod.LATE:
        if outputs is None:
            raise ValueError("`late` needs the number of outputs")
        given["outputs"] = outputs
    return _FUSIONS[method](dimensions, **given)
