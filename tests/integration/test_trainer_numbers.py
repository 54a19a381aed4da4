"""Whole runs of the trainers log, and end at, what another implementation of them does with transformers and PEFT."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from harmonia.client import HarmonyClient, StringThread, get_client
from harmonia.trainers import DPO, SFT, RecipeCallback, RewardModelling, ValidationLossCallback
from tests.bare_worker import bare_worker
from tests.integration.trainer_reference import (
    Clock,
    Plan,
    Preference,
    Record,
    batches,
    by_tokens,
    language_modelling,
    language_tangents,
    ranking,
    squared_error,
    train,
    validation_loss,
)
from tests.integration.trainer_twins import Twins, lessons, preferences

LONGEST = 160
ENDLESS = StringThread([("user", "Go on."), ("assistant", "And so on. " * 40)])
LR = 2e-3


@pytest.fixture(autouse=True)
def no_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARMONY_NO_CHECKPOINTING", "1")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def address(registry: Path) -> Iterator[str]:
    with bare_worker(registry) as address:
        yield address


@pytest.fixture
async def client(address: str) -> AsyncIterator[HarmonyClient]:
    async with await get_client(address) as connected:
        yield connected


MakeTwins = Callable[..., Awaitable[Twins]]


@pytest.fixture
def make_twins(client: HarmonyClient, tiny: Path, registry: Path) -> MakeTwins:
    async def make(*, scores: bool = False, experienced: bool = False) -> Twins:
        """scores: with a scalar head. experienced: an adapter that has learnt something, instead of a new one."""
        builder = client.model(str(tiny), kv_cache_len=4096).with_adapter(rank=4)
        engine = await (builder.into_scoring_model() if scores else builder).spawn_train("new", LONGEST)
        if experienced:
            for thread in lessons(3):
                await engine.train_language_modelling(thread)
                await engine.optim_step(0.01)
        await engine.save("start")
        if experienced:
            builder = client.model("model_registry://start", kv_cache_len=4096)
            engine = await builder.spawn_train("experienced", LONGEST)
        return Twins(engine, tiny, registry, scores)

    return make


# --------------------------------------------------------------------------------------------------------- SFT


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(4, LR), id="the last batch is short"),
        pytest.param(Plan(4, LR, epochs=2, looping=True), id="two epochs, and a little of the third"),
        pytest.param(Plan(1, LR, weight_decay=0.5, max_grad_norm=0.5), id="warm-up, weight decay and clipping"),
    ],
)
async def test_sft(make_twins: MakeTwins, plan: Plan) -> None:
    twins, threads = await make_twins(), lessons(11)
    trainer = SFT(
        threads,
        twins.engine,
        twins.logger,
        lr=plan.lr,
        samples_per_batch=plan.samples_per_batch,
        max_grad_norm=plan.max_grad_norm,
        epochs=plan.epochs,
        weight_decay=plan.weight_decay,
    )
    await trainer.run()
    reference = twins.at_start()
    await twins.assert_same(train(reference, await twins.texts(threads), language_modelling, plan), reference)


async def test_sft_by_tangents(make_twins: MakeTwins) -> None:
    twins, threads, plan = await make_twins(), lessons(7), Plan(3, LR)
    await SFT(threads, twins.engine, twins.logger, lr=LR, samples_per_batch=3, use_tangents=True).run()
    reference = twins.at_start()
    expected = train(reference, await twins.texts(threads), language_tangents, plan, by_tokens)
    await twins.assert_same(expected, reference)


@pytest.mark.parametrize(("step", "counts"), [(0, [(3, 1), (3, 1), (2, 1)]), (2, [(3, 0), (3, 0), (2, 1)])])
async def test_sft_takes_the_next_for_a_sample_that_is_too_long(
    make_twins: MakeTwins, step: int, counts: list[tuple[int, int]]
) -> None:
    """As long as there is a next one."""
    twins, threads = await make_twins(), lessons(9)
    middle = list(batches(9, Plan(3, LR)))[step].samples[1]
    threads[middle] = ENDLESS
    await SFT(threads, twins.engine, twins.logger, lr=LR, samples_per_batch=3).run()
    reference, plan = twins.at_start(), Plan(3, LR, refused=frozenset([middle]))
    expected = train(reference, await twins.texts(threads), language_modelling, plan)
    assert [(each["num_samples"], each["num_dropped_samples"]) for each in expected] == counts
    await twins.assert_same(expected, reference)


class Ticks(RecipeCallback):
    """Logs how far the run is."""

    async def callback(self, current_percentage: float) -> dict[str, float]:
        return {"at": current_percentage}


async def test_callbacks_run_when_due_and_validate(make_twins: MakeTwins) -> None:
    twins, threads, held_out = await make_twins(), lessons(10), lessons(14)[10:]
    callbacks = [ValidationLossCallback(held_out, twins.engine, frequency=0.25), Ticks(0.4, log_key_prefix="ticks")]
    await SFT(threads, twins.engine, twins.logger, callbacks=callbacks, lr=LR, samples_per_batch=1).run()

    reference, unseen = twins.at_start(), await twins.texts(held_out)
    quarters, ticks = Clock(0.25), Clock(0.4)

    def watch(completed: float) -> Record:
        record = {"ticks/at": completed} if ticks.due(completed) else {}
        if quarters.due(completed):
            record["validation/loss"] = validation_loss(reference, unseen)
        return record

    expected = train(reference, await twins.texts(threads), language_modelling, Plan(1, LR), watch=watch)
    validated = [each["completion_percentage"] for each in expected if "validation/loss" in each]
    assert validated == [0, 0.3, 0.5, 0.8, 1]
    assert [each["ticks/at"] for each in expected if "ticks/at" in each] == [0, 0.4, 0.8, 1]
    await twins.assert_same(expected, reference)


# -------------------------------------------------------------------------------------- preferences and scores


@pytest.mark.parametrize(
    ("plan", "tangents"),
    [
        pytest.param(Plan(3, LR), False, id="one call for a pair"),
        pytest.param(Plan(3, LR, epochs=1.5, looping=True), False, id="an epoch and a half"),
        pytest.param(Plan(3, LR), True, id="tangents for each side"),
    ],
)
async def test_dpo(make_twins: MakeTwins, plan: Plan, tangents: bool) -> None:
    twins, threads = await make_twins(experienced=True), preferences(7)
    trainer = DPO(
        threads,
        twins.engine,
        twins.logger,
        lr=LR,
        samples_per_batch=3,
        kl_beta=0.2,
        epochs=plan.epochs,
        use_tangents=tangents,
    )
    await trainer.run()
    reference, learn = twins.at_start(), Preference(twins.at_start(), 0.2, tangents)
    expected = train(reference, await twins.pairs(threads), learn, plan)
    for first in (expected[0], twins.logger.records[0]):
        first.pop("policy/reward_accuracy", None)  # both rewards are still 0, or what rounding makes of it
    await twins.assert_same(expected, reference)


async def test_reward_model_of_pairs(make_twins: MakeTwins) -> None:
    twins, threads, plan = await make_twins(scores=True), preferences(7), Plan(3, LR, looping=True, seed=7)
    await RewardModelling(threads, twins.engine, twins.logger, lr=LR, samples_per_batch=3, data_seed=7).run()
    reference = twins.at_start()
    await twins.assert_same(train(reference, await twins.pairs(threads), ranking, plan), reference)


async def assert_scores_are_learnt(twins: Twins, threads: list[StringThread], refused: int) -> None:
    """One of the threads is left out, in each of two epochs."""
    trainer = RewardModelling(
        threads, twins.engine, twins.logger, lr=LR, samples_per_batch=4, epochs=2, max_grad_norm=0.1
    )
    await trainer.run()
    plan = Plan(4, LR, epochs=2, looping=True, max_grad_norm=0.1, refused=frozenset([refused]))
    scores = [(thread.metadata or {}).get("res", 0.0) for thread in threads]
    samples = list(zip(await twins.texts(threads), scores, strict=True))
    reference = twins.at_start()
    expected = train(reference, samples, squared_error, plan)
    assert expected[-1]["num_dropped_samples"] == 2
    await twins.assert_same(expected, reference)


async def test_reward_model_of_scores(make_twins: MakeTwins) -> None:
    threads = [*lessons(6), ENDLESS]
    for number, thread in enumerate(threads):
        thread.metadata = {"res": number / 4 - 0.5}
    await assert_scores_are_learnt(await make_twins(scores=True), threads, refused=6)


async def test_reward_model_leaves_out_a_thread_without_a_score(make_twins: MakeTwins) -> None:
    threads = lessons(7)
    for number, thread in enumerate(threads):
        thread.metadata = {"res": number / 4 - 0.5} if number != 5 else {}
    await assert_scores_are_learnt(await make_twins(scores=True), threads, refused=5)
