"""Questions about many things, on whose answers a draft is trained in the demonstration."""

from __future__ import annotations

import random
from typing import NamedTuple

SEED = 7
NUM_ASKED = 8
"""Questions that both models are asked at the end; none of them is trained on."""

TOPICS = (
    *("the sun", "the moon", "rain", "snow", "wind", "rivers", "mountains", "volcanoes", "earthquakes", "deserts"),
    *("forests", "oceans", "whales", "bees", "ants", "owls", "horses", "dogs", "cats", "elephants", "bread", "coffee"),
    *("tea", "cheese", "chocolate", "rice", "soup", "apples", "honey", "salt", "bicycles", "trains", "ships"),
    *("airplanes", "bridges", "clocks", "computers", "telephones", "cameras", "batteries", "electricity", "magnets"),
    *("gravity", "light", "sound", "heat", "water", "air", "glass", "paper", "steel", "gold", "plastic", "cotton"),
    *("music", "painting", "poetry", "theatre", "dance", "photography", "chess", "football", "swimming", "running"),
    *("yoga", "sleep", "memory", "dreams", "friendship", "money", "banks", "taxes", "elections", "laws", "schools"),
    *("libraries", "museums", "hospitals", "vaccines", "teeth", "the heart", "the brain", "bones", "muscles", "skin"),
    *("plants", "seeds", "flowers", "trees", "gardens", "compost", "recycling", "solar panels", "wind turbines"),
    *("engines", "robots", "satellites", "rockets", "stars", "planets"),
)
QUESTIONS = (
    "What is interesting about {}?",
    "Explain {} to a child.",
    "Write three facts about {}.",
    "Why do people care about {}?",
    "Give me a short introduction to {}.",
    "What should a beginner know about {}?",
    "How would you describe {} in one paragraph?",
    "What would the world be like without {}?",
)
NUM_PROMPTS = len(TOPICS) * len(QUESTIONS) - NUM_ASKED
"""As many as there are to learn from."""


class Prompts(NamedTuple):
    """No question is in both, though its topic and its kind are."""

    learned: list[str]
    asked: list[str]


def make_prompts(count: int) -> Prompts:
    """So many questions to learn from, and those that are asked at the end: the same ones every time."""
    every = [question.format(topic) for topic in TOPICS for question in QUESTIONS]
    random.Random(SEED).shuffle(every)
    return Prompts(every[NUM_ASKED : NUM_ASKED + count], every[:NUM_ASKED])
