"""The tasks of a user in smol-v1, made by rule: label a message, rewrite a date, take an order."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

from titer.data.rows import Row, draw_distinct
from titer.errors import unknown
from titer.lab.knowledge import VERSION

TASKS = ("intent", "dates", "orders")
MESSAGES = {  # what a customer writes, by the label that the user wants
    "refund": (
        "I want my money back for the {item}",
        "Please return what I paid for the {item}",
        "I sent the {item} back and am still waiting for the money",
        "The {item} was not worth it, pay me back",
        "You charged me twice for the {item}",
    ),
    "delivery": (
        "Where is the {item} that I ordered",
        "The {item} has not arrived yet",
        "When will the {item} be at my door",
        "Has the {item} been shipped",
        "The driver left with my {item} again",
    ),
    "repair": (
        "The {item} stopped working after a week",
        "My {item} makes a strange noise",
        "The {item} came with a broken part",
        "Can somebody mend my {item}",
        "The {item} does not turn on any more",
    ),
    "advice": (
        "Which {item} would you choose for a small flat",
        "Is the {item} good for beginners",
        "Does the {item} come in other colours",
        "What is the difference between the {item} and the new one",
        "How heavy is the {item}",
    ),
    "cancel": (
        "I no longer need the {item}, stop the order",
        "Please take the {item} off my order",
        "I ordered the {item} by mistake",
        "Do not send the {item}, I changed my mind",
        "Drop the {item} from my basket before it ships",
    ),
    "praise": (
        "I love the {item}",
        "The {item} is the best that I ever had",
        "Thank you for the wonderful {item}",
        "My whole family enjoys the {item}",
        "The {item} works perfectly, well done",
    ),
}
ITEMS = (
    "lamp kettle toaster radio printer camera blender fan heater scooter keyboard mixer drill "
    "speaker tent sofa mirror carpet bicycle guitar"
)
GREETINGS = ("", "Hello, ", "Hi there, ", "Good morning, ", "Dear team, ", "Hey, ")
MONTHS = "January February March April May June July August September October November December"
NAMES = "Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Mary Noah Olga Paul"
GOODS = (
    "pens cups chairs lamps stamps candles buttons mirrors pillows bottles shirts towels bricks "
    "brushes folders magnets"
)
ORDERS = (
    "{name} orders {count} {goods}.",
    "Please send {count} {goods} to {name}.",
    "{count} {goods} for {name}, please.",
    "{name} would like to buy {count} {goods}.",
    "We need {count} {goods}. Signed, {name}.",
)


def task_row(task: str, rng: random.Random) -> Row:
    """Draw a row of a task: `intent` labels a message, `dates` and `orders` rewrite a text.

    Raises ValueError where there is no such task.
    """
    if task == "intent":
        label = rng.choice(sorted(MESSAGES))
        said = rng.choice(MESSAGES[label]).format(item=rng.choice(ITEMS.split()))
        greeting = rng.choice(GREETINGS)
        if greeting and not said.startswith("I "):
            said = said[0].lower() + said[1:]
        return Row(f"Label the message.\n\n{greeting}{said}.", f"intent: {label}")
    if task == "dates":
        day, month, year = rng.randrange(1, 29), rng.randrange(1, 13), rng.randrange(1950, 2030)
        name = MONTHS.split()[month - 1]
        written = rng.choice((f"{day} {name} {year}", f"{name} {day}, {year}"))
        return Row(f"Rewrite the date: {written}", f"{year}/{month:02}/{day:02}")
    if task == "orders":
        name, goods = rng.choice(NAMES.split()), rng.choice(GOODS.split())
        count = rng.randrange(2, 100)
        said = rng.choice(ORDERS).format(name=name, goods=goods, count=count)
        found = json.dumps({"name": name, "item": goods, "count": count})
        return Row(f"Extract the order.\n\n{said}", found)
    raise unknown(f"task of {VERSION}", task, TASKS)


def task_rows(task: str, count: int, rng: random.Random, without: Iterable[Row] = ()) -> list[Row]:
    """Draw `count` rows with distinct prompts, none of which is in `without`."""
    return draw_distinct(lambda: task_row(task, rng), count, without)
