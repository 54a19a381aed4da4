"""GRPO in one function: sample a group of answers, compare their rewards, and prefer the better ones.

    harmonia worker --port 9100                                 # in one terminal
    python examples/grpo_by_hand.py MODEL                       # in another
Answers come to prefer short words.
"""

import argparse
import asyncio
from statistics import fmean, pstdev

from harmonia.client import InferenceModel, StringThread, TokenizedThread, TrainingModel, get_client

PROMPTS = ["Describe the sea.", "What is a friend?", "Tell me about bread.", "Why do birds sing?"]
GROUP = 8


def reward(answer: str) -> float:
    """The share of short words, at most 1."""
    words = answer.split()
    return sum(len(word) <= 4 for word in words) / max(1, len(words))


async def explore(policy: TrainingModel, reference: InferenceModel, prompt: str) -> float:
    """Sample a group of answers, add the gradient of each, and return their mean reward."""
    thread = StringThread([("user", prompt)])
    samples = await asyncio.gather(*(policy.generate_tokens(thread) for _ in range(GROUP)))
    texts = await asyncio.gather(*(policy.detokenize_thread(sample) for sample in samples))
    rewards = [reward(text.last_content()) for text in texts]
    mean, spread = fmean(rewards), pstdev(rewards)

    async def learn(sample: TokenizedThread, advantage: float) -> None:
        sampled_with = await policy.logprobs_per_token(sample)
        reference_has = await reference.logprobs_per_token(sample)
        advantages = [advantage] * len(sampled_with)
        await policy.train_grpo(sample, sampled_with, reference_has, advantages, clip_range=0.2, kl_beta=0.01)

    await asyncio.gather(*(learn(s, (r - mean) / (spread + 1e-8)) for s, r in zip(samples, rewards, strict=True)))
    return mean


async def main(options: argparse.Namespace) -> None:
    """Each line: the mean reward of the answers, and the loss of the step that was made of them."""
    async with await get_client(options.worker) as client:
        builder = client.model(options.model, tokens_to_generate=24).with_adapter(rank=16)
        policy = await builder.spawn_train("policy", max_batch_size=1024)
        reference = await policy.clone_inf()  # frozen, on the same backbone: it costs what its adapter costs
        for step in range(1, options.steps + 1):
            rewards = await asyncio.gather(*(explore(policy, reference, prompt) for prompt in PROMPTS))
            logs = await policy.optim_step(options.lr, wd=0.0, max_grad_norm=1.0, skip_nan_gradients=True)
            print(f"step {step:2}  reward {fmean(rewards):6.3f}  loss {logs['loss']:7.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--worker", default="ws://127.0.0.1:9100")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    asyncio.run(main(parser.parse_args()))
