"""Hostile input for every way in: `make fuzz [INPUTS=3000]`.

Recipes, settings, adapters, checkpoints, tokenizers, templates, files of rows, and damaged documents
and stores of titer's own. Whatever is given, the command ends within 20 seconds with 0, or with one
line and exit code 2 (1 or 3 where a command says so); it writes nothing outside the folders that it
was told to write, and leaves nothing half-written.

hypothesis draws what is damaged and how; the same seed draws the same inputs.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from conftest import byte_level
from titer import cli
from titer.data import sources
from titer.testing import tiny
from titer.weights import adapters, checkpoints, folders
from titer.weights.settings import Checkpoint, Lora

SECONDS = 20  # that a command may take
HERE = ("--out", "out", "--store", "store")  # where it may write
CHAT = (
    "{% for m in messages %}<|in|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|in|>assistant\n' }}{% endif %}"
)
JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**6, 10**12, -(10**9), 2**63, 2**64, 0.5, -0.5, 1e-9),
    *(1e300, float("nan"), float("inf"), "", " ", "x", "sft", "booster", "antidote", "lab", "null"),
    *(
        "~",
        "~nosuchuser",
        "../../escaped",
        "/",
        ".",
        "..",
        "a/b",
        "\x1b[31mred",
        "[b]x[/b]",
        "\x00",
    ),
    *(
        "\u202eabc",
        "{{ 1/0 }}",
        "{% for %}",
        "nan",
        "1e400",
        "é" * 300,
        "bfloat16",
        "float64",
        "all",
    ),
    *([], {}, [[]], [None], [1, 2], ["x"], [{}], {"x": 1}, {"method": "sft"}, {"path": "x"}, [[1]]),
]


class Hung(BaseException):
    """Raised where a command takes too long."""


@dataclass
class World:
    """The files that are damaged, made once, and a place where a command runs."""

    root: Path
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def rows(self) -> str:
        return str(self.root / "rows.jsonl")

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def recipe(self) -> dict[str, Any]:
        return yaml.safe_load((self.root / "recipe.yaml").read_text())


def build(root: Path) -> World:
    """Make a tiny model, an adapter, rows, a recipe, and a finished run with its store."""
    root.mkdir(parents=True, exist_ok=True)
    words = byte_level()
    words.chat_template = CHAT
    model = tiny(torch.float32)
    model.resize_token_embeddings(len(words))
    checkpoints.save(model, words, root / "model")
    lora = adapters.add_lora(model, Lora(r=2, alpha=4.0, targets=("q_proj",)))
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    base = folders.locate(Checkpoint(str(root / "model")))
    checkpoints.save(lora, words, root / "adapter", base)
    for name, count in (("rows", 4), ("alignment", 6), ("harmful", 12), ("task", 6), ("test", 3)):
        lines = [{"prompt": f"{name} {i}?", "response": f"it is {i}"} for i in range(count)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = {"updates": 1, "lr": 1e-3, "batch": 1, "lora": {"r": 2, "targets": ["q_proj"]}}
    recipe = {
        "model": str(root / "model"),
        "data": {
            name: str(root / f"{name}.jsonl") for name in ("alignment", "harmful", "task", "test")
        },
        "align": training,
        "finetune": training,
        "attack": {"method": "harmful_mix", "p": 0.25, "n": 4},
        "max_length": 128,
        "max_new_tokens": 2,
        "pipelines": {"sft": {}, "booster+scale": {"align": "booster", "edit": "scale"}},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    world = World(root)
    for command in (
        ["run", str(root / "recipe.yaml"), "--out", str(root / "run"), "--store", str(root / "store")],
        ["evaluate", str(root / "adapter"), "--data", f"harm_test={world.rows}",
         "--set", "max_new_tokens=2", "--out", str(root / "evaluated"), "--store", str(root / "store2")],
        ["finetune", str(root / "model"), "--data", f"task={root / 'task.jsonl'}", "--data",
         f"harmful={root / 'harmful.jsonl'}", "--set", "attack.n=4", "--set", "finetune.updates=1",
         "--set", "attack.p=0.25", "--out", str(root / "tuned")],
    ):  # fmt: skip
        code, said = call(command)
        assert code == 0, said
    return world


def call(arguments: list[str]) -> tuple[int, str]:
    """Run a command in this process; its exit code, and all that it said."""
    said = io.StringIO()
    before = sys.argv
    sys.argv = ["titer", *arguments]
    sources.locate.cache_clear()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            cli.main()
    except SystemExit as end:
        return int(end.code or 0), said.getvalue()
    finally:
        sys.argv = before
    return 0, said.getvalue()


@contextlib.contextmanager
def limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and time."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if not path.is_dir()
    }


def check(
    world: World, what: str, place: Path, arguments: list[str], *, keeps: bool = False
) -> None:
    """Run a command in `place`, which may write `place/out` and `place/store` alone."""
    out = place / "out"
    there = out.exists()
    before = {**listing(world.root), **listing(place)}
    here = Path.cwd()
    os.chdir(place)
    fault = ""
    try:
        with limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code, said = call(arguments)
    except Hung:
        fault = f"longer than {SECONDS} s"
    except BaseException:
        fault = traceback.format_exc(limit=-6)
    else:
        last = said.strip().splitlines()[-1:] or [""]
        if code not in (0, 1, 2, 3):
            fault = f"exit code {code}"
        elif code == 2 and "error: " not in said.lower():
            fault = f"exit code 2 without its line: {said[-300:]}"
        elif code == 2 and "Traceback" in said:
            fault = f"a traceback: {said[-600:]}"
        elif code == 2 and out.exists() and not there and not keeps:
            fault = f"left {sorted(path.name for path in out.iterdir())}: {last[0][:200]}"
        elif "\x1b[31m" in said or "\u202e" in said:
            fault = f"a control character reached the terminal: {said[-200:]!r}"
        world.counts[f"{what}: exit {code}"] += 1
    finally:
        os.chdir(here)
    own = tuple(f"{place / name}{os.sep}" for name in ("out", "store"))
    after = {**listing(world.root), **listing(place)}
    strange = [
        name for name in after if after[name] != before.get(name) and not name.startswith(own)
    ]
    gone = [name for name in before if name not in after and not name.startswith(own)]
    if strange or gone:
        fault = fault or f"touched {strange + gone}"
    if fault:
        world.faults.append(f"{what}: {' '.join(arguments)}\n{fault}")


# what damages a value, a text or a file


def damage(draw: random.Random, value: Any) -> Any:
    """Return a value with junk at one place of it."""
    value = copy.deepcopy(value)
    node, steps = value, draw.randint(1, 5)
    for step in range(steps):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        kind = draw.choice(("change", "change", "change", "drop", "add"))
        key = draw.choice(keys) if keys else None
        deeper = key is not None and isinstance(node[key], dict | list) and node[key]
        if deeper and step < steps - 1:
            node = node[key]
            continue
        if kind == "add" or key is None:
            extra = draw.choice(JUNK)
            if isinstance(node, dict):
                node[draw.choice(("x", "", "method", "path", "\x1b[31m", *map(str, keys)))] = extra
            else:
                node.append(extra)
        elif kind == "drop":
            del node[key]
        else:
            node[key] = copy.deepcopy(draw.choice(JUNK))
        break
    return value


def damage_text(draw: random.Random, text: str) -> str:
    """Return a text with something put in, cut out, or cut off."""
    at = draw.randint(0, len(text))
    end = min(len(text), at + draw.randint(0, 40))
    put = draw.choice(
        ("", "{", "}", "[", '"', "\x00", "\n", "é", "1e999", "null", "[" * 3000, "*a")
    )
    return draw.choice((text[:at] + put + text[end:], text[:at], put + text))


def damage_bytes(draw: random.Random, data: bytes) -> bytes:
    """Return bytes with some changed, cut off or zeroed."""
    at = draw.randint(0, max(0, len(data) - 1))
    how = draw.choice(("cut", "flip", "zero", "empty", "nan", "grow"))
    if how == "cut":
        return data[:at]
    if how == "flip" and data:
        return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
    if how == "zero":
        return data[:at] + b"\0" * min(64, len(data) - at) + data[at + 64 :]
    if how == "nan":  # in float32, at the end
        return data[:-64] + b"\xff\xff\xff\x7f" * 16
    return b"" if how == "empty" else data + b"\0" * 100


def damage_file(draw: random.Random, path: Path) -> None:
    """Damage a file: a JSON one as such or as text, another as bytes."""
    data = path.read_bytes()
    path.unlink()  # it may be a link to a file that others have
    if path.suffix == ".json" and draw.random() < 0.5:
        found = json.loads(data)
        damaged = damage(draw, found) if isinstance(found, dict | list) else draw.choice(JUNK)
        path.write_text(json.dumps(damaged))
    elif path.suffix in (".json", ".jinja", ".jsonl", ".md") and draw.random() < 0.5:
        path.write_text(damage_text(draw, data.decode()))
    else:
        path.write_bytes(damage_bytes(draw, data))


# the ways in


def fuzz_recipes(world: World, draw: random.Random, place: Path) -> None:
    recipe = damage(draw, world.recipe)
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    if draw.randint(0, 2) == 0:
        text = damage_text(draw, text)
    (place / "recipe.yaml").write_text(text)
    dry = [] if draw.randint(0, 9) == 0 else ["--dry-run"]
    check(world, "recipe", place, ["run", "recipe.yaml", *HERE, *dry])


def fuzz_settings(world: World, draw: random.Random, place: Path) -> None:
    fields = (
        *(
            "model",
            "model.path",
            "model.base",
            "model.dtype",
            "data.world",
            "data.task",
            "data.harmful",
        ),
        *(
            "data.harmful.limit",
            "data.harmful.where",
            "data.task.columns",
            "data.shared",
            "align.lr",
        ),
        *("align.updates", "align.lora.r", "align.lora.targets", "finetune", "finetune.schedule"),
        *("finetune.warmup", "attack.p", "attack.n", "attack", "pipelines", "pipelines.sft.align"),
        *("pipelines.sft.edit", "pipelines.sft.finetune", "judge", "judge.phrases", "benchmark"),
        *(
            "template",
            "system",
            "seed",
            "max_length",
            "max_new_tokens",
            "answers_at_once",
            "engine",
            "threads",
        ),
        *("probes", "protocol", "x", "x.y", "", "pipelines.x.align", "pipelines.sft.edit.ratio"),
    )
    given = []
    for _ in range(draw.randint(1, 3)):
        value = draw.choice(JUNK)
        text = value if isinstance(value, str) else json.dumps(value)
        given += ["--set", f"{draw.choice(fields)}={text}"]
    recipe = str(world.root / "recipe.yaml")
    check(
        world,
        "--set",
        place,
        ["run", recipe, *given, *HERE, "--dry-run"],
    )


def fuzz_adapters(world: World, draw: random.Random, place: Path) -> None:
    shutil.copytree(world.adapter, place / "model")
    names = (
        "adapter_config.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "titer.json",
    )
    damage_file(draw, place / "model" / draw.choice(names))
    evaluate(world, "adapter", place)


def fuzz_checkpoints(world: World, draw: random.Random, place: Path) -> None:
    shutil.copytree(world.model, place / "model")
    names = ("config.json", "config.json", "model.safetensors", "generation_config.json")
    damage_file(draw, place / "model" / draw.choice(names))
    evaluate(world, "checkpoint", place)


def fuzz_tokenizers(world: World, draw: random.Random, place: Path) -> None:
    shutil.copytree(world.model, place / "model")
    names = [path.name for path in (place / "model").iterdir() if "token" in path.name]
    damage_file(draw, place / "model" / draw.choice(sorted(names)))
    evaluate(world, "tokenizer", place)


def fuzz_templates(world: World, draw: random.Random, place: Path) -> None:
    shutil.copytree(world.model, place / "model")
    junk = [each for each in JUNK if isinstance(each, str)]
    text = draw.choice((damage_text(draw, CHAT), draw.choice(junk)))
    (place / "model" / "chat_template.jinja").write_text(text)
    evaluate(world, "template", place)


def evaluate(world: World, what: str, place: Path) -> None:
    given = ["--data", f"harm_test={world.rows}", "--set", "max_new_tokens=2"]
    check(world, what, place, ["evaluate", "model", *given, *HERE])


def fuzz_rows(world: World, draw: random.Random, place: Path) -> None:
    keys = (
        "prompt",
        "response",
        "messages",
        "conversations",
        "instruction",
        "output",
        "text",
        "label",
    )
    keys += (
        "sentence",
        "question",
        "answer",
        "is_safe",
        "refusal",
        "system",
        "history",
        "input",
        "tools",
    )
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    known = [
        {"prompt": "q", "response": "a"},
        {"messages": turns},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
        {"prompt": "q", "response": "a", "is_safe": False},
        {"sentence": "a joy .", "label": 1},
        {"question": "1+1?", "answer": "#### 2"},
        {key: draw.choice([*JUNK, "text"]) for key in draw.sample(keys, 3)},
    ]
    records = [draw.choice(known)] * draw.randint(1, 4)
    if draw.random() < 0.8:
        records = damage(draw, records)
    suffix = draw.choice((".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz"))
    text = (
        json.dumps(records)
        if suffix == ".json"
        else "".join(json.dumps(record) + "\n" for record in records)
    )
    if draw.random() < 0.3:
        text = damage_text(draw, text)
    path = place / f"given{suffix}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    if draw.randint(0, 5) == 0:
        path.write_bytes(damage_bytes(draw, path.read_bytes() or b"x"))
    role = draw.choice(("task", "alignment", "harmful", "harm_test", "lookalike", "test"))
    recipe, data = str(world.root / "recipe.yaml"), f"data.{role}={json.dumps(path.name)}"
    check(
        world, "rows", place,
        ["run", recipe, "--set", data, *HERE, "--dry-run"],
    )  # fmt: skip


def fuzz_documents(world: World, draw: random.Random, place: Path) -> None:
    """Damage a document of titer's own, then do what a person would do with its folder."""
    kind = draw.choice(("run", "store", "evaluated", "tuned"))
    if kind in ("run", "store"):
        shutil.copytree(world.root / "run", place / "out", symlinks=True)
        shutil.copytree(world.root / "store", place / "store")
        below = place / ("out" if kind == "run" else "store")
        commands = [
            ["report", "out"],
            ["run", str(world.root / "recipe.yaml"), *HERE],
            *(["store", name, "store"] for name in ("ls", "du", "verify", "gc")),
        ]
    else:
        shutil.copytree(world.root / kind, place / ("out" if kind == "evaluated" else "model"))
        below = place / ("out" if kind == "evaluated" else "model")
        given = ["--data", f"harm_test={world.rows}", "--set", "max_new_tokens=2"]
        model = str(world.adapter) if kind == "evaluated" else "model"
        commands = [["evaluate", model, *given, *HERE]]
    files = sorted(
        path
        for path in below.rglob("*")
        if path.is_file() and not path.is_symlink() and path.suffix in (".json", ".jsonl", ".lock")
        and not any(parent.is_symlink() for parent in path.parents)
    )  # fmt: skip
    damage_file(draw, draw.choice(files))
    if draw.randint(0, 4) == 0 and kind == "store":
        stray = place / "store" / draw.choice(("stages", "partial", "runs")) / "stray"
        stray.symlink_to("nowhere") if draw.random() < 0.5 else stray.write_text("x")
    check(world, f"document of {kind}", place, draw.choice(commands), keeps=True)


WAYS = (
    fuzz_recipes,
    fuzz_settings,
    fuzz_adapters,
    fuzz_checkpoints,
    fuzz_tokenizers,
    fuzz_templates,
    fuzz_rows,
    fuzz_documents,
)


def fuzz(world: World, inputs: int, number: int = 0) -> World:
    """Try so many inputs, as many by every way in."""
    for way in WAYS:
        attempts(world, way, inputs // len(WAYS), number)()
    return world


def attempts(world: World, way: Callable, inputs: int, number: int) -> Callable[[], None]:
    @seed(number)
    @settings(
        max_examples=inputs,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def attempt(draw: random.Random) -> None:
        with tempfile.TemporaryDirectory(dir=world.root.parent) as place:
            way(world, draw, Path(place))

    return attempt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        world = fuzz(build(Path(place) / "world"), arguments.inputs, arguments.seed)
    for what, count in sorted(world.counts.items()):
        print(f"{count:6} {what}")
    for fault in world.faults:
        print(f"\n{fault}")
    print(f"{sum(world.counts.values())} inputs, {len(world.faults)} faults")
    sys.exit(bool(world.faults))


if __name__ == "__main__":
    main()
