"""What becomes of the things that people submit: what is uploaded, what goes along, what is refused."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.client import Client, ClientError
from services.client.packing import Source, prepare
from services.client.uploads import Upload
from shared.items import Item
from shared.schemas import Input

FILE_ID = "file-01k9w0c3v8e6m5j2k1x7r4t9qz"


def content_of(upload: Any) -> bytes:
    assert isinstance(upload, Upload)
    body = upload.open()
    content = b""
    while chunk := body.read():
        content += chunk
    assert len(content) == upload.size == body.tell()
    return content


def members_of(upload: Any) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content_of(upload))) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]  # files


def write_manifest(folder: Path, *items: dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with a picture and two sounds."""
    for name, content in {"images/a.png": b"picture", "audio/b.ogg": b"sound", "audio/ü c.ogg": b"x" * 1024}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return tmp_path


class TestManifests:
    def test_media_beside_the_manifest_are_packed_once_behind_it(self, media: Path) -> None:
        manifest = write_manifest(
            media,
            {"id": "1", "audio": "audio/b.ogg", "image": "images/a.png"},
            {"id": "2", "audio": "audio/ü c.ogg", "image": "images/a.png"},
        )
        upload = prepare(manifest)
        members = members_of(upload)
        assert list(members) == ["manifest.jsonl", "images/a.png", "audio/b.ogg", "audio/ü c.ogg"]
        assert members["manifest.jsonl"] == manifest.read_bytes()
        assert members["images/a.png"] == b"picture"
        assert members["audio/ü c.ogg"] == b"x" * 1024
        assert isinstance(upload, Upload)
        assert upload.filename == "data.tar"

    def test_the_same_files_give_the_same_bytes(self, media: Path) -> None:
        manifest = write_manifest(media, {"id": "1", "audio": "audio/b.ogg", "image": "images/a.png"})
        before = content_of(prepare(manifest))
        os.utime(media / "images/a.png", (1, 1))
        (media / "images/a.png").chmod(0o600)
        upload = prepare(manifest)
        assert content_of(upload) == before
        assert content_of(upload) == before, "an upload can be sent again"
        assert len(before) % tarfile.RECORDSIZE == 0

    def test_a_manifest_without_local_media_is_uploaded_as_it_is(self, tmp_path: Path) -> None:
        manifest = write_manifest(
            tmp_path,
            {"id": "1", "text": "a", "image": FILE_ID},
            {"id": "2", "image": "data:image/png;base64,AAAA", "audio": "https://example.org/a.ogg"},
        )
        upload = prepare(manifest)
        assert content_of(upload) == manifest.read_bytes()
        assert isinstance(upload, Upload)
        assert upload.filename == "data.jsonl"

    def test_broken_lines_are_left_to_the_gateway(self, media: Path) -> None:
        manifest = media / "data.jsonl"
        lines = [
            b'{"id": "1", "image": "images/a.png"}',
            b"{broken",
            b"[" * 5000,
            b'"text"',
            b"\xff\xfe",
            b'{"image": 3}',
        ]
        manifest.write_bytes(b"\n".join(lines))
        members = members_of(prepare(str(manifest)))
        assert list(members) == ["manifest.jsonl", "images/a.png"]
        assert members["manifest.jsonl"] == manifest.read_bytes()

    def test_media_that_are_not_there_are_left_to_the_gateway(self, media: Path) -> None:
        manifest = write_manifest(media, {"id": "1", "image": "images/a.png"}, {"id": "2", "image": "images/no.png"})
        assert list(members_of(prepare(manifest))) == ["manifest.jsonl", "images/a.png"]

    def test_a_manifest_in_another_place_than_its_media_is_refused(self, media: Path) -> None:
        elsewhere = media / "elsewhere"
        elsewhere.mkdir()
        manifest = write_manifest(elsewhere, {"id": "1", "image": "images/a.png"})
        with pytest.raises(ClientError, match="None of the 1 media files") as caught:
            prepare(manifest)
        assert caught.value.error_code == "missing_media"

    @pytest.mark.parametrize("name", ["../secret.png", "images/../../secret.png", "/etc/hostname", "link/secret.png"])
    def test_nothing_outside_the_manifests_folder_is_packed(self, media: Path, name: str) -> None:
        folder = media / "inside"
        (folder / "images").mkdir(parents=True)
        (media / "secret.png").write_bytes(b"secret")
        (folder / "link").symlink_to(media)
        manifest = write_manifest(folder, {"id": "1", "image": name})
        with pytest.raises(ClientError) as caught:
            prepare(manifest)
        assert caught.value.error_code == "unsafe_path"

    def test_a_file_that_shrinks_while_it_is_sent_stops_the_upload(self, media: Path) -> None:
        upload = prepare(write_manifest(media, {"id": "1", "image": "images/a.png"}))
        (media / "images/a.png").write_bytes(b"")
        with pytest.raises(ClientError, match=r"images/a\.png was changed"):
            content_of(upload)

    @given(sizes=st.lists(st.integers(0, 2048), min_size=1, max_size=5))
    def test_any_sizes_make_a_sound_archive(self, sizes: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("sizes")
        for place, size in enumerate(sizes):
            (folder / f"{place}.wav").write_bytes(bytes([place]) * size)
        manifest = write_manifest(folder, *({"id": str(i), "audio": f"{i}.wav"} for i in range(len(sizes))))
        members = members_of(prepare(manifest))
        assert {name: len(content) for name, content in members.items() if name != "manifest.jsonl"} == {
            f"{place}.wav": size for place, size in enumerate(sizes)
        }


class TestOtherSources:
    def test_a_folder_with_a_manifest_is_that_manifest(self, media: Path) -> None:
        (media / "manifest.jsonl").write_text('{"id": "1", "image": "images/a.png"}\n')
        (media / "notes.txt").write_text("not for you")
        assert list(members_of(prepare(media))) == ["manifest.jsonl", "images/a.png"]

    def test_a_folder_without_one_is_packed_whole(self, tmp_path: Path) -> None:
        for name in ("2.txt", "1.png", "1.txt", "more/3.wav", ".hidden", ".cache/x.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)
        assert list(members_of(prepare(tmp_path))) == ["1.png", "1.txt", "2.txt", "more/3.wav"]

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ClientError, match="is empty"):
            prepare(tmp_path)

    @pytest.mark.parametrize("name", ["data.tar", "data.zip", "data.parquet", "data.jsonl.gz"])
    def test_archives_are_uploaded_as_they_are(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        path.write_bytes(b"whatever is in it")
        assert content_of(prepare(path)) == b"whatever is in it"

    def test_what_the_gateway_has_is_not_uploaded(self) -> None:
        assert prepare(FILE_ID) == Input(file_id=FILE_ID, s3_prefix=None)
        assert prepare("s3://bucket/folder/") == Input(s3_prefix="s3://bucket/folder/", file_id=None)

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ClientError) as caught:
            prepare(tmp_path / "no.jsonl")
        assert caught.value.error_code == "no_such_file"

    def test_a_few_records_go_inline(self) -> None:
        records = [{"id": "1", "text": "ü"}, Item(id="2", text="b", label="c")]
        assert prepare(records) == [{"id": "1", "text": "ü"}, {"id": "2", "text": "b", "label": "c", "metadata": {}}]

    @pytest.mark.parametrize("records", [[{"id": str(i), "text": "a"} for i in range(1001)], [{"text": "a" * 2**20}]])
    def test_many_or_large_records_become_a_manifest(self, records: list[dict[str, str]]) -> None:
        lines = content_of(prepare(records)).splitlines()
        assert [json.loads(line) for line in lines] == records

    def test_records_with_local_media(self, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(media)
        members = members_of(prepare([{"id": "1", "image": "images/a.png"}]))
        assert json.loads(members.pop("manifest.jsonl")) == {"id": "1", "image": "images/a.png"}
        assert members == {"images/a.png": b"picture"}

    @pytest.mark.parametrize("source", [[], ()])
    def test_no_records(self, source: Source) -> None:
        with pytest.raises(ClientError, match="no items"):
            prepare(source)


def test_features_uploads_then_creates_the_job(media: Path) -> None:
    manifest = write_manifest(media, {"id": "1", "image": "images/a.png"})
    bodies: dict[str, httpx.Request] = {}

    def gateway(request: httpx.Request) -> httpx.Response:
        bodies[request.url.path] = request
        if request.url.path == "/v1/files":
            fields = {
                "filename": "data.tar",
                "purpose": "user_data",
                "content_type": "application/x-tar",
                "sha256": "x",
            }
            return httpx.Response(200, json={"id": FILE_ID, "bytes": 1, "created_at": 1, **fields})
        items = {"total": 0, "succeeded": 0, "partial": 0, "failed": 0}
        fields = {"type": "features", "status": "queued", "request": {}, "metadata": {}}
        return httpx.Response(202, json={"id": "job-1", "created_at": 1, "items": items, "stages": {}, **fields})

    with Client("http://gateway", transport=httpx.MockTransport(gateway)) as client:
        job = client.features(manifest, fusion={"method": "weighted"}, metadata={"project": "x"})
    assert job.id == "job-1"
    assert content_of(prepare(manifest)) in bodies["/v1/files"].content
    assert json.loads(bodies["/v1/jobs"].content) == {
        "type": "features",
        "input": {"file_id": FILE_ID, "s3_prefix": None},
        "fusion": {"method": "weighted"},
        "metadata": {"project": "x"},
    }
