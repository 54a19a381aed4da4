"""Describing a model, planning it, spawning it."""

import asyncio
import json

import pytest

from harmonia.client import HarmonyClient, ModelBuilder, TrainingModel
from harmonia.errors import InvalidRequestError
from harmonia.protocol.instances import PlanSpawn, Spawn
from tests.unit.client.small_worker import SmallWorker


@pytest.fixture
def builder(client: HarmonyClient) -> ModelBuilder:
    return client.model("model_registry://tiny", kv_cache_len=4096, tokens_to_generate=32)


async def test_builders_are_copied_on_write(builder: ModelBuilder, worker: SmallWorker) -> None:
    changed = builder.tp(2).max_seqlen(128).into_scoring_model().with_adapter(rank=4, alpha=8, targets=["q_proj"])
    await changed.extra_params(precision="float32", seed=7).spawn_train("a", 256)
    await builder.spawn_inference("b")
    trained, plain = (message.spec for message in worker.of(Spawn))
    assert (trained.tp, trained.max_seq_len, trained.scalar_head, trained.mode) == (2, 128, True, "training")
    assert (trained.max_batch_size, trained.precision, trained.use_adapter) == (256, "float32", True)
    adapter = trained.adapter
    assert (adapter.rank, adapter.alpha, adapter.targets, adapter.seed) == (4, 8.0, ("q_proj",), 7)
    assert (plain.tp, plain.scalar_head, plain.use_adapter, plain.kv_cache_len) == (1, False, None, 4096)


async def test_arguments_are_plain_data_without_keys(builder: ModelBuilder) -> None:
    args = builder.api_key("very secret").with_adapter(False).to_python_dict()
    assert "very secret" not in json.dumps(args)
    assert args["path"] == "model_registry://tiny"
    assert (args["tokens_to_generate"], args["adapter_mode"]) == (32, False)


async def test_model_remembers_how_it_was_built(builder: ModelBuilder) -> None:
    model = await builder.spawn_inference("b")
    model.get_builder_args()["path"] = "changed"
    assert model.get_builder_args()["path"] == "model_registry://tiny"


async def test_progress_ends_at_exactly_one(builder: ModelBuilder, worker: SmallWorker) -> None:
    worker.held = (Spawn,)
    spawning = await builder.spawn_train_with_progress("a", 256)
    shares = [await spawning._await_progress()]
    while shares[-1] < 0.9:
        shares.append(await spawning._await_progress())
    worker.go_on.set()
    while (share := await spawning._await_progress()) != 1.0:
        shares.append(share)
    assert shares == sorted(shares) and shares[-1] == 0.99
    assert isinstance(await spawning.get(), TrainingModel)
    assert await spawning._await_progress() == 1.0


async def test_failed_spawn_raises_from_each_await(builder: ModelBuilder) -> None:
    kept = await builder.spawn_inference("b")
    spawning = await builder.spawn_inference_with_progress("b")
    with pytest.raises(InvalidRequestError, match="taken"):
        await asyncio.gather(*(spawning._await_progress() for _ in range(9)))
    with pytest.raises(InvalidRequestError, match="taken"):
        await spawning.get()
    assert not kept.is_scalar()


async def test_plans(builder: ModelBuilder, worker: SmallWorker) -> None:
    assert (await builder.plan_inference())["weights"] == 1000
    assert (await builder.plan_train(512))["mode"] == "training"
    assert worker.of(PlanSpawn)[1].spec.max_batch_size == 512
    assert worker.models == {}


async def test_drafts_are_checked_and_sent(builder: ModelBuilder, worker: SmallWorker) -> None:
    for steps, message in ((0, r"at least 1 \(got 0\)"), (9, r"at most 8 \(got 9\)")):
        with pytest.raises(InvalidRequestError, match=message):
            builder.with_draft("model_registry://small", steps)
    await builder.with_draft("model_registry://small", 4).spawn_inference("b")
    (spawn,) = worker.of(Spawn)
    assert (spawn.spec.draft, spawn.spec.num_draft_steps) == ("model_registry://small", 4)


async def test_bad_arguments_are_refused_before_anything_is_sent(client: HarmonyClient, builder: ModelBuilder) -> None:
    for bad in (
        lambda: client.model("openai://gpt"),
        lambda: client.model("tiny", kv_cache_len=0),
        lambda: client.model("tiny", tokens_to_generate=0),
        lambda: builder.tp(0),
        lambda: builder.max_seqlen(0),
        lambda: builder.with_adapter(rank=0),
        lambda: builder.extra_params(colour="red"),
        lambda: builder.extra_params(seed="red"),
        lambda: builder.tools("calculator"),
        lambda: builder.tools(["mcp://calculator"]),
    ):
        with pytest.raises(InvalidRequestError):
            bad()
    with pytest.raises(InvalidRequestError, match="max_batch_size"):
        await builder.spawn_train("a", 0)
