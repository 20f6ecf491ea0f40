"""Fixtures of the LangChain tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache


@pytest.fixture
def cache() -> Iterator[InMemoryCache]:
    """The process's LLM cache, for one test."""
    kept = InMemoryCache()
    set_llm_cache(kept)
    yield kept
    set_llm_cache(None)
