"""Distillation as users write it: a worker in a process of its own, models as files, a client over a socket."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from harmonia.client import HarmonyClient, StringThread, get_client
from harmonia.errors import (
    InvalidRequestError,
    PermissionDeniedError,
    TokenizerMismatchError,
    UnavailableError,
    UnknownModelError,
)
from harmonia.protocol.instances import Train
from harmonia.protocol.losses import Distillation
from harmonia.protocol.messages import Done

QUESTIONS = [StringThread([("user", text)]) for text in ("What is blue?", "Who sings?", "How far is it?", "Why?")]


@pytest.fixture(scope="module")
def other_tokenizer(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with two of its tokens exchanged."""
    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("other") / "model"))
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tokenizer))
    assert AutoTokenizer.from_pretrained(folder).encode("ab") != AutoTokenizer.from_pretrained(tiny).encode("ab")
    return folder


@pytest.fixture(scope="module")
def changed(tiny: Path, tiny_adapters: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an adapter, which answers otherwise."""
    folder = Path(shutil.copytree(tiny_adapters[0], tmp_path_factory.mktemp("changed") / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(tiny)}))
    return folder


async def test_a_model_comes_to_say_what_its_teacher_says(client: HarmonyClient, tiny: Path, changed: Path) -> None:
    teacher = (await client.model(str(changed)).spawn_inference("teacher")).temperature(0.0).max_gen_len(12)
    student = await client.model(str(tiny)).spawn_train("student", 512)
    answers = await asyncio.gather(*(teacher.generate_tokens(question) for question in QUESTIONS))
    told = []
    for _ in range(40):
        await asyncio.gather(*(student.train_distillation(answer, teacher) for answer in answers))
        told.append(await student.optim_step(3e-3))
    assert told[0]["num_samples"] == len(QUESTIONS)
    assert told[0]["agreement"] < 0.5
    assert told[-1]["agreement"] > 0.8
    assert told[-1]["overlap"] > told[0]["overlap"]
    assert told[-1]["loss"] < told[0]["loss"]
    imitated = await asyncio.gather(*(student.logprobs_per_token(answer) for answer in answers))
    meant = await asyncio.gather(*(teacher.logprobs_per_token(answer) for answer in answers))
    for ours, theirs in zip(imitated, meant, strict=True):
        assert sum(ours) == pytest.approx(sum(theirs), abs=3.0), "what the teacher said is as likely to the student"


async def test_the_teachers_own_lessons_come_first(client: HarmonyClient, tiny: Path) -> None:
    teacher = await client.model(str(tiny)).with_adapter(rank=4).spawn_train("teacher", 256)
    student = await client.model(str(tiny)).with_adapter(rank=4).spawn_train("student", 256)
    lesson = QUESTIONS[0].assistant("The sky.")
    tokens = await student.tokenize_thread(lesson)
    calls = [teacher.train_language_modelling(lesson), teacher.optim_step(5e-2)]
    calls += [student.train_distillation(tokens, teacher, divergence="total_variation")]
    await asyncio.gather(*(asyncio.ensure_future(call) for call in calls))
    told = await student.optim_step(0.0)
    assert told["loss"] > 0.01, "both began as the same model, and the teacher had moved when it was read"
    assert told["loss"] == pytest.approx((1 - told["overlap"]) * told["num_tokens"], rel=1e-3)


async def test_a_broken_line_loses_and_doubles_nothing(client: HarmonyClient, tiny: Path) -> None:
    teacher = await client.model(str(tiny)).with_adapter(rank=4).spawn_train("teacher", 256)
    student = await client.model(str(tiny)).with_adapter(rank=4).spawn_train("student", 256)
    lesson = QUESTIONS[0].assistant("The sky.")
    tokens = await student.tokenize_thread(lesson)
    calls = [asyncio.ensure_future(student.train_distillation(tokens, teacher)) for _ in range(40)]
    calls += [asyncio.ensure_future(teacher.train_language_modelling(lesson)) for _ in range(5)]
    step = asyncio.ensure_future(teacher.optim_step(5e-2))
    calls += [asyncio.ensure_future(student.train_distillation(tokens, teacher)) for _ in range(10)]
    await asyncio.sleep(0.02)
    client._session.link._connection.transport.abort()
    await asyncio.gather(*calls)
    assert (await step)["num_samples"] == 5
    told = await student.optim_step(1e-3)
    assert told["num_samples"] == 50
    assert 0 < told["overlap"] < 1, "of the teacher before and after its step"


async def test_another_tokenizer_is_named(client: HarmonyClient, tiny: Path, other_tokenizer: Path) -> None:
    teacher = await client.model(str(other_tokenizer)).spawn_inference("teacher")
    student = await client.model(str(tiny)).with_adapter(rank=4).spawn_train("student", 256)
    tokens = await student.tokenize_thread(QUESTIONS[0].assistant("ab"))
    refused = await asyncio.gather(
        *(student.train_distillation(tokens, teacher) for _ in range(20)), return_exceptions=True
    )
    assert {type(error) for error in refused} == {TokenizerMismatchError}
    assert "'teacher' has another tokenizer than 'student': token" in str(refused[0])
    with pytest.raises(InvalidRequestError, match="without a train"):
        await student.optim_step(1e-3)


async def test_whose_teacher_it_is_and_whether_it_is_there(client: HarmonyClient, address: str, tiny: Path) -> None:
    teacher = await client.model(str(tiny)).spawn_inference("teacher")
    student = await client.model(str(tiny)).with_adapter(rank=4).spawn_train("student", 256)
    tokens = await student.tokenize_thread(QUESTIONS[0].assistant("The sky."))

    async def ask(name: str) -> None:
        """What another program may send."""
        command = student._instance.command(Train, sides=(tokens.to_data(),), loss=Distillation(teacher=name))
        await client._session.ask(command, Done)

    async with await get_client(address) as other:
        await other.model(str(tiny)).spawn_inference("stranger")
        with pytest.raises(PermissionDeniedError, match="'stranger' belongs to another client"):
            await ask("stranger")
    with pytest.raises(UnknownModelError, match=r"'nobody'.*student, teacher"):
        await ask("nobody")
    with pytest.raises(InvalidRequestError, match="clone_inf"):
        await student.train_distillation(tokens, student.inf())
    waiting = [asyncio.ensure_future(student.train_distillation(tokens, teacher)) for _ in range(50)]
    await asyncio.sleep(0)
    await teacher.dealloc()
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(end is None or isinstance(end, UnavailableError | UnknownModelError) for end in ends)
    await student.train_language_modelling(QUESTIONS[0].assistant("The sky."))
    told = await student.optim_step(1e-3)
    assert told["num_samples"] == 1 + sum(end is None for end in ends)
