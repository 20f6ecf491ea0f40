"""mlpm-guard for LlamaIndex: guarded queries, retrieval, chat and agents.

Every name is loaded at its first use, so that a gate for queries does not import what only agents need.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("llama_index") is None or find_spec("llama_index.core") is None:
    raise ImportError(
        'llama_index_mlpm_guard needs llama-index-core, which is not installed:\npip install "mlpm-guard[llama-index]"'
    )

if TYPE_CHECKING:
    from llama_index_mlpm_guard.errors import PromptBlockedError
    from llama_index_mlpm_guard.events import GuardDecisionEvent
    from llama_index_mlpm_guard.index import guard_index
    from llama_index_mlpm_guard.llm import GuardedLLM
    from llama_index_mlpm_guard.local_llm import GuardedLocalLLM
    from llama_index_mlpm_guard.postprocessor import GuardPostprocessor
    from llama_index_mlpm_guard.query_engine import GuardedQueryEngine
    from llama_index_mlpm_guard.query_transform import GuardQueryTransform
    from llama_index_mlpm_guard.retriever import GuardedRetriever

_HOME = {
    "GuardDecisionEvent": "events",
    "GuardPostprocessor": "postprocessor",
    "GuardQueryTransform": "query_transform",
    "GuardedLLM": "llm",
    "GuardedLocalLLM": "local_llm",
    "GuardedQueryEngine": "query_engine",
    "GuardedRetriever": "retriever",
    "PromptBlockedError": "errors",
    "guard_index": "index",
}

__all__ = [
    "GuardDecisionEvent",
    "GuardPostprocessor",
    "GuardQueryTransform",
    "GuardedLLM",
    "GuardedLocalLLM",
    "GuardedQueryEngine",
    "GuardedRetriever",
    "PromptBlockedError",
    "guard_index",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
