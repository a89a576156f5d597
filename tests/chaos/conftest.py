"""What the tests beside the chaos run have in common."""

import json

import pytest

MODALITIES = ("text", "image", "audio")


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the deterministic encoders, and tight limits on decoding."""
    file = tmp_path_factory.mktemp("catalog") / "encoders.json"
    hashing = [{"id": f"hash-{m}", "modality": m, "dimension": 16, "loader": "hashing"} for m in MODALITIES]
    file.write_text(json.dumps(hashing))
    return {
        **environment,
        "TRIVIUM_ENCODERS_FILE": str(file),
        "TRIVIUM_DECODE_SECONDS": "2",
        "TRIVIUM_DECODE_MEMORY_BYTES": str(256 * 1024**2),
        "TRIVIUM_IDLE_POLL_SECONDS": "0.2",
    }
