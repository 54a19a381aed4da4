"""Messages about instances: spawn, train, score, save. The unions of all messages are in `protocol.messages`.

An instance is (backbone, adapter or none, head, version) under a name that is unique on its worker; `Generate.model`
takes such a name, too. Commands on one instance take effect in the order in which its connection sent them.
"""

# msgspec gives every struct its own copy of a default.
# ruff: noqa: RUF012

from __future__ import annotations

from typing import Literal

from harmonia.protocol.base import JsonObject, Message
from harmonia.protocol.losses import Loss
from harmonia.protocol.threads import ThreadData, TokenThreadData

SCHEME = "model_registry://"
"""How the addresses of saved models begin; the key follows."""
NGRAM = "ngram"
"""As a draft: look up in the conversation what to propose."""
DEFAULT_DRAFT_STEPS = 4
MAX_DRAFT_STEPS = 8
"""Tokens that may be proposed at a time."""

# ---------------------------------------------------------------------------------------------- client to worker


class Hello(Message, frozen=True, kw_only=True):
    """Say who connects, before anything else. A client that comes back in time finds its instances and answers."""

    id: str
    client: str
    """A secret of the client's choice, at least 16 characters; the same after a reconnect."""
    name: str = ""
    """Shown in logs."""
    ttl_after_disconnect_s: float = 30.0
    """Seconds for which instances outlive a lost connection."""


class AdapterSpec(Message, frozen=True, kw_only=True):
    """A new LoRA adapter: A random, B zero."""

    rank: int = 16
    alpha: float | None = None
    """None: twice the rank."""
    targets: tuple[str, ...] = ()
    """Last names of the projections to adapt, such as `q_proj`; empty adapts every linear layer."""
    seed: int = 0
    """Of the random matrices."""


class SpawnSpec(Message, frozen=True, kw_only=True):
    """What to spawn from a model's files."""

    path: str
    """`model_registry://key`, or a folder or file on the worker's machine: a model, or an adapter as PEFT saves it. A
    saved draft (`Save.info`) that is to answer stands for its target with this draft; in training it is itself."""
    keep_layers: tuple[int, ...] | None = None
    """Layers of the stored model, counted from 0 and rising, of which a smaller model is made; None: all of them."""
    mode: Literal["inference", "training"] = "inference"
    max_batch_size: int | None = None
    """Tokens of one micro-batch and of the longest trainable sample; required for training."""
    use_adapter: bool | None = None
    """None: an adapter folder trains its adapter, a full model trains whole. True: a new adapter on a full model.
    False: whole; an error for an adapter folder."""
    adapter: AdapterSpec = AdapterSpec()
    """Of a new adapter."""
    scalar_head: bool = False
    """A scoring model: one number per token instead of a vocabulary."""
    kv_cache_len: int | None = None
    """Tokens of cache: a minimum that is enforced; None takes what fits."""
    max_seq_len: int | None = None
    """Longest sequence; None: the model's own limit, as far as the cache holds it."""
    precision: str | None = None
    """None takes the worker's."""
    invariant: bool | None = None
    """Results that do not depend on what else is in a batch, bit for bit; None takes the worker's."""
    tp: int = 1
    """Devices that the model is spread over."""
    draft: str | None = None
    """Path of a smaller model that proposes tokens, whose tokenizer must be the same; or `ngram`: what followed the
    last tokens when they stood in the prompt or the answer before. Answers are the same with and without."""
    num_draft_steps: int | None = None
    """Tokens that are proposed at a time, at most; None: what the draft was saved with, else 4. Fewer are proposed
    where more would not pay."""


class Spawn(Message, frozen=True, kw_only=True):
    """Make an instance. Answered by `Progress` while loading, then `Spawned`."""

    id: str
    name: str
    spec: SpawnSpec


class PlanSpawn(Message, frozen=True, kw_only=True):
    """Ask whether a spawn would fit, without doing it. Answered by `Planned`."""

    id: str
    spec: SpawnSpec


class DescribeModel(Message, frozen=True, kw_only=True):
    """Ask what the files of a model say, without loading it. Answered by `ModelDescription`."""

    id: str
    path: str
    """As in `SpawnSpec`."""


class Clone(Message, frozen=True, kw_only=True):
    """A frozen snapshot of an instance at its present version, as an instance of its own. Answered by `Spawned`."""

    id: str
    instance: str
    name: str


class Dealloc(Message, frozen=True, kw_only=True):
    """Free an instance; its running requests end with an error."""

    id: str
    instance: str


class TokenSample(Message, frozen=True, kw_only=True):
    """Tokens with a weight each, as `serialize_thread` gives them."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]


class TargetSample(Message, frozen=True, kw_only=True):
    """Inputs and the token that is to follow each of them, for `Tangents`."""

    token_ids: tuple[int, ...]
    targets: tuple[int, ...]


SampleData = ThreadData | TokenThreadData | TokenSample | TargetSample


class Train(Message, frozen=True, kw_only=True):
    """Add the gradient of one sample, or of one pair, to what the next `OptimStep` applies. Answered by `Done`."""

    id: str
    instance: str
    sides: tuple[SampleData, ...]
    """One sample; two for a paired loss, the preferred one first."""
    loss: Loss


class OptimStep(Message, frozen=True, kw_only=True):
    """Move the weights by the mean gradient of the training calls before it. Answered by `Stepped`."""

    id: str
    instance: str
    lr: float
    wd: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Global norm to which the gradient is clipped; 0 does not clip."""
    skip_nan_gradients: bool = False
    """Drop a gradient that is not finite and leave the weights alone, instead of an error."""


class SetOptimStep(Message, frozen=True, kw_only=True):
    """Set the number of steps done, which Adam's bias correction uses."""

    id: str
    instance: str
    step: int


class Score(Message, frozen=True, kw_only=True):
    """Read log-probabilities or scores of a conversation that is given. Answered by `Scored`."""

    id: str
    instance: str
    sample: SampleData
    what: Literal["logprobs", "scores", "last_score"]
    """`logprobs` and `scores`: one per weighted token. `last_score`: one, after the last token."""


class Tokenize(Message, frozen=True, kw_only=True):
    """Render a conversation with the model's template. Answered by `Tokenized`."""

    id: str
    instance: str
    thread: ThreadData


class TokenizeText(Message, frozen=True, kw_only=True):
    """Token ids of plain text. Answered by `TokenIds`."""

    id: str
    instance: str
    text: str


class Detokenize(Message, frozen=True, kw_only=True):
    """Text of every turn. Answered by `Detokenized`."""

    id: str
    instance: str
    thread: TokenThreadData


class DetokenizeIds(Message, frozen=True, kw_only=True):
    """Text of plain token ids. Answered by `PlainText`."""

    id: str
    instance: str
    token_ids: tuple[int, ...]


class Save(Message, frozen=True, kw_only=True):
    """Write an instance into the model registry, whole or not at all. Answered by `Saved`."""

    id: str
    instance: str
    key: str
    inference_only: bool = True
    """False adds what resuming needs: master weights, optimizer state, number of steps."""
    merged: bool = False
    """Add an adapter to the weights that it changes, and write the whole model."""
    info: JsonObject = {}
    """More for `adaptive_info.json`, such as draft_target and num_draft_steps."""


class Load(Message, frozen=True, kw_only=True):
    """Replace an instance's weights, and its optimizer state where it was saved, in place. Answered by `Loaded`."""

    id: str
    instance: str
    path: str


InstanceCommand = (
    Hello
    | Spawn
    | PlanSpawn
    | DescribeModel
    | Clone
    | Dealloc
    | Train
    | OptimStep
    | SetOptimStep
    | Score
    | Tokenize
    | TokenizeText
    | Detokenize
    | DetokenizeIds
    | Save
    | Load
)

# ---------------------------------------------------------------------------------------------- worker to client


class Welcome(Message, frozen=True, kw_only=True):
    """Answer to `Hello`."""

    id: str
    protocol_version: int
    resumed: bool
    """The client was known; requests without an answer may be sent again under their ids."""


class Progress(Message, frozen=True, kw_only=True):
    """Share of a spawn that is done, 0 to 1."""

    id: str
    share: float


class InstanceInfo(Message, frozen=True, kw_only=True):
    """What an instance is."""

    name: str
    path: str
    """Resolved folder or file of its weights."""
    backbone: str
    """Name of the shared weights that it runs on."""
    mode: str
    version: int
    is_adapter: bool
    is_scalar: bool
    max_seq_len: int
    max_batch_size: int | None = None
    optim_step: int = 0


class Spawned(Message, frozen=True, kw_only=True):
    """Answer to `Spawn` and `Clone`."""

    id: str
    instance: InstanceInfo
    plan: JsonObject = {}
    """The memory plan of its backbone with everything on it, as `MemoryPlan.to_dict()` gives it."""


class Planned(Message, frozen=True, kw_only=True):
    """Answer to `PlanSpawn`."""

    id: str
    plan: JsonObject


class ModelDescription(Message, frozen=True, kw_only=True):
    """Answer to `DescribeModel`."""

    id: str
    path: str
    """Resolved folder or file."""
    kind: Literal["adapter", "model"]
    family: str
    max_seq_len: int
    """Of the model itself, in tokens."""
    num_layers: int
    """Its decoder layers; of an adapter, those of its base."""
    base: str | None = None
    """Of an adapter: the file or folder of the model that it changes."""
    is_scalar: bool = False
    defaults: JsonObject = {}
    """Settings that the model was saved with, such as tp, kv_cache_len, max_seq_len, tokens_to_generate."""
    draft_target: str | None = None
    """Of a draft: the file or folder of the model that it speeds up, which `family`, `max_seq_len`, `is_scalar` and
    `defaults` are about."""
    num_draft_steps: int | None = None
    """Of a draft: tokens that it proposes at a time, as it was saved."""


class Stepped(Message, frozen=True, kw_only=True):
    """Answer to `OptimStep`."""

    id: str
    metrics: dict[str, float]
    """loss, grad_norm, num_tokens (weighted ones), num_input_tokens (all, prompts included), num_samples, lr; skipped
    is 1 when a gradient was dropped. Where something was distilled: agreement, the share of its tokens where student
    and teacher find the same one most likely, and overlap, the mean of sum of min(p, q)."""
    version: int
    optim_step: int


class Scored(Message, frozen=True, kw_only=True):
    """Answer to `Score`."""

    id: str
    values: bytes
    """Little-endian float32."""
    version: int


class Tokenized(Message, frozen=True, kw_only=True):
    """Answer to `Tokenize`."""

    id: str
    thread: TokenThreadData


class TokenIds(Message, frozen=True, kw_only=True):
    """Answer to `TokenizeText`."""

    id: str
    token_ids: tuple[int, ...]


class Detokenized(Message, frozen=True, kw_only=True):
    """Answer to `Detokenize`."""

    id: str
    thread: ThreadData


class PlainText(Message, frozen=True, kw_only=True):
    """Answer to `DetokenizeIds`."""

    id: str
    text: str


class Saved(Message, frozen=True, kw_only=True):
    """Answer to `Save`."""

    id: str
    key: str
    path: str
    num_bytes: int


class Loaded(Message, frozen=True, kw_only=True):
    """Answer to `Load`."""

    id: str
    version: int
    optim_step: int


InstanceAnswer = (
    Welcome
    | Progress
    | Spawned
    | Planned
    | ModelDescription
    | Stepped
    | Scored
    | Tokenized
    | TokenIds
    | Detokenized
    | PlainText
    | Saved
    | Loaded
)
