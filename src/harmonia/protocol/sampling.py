"""How the next token is chosen, and when a generation ends."""

from __future__ import annotations

import msgspec

from harmonia.errors import InvalidRequestError

MAX_TOP_LOGPROBS = 20


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling settings of one request. Defaults sample the model's own distribution."""

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or answer."""
    presence_penalty: float = 0.0
    """Subtracted from logits of tokens that the answer already holds."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence in the answer."""
    logit_bias: dict[int, float] = {}
    """Added to the logits of single tokens."""
    seed: int | None = None
    """Same seed, same tokens, in any batch; None draws one."""
    max_tokens: int | None = None
    """Longest answer in tokens; None goes on to the model's limit."""
    min_tokens: int = 0
    """No end before this many tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer, beside the model's own."""
    ignore_eos: bool = False
    """Go on past the model's own end tokens."""
    logprobs: int | None = None
    """Report the log-probability of each token and of this many most likely ones."""
    prompt_logprobs: int | None = None
    """The same for the prompt."""

    def validate(self, vocab_size: int) -> None:
        """Raise `InvalidRequestError` for the first value out of range, naming it."""
        for field, ok, want in self._rules(vocab_size):
            if not ok:
                value = getattr(self, field)
                raise InvalidRequestError(f"{field} must be {want}, got {value!r}", field=field)

    def _rules(self, vocab_size: int) -> tuple[tuple[str, bool, str], ...]:
        token_range = f"token ids from 0 to {vocab_size - 1}"
        return (
            ("temperature", 0.0 <= self.temperature <= 100.0, "between 0 and 100"),
            ("top_k", 0 <= self.top_k, "0 (off) or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100.0, "between 0.01 and 100"),
            ("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "between -2 and 2"),
            ("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "between -2 and 2"),
            ("logit_bias", all(-100.0 <= bias <= 100.0 for bias in self.logit_bias.values()), "between -100 and 100"),
            ("logit_bias", all(0 <= token < vocab_size for token in self.logit_bias), token_range),
            ("seed", self.seed is None or -(2**63) <= self.seed < 2**63, "a 64-bit integer"),
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            ("min_tokens", 0 <= self.min_tokens <= (self.max_tokens or self.min_tokens), "at most max_tokens"),
            ("stop_token_ids", all(0 <= token < vocab_size for token in self.stop_token_ids), token_range),
            ("logprobs", _top_ok(self.logprobs), f"between 0 and {MAX_TOP_LOGPROBS}"),
            ("prompt_logprobs", _top_ok(self.prompt_logprobs), f"between 0 and {MAX_TOP_LOGPROBS}"),
        )


def _top_ok(count: int | None) -> bool:
    return count is None or 0 <= count <= MAX_TOP_LOGPROBS
