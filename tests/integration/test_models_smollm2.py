"""SmolLM2-135M-Instruct from its GGUF file: our tokens are transformers' tokens."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from harmonia.layers.linear import WeightFormat
from harmonia.models import load_decoder, open_model
from harmonia.models.tokenizer import load_tokenizer
from tests.unit.models.paged import PagedRunner
from tests.unit.models.tiny import reference_model

NUM_TOKENS = 64
TOLERANCE = 1e-5
"""Greedy choices may differ where two logits are closer than this."""
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain gravity to a child.",
    "List three prime numbers greater than 10.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "What is 12 times 7?",
    "Write a Python function that reverses a string.",
    "Name the planets of the solar system.",
    "Why is the sky blue?",
    "Summarise the plot of Cinderella in two sentences.",
    "What does HTTP stand for?",
    "Tell me a joke about cats.",
    "How do I boil an egg?",
    "What is the difference between a list and a tuple in Python?",
    "Write the first paragraph of a story about a dragon.",
    "Which language is spoken in Brazil?",
    "Give three tips for better sleep.",
    "What is photosynthesis?",
]
TEXTS = [
    "",
    "Hello, world! It's 2024-05-17, isn't it?",
    "  leading and trailing  \n\n\ttabs\r\n",
    "naïve café — “quotes” … €100",
    "日本語とemoji 👩‍👩‍👧‍👦🏳️‍🌈 и кириллица, עברית, العربية",
    "def f(x):\n    return {k: v**2 for k, v in x.items() if v != 0}\n",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "a" * 300 + " " * 40 + "\n" * 20,
    "https://example.com/a?b=c&d=%20#frag 3.14159e-10 0xDEADBEEF",
]


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads on two cores are slower than one as soon as anything else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source(smollm2):
    return open_model(smollm2)


@pytest.fixture(scope="module")
def tokenizer(source):
    return load_tokenizer(source)


@pytest.fixture(scope="module")
def reference_tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer(tokenizer, reference_tokenizer, text):
    ids = tokenizer.encode(text, add_special=False)
    assert ids == reference_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer.encode(text, add_special=True)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.decode(ids) == reference_tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("with_system", [False, True])
def test_chat_template(tokenizer, reference_tokenizer, with_system):
    messages = [{"role": "system", "content": "Be kind."}] if with_system else []
    messages += [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    messages += [{"role": "user", "content": "Bye\n"}]
    for prompted in (False, True):
        expected = reference_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
        assert tokenizer.chat_template.render(messages, add_generation_prompt=prompted) == expected


def test_the_same_from_a_folder(tokenizer, reference_tokenizer, tmp_path):
    """What transformers saves of the same tokenizer reads the same."""
    reference_model("llama").save_pretrained(tmp_path)
    reference_tokenizer.save_pretrained(tmp_path)
    saved = load_tokenizer(open_model(tmp_path))
    assert saved.special_tokens.items() >= tokenizer.special_tokens.items()
    assert saved.special_ids == tokenizer.special_ids
    assert [saved.token_bytes(i) for i in range(saved.vocab_size)] == [
        tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)
    ]
    messages = [{"role": "user", "content": "Hi"}]
    assert saved.chat_template.render(messages) == tokenizer.chat_template.render(messages)
    for text in TEXTS:
        assert saved.encode(text, add_special=True) == tokenizer.encode(text, add_special=True)


def greedy(runner: PagedRunner, prompts: list[list[int]]) -> list[list[int]]:
    """All prompts decoded together."""
    answers: list[list[int]] = [[] for _ in prompts]
    chunks = dict(enumerate(prompts))
    for _ in range(NUM_TOKENS):
        for sequence, logits in runner.logits(chunks).items():
            answers[sequence].append(int(logits[-1].argmax()))
        chunks = {sequence: [answer[-1]] for sequence, answer in enumerate(answers)}
    return answers


def test_greedy_tokens(source, smollm2, tokenizer):
    """Every token of ours is the best of transformers' after the same tokens, so both write the same answer."""
    prompts = [
        tokenizer.encode(tokenizer.chat_template.render([{"role": "user", "content": question}]), add_special=False)
        for question in QUESTIONS
    ]
    decoder = load_decoder(source.limited(256), WeightFormat(torch.float32, torch.device("cpu")))
    answers = greedy(PagedRunner(decoder, len(prompts), 160), prompts)
    reference = AutoModelForCausalLM.from_pretrained(
        smollm2.parent,
        gguf_file=smollm2.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert (logits.amax(dim=1) - chosen <= TOLERANCE).all()
