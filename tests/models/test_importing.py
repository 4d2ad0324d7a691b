"""Imports: the folder that results, whole or not at all, once per source."""

import dataclasses
import fnmatch
import json
import os
import pathlib
import shutil

import httpx
import huggingface_hub
import pytest

from dsbs_jax.models import imported, importing
from dsbs_jax.models.config import t5_config
from dsbs_jax.models.importing import ImportConfig, import_weights
from dsbs_jax.models.weights import open_weights

CONFIG = t5_config(
    "v1_0", "small", vocab_size=48, d_model=16, d_kv=4, d_ff=24, num_heads=4, num_layers=2, num_decoder_layers=2
)


@pytest.fixture
def source(write_huggingface, tmp_path):
    write_huggingface(tmp_path / "source", CONFIG)
    return tmp_path / "source"


def test_what_is_written_and_told(source, tmp_path):
    told = import_weights(str(source), tmp_path / "out", ImportConfig(), "bfloat16")
    record = json.loads((tmp_path / "out" / "model.json").read_text())
    assert {name: record[name] for name in ("source", "dtype", "kind")} == {
        "source": str(source),
        "dtype": "bfloat16",
        "kind": "Hugging Face folder",
    }
    assert record["parameters"] == CONFIG.num_parameters()
    assert record["model"] == {name: getattr(CONFIG, name) for name in imported.ARCHITECTURE}
    assert f"{CONFIG.num_parameters():,} parameters, now bfloat16" in told
    assert "T5Config.tie_embeddings = True" in told
    assert (tmp_path / "out" / "model.gin").read_text() in told
    assert {tensor.dtype for tensor in open_weights(tmp_path / "out").tensors.values()} == {"bfloat16"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_again_is_nothing_to_do_and_anything_else_is_refused(source, tmp_path, monkeypatch):
    output = tmp_path / "out"
    import_weights(str(source), output, ImportConfig())
    monkeypatch.setattr(importing, "load", None)
    assert "holds" in import_weights(str(source), output, ImportConfig())
    with pytest.raises(ValueError, match=r"holds an import of .*source \(float32\).*choose another --output"):
        import_weights(str(source), output, ImportConfig(), "bfloat16")
    # The same folder with other weights in it.
    weights = source / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    with pytest.raises(ValueError, match="of other files"):
        import_weights(str(source), output, ImportConfig())
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="exists and is no imported folder"):
        import_weights(str(source), tmp_path / "mine", ImportConfig())


def test_an_import_that_fails_leaves_nothing_by_its_name(source, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(imported, "gin_lines", fail)
        with pytest.raises(OSError, match="No space left"):
            import_weights(str(source), tmp_path / "out", ImportConfig())
    with monkeypatch.context() as patch:
        patch.setattr(imported.ocp, "save_checkpointables", fail)
        with pytest.raises(OSError, match=r"out could not be written \(No space left on device\): make room"):
            import_weights(str(source), tmp_path / "out", ImportConfig())
    assert not (tmp_path / "out").exists()
    import_weights(str(source), tmp_path / "out", ImportConfig())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_named_model_must_be_the_sources(source, tmp_path):
    other = dataclasses.replace(CONFIG, num_buckets=16)
    with pytest.raises(ValueError, match="num_buckets is 32 there and 16 here"):
        import_weights(str(source), tmp_path / "out", ImportConfig(model=other))


def test_a_t5x_checkpoint_needs_its_architecture_named(write_huggingface, write_t5x, tmp_path):
    write_t5x(tmp_path / "checkpoint_7", write_huggingface(tmp_path / "source", CONFIG))
    with pytest.raises(ValueError, match="is a T5X checkpoint, which does not say its architecture: name it with"):
        import_weights(str(tmp_path / "checkpoint_7"), tmp_path / "out", ImportConfig())
    told = import_weights(str(tmp_path / "checkpoint_7"), tmp_path / "out", ImportConfig(model=CONFIG))
    assert "arrays of the optimiser's state were left out" in told


def test_torch_files_alone_are_refused_with_a_way_out(source, tmp_path):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"neither model\.safetensors.*pytorch_model\.bin, transformers converts it"):
        import_weights(str(source), tmp_path / "out", ImportConfig())


def test_a_repository_of_the_hub_without_safetensors(source, tmp_path, monkeypatch):
    def fetched(name, allow_patterns):
        assert name == "google/old"
        assert not any(fnmatch.fnmatch("pytorch_model.bin", pattern) for pattern in allow_patterns)
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    (source / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="The hub's google/old has no safetensors weights") as error:
        import_weights("google/old", tmp_path / "out", ImportConfig())
    assert "T5ForConditionalGeneration.from_pretrained('google/old').save_pretrained('FOLDER')" in str(error.value)


def test_a_name_that_the_hub_does_not_know(tmp_path, monkeypatch):
    def fetched(*_, **__):
        response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
        raise huggingface_hub.errors.RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    with pytest.raises(ValueError, match="the hub has no model of that name that you may read: check the name"):
        import_weights("google/misspelt", tmp_path / "out", ImportConfig())


@pytest.mark.parametrize("name", ["/nowhere", "../nowhere", "a/b/c", "model.safetensors"])
def test_what_can_be_neither_folder_nor_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("model.safetensors").touch()
    with pytest.raises(ValueError, match="is neither a folder with weights nor a name on the hub"):
        import_weights(name, "out", ImportConfig())


def test_an_imported_folder_is_a_source_too(source, tmp_path):
    import_weights(str(source), tmp_path / "wide", ImportConfig())
    shutil.rmtree(source)
    told = import_weights(str(tmp_path / "wide"), tmp_path / "narrow", ImportConfig(), "bfloat16")
    assert "imported folder" in told
