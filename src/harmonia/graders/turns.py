"""The parts of a conversation that judges look at."""

from __future__ import annotations

from harmonia.errors import InvalidRequestError
from harmonia.threads import StringThread, StringTurn


def validate_thread_last_assistant(thread: StringThread) -> None:
    """InvalidRequestError unless the conversation ends with an answer."""
    turns = thread.get_turns()
    if not turns or turns[-1].role != "assistant":
        last = f"its last turn is of {turns[-1].role!r}" if turns else "it is empty"
        raise InvalidRequestError(f"a judge needs a conversation that ends with an assistant turn; {last}")


def separate_context_from_last_user_turn(
    thread: StringThread, include_system_prompt: bool = False
) -> tuple[list[StringTurn], str | None]:
    """What was said before the last user turn, and that turn's text; everything and None without a user turn.

    An answer at the end belongs to neither.
    """
    turns = [StringTurn(role, content) for role, content in thread.messages()]
    users = [index for index, turn in enumerate(turns) if turn.role == "user"]
    before, question = (turns[: users[-1]], turns[users[-1]].content) if users else (turns, None)
    return [turn for turn in before if include_system_prompt or turn.role != "system"], question
