"""What a user hands to a guard, as a conversation: parsing, text repair, normalisation.

Knows nothing of encoders, labels or scores. No `repr` here shows text, so that a log of these objects leaks nothing.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mlpm_guard.errors import EmptyInputError, InvalidConversationError
from mlpm_guard.lookalikes import FOLDS, SIGNS
from mlpm_guard.tools import ToolUse
from mlpm_guard.verdict import Target

ConversationLike: TypeAlias = "str | Sequence[Mapping[str, object]] | Conversation"
"""A string (one user turn) or a list of `{"role": ..., "content": ...}` messages in OpenAI's shape."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_INSTRUCTION_ROLES = frozenset({"system", "developer"})
_PROMPT_ROLES = frozenset({"user", "tool", "function"})
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_MESSAGE_EXTRAS = ("tool_calls", "function_call", "audio")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: one of `ROLES`.
        content: the turn's text; content parts are joined by newlines.
        not_judged: kinds of its parts that are not text.
    """

    role: str
    content: str = field(repr=False)
    not_judged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """An immutable list of turns, oldest first.

    Attributes:
        messages: the turns.
        tool_use: tools that an answering model is shown with them; no part of what `parse` reads.
        token_ids: how the encoder that is about to read it tokenises it, where that is known; no part of what `parse` reads.
    """

    messages: tuple[Message, ...]
    tool_use: ToolUse | None = field(default=None, compare=False, repr=False)
    token_ids: list[int] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def parse(cls, value: object, *, target: Target = "prompt") -> Conversation:
        """Read a string or a list of role/content messages.

        Args:
            value: a string (one user turn; with `target="response"` one assistant turn), a list of mappings in OpenAI's
                shape (content may be a string, None beside tool calls, or a list of parts), or a `Conversation`.
            target: which turn is going to be judged.

        Raises:
            InvalidConversationError: wrong type, shape or role.
        """
        if isinstance(value, Conversation):
            return value
        if isinstance(value, str):
            role = "user" if target == "prompt" else "assistant"
            return cls((Message(role, repair(value)),))
        if isinstance(value, (bytes, bytearray, memoryview)):
            raise InvalidConversationError("a conversation is text, not bytes: decode it first")
        if isinstance(value, Mapping):
            raise InvalidConversationError(
                "a conversation is a string or a list of messages, not one message: put it in a list"
            )
        if not isinstance(value, Sequence):
            raise InvalidConversationError(
                f"a conversation is a string or a list of role/content messages, not {type(value).__name__}"
            )
        return cls(tuple(_message(index, item) for index, item in enumerate(value)))

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def not_judged(self) -> tuple[str, ...]:
        """Kinds of parts that are not text, each once, in order of appearance."""
        return tuple(dict.fromkeys(kind for message in self.messages for kind in message.not_judged))

    @property
    def characters(self) -> int:
        """Length of all texts together."""
        return sum(len(message.content) for message in self.messages)

    def turn_index(self, target: Target) -> int:
        """Position of the turn that is judged.

        For a prompt this is the last user turn, or the tool result behind it; for a response the last message, which must be
        the assistant's.

        Raises:
            InvalidConversationError: there is no such turn.
            EmptyInputError: it holds no text.
        """
        if not self.messages:
            raise InvalidConversationError("a conversation needs at least one message")
        if target == "response":
            index = len(self.messages) - 1
            if self.messages[index].role != "assistant":
                raise InvalidConversationError("a response guard judges a conversation that ends with the assistant")
        else:
            turns = [i for i, message in enumerate(self.messages) if message.role in _PROMPT_ROLES]
            if not turns:
                raise InvalidConversationError("a prompt guard judges a conversation with a user turn; this one has none")
            index = turns[-1]
        if not self.messages[index].content.strip():
            raise EmptyInputError("the turn to judge holds no text")
        return index

    def without_instructions(self) -> Conversation:
        """The conversation without its system and developer messages."""
        return Conversation(tuple(message for message in self.messages if message.role not in _INSTRUCTION_ROLES))

    def key(self) -> bytes:
        """Canonical bytes of roles and texts: equal for equal conversations only."""
        pieces: list[bytes] = []
        for message in self.messages:
            text = message.content.encode("utf-8", "surrogatepass")
            pieces += [message.role.encode(), b"\x00", str(len(text)).encode(), b"\x00", text]
        return b"".join(pieces)


def _message(index: int, item: object) -> Message:
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping):
        raise InvalidConversationError(f"message {index} is {type(item).__name__}, not a mapping with role and content")
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        named = f"role of {len(role)} characters" if isinstance(role, str) else type(role).__name__
        raise InvalidConversationError(f"message {index} has an unknown role ({named}); known are {', '.join(ROLES)}")
    extras = tuple(name for name in _MESSAGE_EXTRAS if item.get(name))
    content = item.get("content")
    if content is None:
        if "content" not in item and not extras:
            raise InvalidConversationError(f"message {index} has no content")
        return Message(role, "", extras)
    if isinstance(content, str):
        return Message(role, repair(content), extras)
    if isinstance(content, Sequence) and not isinstance(content, (bytes, bytearray)):
        texts, skipped = _parts(index, content)
        return Message(role, repair("\n".join(texts)), tuple(dict.fromkeys((*skipped, *extras))))
    raise InvalidConversationError(f"content of message {index} is {type(content).__name__}, not text or a list of parts")


def _parts(index: int, parts: Sequence[object]) -> tuple[list[str], list[str]]:
    texts: list[str] = []
    skipped: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise InvalidConversationError(f"message {index} has a content part of type {type(part).__name__}")
        kind = part.get("type")
        text = part.get("text")
        if kind in _TEXT_PARTS or (kind is None and isinstance(text, str)):
            if not isinstance(text, str):
                raise InvalidConversationError(f"message {index} has a text part whose text is {type(text).__name__}")
            texts.append(text)
        elif kind == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(str(part["refusal"]))
        else:
            # A part's kind is chosen by the caller's framework; anything that does not look like an identifier is not repeated.
            known = isinstance(kind, str) and re.fullmatch(r"[a-z_]{1,40}", kind)
            skipped.append(str(kind) if known else "unknown")
    return texts, skipped


def repair(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates by U+FFFD, so that every tokenizer can read the text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


_MAX_PASSES = 4  # folding may bring together what composes; two passes were enough for 60,000 random texts
_LATIN = re.compile(r"[A-Za-z]")
_WORD = re.compile(rf"(?:[^\W_]|[{re.escape(SIGNS)}])+")
_OTHER_LETTER = re.compile(r"[^\W\d_A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_STACKED = 3  # marks that no language writes on Latin letters, from which all accents of a text are taken for decoration


def normalise(text: str) -> str:
    """Undo disguises that leave a text readable for a person.

    NFKC; invisible, bidirectional and control characters removed (line breaks and tabs stay); stacked combining marks removed
    from Latin letters, and where there are many of them all accents; look-alike letters folded to Latin inside words that mix
    scripts and, where there are such words and most of the text is Latin, in all words that can be Latin. Text in another
    script is left alone.
    """
    for _ in range(_MAX_PASSES):
        undone = _undo_disguises(text)
        if undone == text:
            break
        text = undone
    return text


def _undo_disguises(text: str) -> str:
    if text.isascii():
        return _CONTROL.sub("", text)
    text = unicodedata.normalize("NFKC", text)
    kept: list[str] = []
    latin = stacked = 0
    after_latin = False
    for char in text:
        kind = _kind(char)
        if kind == "invisible" or (kind == "mark" and (after_latin or char >= "\ufe00")):
            stacked += kind == "mark" and after_latin
            continue
        if kind != "mark":
            after_latin = kind == "latin"
            latin += after_latin
        kept.append(char)
    text = "".join(kept)
    if stacked >= _STACKED and stacked * 5 >= latin:
        bare = (unicodedata.normalize("NFD", char)[0] if _kind(char) == "latin" else char for char in text)
        text = "".join(char for char in bare if _kind(char) != "mark")
    if text.isascii():
        return text
    latin = len(_LATIN.findall(text))
    if latin == 0:
        return text
    mixed = any(not word.isascii() and _LATIN.search(word) and word.translate(FOLDS) != word for word in _WORD.findall(text))
    if not mixed:
        return text  # words of several languages side by side
    mostly = latin > len(_OTHER_LETTER.findall(text))
    return _WORD.sub(lambda word: _folded(word[0], mostly), text)


def _folded(word: str, mostly_latin: bool) -> str:
    if word.isascii():
        return word
    folded = word.translate(FOLDS)
    return folded if _LATIN.search(word) or (mostly_latin and folded.isascii()) else word


@functools.lru_cache(maxsize=1 << 14)
def _kind(char: str) -> Literal["invisible", "mark", "latin", "other"]:
    category = unicodedata.category(char)
    if category in {"Cf", "Cc", "Co", "Cn"}:
        # Joiners shape Indic and Arabic letters and emoji; between those they carry meaning, but no words hide behind them.
        return "other" if char in "\n\t\r" else "invisible"
    if category in {"Mn", "Me"}:
        return "mark"
    return "latin" if category[0] == "L" and "LATIN" in unicodedata.name(char, "") else "other"
