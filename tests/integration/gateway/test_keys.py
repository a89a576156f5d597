"""API keys: shown once, made by admins, useless once revoked; development lets callers in without one."""

from collections.abc import Callable, Iterator

import httpx
import pytest

from services.gateway.deps import Services


@pytest.fixture
def production(services: Services) -> Iterator[None]:
    """Nobody gets in without a key."""
    services.settings.mode = "production"
    yield
    services.settings.mode = "development"


def test_a_key_is_shown_once_and_works_until_it_is_revoked(client: httpx.Client, url: str) -> None:
    made = client.post("/v1/keys", json={"name": "laptop", "tenant": "acme"})
    assert made.status_code == 201
    entry = made.json()
    key = entry.pop("key")
    assert key.endswith(entry["hint"])
    listed = client.get("/v1/keys", params={"tenant": "acme"}).json()["data"]
    assert listed == [entry]
    assert key not in str(listed)
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as theirs:
        file = theirs.post("/v1/files", files={"file": ("a", b"x")}).json()["id"]
        assert theirs.get(f"/v1/files/{file}").status_code == 200
        assert client.get(f"/v1/files/{file}").status_code == 404
        revoked = client.delete(f"/v1/keys/{entry['id']}").json()
        assert revoked["revoked_at"] is not None
        refused = theirs.get("/v1/files")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert refused.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/key-1")])
def test_only_admins_manage_keys(client_of: Callable[..., httpx.Client], method: str, path: str) -> None:
    refused = client_of("default").request(method, path, json={"name": "x"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
    assert client_of("ops", "admin").get("/v1/keys").status_code == 200


def test_an_unknown_key_id_is_404(client: httpx.Client) -> None:
    answer = client.delete("/v1/keys/key-none")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "key_not_found")


@pytest.mark.parametrize("tenant", ["../etc", "A", "", "x" * 64, "a/b"])
def test_tenants_are_plain_names(client: httpx.Client, tenant: str) -> None:
    answer = client.post("/v1/keys", json={"tenant": tenant})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "tenant")


@pytest.mark.parametrize("header", ["Bearer sk-wrong", "Bearer", "Basic YTpi", "sk-trivium-x"])
def test_a_wrong_key_is_refused_even_in_development(client: httpx.Client, header: str) -> None:
    answer = client.get("/v1/jobs", headers={"Authorization": header})
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


def test_production_asks_for_a_key(
    client: httpx.Client, client_of: Callable[..., httpx.Client], production: None
) -> None:
    refused = client.get("/v1/jobs")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "missing_api_key")
    assert client.get("/healthz").status_code == 200
    assert client_of("acme").get("/v1/jobs").status_code == 200
