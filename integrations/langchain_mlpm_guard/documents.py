"""DocumentGate and GuardedRetriever: retrieved text is judged before a model reads it. A guard decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun, Callbacks
from langchain_core.documents import BaseDocumentCompressor, BaseDocumentTransformer, Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, SkipValidation, model_validator

from langchain_mlpm_guard.configuration import checked
from langchain_mlpm_guard.errors import PromptBlockedError
from langchain_mlpm_guard.judging import EVENT, Judge, is_guard, record, stops
from langchain_mlpm_guard.messages import Turns, strings
from langchain_mlpm_guard.refusals import REMOVED
from langchain_mlpm_guard.retrying import BlocksOnce
from langchain_mlpm_guard.silence import Silence
from mlpm_guard.errors import ConfigurationError, InvalidConversationError
from mlpm_guard.verdict import Mode, Verdict

OnDocument = Literal["drop", "redact", "flag"]


class DocumentGate(BaseDocumentCompressor, BaseDocumentTransformer):
    """Drops, redacts or flags documents that a guard blocks: instructions to the model that hide in them, above all.

    A compressor and a transformer; `retriever | RunnableLambda(gate.transform_documents)` works too. A list of documents is one
    call of the guard. Documents are never changed in place.

    Args:
        guard: a `Guard` with `target="prompt"`, or anything with its `check` or `acheck`.
        on_block: "drop" leaves a document out; "redact" keeps its place and its id, without text and metadata; "flag" keeps it
            as it is and puts the verdict into its metadata under "mlpm_guard".
        metadata_keys: entries of the metadata that are judged with the text, because a model will read them.
        threshold: instead of the guard's own, from 0 to 1.
        mode: instead of the guard's own.

    Raises:
        ConfigurationError: the guard judges answers.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    guard: SkipValidation[Any] = Field(exclude=True)
    on_block: OnDocument = "drop"
    metadata_keys: Sequence[str] = ()
    threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    mode: Mode | None = None

    def __init__(self, guard: Any = None, **options: Any) -> None:
        with checked(self):
            super().__init__(guard=guard, **options)  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _complete(self) -> DocumentGate:
        is_guard(self.guard, "prompt", "guard")
        return self

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,  # noqa: ARG002
        callbacks: Callbacks | None = None,  # noqa: ARG002
    ) -> Sequence[Document]:
        """The documents that a model may read, in order."""
        return self.transform_documents(documents)

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,  # noqa: ARG002
        callbacks: Callbacks | None = None,  # noqa: ARG002
    ) -> Sequence[Document]:
        """`compress_documents` without blocking the event loop."""
        return await self.atransform_documents(documents)

    def transform_documents(self, documents: Sequence[Document], **_: Any) -> Sequence[Document]:
        """The documents that a model may read, in order."""
        return self._kept(documents, self._judge().worst([self._turns(each) for each in documents]))

    async def atransform_documents(self, documents: Sequence[Document], **_: Any) -> Sequence[Document]:
        """`transform_documents` without blocking the event loop."""
        return self._kept(documents, await self._judge().aworst([self._turns(each) for each in documents]))

    def _judge(self) -> Judge:
        return Judge(self.guard, self.threshold, self.mode)

    def _turns(self, document: Document) -> list[Turns]:
        if not isinstance(document, Document):
            raise InvalidConversationError(f"a document is a Document, not {type(document).__name__}")
        found = [document.page_content]
        for key in self.metadata_keys:
            found += strings(document.metadata.get(key))
        text = "\n".join(each for each in found if each.strip())
        return [[{"role": "tool", "content": text}]] if text else []

    def _kept(self, documents: Sequence[Document], verdicts: Sequence[Verdict | None]) -> list[Document]:
        found: list[Document] = []
        for document, verdict in zip(documents, verdicts, strict=True):
            if verdict is None or not stops(verdict):
                found.append(document)
            elif self.on_block == "redact":
                found.append(Document(page_content=REMOVED, id=document.id, metadata={EVENT: record(verdict)}))
            elif self.on_block == "flag":
                found.append(document.model_copy(update={"metadata": {**document.metadata, EVENT: record(verdict)}}))
        return found


class GuardedRetriever(BlocksOnce, BaseRetriever):
    """A retriever whose query passes a gate, and whose documents pass another, before anybody sees them.

    The inner retriever runs out of sight, as its own record would hold what is about to be dropped.

    Args:
        retriever: any retriever.
        guard: a `Guard` with `target="prompt"`, or anything with its `check` or `acheck`.
        on_block: what happens to blocked documents: "drop", "redact" or "flag"; see `DocumentGate`.
        on_query: what happens on a blocked query: "raise" raises `PromptBlockedError`, "empty" finds nothing, "pass" does not
            judge queries. The inner retriever is not asked.
        metadata_keys: entries of the metadata that are judged with the text.
        trace_inner: let callbacks and tracers see the inner retriever, with all that it found.

    Raises:
        ConfigurationError: the guard judges answers, or there is no retriever.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    retriever: SkipValidation[Any]
    guard: SkipValidation[Any] = Field(exclude=True)
    on_block: OnDocument = "drop"
    on_query: Literal["raise", "empty", "pass"] = "raise"
    metadata_keys: Sequence[str] = ()
    trace_inner: bool = False

    def __init__(self, retriever: Any = None, **options: Any) -> None:
        with checked(self):
            super().__init__(retriever=retriever, **{"guard": None, **options})  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _complete(self) -> GuardedRetriever:
        if not isinstance(self.retriever, BaseRetriever):
            raise ConfigurationError(f"retriever is {type(self.retriever).__name__}: pass a LangChain retriever")
        is_guard(self.guard, "prompt", "guard")
        return self

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        if self.on_query != "pass" and self._refused(Judge(self.guard).check([_asked(query)])[0]):
            return []
        config: Any = {"callbacks": run_manager.get_child() if self.trace_inner else []}
        found = Silence(mute=not self.trace_inner).run(lambda: self.retriever.invoke(query, config, **kwargs))
        return list(self._gate().transform_documents(found))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        if self.on_query != "pass" and self._refused((await Judge(self.guard).acheck([_asked(query)]))[0]):
            return []
        config: Any = {"callbacks": run_manager.get_child() if self.trace_inner else []}
        found = await Silence(mute=not self.trace_inner).arun(lambda: self.retriever.ainvoke(query, config, **kwargs))
        return list(await self._gate().atransform_documents(found))

    def _gate(self) -> DocumentGate:
        return DocumentGate(guard=self.guard, on_block=self.on_block, metadata_keys=self.metadata_keys)

    def _refused(self, verdict: Verdict) -> bool:
        if not stops(verdict):
            return False
        if self.on_query == "raise":
            raise PromptBlockedError(verdict)
        return True


def _asked(query: str) -> Turns:
    return [{"role": "user", "content": query}]
