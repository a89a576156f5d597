"""docker-compose.yml and its images: what the platform engineer relies on, read from the files themselves."""

import ast
import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from deploy.docker.write_env import fill_in, write_private
from services.gateway.__main__ import GRACE_SECONDS
from shared.queues import CONSUMERS, Queue
from shared.settings import Engine, Fetching, Limits, Settings, SettingsError, WorkerSettings, load_settings
from shared.worker.run import LEAVE_SECONDS

OURS = ("gateway", "dispatcher", "text", "image", "audio", "fusion", "finetune", "generate")

#: Services of the compose file that are another pool of a service: that, and the queue that they are told to consume.
POOLS = {"generate": ("finetune", Queue.GENERATE)}
SERVERS = ("postgres", "redis", "minio")
OVERRIDES = ("deploy/docker/gpu.yml", "deploy/docker/s3.yml")

#: Settings of the image, of Compose or of other software, not of ours.
NOT_SETTINGS = {"TRIVIUM_FIRST_KEY", "HF_HUB_OFFLINE"}


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    return read(root / "docker-compose.yml")


@pytest.fixture(scope="module")
def filled(root: Path) -> dict[str, str]:
    """The variables of the .env that `make up` writes."""
    content, _ = fill_in((root / ".env.example").read_text())
    return dict(re.findall(r"^(\w+)=(.*)$", content, re.MULTILINE))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def variables(path: Path) -> dict[str, str]:
    """Each `${NAME…}` of a file and what follows the name: `:-default`, `-default` or `:?message`."""
    return dict(re.findall(r"\$\{(\w+)([^}]*)\}", path.read_text()))


def consumers_in_code(root: Path) -> dict[str, list[str]]:
    """Queue to the services whose code runs a worker of it."""
    found: dict[str, list[str]] = {queue.name: [] for queue in Queue}
    for path in sorted((root / "services").glob("*/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run_worker":
                queue = node.args[0]
                assert isinstance(queue, ast.Attribute)
                found[queue.attr].append(path.parent.name)
    return found


@pytest.mark.parametrize("queue", Queue)
def test_every_queue_has_one_consumer_and_compose_starts_it(root: Path, compose: dict[str, Any], queue: Queue) -> None:
    consumer = CONSUMERS[queue]
    assert consumers_in_code(root)[queue.name] == [consumer]
    assert (root / "services" / consumer / "__main__.py").is_file()
    pools = [name for name, pool in POOLS.items() if pool == (consumer, queue)]
    if pools:
        service = compose["services"][pools[0]]
        assert service["image"] == compose["services"][consumer]["image"]
        assert "build" not in service
        assert service["command"] == ["python", "-m", f"services.{consumer}", queue.value]
    else:
        service = compose["services"][consumer]
        assert service["build"]["args"]["SERVICE"] == consumer
        assert "command" not in service
    assert "profiles" not in service


def test_compose_starts_what_there_is_and_nothing_else(root: Path, compose: dict[str, Any]) -> None:
    entries = {path.parent.name for path in (root / "services").glob("*/__main__.py")} - {"client"}
    assert entries == set(OURS) - set(POOLS)
    assert set(compose["services"]) == {*OURS, *SERVERS, "migrate"}
    assert compose["services"]["migrate"]["command"] == ["python", "-m", "shared.migrations"]


@pytest.mark.parametrize("name", OURS)
def test_every_service_is_confined_and_watched(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["user"] == "10001:10001"
    assert service["init"] is True
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service
    assert set(service["depends_on"]) == {"migrate", "redis"}
    grace = float(re.sub("s$", "", service["stop_grace_period"]))
    assert grace > WorkerSettings.model_fields["drain_seconds"].default + LEAVE_SECONDS + 10
    assert grace > GRACE_SECONDS + 10


@pytest.mark.parametrize("name", [*OURS, *SERVERS, "migrate"])
def test_every_container_is_limited(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    limits = service["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= set(limits)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["logging"]["options"]["max-size"]
    assert "container_name" not in service, "it could not be scaled"


def test_only_the_gateway_is_published_and_only_to_this_machine(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"gateway": ["${TRIVIUM_BIND:-127.0.0.1}:${TRIVIUM_PORT:-8000}:8000"]}
    assert compose["networks"]["backend"]["internal"] == "${TRIVIUM_OFFLINE:-true}"
    outside = {name for name, service in compose["services"].items() if "edge" in service["networks"]}
    assert outside == {"gateway"}


def test_no_secret_has_a_default(root: Path, compose: dict[str, Any], filled: dict[str, str]) -> None:
    used = variables(root / "docker-compose.yml")
    secrets = {name for name in used if re.search("PASSWORD|_KEY$", name)}
    assert secrets == set(filled)
    assert all(used[name].startswith(":?") for name in secrets)
    for service in compose["services"].values():
        for name, value in service["environment"].items() if "environment" in service else ():
            if re.search("PASSWORD|KEY|AUTH|_URL$", name):
                assert re.search(r"\$\{\w+:\?", value), name


@pytest.mark.parametrize("name", SERVERS)
def test_images_are_pinned(compose: dict[str, Any], name: str) -> None:
    _, default = re.fullmatch(r"\$\{(\w+):-(.+)\}", compose["services"][name]["image"]).groups()  # type: ignore[union-attr]
    tag = default.rpartition(":")[2]
    assert re.search(r"\d", tag)


def test_every_variable_is_documented(root: Path) -> None:
    example = (root / ".env.example").read_text()
    documented = set(re.findall(r"^#?(\w+)=", example, re.MULTILINE))
    used = {name for file in ("docker-compose.yml", *OVERRIDES) for name in variables(root / file)}
    passed_on = {name for name, value in read(root / "docker-compose.yml")["x-settings"].items() if value is None}
    assert documented == used | passed_on | {"COMPOSE_FILE"}


def test_documented_defaults_are_the_defaults(root: Path) -> None:
    example = dict(re.findall(r"^#(\w+)=(.*)$", (root / ".env.example").read_text(), re.MULTILINE))
    for file in ("docker-compose.yml", *OVERRIDES):
        for name, rest in variables(root / file).items():
            if not rest.startswith(":?"):
                assert example[name] == rest.lstrip(":").removeprefix("-"), name
    fields = settings_fields()
    for name, value in read(root / "docker-compose.yml")["x-settings"].items():
        if value is None:
            assert float_or_text(example[name]) == float_or_text(str(fields[name])), name


def settings_fields() -> dict[str, Any]:
    """Every variable that the services read, and its default."""
    models: tuple[type[BaseSettings], ...] = (Settings, Engine, WorkerSettings, Limits, Fetching)
    return {
        f"{model.model_config['env_prefix']}{name.upper()}": field.default
        for model in models
        for name, field in model.model_fields.items()
    }


def float_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value.lower()  # `false` is Python's False


def test_the_services_know_the_settings_they_are_given(compose: dict[str, Any]) -> None:
    given = {name for service in OURS for name in compose["services"][service]["environment"]}
    assert given - NOT_SETTINGS <= set(settings_fields())


def given_settings(compose: dict[str, Any], values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of the gateway, with Compose's variables replaced by `values` or their defaults."""

    def value(match: re.Match[str]) -> str:
        return values.get(match[1], match[2].lstrip(":").removeprefix("-"))

    for name in [name for name in os.environ if name.startswith("TRIVIUM_")]:
        monkeypatch.delenv(name)
    for name, text in compose["services"]["gateway"]["environment"].items():
        if text is not None:
            monkeypatch.setenv(name, re.sub(r"\$\{(\w+)([^}]*)\}", value, text))
    return load_settings()


def test_production_takes_the_secrets_that_make_up_writes(
    compose: dict[str, Any], filled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = given_settings(compose, filled, monkeypatch)
    assert settings.mode == "production"
    assert settings.worker.heartbeat_file == Path("/tmp/heartbeat")
    assert settings.gateway_host == "0.0.0.0"


@pytest.mark.parametrize(
    "secret",
    ["TRIVIUM_POSTGRES_PASSWORD", "TRIVIUM_REDIS_PASSWORD", "TRIVIUM_S3_ACCESS_KEY", "TRIVIUM_S3_SECRET_KEY"],
)
@pytest.mark.parametrize("value", ["", "changeme"])
def test_production_refuses_placeholders(
    compose: dict[str, Any], filled: dict[str, str], secret: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="real secrets"):
        given_settings(compose, filled | {secret: value}, monkeypatch)


def test_secrets_are_random_and_private(root: Path, tmp_path: Path) -> None:
    example = (root / ".env.example").read_text()
    (first, key), (second, _) = fill_in(example), fill_in(example)
    values = [re.findall(r"^\w+=(\S*)$", content, re.MULTILINE) for content in (first, second)]
    assert len({*values[0], *values[1]}) == len(values[0]) + len(values[1])
    assert all(re.fullmatch(r"[\w-]{32,}", value) for value in values[0])
    assert key in values[0]
    path = tmp_path / ".env"
    write_private(path, first)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_private(path, second)


def test_gpus_go_to_the_pools_that_run_encoders_or_train(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    extra_of = {name: POOLS[name][0] if name in POOLS else name for name in OURS}
    with_torch = {name for name in OURS if any(package.startswith("torch==") for package in extras[extra_of[name]])}
    gpu = read(root / "deploy/docker/gpu.yml")["services"]
    assert set(gpu) == {"text", "image", "audio", "finetune", "generate"}
    assert with_torch == {*gpu, "fusion"}
    for service in gpu.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert service["environment"]["TRIVIUM_DEVICE"] == "cuda"


def test_images_hold_one_service_and_run_unprivileged(root: Path) -> None:
    dockerfile = (root / "deploy/docker/Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE)
    services = [source for line in copied for source in line.split() if source.startswith("services")]
    assert services == ["services/__init__.py", "services/${SERVICE}"]
    final = dockerfile.rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in final
    assert "STOPSIGNAL SIGTERM" in final
    assert re.search(r'^CMD \["', final, re.MULTILINE)
    assert "pip install" not in final


def test_constraints_pin_the_same_versions_with_and_without_hashes(root: Path) -> None:
    plain = re.findall(r"^([\w.-]+==\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    hashed = (root / "constraints-hashed.txt").read_text()
    assert re.findall(r"^([\w.-]+==\S+)(?: \\)?$", hashed, re.MULTILINE) == plain
    without_hash = re.findall(r"^([\w.-]+)==\S+$(?!\n    --hash)", hashed, re.MULTILINE)
    assert without_hash == ["torch", "torchvision"]
    assert not re.search(r"://|nvidia|\+cpu|^/|find-links|index-url", hashed, re.MULTILINE)


def has_compose() -> bool:
    """Whether `docker compose` can be run here; it needs no engine to check files."""
    found = shutil.which("docker")
    return found is not None and (
        subprocess.run([found, "compose", "version"], capture_output=True, check=False).returncode == 0
    )


needs_compose = pytest.mark.skipif(not has_compose(), reason="needs docker compose")


@needs_compose
@pytest.mark.parametrize("override", [(), *((file,) for file in OVERRIDES)])
def test_docker_compose_accepts_the_files(root: Path, tmp_path: Path, override: tuple[str, ...]) -> None:
    env = tmp_path / "env"
    write_private(env, fill_in((root / ".env.example").read_text())[0])
    files = [argument for file in ("docker-compose.yml", *override) for argument in ("--file", file)]
    command = ["docker", "compose", "--env-file", env, *files, "config", "--quiet"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@needs_compose
def test_docker_compose_does_not_start_without_secrets(root: Path) -> None:
    command = ["docker", "compose", "--env-file", ".env.example", "config", "--quiet"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "is missing, `make up` writes it" in done.stderr
