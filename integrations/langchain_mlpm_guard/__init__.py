"""mlpm-guard for LangChain: gates for chains, chat models, agents, retrievers and documents."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("langchain_core") is None or find_spec("langchain_core") is None:
    raise ImportError(
        'langchain_mlpm_guard needs langchain-core, which is not installed:\npip install "mlpm-guard[langchain]"'
    )
