"""A tokenizer of single bytes with a few special tokens, as the worker gets it."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from harmonia.models.chat_template import ChatTemplate
from harmonia.models.tokenizer import ModelTokenizer

END, CALLS = "<|im_end|>", "[TOOL_CALLS]"
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
VOCAB_SIZE = 264


def byte_tokenizer(template: str | None = TEMPLATE) -> ModelTokenizer:
    """Token i < 256 is some byte; 256 ends an answer, 257 opens tool calls; the model has ids up to 263."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END, CALLS])
    return ModelTokenizer(
        backend=backend,
        special_tokens={"eos_token": END},
        prefix_ids=(),
        suffix_ids=(),
        eos_ids=(256,),
        chat_template=ChatTemplate({"default": template}, {}) if template else None,
    )
