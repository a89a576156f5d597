"""The sample dataset in the repository is whole, readable and split without leaks."""

import collections
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import soundfile
from PIL import Image

ARCHIVE = Path(__file__).parents[2] / "deploy" / "sample" / "emoji.tar"
MODALITIES = ("text", "image", "audio")
LABELS = {
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
}
LABEL_WORDS = re.compile(
    r"\b(activit|animal|natur|flag|food|drink|object|people|body|bodies|smiley|emotion|symbol|travel|place)", re.I
)

Item = dict[str, Any]


@pytest.fixture(scope="module")
def members() -> dict[str, bytes]:
    with tarfile.open(ARCHIVE) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]  # files only


@pytest.fixture(scope="module")
def items(members: dict[str, bytes]) -> list[Item]:
    return [json.loads(line) for line in members["manifest.jsonl"].splitlines()]


def test_archive_is_small_and_says_nothing_of_the_machine_that_made_it() -> None:
    assert ARCHIVE.stat().st_size <= 8_000_000
    with tarfile.open(ARCHIVE) as archive:
        entries = archive.getmembers()
    assert entries[0].name == "manifest.jsonl"
    assert all(entry.isfile() for entry in entries)
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) for entry in entries} == {(0, 0, 0, "", "")}


def test_there_are_enough_items_and_each_id_is_unique(items: list[Item]) -> None:
    assert len(items) >= 1200
    assert len({item["id"] for item in items}) == len(items)


def test_manifest_and_media_name_each_other(items: list[Item], members: dict[str, bytes]) -> None:
    named = [item[modality] for item in items for modality in ("image", "audio") if modality in item]
    assert len(named) == len(set(named))
    assert set(named) == set(members) - {"manifest.jsonl"}


def test_every_item_has_the_fields_of_the_vocabulary(items: list[Item]) -> None:
    for item in items:
        assert set(item) - set(MODALITIES) == {"id", "label", "split", "metadata"}
        assert all(isinstance(value, str) and value for value in item["metadata"].values())
        expected = {"name", "language", "codepoints"} | ({"voice"} if "audio" in item else set())
        assert set(item["metadata"]) == expected


def test_every_picture_is_readable_and_none_appears_twice(items: list[Item], members: dict[str, bytes]) -> None:
    formats: collections.Counter[str | None] = collections.Counter()
    pictures = set()
    for item in items:
        if "image" in item:
            with Image.open(io.BytesIO(members[item["image"]])) as image:
                assert min(image.size) >= 64
                pictures.add(image.convert("RGBA").tobytes())
                formats[image.format] += 1
    assert len(pictures) == formats.total()
    assert set(formats) == {"WEBP", "PNG", "JPEG"}
    assert min(formats.values()) >= 20


def test_every_recording_is_readable_audible_and_short(items: list[Item], members: dict[str, bytes]) -> None:
    formats: collections.Counter[str] = collections.Counter()
    for item in items:
        if "audio" in item:
            with soundfile.SoundFile(io.BytesIO(members[item["audio"]])) as recording:
                samples = recording.read(dtype="float32")
                assert (recording.samplerate, recording.channels) == (16_000, 1)
                formats[f"{recording.format} {recording.subtype}"] += 1
            assert 0.2 < len(samples) / 16_000 < 4, item["id"]
            assert 0.3 < abs(samples).max() <= 1, item["id"]
    assert set(formats) == {"OGG OPUS", "OGG VORBIS", "MP3 MPEG_LAYER_III", "FLAC PCM_16", "WAV PCM_16"}
    assert min(formats.values()) >= 20


def test_modalities_are_missing_at_random_but_never_all(items: list[Item]) -> None:
    assert all(any(modality in item for modality in MODALITIES) for item in items)
    for modality in MODALITIES:
        missing = sum(modality not in item for item in items) / len(items)
        assert missing == pytest.approx(0.08, abs=0.02)


def test_splits_have_the_same_shares_in_every_label(items: list[Item]) -> None:
    counts = collections.Counter((item["label"], item["split"]) for item in items)
    assert {label for label, _ in counts} == LABELS
    assert {split for _, split in counts} == {"train", "validation", "test"}
    for label in LABELS:
        total = sum(counts[label, split] for split in ("train", "validation", "test"))
        assert abs(counts[label, "validation"] - 0.15 * total) < 1
        assert abs(counts[label, "test"] - 0.15 * total) < 1


def test_no_text_names_a_label(items: list[Item]) -> None:
    texts = [item["text"] for item in items if "text" in item]
    assert [text for text in texts if LABEL_WORDS.search(text)] == []
    assert all(text.strip() for text in texts)


def test_texts_are_english_chinese_or_both(items: list[Item]) -> None:
    for item in items:
        if "text" in item:
            english = re.search("[A-Za-z]", item["text"]) is not None
            chinese = re.search("[\u4e00-\u9fff]", item["text"]) is not None
            assert item["metadata"]["language"] == "+".join(["en"] * english + ["zh"] * chinese)
