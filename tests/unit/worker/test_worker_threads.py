"""Conversations in tokens: the ids that serving would see, and which of them belong to which turn."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from harmonia.errors import InvalidRequestError
from harmonia.models.chat_template import ChatTemplate
from harmonia.models.source import open_model
from harmonia.models.tokenizer import ModelTokenizer, load_tokenizer
from harmonia.protocol.messages import ChatPrompt
from harmonia.protocol.threads import (
    FunctionCall,
    Reasoning,
    StructuredOutput,
    Text,
    ThreadData,
    ThreadTurn,
    TokenThreadData,
    TokenTurn,
    ToolResponse,
)
from harmonia.threads.weights import token_weights
from harmonia.worker.chat import template_messages
from harmonia.worker.threads import ThreadTokenizer

CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe nice<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m.role == 'tool' %}{% if not loop.previtem or loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}"
    "\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% elif m.role == 'assistant' %}{% set said = m.content %}{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}"
    "{% for call in m.tool_calls or [] %}{% if said or not loop.first %}\n{% endif %}"
    "<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set lead = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ lead if loop.first }}{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"
ENDS = {CHATML: "<|im_end|>", LLAMA3: "<|eot_id|>", QWEN3: "<|im_end|>", GEMMA: "<end_of_turn>", MISTRAL: "</s>"}
TEMPLATES = list(ENDS)
NAMES = ["chatml", "llama3", "qwen3", "gemma", "mistral"]
SPECIAL = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"),
]


def tokenizer(template: str | None, *, begins: bool = False) -> ModelTokenizer:
    """Bytes and special tokens, some pairs of bytes merged; with `begins`, texts get `<s>` in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("h", "e"), ("l", "l")]
    vocab = [*alphabet, *(first + second for first, second in merges)]
    backend = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(vocab)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    end = ENDS.get(template or "", "</s>")
    special = {"bos_token": "<s>", "eos_token": end}
    return ModelTokenizer(
        backend=backend,
        special_tokens=special,
        prefix_ids=(backend.token_to_id("<s>"),) if begins else (),
        suffix_ids=(),
        eos_ids=(backend.token_to_id(end),),
        chat_template=None if template is None else ChatTemplate({"default": template}, special),
    )


def thread(*turns: tuple[str, object], weights: tuple[float, ...] = ()) -> ThreadData:
    """Turns of (role, text or fragments); weights default to 1 for assistants."""
    made = []
    for place, (role, said) in enumerate(turns):
        content = (Text(text=said),) if isinstance(said, str) else tuple(said)
        weight = weights[place] if weights else float(role == "assistant")
        made.append(ThreadTurn(role=role, content=content, weight=weight))
    return ThreadData(turns=tuple(made))


def texts(source: ModelTokenizer, tokens: TokenThreadData) -> list[str]:
    """What each turn's tokens spell, special ones by name."""
    return [source.decode(tokens.token_ids[turn.start : turn.stop], skip_special=False) for turn in tokens.turns]


def served_ids(source: ModelTokenizer, data: ThreadData, *, answer: bool) -> tuple[int, ...]:
    """What the chat route makes of the same conversation."""
    said = [
        "".join(item.text if isinstance(item, Text) else "" for item in turn.content) or None for turn in data.turns
    ]
    messages = tuple({"role": turn.role, "content": text or ""} for turn, text in zip(data.turns, said, strict=True))
    rendered = source.chat_template.render(
        template_messages(ChatPrompt(messages=messages)), add_generation_prompt=answer
    )
    return tuple(source.encode(rendered, add_special=False))


TALK = thread(("user", "hello\n\n"), ("assistant", "Grüße €"), ("user", "user"), ("assistant", "\nhe ll"))


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_tokens_are_those_of_the_chat_route(template: str) -> None:
    source = tokenizer(template)
    threads = ThreadTokenizer(source)
    assert threads.tokenize(TALK).token_ids == served_ids(source, TALK, answer=False)
    asked = thread(*[(turn.role, turn.content) for turn in TALK.turns[:3]])
    assert threads.prompt(asked).token_ids == served_ids(source, asked, answer=True)


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_answers_run_to_their_end_token_and_no_further(template: str) -> None:
    source = tokenizer(template)
    tokens = ThreadTokenizer(source).tokenize(TALK)
    first, second = texts(source, tokens)[1::2]
    assert first.strip() == f"Grüße €{ENDS[template]}"
    assert second.removeprefix("<think>\n\n</think>\n\n").strip() == f"he ll{ENDS[template]}"
    weights = token_weights(tokens)
    assert weights[0] == 0
    runs = sum(after != 0 and before == 0 for before, after in pairwise(weights))
    assert runs == 2


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_there_and_back(template: str) -> None:
    threads = ThreadTokenizer(tokenizer(template))
    assert threads.detokenize(threads.tokenize(TALK)) == TALK


@given(st.lists(st.text(max_size=12), min_size=1, max_size=5), st.sampled_from([CHATML, LLAMA3, QWEN3]))
def test_any_text_is_found_where_it_is(said: list[str], template: str) -> None:
    roles = ["user", "assistant"] * 3
    data = thread(*zip(roles, said, strict=False))
    source = tokenizer(template)
    threads = ThreadTokenizer(source)
    tokens = threads.tokenize(data)
    assert threads.detokenize(tokens) == data
    assert tokens.token_ids == served_ids(source, data, answer=False)
    for turn, text in zip(texts(source, tokens), said, strict=True):
        assert turn.removeprefix("<think>\n\n</think>\n\n").removesuffix(ENDS[template]).strip() in text


def test_smollm2_as_served(smollm2: Path) -> None:
    source = load_tokenizer(open_model(smollm2))
    threads = ThreadTokenizer(source)
    tokens = threads.tokenize(TALK)
    assert tokens.token_ids == served_ids(source, TALK, answer=False)
    assert texts(source, tokens) == [
        "hello\n\n<|im_end|>",
        "Grüße €<|im_end|>",
        "user<|im_end|>",
        "\nhe ll<|im_end|>",
    ]
    assert threads.detokenize(tokens) == TALK


def test_user_turns_hold_their_content_and_end() -> None:
    source = tokenizer(CHATML)
    tokens = ThreadTokenizer(source).tokenize(thread(("system", "system"), ("user", "user")))
    assert texts(source, tokens) == ["system<|im_end|>", "user<|im_end|>"]
    data = thread(("system", "short"), ("user", "hi"), ("assistant", "yes"))
    gemma = tokenizer(GEMMA)
    assert texts(gemma, ThreadTokenizer(gemma).tokenize(data)) == ["short", "hi<end_of_turn>", "yes<end_of_turn>"]


def test_reasoning_and_calls_belong_to_the_answer() -> None:
    source = tokenizer(QWEN3)
    call = FunctionCall(call_id="1", name="now", arguments='{"tz": "x"}')
    data = thread(
        ("user", "When?"),
        ("assistant", [Reasoning(text="hm"), call]),
        ("tool", [ToolResponse(content="12", call_id="1")]),
        ("tool", [ToolResponse(content="13")]),
        ("assistant", [Reasoning(text="aha"), Text(text="Noon.")]),
    )
    threads = ThreadTokenizer(source)
    tokens = threads.tokenize(data)
    said = texts(source, tokens)
    assert said[1].startswith("<think>\nhm\n</think>") and said[1].endswith("</tool_call><|im_end|>")
    assert said[2:] == ["12", "13", "<think>\naha\n</think>\n\nNoon.<|im_end|>"]
    assert threads.detokenize(tokens) == data


def test_thoughts_that_a_template_drops_from_earlier_turns() -> None:
    source = tokenizer(QWEN3)
    said = "<think>\nhm\n</think>\n\nB"
    data = thread(("user", "a"), ("assistant", said), ("user", "c"), ("assistant", said))
    assert texts(source, ThreadTokenizer(source).tokenize(data))[1::2] == ["B<|im_end|>", f"{said}<|im_end|>"]


def test_a_call_without_content_in_a_template_that_drops_content() -> None:
    source = tokenizer(LLAMA3)
    call = FunctionCall(call_id="1", name="f", arguments="{}")
    tokens = ThreadTokenizer(source).tokenize(thread(("user", "a"), ("assistant", [call]), ("user", "b")))
    assert texts(source, tokens)[1] == '{"name": "f", "arguments": {}}<|eot_id|>'


def test_a_turn_that_the_template_leaves_out_is_refused() -> None:
    last_only = "{{ bos_token }}{{ messages[-1].content }}"
    with pytest.raises(InvalidRequestError, match=r"turn 0 \(user\) cannot be found"):
        ThreadTokenizer(tokenizer(last_only)).tokenize(thread(("user", "a"), ("user", "b")))


def test_turns_without_a_token_between_them_cannot_both_have_weight() -> None:
    threads = ThreadTokenizer(tokenizer("<s>" + BARE))
    data = thread(("user", "a"), ("assistant", "b"), weights=(1.0, 1.0))
    with pytest.raises(InvalidRequestError, match="turns 0 and 1"):
        threads.tokenize(data)
    assert threads.tokenize(thread(("user", "a"), ("assistant", "b"))).turns[1].start == 2


def test_position_0_belongs_to_no_turn() -> None:
    tokens = ThreadTokenizer(tokenizer(BARE)).tokenize(thread(("user", "abc"), weights=(1.0,)))
    assert token_weights(tokens) == (0.0, 1.0, 1.0)


def test_structured_output_is_rendered_as_it_was_sampled() -> None:
    source = tokenizer(CHATML)
    output = StructuredOutput(raw_text='{ "a": 1}', parsed_json='{"a":1}', schema="{}")
    tokens = ThreadTokenizer(source).tokenize(thread(("user", "q"), ("assistant", [output])))
    assert texts(source, tokens)[1] == '{ "a": 1}<|im_end|>'


# ------------------------------------------------------------------------------------------------ going on from tokens


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
@pytest.mark.parametrize("closed", [True, False])
def test_sampled_tokens_stay_and_are_closed(template: str, closed: bool) -> None:
    source = tokenizer(template)
    threads = ThreadTokenizer(source)
    prompt = threads.prompt(thread(("user", "a")))
    sampled = source.encode("h e" + (ENDS[template] if closed else ""), add_special=False)
    ids = (*prompt.token_ids, *sampled)
    answer = TokenTurn(
        role="assistant", start=len(prompt.token_ids), stop=len(ids), weight=1.0, content=(Text(text="h e"),)
    )
    sampled_thread = TokenThreadData(token_ids=ids, turns=(*prompt.turns, answer))
    longer = threads.prompt(sampled_thread)
    assert longer.token_ids[: len(ids)] == ids
    rest = source.decode(longer.token_ids[len(ids) :], skip_special=False)
    opening = {
        CHATML: "\n<|im_start|>assistant\n",
        LLAMA3: "<|start_header_id|>assistant<|end_header_id|>\n\n",
        QWEN3: "\n<|im_start|>assistant\n",
        GEMMA: "\n<start_of_turn>model\n",
        MISTRAL: "",
    }[template]
    assert rest == ("" if closed else ENDS[template]) + opening


def test_a_tokenized_thread_opens_an_answer_as_its_text_does() -> None:
    threads = ThreadTokenizer(tokenizer(CHATML))
    data = thread(("user", "a"), weights=(1.0,))
    assert threads.prompt(threads.tokenize(data)) == threads.prompt(data)
    foreign = TokenThreadData(token_ids=(1, 2, 3, 4), turns=(TokenTurn(role="user", start=1, stop=2, weight=0.0),))
    with pytest.raises(InvalidRequestError, match="give the thread in text"):
        threads.prompt(foreign)
    crossed = TokenThreadData(token_ids=(1, 2), turns=(TokenTurn(role="user", start=1, stop=3, weight=0.0),))
    with pytest.raises(InvalidRequestError, match="turn 0"):
        threads.detokenize(crossed)


# ------------------------------------------------------------------------------------------------ without a template


def test_prompt_and_completion_without_a_template() -> None:
    source = tokenizer(None, begins=True)
    threads = ThreadTokenizer(source)
    data = thread(("system", "Be. "), ("user", "Q: he"), ("assistant", "llo"))
    tokens = threads.tokenize(data)
    assert source.decode(tokens.token_ids, skip_special=False) == "<s>Be. Q: hello</s>"
    assert texts(source, tokens) == ["Be. ", "Q: he", "llo</s>"]
    asked = thread(*[(turn.role, turn.content) for turn in data.turns[:2]])
    prompt = threads.prompt(asked).token_ids
    assert tokens.token_ids[: len(prompt)] == prompt == tuple(source.encode("Be. Q: he", add_special=True))
    assert threads.detokenize(tokens) == data


def test_a_lone_completion_without_a_begin_of_text() -> None:
    tokens = ThreadTokenizer(tokenizer(None)).tokenize(thread(("assistant", "abc")))
    assert token_weights(tokens) == (0.0, 1.0, 1.0, 1.0)


def test_several_answers_need_a_template() -> None:
    threads = ThreadTokenizer(tokenizer(None))
    talk = thread(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    with pytest.raises(InvalidRequestError, match="no chat template"):
        threads.tokenize(talk)
    with pytest.raises(InvalidRequestError, match="no chat template"):
        threads.prompt(thread(("user", "a"), ("assistant", "b")))
    with pytest.raises(InvalidRequestError, match="Empty thread"):
        threads.tokenize(ThreadData(turns=()))
