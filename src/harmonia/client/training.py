"""A model that can be trained."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import SupportsIndex, get_args

from harmonia.client.artifacts.base import ArtifactContext
from harmonia.client.artifacts.model import ModelArtifact
from harmonia.client.inference import InferenceModel
from harmonia.client.values import Real, floats, token_ids, wire
from harmonia.errors import InvalidRequestError
from harmonia.protocol.base import JsonObject
from harmonia.protocol.instances import (
    Clone,
    OptimStep,
    SampleData,
    Save,
    Saved,
    SetOptimStep,
    Stepped,
    TargetSample,
    Train,
)
from harmonia.protocol.losses import (
    LAST_TOKEN,
    PAIRED,
    Distillation,
    Divergence,
    Dpo,
    Grpo,
    Gspo,
    LanguageModelling,
    Loss,
    Mse,
    MsePerToken,
    Ppo,
    Ranking,
    Tangents,
    TrustRegionMse,
)
from harmonia.protocol.messages import Done
from harmonia.threads import StringThread, TokenizedThread


class TrainingModel(InferenceModel):
    """An instance that can be trained. `train_*` calls add gradients, in any order and number; `optim_step` applies
    their mean and empties them. Lists per token have one entry per weighted token.

    A sample longer than `max_batch_size` raises SequenceTooLongError, a list of wrong length InvalidRequestError, and
    the gradient stays as it was.
    """

    # -------------------------------------------------------------------------------------- on text or on tokens

    async def train_language_modelling(self, thread: StringThread) -> None:
        """-sum of weight * log-probability."""
        await self._train(LanguageModelling(), wire(thread))

    async def train_dpo(self, pos: StringThread, neg: StringThread, ref_pos: Real, ref_neg: Real, beta: Real) -> None:
        """-log sigmoid(beta ((pos - neg) - (ref_pos - ref_neg))); refs are a reference model's `logprobs`."""
        loss = Dpo(reference_positive=float(ref_pos), reference_negative=float(ref_neg), beta=float(beta))
        await self._train(loss, wire(pos), wire(neg))

    # ------------------------------------------------------------------------------------------ on sampled tokens

    async def train_ppo(
        self,
        thread: TokenizedThread,
        trajectory_logprobs: Iterable[Real],
        advantages: Iterable[Real],
        clip_range: Real,
    ) -> None:
        """The clipped surrogate per token; its ratio is that of the present model to the one that sampled."""
        loss = Ppo(
            trajectory_logprobs=floats(trajectory_logprobs),
            advantages=floats(advantages),
            clip_range=float(clip_range),
        )
        await self._train(loss, wire(thread))

    async def train_grpo(
        self,
        thread: TokenizedThread,
        trajectory_logprobs: Iterable[Real],
        reference_logprobs: Iterable[Real],
        advantages: Iterable[Real],
        clip_range: Real,
        kl_beta: Real,
    ) -> None:
        """`train_ppo` plus kl_beta times the divergence from a reference model."""
        loss = Grpo(
            trajectory_logprobs=floats(trajectory_logprobs),
            reference_logprobs=floats(reference_logprobs),
            advantages=floats(advantages),
            clip_range=float(clip_range),
            kl_beta=float(kl_beta),
        )
        await self._train(loss, wire(thread))

    async def train_gspo(
        self,
        thread: TokenizedThread,
        trajectory_logprobs: Iterable[Real],
        reference_logprobs: Iterable[Real],
        advantage: Iterable[Real],
        left_clip: Real,
        right_clip: Real,
        kl_beta: Real,
    ) -> None:
        """The clipped surrogate of the whole sequence; `advantage` has one entry."""
        advantages = floats(advantage)
        if len(advantages) != 1:
            raise InvalidRequestError(
                f"advantage has {len(advantages)} entries; a sequence has one advantage", field="advantage"
            )
        loss = Gspo(
            trajectory_logprobs=floats(trajectory_logprobs),
            reference_logprobs=floats(reference_logprobs),
            advantage=advantages[0],
            left_clip=float(left_clip),
            right_clip=float(right_clip),
            kl_beta=float(kl_beta),
        )
        await self._train(loss, wire(thread))

    async def train_distillation(
        self, thread: TokenizedThread, teacher: InferenceModel, *, divergence: Divergence = "forward_kl"
    ) -> None:
        """Bring this model's distribution q of the next token towards the teacher's p, at every weighted token.

        The loss is the sum over these of weight * D(p || q), over the whole vocabulary, at temperature 1. divergence:
        "forward_kl" (sum of p log(p / q)) makes q cover all that p may say, "reverse_kl" (sum of q log(q / p)) keeps q
        to what p says, and "total_variation" (half the sum of |p - q|) is the share of tokens that speculative
        sampling would reject. `optim_step` then tells `agreement` and `overlap`, too.

        teacher: another model with the same tokenizer, spawned by the same client, larger or smaller, with or without
        an adapter. One in training teaches with the weights that the calls before this one gave it. Its hidden states
        and logits stay on the device. Vocabularies may be padded to different sizes: p and q are then over the ids
        that both have.

        Errors: TokenizerMismatchError; UnavailableError if the teacher is freed before this returns;
        InsufficientMemoryError if there is no room for what this teacher makes of a full micro-batch, which the first
        call reserves until this model is freed; InvalidRequestError for a teacher that scores or is this model itself.
        """
        if not isinstance(teacher, InferenceModel):
            raise TypeError(f"teacher must be a model that was spawned, not {type(teacher).__name__}")
        if divergence not in get_args(Divergence):
            raise InvalidRequestError(
                f"divergence is one of {', '.join(get_args(Divergence))}; got {divergence!r}", field="divergence"
            )
        teacher._instance.check()
        if teacher._instance.session is not self._instance.session:
            raise InvalidRequestError(
                f"the teacher '{teacher._instance.name}' was spawned by another client; both models must be on one "
                f"worker, so spawn it with the client that spawned '{self._instance.name}'",
                field="teacher",
            )
        await self._train(Distillation(teacher=teacher._instance.name, divergence=divergence), wire(thread))

    async def train_tangents(
        self,
        tokens: Sequence[SupportsIndex],
        image_patches: Sequence[tuple[int, bytes]],
        tangents: Iterable[Real],
        targets: Sequence[SupportsIndex],
    ) -> None:
        """Any loss: ascends the sum of tangent * log-probability of each target after the tokens up to its place.

        tokens, tangents and targets are equally long: `tokens[:-1]`, -dloss/dlogprob, `tokens[1:]`.
        """
        if image_patches:
            raise InvalidRequestError("images are not supported yet; pass no image patches", field="image_patches")
        sample = TargetSample(token_ids=token_ids(tokens), targets=token_ids(targets))
        await self._train(Tangents(tangents=floats(tangents)), sample)

    # ------------------------------------------------------------------------------------------- scoring models

    async def train_ranking(self, pos: StringThread, neg: StringThread) -> None:
        """-log sigmoid(score of pos - score of neg), read at their last tokens."""
        await self._train(Ranking(), wire(pos), wire(neg))

    async def train_mse(self, thread: StringThread, target: Real) -> None:
        """(score - target)^2, read at the last token."""
        await self._train(Mse(target=float(target)), wire(thread))

    async def train_mse_per_token(self, thread: TokenizedThread, targets: Iterable[Real]) -> None:
        """Sum of (score - target)^2 per token."""
        await self._train(MsePerToken(targets=floats(targets)), wire(thread))

    async def train_trust_region_mse(
        self, thread: TokenizedThread, targets: Iterable[Real], clip_center: Iterable[Real], clip_range: Real
    ) -> None:
        """`train_mse_per_token`, where moving further than `clip_range` from `clip_center` gains nothing."""
        loss = TrustRegionMse(targets=floats(targets), clip_centers=floats(clip_center), clip_range=float(clip_range))
        await self._train(loss, wire(thread))

    async def _train(self, loss: Loss, *sides: SampleData) -> None:
        self._instance.is_token_loss &= not isinstance(loss, (*PAIRED, *LAST_TOKEN))
        await self._instance.ask(Train, Done, sides=sides, loss=loss)

    # ---------------------------------------------------------------------------------------------- the optimizer

    async def optim_step(
        self, lr: Real, wd: Real = 0.0, max_grad_norm: Real = 1.0, skip_nan_gradients: bool = False
    ) -> dict[str, float]:
        """Move the weights by AdamW; what was trained until now answers the next request.

        wd: decoupled weight decay. max_grad_norm: global norm to clip to. skip_nan_gradients: drop a gradient that is
        not finite instead of raising. Returns loss, grad_norm, num_tokens (weighted ones), num_input_tokens (all of
        the samples, prompts included), num_samples and lr. Where something was distilled, also agreement (the share of
        its weighted tokens where teacher and model find the same token most likely: what greedy decoding would accept
        of a draft) and overlap (the mean over these tokens of the sum of min(p, q): the most that speculative sampling
        can accept).
        """
        answer = await self._instance.ask(
            OptimStep,
            Stepped,
            lr=float(lr),
            wd=float(wd),
            max_grad_norm=float(max_grad_norm),
            skip_nan_gradients=bool(skip_nan_gradients),
        )
        self._instance.optim_step = answer.optim_step
        for observer in self._instance.session.observers:
            more = {"optim_step": float(answer.optim_step), "per_token": float(self._instance.is_token_loss)}
            observer(self._instance.name, {**answer.metrics, **more})
        self._instance.is_token_loss = True
        return dict(answer.metrics)

    def get_optim_step(self) -> int:
        """Steps done."""
        return self._instance.optim_step

    def set_optim_step(self, optim_step: int) -> None:
        """Set the number of steps done, on which Adam's bias correction depends. Later calls see it."""
        step = optim_step.__index__()
        if step < 0:
            raise InvalidRequestError(f"optim_step must be 0 or more, got {step}", field="optim_step")
        self._instance.session.submit(self._instance.command(SetOptimStep, step=step))
        self._instance.optim_step = step

    # --------------------------------------------------------------------------------------------------- copies

    def inf(self) -> InferenceModel:
        """A live view: generates and scores with the weights of the moment."""
        return InferenceModel(self._instance, self._settings, self._builder_args)

    async def clone_inf(self) -> InferenceModel:
        """A frozen snapshot of the weights of this moment, as an instance of its own."""
        session = self._instance.session
        name = f"{self._instance.name}.snapshot-{uuid.uuid4().hex[:8]}"
        copied = await session.make(self._instance.command(Clone, name=name), name)
        return InferenceModel(copied, self._settings, self._builder_args)

    async def save(
        self,
        model_name: str,
        inference_only: bool = True,
        ctx: ArtifactContext | None = None,
        *,
        merged: bool = False,
        draft_target: str | None = None,
        num_draft_steps: int | None = None,
    ) -> str:
        """Write it into the model registry, whole or not at all; returns the key for `model_registry://key`.

        inference_only=False adds what `load` needs to resume training. With a recipe's context the model becomes an
        artifact of its job. merged=True adds an adapter to the weights that it changes and writes a whole model. The
        last two describe a draft model.
        """
        info: JsonObject = {"draft_target": draft_target, "num_draft_steps": num_draft_steps}
        await self._instance.ask(
            Save,
            Saved,
            key=model_name,
            inference_only=bool(inference_only),
            merged=bool(merged),
            info={name: value for name, value in info.items() if value is not None},
        )
        if ctx is not None:
            ModelArtifact(model_name, ctx)
        return model_name
