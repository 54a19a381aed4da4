"""What a judge is told: Handlebars texts that the server fills in for every answer to be judged."""

from __future__ import annotations

SYSTEM_TEMPLATE = """\
You judge answers of an assistant by one criterion:

{{{criteria}}}

Read the conversation and the assistant's answer. Think about whether the answer meets the criterion, and about nothing
else. Then give your score: PASS if it does, FAIL if it does not, NA if the criterion says nothing about this answer.

Reply with JSON alone, with two fields: "reasoning", your thoughts in a few sentences, and "score".
{{#if examples.length}}

These answers have been judged already:
{{#each examples}}

Example {{@index}}
Conversation:
{{{context_str}}}
{{{user_question}}}
Answer:
{{{completion}}}
Judgement:
{{{output_json}}}
{{/each}}
{{/if}}
"""
USER_TEMPLATE = """\
Conversation:
{{{context_str_without_last_user}}}
{{{last_user_turn_content}}}

Answer:
{{{completion}}}

Reply with JSON of this schema:
{{{output_schema}}}
"""
