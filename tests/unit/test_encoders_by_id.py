"""Which encoders a job's schema names, whether a catalogue's or models', and who must understand it."""

from typing import Any

import pytest

from shared.catalog import FittedEncoder, load_catalog
from shared.errors import InvalidRequestError
from shared.fine_tuning import TrainEncoder
from shared.jobs.encoders import encoder_ids, encoder_of, in_schema, named_models
from shared.jobs.protocol import protocol_of
from shared.queues import Modality, Stage

FILES = {"vectors.safetensors": {"key": "models/model-x/1/vectors.safetensors", "sha256": "0"}}


def schema_of(fitted: dict[str, Any]) -> dict[str, Any]:
    """A job on texts and pictures."""
    encoders = {"text": {"id": "word2vec"}, "image": {"id": "mobilenet_v2"}}
    return {"encoders": encoders, **fitted}


def test_a_fitted_encoder_comes_back_as_it_went_into_the_schema() -> None:
    """The catalogue may have changed since."""
    catalog = load_catalog()
    spec = catalog["word2vec"].model_copy(update={"dimension": 7})
    fitted = FittedEncoder(**spec.model_dump(), model="model-x", files=FILES)
    schema = schema_of(in_schema({Modality.TEXT: fitted}))
    assert encoder_of(schema, Modality.TEXT, catalog) == fitted
    assert encoder_of(schema, Modality.IMAGE, catalog) == catalog["mobilenet_v2"]
    assert encoder_ids(schema) == {"text": "model-x", "image": "mobilenet_v2"}


def test_schemas_of_the_release_before_name_only_files() -> None:
    """What was fitted is then an encoder of the catalogue."""
    schema = schema_of({"fitted_models": {"text": {"id": "model-x", "files": FILES}}})
    found = encoder_of(schema, Modality.TEXT, load_catalog())
    assert isinstance(found, FittedEncoder)
    assert (found.id, found.model, found.dimension) == ("word2vec", "model-x", 128)
    assert encoder_ids(schema_of({})) == {"text": "word2vec", "image": "mobilenet_v2"}


def test_an_encoder_that_the_worker_does_not_know_is_named() -> None:
    """Its encoders file is another than the gateway's."""
    with pytest.raises(InvalidRequestError, match="exotic"):
        encoder_of({"encoders": {"text": {"id": "exotic"}}}, Modality.TEXT, load_catalog())


@pytest.mark.parametrize(
    ("id", "how", "fitted"),
    [
        ("word2vec", "frozen", True),
        ("log_mel_cnn", "frozen", True),
        ("all-minilm-l6-v2", "frozen", False),
        ("all-minilm-l6-v2", "lora", True),
        ("mobilenet_v2", "lora", False),
        ("mobilenet_v2", "full", True),
        ("mfcc-stats", "full", False),
    ],
)
def test_what_a_job_fits_before_it_encodes(id: str, how: str, fitted: bool) -> None:
    """By what the encoder is and by what is asked of it."""
    assert load_catalog()[id].is_fitted(TrainEncoder(how)) is fitted


def test_workers_of_the_release_before_leave_such_shards_alone() -> None:
    """They would look for the model in the catalogue, or fit Word2Vec to pictures."""
    by_id = {"type": "features", "encoders": {"text": "model-x", "image": None}}
    plain = {"type": "features", "encoders": {"text": "word2vec", "image": None}}
    assert named_models(by_id["encoders"]) == ["model-x"]  # type: ignore[arg-type]
    for stage in (Stage.PLAN, Stage.FIT, Stage.TEXT):
        assert protocol_of(stage, by_id) == protocol_of(stage, {"type": "fine_tune"}) == 2
        assert protocol_of(stage, plain) == 1
    assert protocol_of(Stage.FUSION, by_id) == 1
