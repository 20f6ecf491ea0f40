"""What every test of the LlamaIndex integration needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from llama_index.core import Settings
from llama_index.core.llms import MockLLM


@pytest.fixture(autouse=True)
def _a_default_model_without_network() -> Iterator[None]:
    """Some synthesizers ask for LlamaIndex's default model, which would be a remote one, and never use it."""
    before = Settings._llm
    Settings.llm = MockLLM(max_tokens=4)
    yield
    Settings._llm = before
