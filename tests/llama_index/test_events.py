"""GuardDecisionEvent and the package's public names."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import llama_index_mlpm_guard
import pytest
from llama_index.core.instrumentation.events.retrieval import RetrievalStartEvent
from llama_index.core.schema import QueryBundle
from llama_index_instrumentation import get_dispatcher
from llama_index_mlpm_guard import GuardDecisionEvent, GuardQueryTransform, PromptBlockedError

from mlpm_guard import Verdict
from tests.llama_index.support import BLOCKED_QUERY, Observer, observed, prompt_guard


def test_an_event_serialises_with_its_verdict_and_without_text() -> None:
    with observed() as events, pytest.raises(PromptBlockedError):
        GuardQueryTransform(guard=prompt_guard()).run(BLOCKED_QUERY)
    (event,) = events.decisions
    data = json.loads(json.dumps(event.model_dump(), default=str))
    assert data["class_name"] == GuardDecisionEvent.class_name() == "GuardDecisionEvent"
    assert Verdict.model_validate(event.model_dump()["verdict"]) == event.verdict
    assert "bomb" not in json.dumps(data) + repr(event)


def test_a_handler_that_fails_changes_nothing() -> None:
    class Failing(Observer):
        def handle(self, event: Any, **kwargs: Any) -> None:
            raise RuntimeError("no")

    root = get_dispatcher("root")
    before = list(root.event_handlers)
    root.event_handlers = [*before, Failing()]
    try:
        with pytest.raises(PromptBlockedError):
            GuardQueryTransform(guard=prompt_guard()).run(BLOCKED_QUERY)
        assert GuardQueryTransform(guard=prompt_guard()).run("harmless").query_str == "harmless"
    finally:
        root.event_handlers = before


def test_a_judged_query_serialises_as_before() -> None:
    query = QueryBundle("harmless")
    before = RetrievalStartEvent(str_or_query_bundle=query).model_dump_json(exclude={"timestamp", "id_"})
    GuardQueryTransform(guard=prompt_guard()).run(query)
    assert RetrievalStartEvent(str_or_query_bundle=query).model_dump_json(exclude={"timestamp", "id_"}) == before
    assert QueryBundle.from_dict(query.to_dict()) == query


def test_the_public_names_are_complete_sorted_and_importable() -> None:
    names = llama_index_mlpm_guard.__all__
    assert names == sorted(names)
    assert set(names) == set(llama_index_mlpm_guard._HOME) == set(dir(llama_index_mlpm_guard))
    assert all(getattr(llama_index_mlpm_guard, name).__name__ == name for name in names)
    with pytest.raises(AttributeError, match="nothing"):
        llama_index_mlpm_guard.nothing  # noqa: B018


def test_importing_the_package_imports_neither_torch_nor_llama_index() -> None:
    code = "import sys, llama_index_mlpm_guard; print([name for name in ('torch', 'llama_index.core') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_llama_index_the_import_says_how_to_install_it() -> None:
    code = "import sys; sys.modules['llama_index'] = None\nimport llama_index_mlpm_guard"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "mlpm-guard[llama-index]"' in done.stderr
