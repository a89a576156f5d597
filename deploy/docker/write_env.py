"""`python deploy/docker/write_env.py [FILE]`: makes .env of .env.example, with random secrets and a first API key.

What exists is left alone. Needs nothing but Python.
"""

import os
import re
import secrets
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_FIRST_KEY = "TRIVIUM_FIRST_KEY"
_KEY_PREFIX = "sk-trivium-"


def main() -> None:
    """Writes the file, readable by its owner only, and shows the key."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else _ROOT / ".env"
    if path.exists():
        return
    content, key = fill_in((_ROOT / ".env.example").read_text(encoding="utf-8"))
    write_private(path, content)
    print(f"Wrote {path} with random secrets. Your API key, an administrator's, is in it and shown this once:\n")
    print(f"    export TRIVIUM_API_KEY={key}\n")


def fill_in(example: str) -> tuple[str, str]:
    """The example with a value for each setting that it leaves empty, and the API key among them."""
    key = _KEY_PREFIX + secrets.token_urlsafe(32)

    def value(line: re.Match[str]) -> str:
        return line[0] + (key if line[1] == _FIRST_KEY else secrets.token_hex(16))

    return re.sub(r"^(\w+)=$", value, example, flags=re.MULTILINE), key


def write_private(path: Path, content: str) -> None:
    """Creates a file that only its owner may read. Raises FileExistsError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(content)


if __name__ == "__main__":
    main()
