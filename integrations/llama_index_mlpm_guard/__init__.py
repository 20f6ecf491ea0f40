"""mlpm-guard for LlamaIndex: guarded queries, retrieval, chat and agents."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("llama_index") is None or find_spec("llama_index.core") is None:
    raise ImportError(
        'llama_index_mlpm_guard needs llama-index-core, which is not installed:\npip install "mlpm-guard[llama-index]"'
    )
