"""The corpus of bad inputs (tests/corpus) through gateway, planner and pools: each has its expected outcome.

`python -m tests.corpus` prints it as a table.
"""

import json
from collections.abc import Iterator

import pytest

from shared.db import Sessions
from shared.planning.media import decode_data_uri
from shared.settings import Settings
from shared.storage.objects import ObjectStore
from shared.testing import oracle
from shared.testing.web import Website, answer
from tests.corpus.items import GIF, MEDIA_BYTES
from tests.corpus.platform import ENCODERS, PUBLIC, Platform, running
from tests.corpus.platform import environment as corpus_environment
from tests.corpus.run import all_cases, ended, run, upload


@pytest.fixture(scope="module")
def site() -> Iterator[Website]:
    """The one site from which URLs may be fetched."""
    with Website(PUBLIC) as running_site:
        yield running_site


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory, site: Website) -> dict[str, str]:
    """With the limits that the corpus expects."""
    return {**environment, **corpus_environment(tmp_path_factory.mktemp("corpus"), site)}


@pytest.fixture(scope="module")
def platform(settings: Settings, sessions: Sessions, store: ObjectStore) -> Iterator[Platform]:
    """The gateway and a worker of each pool."""
    with running(settings, sessions, store) as started:
        yield started


def test_every_bad_input_has_its_outcome(
    platform: Platform, site: Website, settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    """Errors have their codes, good neighbours succeed, and nothing is left half done."""
    cases = all_cases(site, upload(platform.stranger, b"another tenant's"), settings.s3_bucket)
    assert len({case.name for case in cases}) == len(cases) > 500
    found = run(platform, cases)
    wrong = {case.name: (case.expected, found[case.name]) for case in cases if found[case.name] != case.expected}
    assert wrong == {}
    assert oracle.wrong_counters(sessions) == []
    assert oracle.missing_objects(sessions, store) == []


def test_url_media_are_fetched_once_and_cached_by_their_content(platform: Platform, site: Website) -> None:
    """Items that share a URL share a request; one with the same bytes shares their vector, in a later job too."""
    picture = decode_data_uri(GIF, MEDIA_BYTES) + b"nothing else has these bytes"
    site.pages |= {"/one.gif": answer(picture), "/two.gif": answer(picture), "/gone.gif": answer(status="410 Gone")}
    paths = ("one", "one", "two", "gone", "one")
    items = [{"id": f"{i}", "image": f"http://{PUBLIC}:{site.port}/{path}.gif"} for i, path in enumerate(paths)]
    body = {"items": items, "encoders": {**ENCODERS, "text": None, "audio": None}, "shard_size": 8}
    for already_cached in (0, 4):
        site.asked.clear()
        id = platform.client.post("/v1/jobs", json=body).raise_for_status().json()["id"]
        job = ended(platform.client, id)
        assert (job["items"]["succeeded"], job["items"]["failed"]) == (4, 1)
        assert job["stages"]["image"]["items_cached"] == already_cached
        assert sorted(request.split(" ")[1] for request in site.asked) == ["/gone.gif", "/one.gif", "/two.gif"]
        lines = platform.client.get(f"/v1/jobs/{id}/results").raise_for_status().text.splitlines()
        assert len({str(json.loads(line)["image_vector"]) for line in lines}) == 1
        assert json.loads(lines[2])["image_ref"].endswith("/two.gif")
