"""An instance that others learn from: what must fit, and when its weights may be read.

Commands on a teacher that came before a call that reads it take effect before, those that came later take effect after.
So every command waits for earlier ones only, and no two instances that teach each other can wait in a circle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harmonia.engine.engine import Engine
from harmonia.engine.needs import TeacherSize
from harmonia.engine.training import Call
from harmonia.errors import InvalidRequestError, SequenceTooLongError
from harmonia.train.distillation import Teacher
from harmonia.train.samples import Sample


class TeacherModel:
    """One instance in its part as a teacher."""

    def __init__(self, name: str, engine: Engine, make_room: Callable[[TeacherModel], None]) -> None:
        """engine: of its backbone. make_room: reserves the memory that reading with it takes, unless that is done."""
        self.name = name
        self._make_room = make_room
        self._engine = engine
        decoder = engine.backbone.decoder
        self.size = TeacherSize(decoder.config, decoder.fmt)
        """What reading with it takes memory for."""

    def admit(self, student: str, sides: Sequence[Sample]) -> None:
        """Reserve what teaching takes; errors say why it cannot teach that student these samples."""
        if self.name == student:
            raise InvalidRequestError(
                f"{student!r} cannot be its own teacher, from which it never differs; take a snapshot of it with "
                "clone_inf(), or another model",
                field="teacher",
            )
        if self._engine.backbone.instance(self.name).head is not None:
            raise InvalidRequestError(
                f"the teacher {self.name!r} is a scoring model, which says nothing about the next token; spawn it "
                "without into_scoring_model()",
                field="teacher",
            )
        config = self._engine.backbone.decoder.config
        for side in sides:
            if side.num_tokens > config.max_seq_len:
                raise SequenceTooLongError(
                    f"the sample has {side.num_tokens} tokens, and the teacher {self.name!r} knows "
                    f"{config.max_seq_len} positions; leave it out or shorten it",
                    num_tokens=side.num_tokens,
                    limit=config.max_seq_len,
                )
            largest = max(side.token_ids_T.max(initial=0), side.targets_W.max(initial=0))
            if largest >= config.vocab_size:
                raise InvalidRequestError(
                    f"token id {largest} is outside the vocabulary of {config.vocab_size} of the teacher "
                    f"{self.name!r}; give a sample of tokens that both models have",
                    field="thread",
                )
        self._make_room(self)

    def weights(self) -> Teacher:
        """Those of this moment."""
        backbone = self._engine.backbone
        return Teacher(backbone.decoder, backbone.instance(self.name).adapter_slot)

    def lend(self, call: Call) -> None:
        """Let a call read it after the commands before, and hold up those that come later."""
        trainer = self._engine.training.trainers.get(self.name)
        if trainer is not None:
            trainer.lend(call)
