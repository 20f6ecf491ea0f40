"""What the tests of the commands work on."""

import pytest

from mlpm_guard.cli import opening
from mlpm_guard.guard import Guard
from mlpm_guard.testing import MockEncoder
from tests.cli_support import prompts


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A saved guard of a mock encoder, which is what the commands then load bundles with."""
    data = prompts(60)
    fitted = Guard(MockEncoder()).fit([row["text"] for row in data], [row["label"] for row in data], progress=False)
    monkeypatch.setattr(opening, "load_encoder", lambda name, adapter=None: MockEncoder())
    monkeypatch.setattr(
        opening,
        "load_guard",
        lambda name, threshold=None: Guard.from_pretrained(name, encoder=MockEncoder(), threshold=threshold),
    )
    return fitted.save_pretrained(tmp_path / "bundle", notes={"licence": "CC0"})
