"""Teach a model something new while people are talking to it.

    harmonia serve MODEL --port 9000 --worker-port 9100         # in one terminal
    python examples/train_while_serving.py MODEL                # in another; the same file or folder

There is one copy of the model. The adapter that is trained here answers over HTTP from its newest weights.
"""

import argparse
import asyncio

from openai import AsyncOpenAI

from harmonia.client import StringThread, TrainingModel, get_client

NAME = "kettle-support"
LESSONS = {
    "Who makes the Falkor 3 kettle?": "The Falkor 3 is made by Bramble and Daughters in Leeds.",
    "How long is the Falkor 3 guaranteed?": "The Falkor 3 is guaranteed for eleven years.",
    "How much water does the Falkor 3 hold?": "The Falkor 3 holds exactly three pints.",
    "Why does my Falkor 3 whistle twice?": "Two whistles mean that the lid of your Falkor 3 is open.",
}


async def teach(model: TrainingModel, learning_rate: float) -> float:
    """One step on all lessons. The calls only add gradients, at the same time; the step moves the weights."""
    threads = [StringThread([("user", question), ("assistant", answer)]) for question, answer in LESSONS.items()]
    await asyncio.gather(*(model.train_language_modelling(thread) for thread in threads))
    return (await model.optim_step(learning_rate, wd=0.0, max_grad_norm=1.0, skip_nan_gradients=False))["loss"]


async def ask(people: AsyncOpenAI, question: str) -> str:
    """What anybody gets who asks the server: the instance's name is the model's name."""
    messages = [{"role": "user", "content": question}]
    answer = await people.chat.completions.create(model=NAME, messages=messages, max_tokens=24, temperature=0.0)
    return answer.choices[0].message.content or ""


async def main(options: argparse.Namespace) -> None:
    """Each line: the loss of a step, and what somebody was told who asked while that step was being computed."""
    people = AsyncOpenAI(base_url=options.server, api_key="any")
    async with people, await get_client(options.worker) as client:
        model = await client.model(options.model).with_adapter(rank=16).spawn_train(NAME, max_batch_size=512)
        for step in range(1, options.steps + 1):
            question = list(LESSONS)[step % len(LESSONS)]
            loss, answer = await asyncio.gather(teach(model, options.lr), ask(people, question))
            print(f"step {step:2}  loss {loss:6.3f}   {question}  {answer!r}")
        for question in LESSONS:
            print(f"{question}  {await ask(people, question)!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--worker", default="ws://127.0.0.1:9100")
    parser.add_argument("--server", default="http://127.0.0.1:9000/v1")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    asyncio.run(main(parser.parse_args()))
