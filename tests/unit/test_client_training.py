"""Training and predicting on the command line, against a gateway that is played."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.client_gateway import JOB_ID, Gateway, Run, events, job, page

FEATURES_ID = "job-01k9w0b0aaaaaaaaaaaaaaaaaa"
MODEL_ID = "model-01k9w0e1a4b7c2d5f8g3h6j9km"
FILES = {"README.md": b"# Classifier", "plots/curves.png": b"picture", "model.safetensors": b"weights"}


def row(score: float, there: int, score_there: float, fused_there: float) -> dict[str, Any]:
    interval = {"low": score - 0.05, "high": score + 0.05, "items": 181}
    return {"score": score, **interval, "items_there": there, "score_there": score_there, "fused_there": fused_there}


def model() -> dict[str, Any]:
    checks = [
        {"code": "missing_modality", "severity": "info", "message": "Not all items have image."},
        {"code": "few_test_items", "severity": "warning", "message": "The test part has [only] 12 items."},
    ]
    tried = {"late": row(0.7, 181, 0.7, 0.7), "gated": row(0.8012, 181, 0.8012, 0.8012)}
    alone = {"fused": row(0.8012, 181, 0.8012, 0.8012), "text": row(0.6123, 160, 0.7, 0.8125)}
    return {
        "id": MODEL_ID, "kind": "classifier", "modality": None, "dimension": 384, "loader": "fine_tuned",
        "created": 1000, "job_id": JOB_ID, "files": sorted(FILES),
        "fine_tuned": {
            "encoders": {"text": "all-minilm-l6-v2", "image": "mobilenet_v2"}, "fusions": ["gated"],
            "classes": ["cat", "dog"], "metrics": {
                "main_score": "accuracy", "items": {"train": 1000, "validation": 100, "test": 181},
                "test": {"accuracy": 0.8012}, "alone": alone, "tried": tried, "checks": checks,
            },
        },
    }  # fmt: skip


@pytest.fixture
def manifest(tmp_path: Path, gateway: Gateway) -> Path:
    """A manifest that the gateway takes."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": "1", "text": "a", "label": "cat"}\n')
    kind = {"filename": "data.jsonl", "purpose": "user_data", "content_type": "application/x-ndjson"}
    file = {"id": "file-1", "bytes": 1, "created_at": 1, "sha256": "x", **kind}
    gateway.answers["POST /v1/files"] = httpx.Response(200, json=file)
    gateway.answers["POST /v1/jobs"] = httpx.Response(202, json=job("queued"))
    return path


@pytest.fixture
def trained(gateway: Gateway) -> Gateway:
    """A gateway on which training succeeds."""
    fine_tune = {
        "shards_total": 1, "shards_done": 0, "shards_failed": 0, "items_total": 1226, "items_done": 0,
        "items_cached": 0, "started_at": 1000.0, "finished_at": None,
    }  # fmt: skip
    ended = {**fine_tune, "items_done": 1226, "shards_done": 1, "finished_at": 1008.0}
    epoch = {"model": "fused-gated", "epoch": 3, "train_loss": 0.7, "validation_loss": 0.65, "learning_rate": 1e-3}
    gateway.answers["POST /v1/jobs"] = httpx.Response(202, json=job("queued", type="fine_tune"))
    gateway.answers[f"GET /v1/jobs/{JOB_ID}/events"] = events(
        ("job.running", {}),
        ("progress", {"stages": {"fine_tune": fine_tune}}),
        ("training.warning", {"code": "few_test_items", "message": "The test part has [only] 12 items."}),
        ("training.split", {"train": 1000, "validation": 100, "test": 12}),
        ("training.epoch", epoch),
        ("training.epoch", {"stage": "fit", "encoder": "tiny-bert", "epoch": 1, "validation_loss": None}),
        ("training.model", {"model": "fused-gated", "loss": 0.5432, "epoch": 7, "seconds": 1.234}),
        ("training.trial", {"number": 0, "candidate": "gated", "settings": {}, "losses": [], "loss": None}),
        ("training.fold", {"fold": 1, "score": 0.75}),
        ("training.step", {"doing": "writing the model"}),
        ("training.something_new", {"never": "heard of"}),
        ("job.succeeded", {}),
    )
    fields = {"type": "fine_tune", "models": ["model-of-an-encoder", MODEL_ID], "stages": {"fine_tune": ended}}
    gateway.answers[f"GET /v1/jobs/{JOB_ID}"] = httpx.Response(200, json=job(**fields))
    gateway.answers[f"GET /v1/models/{MODEL_ID}"] = httpx.Response(200, json=model())
    return gateway


class TestTraining:
    def test_only_the_jobs_id_goes_to_stdout(self, run: Run, manifest: Path, gateway: Gateway) -> None:
        result = run("train", str(manifest))
        assert (result.exit_code, result.stdout) == (0, f"{JOB_ID}\n")
        assert gateway.sent("/v1/jobs") == {"type": "fine_tune", "input": {"file_id": "file-1", "s3_prefix": None}}

    def test_options(self, run: Run, gateway: Gateway) -> None:
        gateway.answers["POST /v1/jobs"] = httpx.Response(202, json=job("queued"))
        options = (
            "--method regressor --preset best --fusion attention --fusion-parameter heads=2 --set epochs=30 "
            '--set optimizer=sgd --set learning_rate=1e-2 --set class_weights={"a":2} --labels several '
            "--train-encoder lora --trials 5 --search-seconds 60 --validation 0.1 --test 0.3 --folds 4 "
            "--max-failed-fraction 0.5 --text word2vec --lowercase --priority 3 --metadata project=emoji --json"
        )
        result = run("train", FEATURES_ID, *options.split())
        assert json.loads(result.stdout)["id"] == JOB_ID
        assert gateway.sent("/v1/jobs") == {
            "type": "fine_tune",
            "features": FEATURES_ID,
            "method": "regressor",
            "preset": "best",
            "fusion": {"method": "attention", "parameters": {"heads": 2}},
            "training": {"epochs": 30, "optimizer": "sgd", "learning_rate": 0.01, "class_weights": {"a": 2}},
            "multi_label": True,
            "train_encoder": "lora",
            "search": {"trials": 5, "seconds": 60.0},
            "splitting": {"validation": 0.1, "test": 0.3, "folds": 4},
            "max_failed_fraction": 0.5,
            "encoders": {"text": "word2vec"},
            "preprocessing": {"text": {"lowercase": True}},
            "priority": 3,
            "metadata": {"project": "emoji"},
        }

    def test_watching_ends_with_how_good_the_model_is(self, run: Run, trained: Gateway) -> None:
        result = run("train", FEATURES_ID, "--watch")
        assert result.exit_code == 0
        assert result.stdout == f"{MODEL_ID}\n", "so that a shell can take it"
        said = result.stderr
        assert "The test part has [only] 12 items." in said
        assert "train 1,000, validation 100, test 12 items" in said
        assert "fused-gated: validation loss 0.5432 in epoch 7 (1.2 s)" in said
        assert "fold 1: score 0.750" in said
        [text, gated, late, fused] = [line.split() for line in said.splitlines() if " … " in line]
        assert text == ["text", "0.612", "0.562", "…", "0.662", "160/181", "0.700", "0.812"]
        assert gated == ["gated", "0.801", "0.751", "…", "0.851", "181/181"]
        assert (late[0], late[1]) == ("late", "0.700")
        assert fused == ["fused", "0.801", "0.751", "…", "0.851", "181/181"]

    def test_watching_as_json(self, run: Run, trained: Gateway) -> None:
        result = run("train", FEATURES_ID, "--watch", "--json")
        assert json.loads(result.stdout)["models"][-1] == MODEL_ID

    def test_training_that_fails(self, run: Run, trained: Gateway) -> None:
        failed = job("failed", error={"code": "one_class", "message": "There is nothing to tell apart."})
        trained.answers[f"GET /v1/jobs/{JOB_ID}"] = httpx.Response(200, json=failed)
        result = run("train", FEATURES_ID, "--watch")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "There is nothing to tell apart. (one_class)" in result.stderr
        assert JOB_ID in result.stderr

    @pytest.mark.parametrize(
        "options",
        ["--method nonsense", "--fusion nonsense", "--fusion-parameter heads=2", "--set epochs", "--labels both"],
    )
    def test_wrong_usage(self, run: Run, gateway: Gateway, options: str) -> None:
        assert run("train", FEATURES_ID, *options.split()).exit_code == 2
        assert gateway.requests == []


class TestPredicting:
    def test_predictions_are_written(self, run: Run, manifest: Path, gateway: Gateway, tmp_path: Path) -> None:
        gateway.answers[f"GET /v1/jobs/{JOB_ID}/events"] = events(("job.succeeded", {}))
        gateway.answers[f"GET /v1/jobs/{JOB_ID}"] = httpx.Response(200, json=job(type="predict"))
        gateway.answers[f"GET /v1/jobs/{JOB_ID}/results"] = httpx.Response(200, content=b"PAR1")
        target = tmp_path / "predictions.parquet"
        result = run("predict", str(manifest), "--model", MODEL_ID, "--no-contributions", "-o", str(target))
        assert (result.exit_code, result.stdout) == (0, f"{JOB_ID}\n")
        assert target.read_bytes() == b"PAR1"
        body = gateway.sent("/v1/jobs")
        assert (body["type"], body["model"], body["contributions"]) == ("predict", MODEL_ID, False)

    def test_on_a_feature_set(self, run: Run, gateway: Gateway) -> None:
        gateway.answers["POST /v1/jobs"] = httpx.Response(202, json=job("queued"))
        run("predict", FEATURES_ID, "-m", MODEL_ID)
        assert gateway.sent("/v1/jobs") == {"type": "predict", "features": FEATURES_ID, "model": MODEL_ID}

    @pytest.mark.parametrize("options", ["", f"-m {MODEL_ID} -o predictions.npz"], ids=["no model", "npz"])
    def test_wrong_usage(self, run: Run, gateway: Gateway, options: str) -> None:
        assert run("predict", FEATURES_ID, *options.split()).exit_code == 2
        assert gateway.requests == []

    def test_features_fused_by_a_model(self, run: Run, manifest: Path, gateway: Gateway) -> None:
        assert run("submit", str(manifest), "--fusion-model", MODEL_ID).exit_code == 0
        assert gateway.sent("/v1/jobs")["fusion"] == {"model": MODEL_ID}
        assert run("submit", str(manifest), "--fusion-model", MODEL_ID, "--fusion", "concat").exit_code == 2


class TestModels:
    def test_the_list_says_how_good_they_are(self, run: Run, gateway: Gateway) -> None:
        encoder = {"id": "hash-text", "modality": "text", "dimension": 8, "loader": "hashing", "description": "Hashes."}
        gateway.answers["GET /v1/models"] = page(encoder, model())
        text = run("models").stdout
        assert "Hashes." in text
        assert "accuracy 0.801 on 181 test items; gated of text, image" in text

    def test_show(self, run: Run, gateway: Gateway) -> None:
        gateway.answers[f"GET /v1/models/{MODEL_ID}"] = httpx.Response(200, json=model())
        text = run("model", "show", MODEL_ID).stdout
        assert "text: all-minilm-l6-v2, image: mobilenet_v2" in text
        assert "2: cat, dog" in text
        assert "The test part has [only] 12 items." in text
        assert "Not all items have image." not in text, "that is no warning"
        assert "0.562 … 0.662" in text
        assert json.loads(run("model", "show", MODEL_ID, "--json").stdout)["fine_tuned"]["classes"] == ["cat", "dog"]

    def test_show_an_encoder(self, run: Run, gateway: Gateway) -> None:
        encoder = {"id": "hash-text", "modality": "text", "dimension": 8, "loader": "hashing", "licence": "MIT"}
        gateway.answers["GET /v1/models/hash-text"] = httpx.Response(200, json=encoder)
        text = run("model", "show", "hash-text").stdout
        assert "encoder of text" in text
        assert "MIT" in text

    def test_an_aligning_model(self, run: Run, gateway: Gateway) -> None:
        chance = {"recall@1": 0.006, "recall@10": 0.0552}
        direction = {"items": 154, "recall@1": 0.25, "recall@10": 0.7, "median_rank": 3.5, "chance": chance}
        metrics = {
            "main_score": "mean_reciprocal_rank",
            "items": {"test": 180},
            "test": {"mean_reciprocal_rank": 0.4, "retrieval": {"text→image": direction}},
        }
        fine_tuned = {"encoders": {"image": "mobilenet_v2"}, "fusions": ["align"], "classes": [], "metrics": metrics}
        aligning = {**model(), "kind": "align", "fine_tuned": fine_tuned}
        gateway.answers["GET /v1/models"] = page(aligning)
        gateway.answers[f"GET /v1/models/{MODEL_ID}"] = httpx.Response(200, json=aligning)
        assert "mean reciprocal rank 0.400 on 180 test items; align of image" in run("models").stdout
        lines = [line.split() for line in run("model", "show", MODEL_ID).stdout.splitlines()]
        assert ["text→image", "154", "0.250", "0.700", "0.055", "3.5"] in lines

    def test_a_model_without_scores(self, run: Run, gateway: Gateway) -> None:
        bare = model()
        bare["fine_tuned"]["metrics"] = {}
        gateway.answers["GET /v1/models"] = page(bare)
        gateway.answers[f"GET /v1/models/{MODEL_ID}"] = httpx.Response(200, json=bare)
        assert "gated of text, image" in run("models").stdout
        assert run("model", "show", MODEL_ID).exit_code == 0

    def test_download(self, run: Run, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        gateway.answers[f"GET /v1/models/{MODEL_ID}"] = httpx.Response(200, json=model())
        for name, content in FILES.items():
            etag = f'"{sha256(content).hexdigest()}"'
            answer = httpx.Response(200, content=content, headers={"ETag": etag})
            gateway.answers[f"GET /v1/models/{MODEL_ID}/files/{name}"] = answer
        monkeypatch.chdir(tmp_path)
        result = run("model", "download", MODEL_ID)
        assert result.exit_code == 0
        folder = tmp_path / MODEL_ID
        assert {name: (folder / name).read_bytes() for name in FILES} == FILES
        assert f"Wrote {MODEL_ID}/: README.md, model.safetensors, plots." in result.stderr
        again = run("model", "download", MODEL_ID)
        assert again.exit_code == 1
        assert "folder_exists" in again.stderr

    def test_delete(self, run: Run, gateway: Gateway) -> None:
        deleted = {"id": MODEL_ID, "object": "model", "deleted": True}
        gateway.answers[f"DELETE /v1/models/{MODEL_ID}"] = httpx.Response(200, json=deleted)
        assert run("model", "delete", MODEL_ID).exit_code == 0
        assert gateway.requests[0].method == "DELETE"
