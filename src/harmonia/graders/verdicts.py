"""Graders that give reasons: how they keep what they found, and show it."""

from __future__ import annotations

from harmonia.client.evaluation import stringify_thread
from harmonia.client.grades import Grade
from harmonia.graders.base import BaseGrader, Logs
from harmonia.graders.logs import FailedJudgeLog, SuccessJudgeLog, summarize_scores, to_table
from harmonia.threads import StringThread


class VerdictGrader(BaseGrader[SuccessJudgeLog | FailedJudgeLog]):
    """A grader whose logs hold tables of what it scored, with reasons, and of what it could not score."""

    def scored(self, sample: StringThread, value: float, reasoning: str | None) -> Grade:
        """Log a score and make the grade of it."""
        grade = Grade(value, self.grader_key, reasoning)
        shown = stringify_thread(sample)
        self.add_log(SuccessJudgeLog(prompt=shown, reasoning=reasoning or "", score=grade.value))
        return grade

    def unscored(self, sample: StringThread, why: str) -> None:
        """Log that there is no score."""
        self.add_log(FailedJudgeLog(prompt=stringify_thread(sample), error=why))

    def get_logs(self, clear: bool = False, log_all_samples: bool = False) -> Logs:
        """The statistics of all graders, and tables of what was scored and what was not: 15 rows each, or all."""
        scored = [log for log in self._logs if "score" in log]
        unscored = [log for log in self._logs if "score" not in log]
        logs: Logs = {**summarize_scores(scored)}
        if self._logs:
            logs.update(self.get_sample_tables(scored, unscored))
        if self._logs and log_all_samples:
            logs.update({"score/scored_samples": to_table(scored), "score/unscored_samples": to_table(unscored)})
        if clear:
            self.clear_logs()
        return logs
