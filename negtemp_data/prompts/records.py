"""The records that pass between the parts of this package and on to the engine.

Plain data: they know neither files nor how they were made.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    """system, user, assistant or tool."""
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of the prompt source: a text, a chat, or the reason why it is neither."""

    id: str
    """Unique within the source."""
    text: str | None
    """The prompt as text; None: it is a chat, or can't be used."""
    messages: tuple[Message, ...] | None
    """The prompt as a chat; None: it is a text, or can't be used."""
    source: str | None
    """The row's other columns as a JSON object, in their order; None: it has no others."""
    error: str | None
    """Why the row can't be used; text and messages are then None."""


def request_text(text: str | None, messages: Iterable[Mapping[str, str]] | None) -> str:
    """A prompt as judges read it: its text, or the turns of its chat, each behind its role."""
    if messages is None:
        return text or ""
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


class RawRow(NamedTuple):
    """A row as its file holds it: columns, or the reason why it has none."""

    number: int
    """1-based: the line in jsonl and txt, else the row (a csv's header is not one)."""
    columns: dict[str, Any] | None
    error: str | None = None
