"""mlpm-guard for LangChain: gates for chains, chat models, agents, retrievers and documents.

Every name is loaded at its first use. `GuardMiddleware` needs `langchain`, the rest `langchain-core` only.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("langchain_core") is None:
    raise ImportError('langchain_mlpm_guard needs langchain-core, which is not installed:\npip install "mlpm-guard[langchain]"')

if TYPE_CHECKING:
    from langchain_mlpm_guard.chains import GuardedChain, guard_chain
    from langchain_mlpm_guard.chat_models import ModeratedChatModel
    from langchain_mlpm_guard.decisions import GuardDecisionModel
    from langchain_mlpm_guard.documents import DocumentGate, GuardedRetriever
    from langchain_mlpm_guard.errors import GuardBypassWarning, PromptBlockedError, ResponseBlockedError
    from langchain_mlpm_guard.gate import PromptGate
    from langchain_mlpm_guard.local_models import ChatGuarded
    from langchain_mlpm_guard.middleware import GuardMiddleware
    from langchain_mlpm_guard.moderation import OutputModeration

_HOME = {
    "ChatGuarded": "local_models",
    "DocumentGate": "documents",
    "GuardBypassWarning": "errors",
    "GuardDecisionModel": "decisions",
    "GuardMiddleware": "middleware",
    "GuardedChain": "chains",
    "GuardedRetriever": "documents",
    "ModeratedChatModel": "chat_models",
    "OutputModeration": "moderation",
    "PromptBlockedError": "errors",
    "PromptGate": "gate",
    "ResponseBlockedError": "errors",
    "guard_chain": "chains",
}

__all__ = [
    "ChatGuarded",
    "DocumentGate",
    "GuardBypassWarning",
    "GuardDecisionModel",
    "GuardMiddleware",
    "GuardedChain",
    "GuardedRetriever",
    "ModeratedChatModel",
    "OutputModeration",
    "PromptBlockedError",
    "PromptGate",
    "ResponseBlockedError",
    "guard_chain",
]

# What the installed LangChain cannot carry is not offered; asking for it by name says what is missing.
if find_spec("langchain") is None:
    __all__.remove("GuardMiddleware")
if find_spec("langchain_core.decisions") is None:
    __all__.remove("GuardDecisionModel")


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
