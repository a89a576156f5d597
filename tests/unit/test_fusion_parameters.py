"""What fusion methods can be told: bounds, defaults, and what a features job may ask for."""

from typing import Any

import pytest
from pydantic import ValidationError

from shared.errors import InvalidRequestError
from shared.fusion_parameters import PARAMETERS, validate_parameters
from shared.ml.fusion.build import make_fusion
from shared.queues import Modality
from shared.schemas import FeaturesRequest, Fusion, FusionMethod

ITEMS = [{"id": "a", "text": "x"}]
DIMENSIONS = {Modality.TEXT: 4, Modality.AUDIO: 3}


@pytest.mark.parametrize("method", FusionMethod)
def test_every_method_has_parameters_and_a_module_that_takes_them(method: FusionMethod) -> None:
    """Given or left to their defaults."""
    given = PARAMETERS[method]().model_dump()
    assert validate_parameters(method, {}, DIMENSIONS) == validate_parameters(method, given, DIMENSIONS)
    if method is FusionMethod.NONE:
        with pytest.raises(ValueError, match="makes no vector"):
            make_fusion(method, DIMENSIONS, given)
        return
    fusion = make_fusion(method, DIMENSIONS, given, outputs=5)
    assert fusion.dimension == given.get("dimension", 5 if method is FusionMethod.LATE else 7)


def test_late_needs_to_know_what_it_decides() -> None:
    with pytest.raises(ValueError, match="outputs"):
        make_fusion(FusionMethod.LATE, DIMENSIONS, {})


@pytest.mark.parametrize(
    ("method", "parameters", "param"),
    [
        ("concat", {"weights": {}}, "weights"),
        ("weighted", {"weights": {"text": -1}}, "weights.text"),
        ("weighted", {"weights": {"text": 0, "audio": 0}}, "weights"),
        ("weighted", {"weights": {"text": float("nan")}}, "weights.text"),
        ("weighted", {"weights": {"smell": 1}}, "weights.smell.[key]"),
        ("weighted", {"weights": {"image": 1}}, "weights.image"),
        ("align", {"dimension": 513}, "dimension"),
        ("gated", {"dimension": 0}, "dimension"),
        ("gated", {"rank": 4}, "rank"),
        ("low_rank", {"rank": 65}, "rank"),
        ("attention", {"dropout": 1.0}, "dropout"),
        ("attention", {"layers": 0}, "layers"),
        ("late", {"weights": {"text": 0}}, "weights.text"),
        ("late", {"weights": {"image": 1}}, "weights.image"),
    ],
)
def test_what_is_wrong_is_named(method: str, parameters: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        validate_parameters(FusionMethod(method), parameters, DIMENSIONS, param="model.fusion")
    assert refused.value.param == f"model.fusion.{param}"


def test_heads_must_divide_the_dimension() -> None:
    with pytest.raises(InvalidRequestError, match=r"dimension \(10\) must be a multiple of heads \(4\)"):
        make_fusion(FusionMethod.ATTENTION, DIMENSIONS, {"dimension": 10})


@pytest.mark.parametrize("method", FusionMethod)
def test_features_jobs_take_what_needs_no_training(method: FusionMethod) -> None:
    request = {"items": ITEMS, "fusion": {"method": method.value}}
    if method in {FusionMethod.NONE, FusionMethod.CONCAT, FusionMethod.WEIGHTED}:
        assert FeaturesRequest.model_validate(request).fusion.method is method
    else:
        with pytest.raises(ValidationError) as refused:
            FeaturesRequest.model_validate(request)
        assert refused.value.errors()[0]["loc"] == ("fusion", "method")


def test_the_json_of_a_features_job_is_as_it_was() -> None:
    assert FeaturesRequest(items=ITEMS).model_dump(mode="json", exclude_none=True)["fusion"] == {
        "method": "concat", "weights": {},
    }  # fmt: skip
    given = {"method": "weighted", "weights": {"text": 2.0, "audio": 0.0}}
    assert Fusion.model_validate(given).model_dump(mode="json", exclude_none=True) == given
    assert Fusion.model_validate(given).parameters() == {"weights": {Modality.TEXT: 2.0, Modality.AUDIO: 0.0}}
    for wrong in ({"weights": {"text": 1}}, {"method": "weighted", "weights": {"text": 0}}):
        with pytest.raises(ValidationError):
            Fusion.model_validate(wrong)
