"""Which instance teaches which, and the memory that this takes."""

from __future__ import annotations

from functools import partial

import msgspec

from harmonia.engine.instances import Instances
from harmonia.engine.lanes import Lanes
from harmonia.engine.ledger import Ledger
from harmonia.engine.requests import TrainRequest
from harmonia.engine.teachers import TeacherModel
from harmonia.protocol.losses import Distillation


class Lessons:
    """Between all backbones of a device."""

    def __init__(self, lanes: Lanes, ledger: Ledger) -> None:
        self._lanes = lanes
        self._ledger = ledger

    def teacher(self, request: TrainRequest) -> TeacherModel | None:
        """The one that a call learns from, if any."""
        if not isinstance(request.loss, Distillation):
            return None
        name, lane = request.loss.teacher, self._lanes.of(request.instance)
        make_room = partial(self._make_room, lane, request.instance)
        return TeacherModel(name, self._lanes.of(name, field="teacher").engine, make_room)

    def end(self, teacher: str) -> None:
        """An instance will be freed: finish what it teaches now, and fail what waits for it."""
        for lane in self._lanes:
            lane.engine.training.part_from(teacher)

    def _make_room(self, lane: Instances, student: str, teacher: TeacherModel) -> None:
        """Reserve what a micro-batch takes that this teacher reads, when it is asked for first.

        Only then is known how large the teacher is: one may come after its student, or more than one. What does not
        fit is refused with levers that do, and the room stays reserved until the student is freed.
        """
        need = lane.needs[student]
        if teacher.size in need.teachers:
            return
        need = msgspec.structs.replace(need, teachers=(*need.teachers, teacher.size))
        plan = self._ledger.replan(lane, need)
        plan.memory.require()
        lane.needs[student] = need
        lane.engine.adopt(plan)
        is_serving = any(other.engine.has_work for other in self._lanes)
        lane.engine.training.prepare_teacher(lane.trainer(student), teacher.weights(), beside_serving=is_serving)
