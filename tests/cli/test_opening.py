"""Which encoder a command works with."""

from pathlib import Path

import pytest

from mlpm_guard.cli import opening
from mlpm_guard.encoders.embedded import EmbeddedEncoder, shipped_adapter
from mlpm_guard.errors import ConfigurationError
from tests.cli_support import error_line, jsonl, prompts, run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"")
    return path


def test_the_embedded_encoder_has_the_adapter_that_ships_unless_another_is_named(file):
    for name, expected in ((None, shipped_adapter()), ("default", shipped_adapter()), ("none", None), (str(file), file)):
        encoder = opening.load_encoder("embedded", name)
        assert isinstance(encoder, EmbeddedEncoder)
        assert encoder.adapter_file == expected


def test_another_model_has_no_adapter_unless_one_is_named(file):
    for name, expected in ((None, None), ("none", None), (str(file), file)):
        encoder = opening.load_encoder("some/model", name)
        assert (encoder.model, encoder.adapter_file) == ("some/model", expected)


def test_the_embedded_encoders_adapter_is_not_merged_into_another_model():
    with pytest.raises(ConfigurationError, match="adapter of the embedded encoder"):
        opening.load_encoder("some/model", "default")


@pytest.mark.parametrize("name", ["", "nowhere.safetensors", "."])
def test_a_file_that_is_not_there_is_named_before_any_work(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="no such file"):
        opening.load_encoder("embedded", name)


def test_files_named_like_the_choices_are_given_with_a_separator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("none", "default"):
        (tmp_path / name).write_bytes(b"")
        assert opening.load_encoder("embedded", f"./{name}").adapter_file == Path(name)


def test_fit_merges_the_adapter_that_it_is_given_and_says_what_is_wrong_with_it(tmp_path, file):
    source, out = jsonl(tmp_path / "a.jsonl", prompts(10)), tmp_path / "mine"
    assert "no such file" in error_line(run("fit", source, "--adapter", tmp_path / "nowhere", "--out", out))
    assert "not a safetensors file" in error_line(run("fit", source, "--adapter", file, "--out", out))
    assert not out.exists()
    assert run("fit", source, "--adapter", "none", "--out", out).exit_code == 0
    assert not (out / "adapter.safetensors").exists()
