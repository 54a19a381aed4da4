"""Prompts of judges that are made of templates."""

from __future__ import annotations

import pytest

from harmonia.errors import InvalidRequestError
from harmonia.graders.judges import BinaryJudgeShot, JudgeTemplates
from harmonia.threads import StringThread

THREAD = StringThread(
    [
        ("system", "Be brief."),
        ("user", "Hi <b>"),
        ("assistant", "Hello"),
        ("user", "And?"),
        ("assistant", "<think>hm</think>Well"),
    ]
)


def test_templates_name_what_is_judged() -> None:
    shot = BinaryJudgeShot(StringThread([("user", "Hi"), ("assistant", "Go away")]), "rude", "FAIL")
    system = "{{criteria}}{{#each examples}} [{{user_question}}|{{completion}}|{{output_json}}]{{/each}}"
    user = "{{context_str_without_last_user}} ~ {{last_user_turn_content}} ~ {{completion}}"
    told, asked = JudgeTemplates(system, user, "It is kind.", [shot]).prompt(THREAD).get_turns()
    assert (told.role, asked.role) == ("system", "user")
    assert told.content == 'It is kind. [Hi|Go away|{"reasoning":"rude","score":"FAIL"}]'
    assert asked.content == "system: Be brief.\n\nuser: Hi <b>\n\nassistant: Hello ~ And? ~ Well"


def test_turns_can_be_gone_through_one_by_one() -> None:
    user = "{{turns.length}}{{#each context_turns}} {{role}}={{content}}{{/each}} | {{context_str}}"
    (asked,) = JudgeTemplates("  ", user, "?").prompt(THREAD).get_turns()
    assert asked.content.startswith("5 system=Be brief. user=Hi <b> assistant=Hello user=And? | system: Be brief.")
    rest = "{{#each context_turns_without_last_user}}{{role}} {{/each}}"
    assert JudgeTemplates("", rest, "?").prompt(THREAD).last_content() == "system user assistant "


def test_what_cannot_be_judged_or_asked_says_so() -> None:
    with pytest.raises(InvalidRequestError, match="last turn is of 'user'"):
        JudgeTemplates("", "{{completion}}", "?").prompt(THREAD.user("And now?"))
    with pytest.raises(InvalidRequestError, match="no 'criterea'"):
        JudgeTemplates("", "{{criterea}}", "?").prompt(THREAD)
    with pytest.raises(InvalidRequestError, match="does not close"):
        JudgeTemplates("{{#if x}}", "", "?")
