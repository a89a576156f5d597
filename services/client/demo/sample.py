"""The sample dataset that ships: emoji as picture, words and speech."""

import base64
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import deploy
from shared.queues import Modality

SAMPLE = Path(deploy.__file__).parent / "sample" / "emoji.tar"


@dataclass(frozen=True)
class Sample:
    """The sample dataset as the demo needs it: its items, and the encoded pictures and sounds by item id."""

    items: list[dict[str, Any]]
    pictures: dict[str, bytes]
    sounds: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls) -> "Sample":
        """The one that ships."""
        with tarfile.open(SAMPLE) as archive:
            content = {member.name: archive.extractfile(member) for member in archive}
            files = {name: file.read() for name, file in content.items() if file is not None}
        items = [json.loads(line) for line in files["manifest.jsonl"].splitlines()]
        pictures, sounds = (
            {item["id"]: files[item[name]] for item in items if name in item} for name in ("image", "audio")
        )
        return cls(items, pictures, sounds)

    def write(self, items: Sequence[Mapping[str, Any]], path: Path) -> Path:
        """Writes some of the items, or others made of them, with their pictures and sounds as a tar for a job."""
        files = {"manifest.jsonl": "".join(json.dumps(item) + "\n" for item in items).encode()}
        for item in items:
            files |= {item[m]: media[item["id"]] for m, media in self._media.items() if m in item}
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
        return path

    @property
    def _media(self) -> dict[str, dict[str, bytes]]:
        return {"image": self.pictures, "audio": self.sounds}

    @property
    def texts(self) -> dict[str, str]:
        """The texts by item id."""
        return {item["id"]: item["text"] for item in self.items if "text" in item}

    @property
    def names(self) -> dict[str, str]:
        """What the emoji are called, by item id."""
        return {item["id"]: item["metadata"]["name"] for item in self.items}

    def count(self, modality: Modality) -> int:
        """How many items have a modality."""
        return sum(modality.value in item for item in self.items)


def data_uri(media: bytes) -> str:
    """A picture or sound in the request itself."""
    return "data:;base64," + base64.b64encode(media).decode()
