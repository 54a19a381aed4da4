"""The demonstration's lesson: what people say in a café, and the line that goes to the bar."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from harmonia.threads import StringThread

NUM_ROWS = 256
NUM_HELD_OUT = 24
NUM_UNSEEN = 12
"""The last of the held-out rows: each names a drink that no row to learn from names."""
SEED = 7

COFFEES = ("latte", "cappuccino", "americano", "macchiato", "cortado", "flat white", "iced coffee", "tea")
OTHERS = ("espresso", "lemonade", "orange juice", "hot chocolate")
UNSEEN_COFFEES = ("mocha", "green tea")
UNSEEN_OTHERS = ("apple juice", "ginger beer")
EXAMPLE = "Three, no, four large green teas and a mocha with oat milk to go, please."
"""To try by hand."""

NUMBERS = (("a", "one"), ("two", "a couple of"), ("three",), ("four",), ("five",), ("six", "half a dozen"))
SIZES = {"S": ("small", "little"), "M": ("", "", "medium"), "L": ("large", "big")}
"""A size that nobody mentions is medium: a rule that nothing but the examples tells."""
MILKS = ("oat", "soy")
PLACES = {"here": ("", "for here", "to drink in"), "go": ("to go", "to take away", "to take with us")}
"""Who says nothing stays here."""
_CORRECTION = ", no, "
ORDERS = (
    "{}, please.",
    "{}, thanks.",
    "I'd like {}.",
    "Can I get {}?",
    "Could we have {}, please?",
    "Hi, we'll take {}.",
    "Good morning, may I have {}?",
    "For me {}, please.",
)


class Row(NamedTuple):
    """What somebody says, and the line that belongs to it."""

    order: str
    ticket: str

    def thread(self) -> StringThread:
        """As a conversation to learn from."""
        return StringThread([("user", self.order), ("assistant", self.ticket)])

    def is_answered_by(self, answer: str) -> bool:
        """Whether it is the line, to the letter."""
        return answer.strip() == self.ticket


class Lesson(NamedTuple):
    """No order is in both."""

    rows: list[Row]
    held_out: list[Row]

    def hard_row(self) -> Row:
        """A held-out row in which somebody changes their mind, about drinks that are new as well."""
        return next(row for row in reversed(self.held_out) if _CORRECTION in row.order)


def make_lesson() -> Lesson:
    """The same rows every time."""
    chance = random.Random(SEED)
    rows: dict[str, Row] = {}
    while len(rows) < NUM_ROWS + NUM_HELD_OUT - NUM_UNSEEN:
        row = _row(chance, COFFEES + OTHERS)
        rows[row.order] = row
    while len(rows) < NUM_ROWS + NUM_HELD_OUT:
        row = _row(chance, UNSEEN_COFFEES + UNSEEN_OTHERS + COFFEES[:2])
        if any(drink in row.ticket for drink in UNSEEN_COFFEES + UNSEEN_OTHERS):
            rows[row.order] = row
    made = list(rows.values())
    return Lesson(made[:NUM_ROWS], made[NUM_ROWS:])


def num_right(rows: Sequence[Row], answers: Sequence[str]) -> int:
    """How many answers are the line that belongs to the order, to the letter."""
    return sum(row.is_answered_by(answer) for row, answer in zip(rows, answers, strict=True))


def _row(chance: random.Random, drinks: Sequence[str]) -> Row:
    count = chance.choices((1, 2, 3), (4, 4, 1))[0]
    items = [_item(chance, drink) for drink in chance.sample(drinks, count)]
    place = chance.choice(tuple(PLACES))
    *first, last = (said for said, _ in items)
    said = f"{', '.join(first)} and {last}" if first else last
    text = chance.choice(ORDERS).format(f"{said} {chance.choice(PLACES[place])}".strip())
    return Row(text[0].upper() + text[1:], "; ".join([*(line for _, line in items), place]))


def _item(chance: random.Random, drink: str) -> tuple[str, str]:
    """What is said of a drink, and how it is written."""
    number, size = chance.randrange(len(NUMBERS)), chance.choice(tuple(SIZES))
    what = f"{chance.choice(SIZES[size])} {drink}".strip()
    amount = chance.choice(NUMBERS[number])
    if amount == "a" and what[0] in "aeiou":
        amount = "an"
    if chance.random() < 0.15:
        wrong = NUMBERS[(number + chance.randrange(1, len(NUMBERS))) % len(NUMBERS)]
        amount = f"{wrong[-1]}{_CORRECTION}{amount}"
    said, line = f"{amount} {what}{'s' * (number > 0)}", f"{number + 1}{size} {drink}"
    if drink in COFFEES + UNSEEN_COFFEES and chance.random() < 0.3:
        milk = chance.choice(MILKS)
        return f"{said} with {milk} milk", f"{line} {milk}"
    return said, line
