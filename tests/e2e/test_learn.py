"""`make learn` in its quick form: from raw items through the platform to figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared.fine_tuning import FusionChoice


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_learn_prints_every_modality_and_fusion(root: Path) -> None:
    """JSON lines alone on stdout; a figure lies in its interval; fusion wins where it was made to."""
    command = [sys.executable, "-m", "tests.learn", "--quick", "--only", "digits", "--processes", "2"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {frozenset(line) for line in lines} == {frozenset({"name", "metric", "value", "low", "high", "n"})}
    accuracy = {line["name"].removeprefix("digits/"): line for line in lines if line["metric"] == "accuracy"}
    methods = FusionChoice.model_json_schema()["properties"]["method"]["enum"]
    assert {"text", "image", "audio", "best-single", "best-fusion", *methods} <= set(accuracy)
    assert all(0 <= line["low"] <= line["value"] <= line["high"] <= 1 for line in accuracy.values())
    [difference] = [
        line
        for line in lines
        if (line["name"], line["metric"]) == ("digits/best-fusion - best-single", "accuracy difference")
    ]
    assert difference["low"] > 0
    assert difference["value"] == pytest.approx(
        accuracy["best-fusion"]["value"] - accuracy["best-single"]["value"], abs=2e-4
    )
    assert "digits/best-fusion - best-single: accuracy difference +" in done.stderr
    probes = [line["value"] for line in lines if line["metric"].endswith("linear probe")]
    assert len(probes) == 3
    assert all(0.2 < value < 0.9 for value in probes), "a modality tells nothing, or everything"
