"""Make Trivium's sample dataset, ``emoji.tar``: emoji as pictures, keywords and spoken names.

The sources, unpacked anywhere::

    npm pack emoji-datasource-google@16.0.0 cldr-annotations-full@48.2.0 cldr-annotations-derived-full@48.2.0
    for archive in *.tgz; do mkdir "${archive%.tgz}" && tar xzf "$archive" -C "${archive%.tgz}"; done

Speech comes from the program ``espeak-ng`` (1.51), which must be on the path. Then::

    python make_sample.py --out emoji.tar \\
        --emoji emoji-datasource-google-16.0.0/package \\
        --cldr cldr-annotations-full-48.2.0/package \\
        --cldr-derived cldr-annotations-derived-full-48.2.0/package

Everything random is drawn from SEED and the item's id: the same versions of the sources and tools
write the same bytes.
"""

import argparse
import collections
import dataclasses
import io
import json
import pathlib
import random
import re
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from PIL import Image

SEED = 20260101
ITEMS_PER_LABEL = 150
SPLITS = {"test": 0.15, "validation": 0.15}  # the rest is "train"
MISSING = 0.08  # probability, per modality

LANGUAGES = {"en": 0.7, "zh": 0.15, "en+zh": 0.15}
IMAGE_FORMATS = {"webp": 0.92, "png": 0.04, "jpg": 0.04}
AUDIO_FORMATS = {"opus": 0.89, "vorbis": 0.03, "mp3": 0.03, "flac": 0.03, "wav": 0.02}

# Words of the labels, in English and Chinese: no text and no spoken name may contain one.
LABEL_WORDS = re.compile(
    r"\b(smiley|emotion|people|body|bodies|animal|natur|food|drink|travel|place|activit|object|symbol|flag)"
    "|表情|情感|情绪|人物|身体|动物|自然|食物|食品|饮料|饮品|旅行|旅游|地点|活动|物品|物体|符号|旗",
    re.IGNORECASE,
)
KEYWORDS = {"en": re.compile(r"[A-Za-z][A-Za-z’' -]{2,}"), "zh": re.compile(r"[\u4e00-\u9fff]+")}
SEPARATORS = {"en": (", ", " and "), "zh": ("、", "和")}
SENTENCES = {
    "en": ["{}", "Tags: {}", "This is about {}.", "It makes me think of {}.", "Looking for something with {}."],
    "zh": ["{}", "标签：{}", "这是关于{}的。", "让我想到{}。", "想找和{}有关的。"],
}

# The voice "cmn" of espeak-ng 1.51 spells pinyin out in English; this one reads the characters rightly.
ACCENTS = {"en": ["en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029"], "zh": ["cmn-latn-pinyin"]}
TIMBRES = ["m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5"]
SAMPLE_RATE = 16_000  # Hz
PEAK = 0.8  # of full scale
SILENCE = 0.01  # of the peak
PADDING = SAMPLE_RATE // 20  # samples kept around the speech

ZERO_WIDTH_JOINER = "200D"
# Joined to another character, these make a variant: man, woman, male sign, female sign, facing right.
VARIANT_MARKS = {"1F468", "1F469", "2642", "2640", "27A1"}
NEAR_DUPLICATE_BITS = 10  # of 128

Samples = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji. `names` and `keywords` are by language; `picture` is a 64 by 64 RGBA PNG file."""

    codepoints: str
    label: str
    names: dict[str, str]
    keywords: dict[str, list[str]]
    picture: pathlib.Path

    @property
    def id(self) -> str:
        """The item's id, such as ``emoji-1f600``."""
        return f"emoji-{self.codepoints.lower()}"

    def random(self, purpose: str) -> random.Random:
        """Return this emoji's own generator for one purpose, so that no draw depends on another item."""
        return random.Random(f"{SEED} {self.id} {purpose}")


def pick(rng: random.Random, weights: dict[str, float]) -> str:
    """Draw one key with its weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def read_annotations(cldr: pathlib.Path, derived: pathlib.Path, language: str) -> dict[str, dict[str, list[str]]]:
    """Read CLDR's names (``tts``) and keywords (``default``) by emoji, without variation selectors."""
    annotations: dict[str, dict[str, list[str]]] = {}
    for package, kind in ((derived, "annotationsDerived"), (cldr, "annotations")):
        text = (package / kind / language / "annotations.json").read_text(encoding="utf-8")
        annotations |= json.loads(text)[kind]["annotations"]
    return annotations


def read_emoji(source: pathlib.Path, annotations: dict[str, dict[str, dict[str, list[str]]]]) -> list[Emoji]:
    """Read every emoji that is no variant of another and whose names hold no word of a label.

    A flag is called by its country alone: CLDR's "flag: Peru" would give its label away.
    """
    emoji = []
    for entry in json.loads((source / "emoji.json").read_text(encoding="utf-8")):
        codepoints = entry["unified"].split("-")
        joined_variant = ZERO_WIDTH_JOINER in codepoints and VARIANT_MARKS.intersection(codepoints)
        if entry["category"] == "Component" or joined_variant:
            continue
        character = "".join(chr(int(point, 16)) for point in codepoints if point != "FE0F")
        found = {language: annotations[language][character] for language in annotations}
        names = {lang: re.sub("^(flag|旗): ", "", about["tts"][0]) for lang, about in found.items()}
        if any(LABEL_WORDS.search(name) for name in names.values()):
            continue
        keywords = {
            lang: [
                word
                for word in about.get("default", [])
                if KEYWORDS[lang].fullmatch(word) and not LABEL_WORDS.search(word)
            ]
            for lang, about in found.items()
        }
        picture = source / "img" / "google" / "64" / entry["image"]
        emoji.append(Emoji(entry["unified"], entry["category"], names, keywords, picture))
    return emoji


def flatten(picture: pathlib.Path) -> Image.Image:
    """Open a picture and lay it on white."""
    with Image.open(picture) as image:
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def difference_hash(picture: pathlib.Path) -> npt.NDArray[np.bool_]:
    """Hash a picture's grey gradients (dHash, Krawetz 2013), rows and columns: 128 bits."""
    grey = flatten(picture).convert("L")
    rows = np.asarray(grey.resize((9, 8), Image.Resampling.LANCZOS), dtype=np.float64)
    columns = np.asarray(grey.resize((8, 9), Image.Resampling.LANCZOS), dtype=np.float64)
    gradients = [np.diff(rows, axis=1).ravel(), np.diff(columns, axis=0).ravel()]
    return np.concatenate(gradients) > 2  # flat areas count as no gradient


def select(emoji: Sequence[Emoji]) -> list[Emoji]:
    """Choose up to ITEMS_PER_LABEL of each label, in random order, without near-duplicate pictures.

    Clock faces, coloured hearts or the flags of overseas territories in two splits would let a model
    that memorised one know the other.
    """
    candidates = sorted(emoji, key=lambda one: one.id)
    random.Random(SEED).shuffle(candidates)
    chosen: list[Emoji] = []
    hashes: list[npt.NDArray[np.bool_]] = []
    counts: collections.Counter[str] = collections.Counter()
    for candidate in candidates:
        bits = difference_hash(candidate.picture)
        unlike = all(np.count_nonzero(bits != other) > NEAR_DUPLICATE_BITS for other in hashes)
        if unlike and counts[candidate.label] < ITEMS_PER_LABEL:
            chosen.append(candidate)
            hashes.append(bits)
            counts[candidate.label] += 1
    return chosen


def assign_splits(emoji: Sequence[Emoji]) -> dict[str, str]:
    """Return the split of each id: the shares of SPLITS in every label. Expects random order."""
    splits: dict[str, str] = {}
    for label in {one.label for one in emoji}:
        ids = [one.id for one in emoji if one.label == label]
        names = [name for name, share in SPLITS.items() for _ in range(round(share * len(ids)))]
        names += ["train"] * (len(ids) - len(names))
        splits |= dict(zip(ids, names, strict=True))
    return splits


def compose_text(emoji: Emoji, language: str) -> str:
    """Write a sentence of one to three keywords in each language; the name where there are none."""
    rng = emoji.random("text")
    sentences = []
    for lang in language.split("+"):
        words = emoji.keywords[lang] or [emoji.names[lang]]
        words = rng.sample(words, min(len(words), rng.randint(1, 3)))
        comma, conjunction = SEPARATORS[lang]
        listed = conjunction.join([comma.join(words[:-1]), words[-1]] if len(words) > 1 else words)
        sentences.append(rng.choice(SENTENCES[lang]).format(listed))
    return " ".join(sentences)


def encode_picture(emoji: Emoji, image_format: str) -> bytes:
    """Encode a picture. A PNG is the source's own file with its transparency; others lie on white."""
    if image_format == "png":
        return emoji.picture.read_bytes()
    encoded = io.BytesIO()
    if image_format == "webp":
        flatten(emoji.picture).save(encoded, "WEBP", quality=80, method=6)
    else:
        flatten(emoji.picture).save(encoded, "JPEG", quality=85, optimize=True)
    return encoded.getvalue()


def speak(emoji: Emoji, language: str, voice: str) -> Samples:
    """Speak a name at a random speed and pitch: float32 samples (n,), mono, SAMPLE_RATE."""
    rng = emoji.random("speech")
    speed, pitch = rng.randint(150, 190), rng.randint(30, 70)
    text = emoji.names[language].replace(":", ",")
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/speech.wav"
        options = ["-v", voice, "-s", str(speed), "-p", str(pitch), "-b", "1", "-w", path, "--stdin"]
        subprocess.run(["espeak-ng", *options], input=text.encode(), check=True)
        samples, rate = soundfile.read(path, dtype="float32")
    samples = soxr.resample(samples, rate, SAMPLE_RATE)
    loudness = np.abs(samples)
    heard = np.flatnonzero(loudness > SILENCE * loudness.max())
    samples = samples[max(0, heard[0] - PADDING) : heard[-1] + PADDING]
    return np.asarray(samples * (PEAK / loudness.max()), dtype=np.float32)


def encode_speech(samples: Samples, audio_format: str) -> bytes:
    """Encode samples as Opus or Vorbis in Ogg, MP3, FLAC or 16-bit WAV."""
    container, subtype, compression = {
        "opus": ("OGG", "OPUS", 0.98),
        "vorbis": ("OGG", "VORBIS", 0.9),
        "mp3": ("MP3", "MPEG_LAYER_III", 0.9),
        "flac": ("FLAC", "PCM_16", 1.0),
        "wav": ("WAV", "PCM_16", None),
    }[audio_format]
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, SAMPLE_RATE, format=container, subtype=subtype, compression_level=compression)
    return renumber_ogg(encoded.getvalue()) if container == "OGG" else encoded.getvalue()


def renumber_ogg(stream: bytes) -> bytes:
    """Set the serial number of every Ogg page (RFC 3533) to 0: the library draws one from the clock."""
    pages = []
    while stream:
        segments = stream[26]
        length = 27 + segments + sum(stream[27 : 27 + segments])
        page = bytearray(stream[:length])
        page[14:18] = page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", ogg_checksum(page))
        pages.append(bytes(page))
        stream = stream[length:]
    return b"".join(pages)


def ogg_checksum(page: bytearray) -> int:
    """Return the CRC-32 of an Ogg page (RFC 3533): polynomial 0x04C11DB7, not reflected, starting at 0."""
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1) ^ (0x04C11DB7 if checksum & 0x80000000 else 0)
        checksum &= 0xFFFFFFFF
    return checksum


def draw_modalities(emoji: Emoji) -> set[str]:
    """Draw which modalities an item has: each missing with probability MISSING, never all of them."""
    rng = emoji.random("modalities")
    present: set[str] = set()
    while not present:
        present = {name for name in ("text", "image", "audio") if rng.random() >= MISSING}
    return present


def make_item(emoji: Emoji, split: str) -> tuple[dict[str, object], dict[str, bytes]]:
    """Return an item's manifest line and its archive members by name."""
    present = draw_modalities(emoji)
    rng = emoji.random("choices")
    language = pick(rng, LANGUAGES)
    image_format, audio_format = pick(rng, IMAGE_FORMATS), pick(rng, AUDIO_FORMATS)
    spoken = rng.choice(language.split("+"))
    voice = f"{rng.choice(ACCENTS[spoken])}+{rng.choice(TIMBRES)}"
    codepoints = " ".join(f"U+{point}" for point in emoji.codepoints.split("-"))
    metadata = {"name": emoji.names["en"], "language": language, "codepoints": codepoints}
    item: dict[str, object] = {"id": emoji.id}
    members = {}
    if "text" in present:
        item["text"] = compose_text(emoji, language)
    if "image" in present:
        item["image"] = f"images/{emoji.id}.{image_format}"
        members[f"images/{emoji.id}.{image_format}"] = encode_picture(emoji, image_format)
    if "audio" in present:
        extension = "ogg" if audio_format in ("opus", "vorbis") else audio_format
        item["audio"] = f"audio/{emoji.id}.{extension}"
        members[f"audio/{emoji.id}.{extension}"] = encode_speech(speak(emoji, spoken, voice), audio_format)
        metadata["voice"] = voice
    return item | {"label": emoji.label, "split": split, "metadata": metadata}, members


def write_archive(out: pathlib.Path, members: dict[str, bytes]) -> None:
    """Write a tar whose bytes depend on its members alone: no times, no owners."""
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the tar file to write")
    parser.add_argument("--emoji", type=pathlib.Path, required=True, help="emoji-datasource-google")
    parser.add_argument("--cldr", type=pathlib.Path, required=True, help="cldr-annotations-full")
    parser.add_argument("--cldr-derived", type=pathlib.Path, required=True, help="cldr-annotations-derived-full")
    return parser.parse_args()


def main() -> None:
    """Make the dataset. The manifest is in random order, so that any first part of it is a fair sample."""
    arguments = parse_arguments()
    annotations = {
        language: read_annotations(arguments.cldr, arguments.cldr_derived, language) for language in ("en", "zh")
    }
    chosen = select(read_emoji(arguments.emoji, annotations))
    splits = assign_splits(chosen)
    lines: list[str] = []
    media: dict[str, bytes] = {}
    for emoji in random.Random(SEED).sample(chosen, len(chosen)):
        item, members = make_item(emoji, splits[emoji.id])
        lines.append(json.dumps(item, ensure_ascii=False) + "\n")
        media |= members
    # One folder after the other, each in the manifest's order: a slice of it reads one range of a folder.
    folders = sorted(media, key=lambda name: name.partition("/")[0])
    manifest = {"manifest.jsonl": "".join(lines).encode()}
    write_archive(arguments.out, manifest | {name: media[name] for name in folders})


if __name__ == "__main__":
    main()
