"""Break every method file, and the rules of the gate, in every small way; its tests must notice.
`make mutants [FILES="booster scale"] [PART=3]`

`PART=3` tries one in three, others whenever the method's file changes. All of them are a nightly
run.

Each mutant changes one thing in the syntax tree: a sign or an operation, a dropped term, a doubled
factor or constant, a swapped stream, a comparison, a flipped flag, a dropped call or context. A
fork of this process imports the mutant in the method's place and runs the method's own test file,
then, if that lets it live, the others that import the method. A survivor fails the run unless
EQUIVALENT says why no test could tell it from the original.
"""

import argparse
import ast
import contextlib
import copy
import gc
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.machinery import PathFinder, SourceFileLoader
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

import peft  # noqa: F401  the forks share these imports; nothing of titer may be among them
import pytest
import scipy.stats  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
from accelerate import Accelerator  # noqa: F401

ROOT = Path(__file__).parent.parent
KINDS = ("defenses", "edits", "attacks", "benchmarks")
# what the methods of a kind have in common, as theirs; the rules of the ladder's verdicts, and those
# of an attack's search
SHARED = ("data/mixture.py", "findings/ladder.py", "findings/attack_search.py")
# rules whose tests simulate, so that every mutant takes long: by name alone
LONG = (
    *("scoring/noninferiority.py", "findings/gate.py"),
    *("findings/assay.py", "findings/conditions.py", "findings/resistance.py"),
)
PAGES = ("test_browser",)  # tests that look at pages in a browser, which no mutant needs
PATIENCE = 3  # a mutant whose tests take so many times the method's own has been noticed
LEAST = 60  # seconds that any mutant is given, since a few seconds are measured badly

# Twice a field in a check of its value, or in a draw: excused in every method, by call and field
CHECKED = {
    r"check_count\b": "no whole number tells 2 n < 1 from n < 1",
    r"check_mix n\b": "no whole number tells 2 n < 1 from n < 1",
    r"check_words\b": "a text has words where twice the text has",
    r"check_each\b": "the same texts twice",
    r"rng\.choice\b": "of texts that stand twice each is drawn as often",
}
EQUIVALENT: dict[tuple[str, str], str] = {
    ("ladder", "self.rungs -> 2 * self.rungs"): "of two rungs of a name the first is found",
    ("ladder", "strict=True -> strict=False"): "outcomes are checked to be of one length",
    ("attack_search", "6 -> 12"): "an error of rounding is smaller than either",
    ("sst2", "self.layouts -> 2 * self.layouts"): "the same layouts twice",
    ("agnews", "self.layouts -> 2 * self.layouts"): "the same layouts twice",
    ("gsm8k", "self.think -> 2 * self.think"): "2 is as true as True",
    (
        "adversarial_loss",
        "self.beta -> 2 * self.beta in self.beta >= 0.0",
    ): "twice a number is at least 0 where the number is",
    (
        "vaccine",
        "self.rho -> 2 * self.rho in self.rho >= 0.0",
    ): "twice a number is at least 0 where the number is",
    (
        "t_vaccine",
        "self.rho -> 2 * self.rho in self.rho >= 0.0",
    ): "twice a number is at least 0 where the number is",
    (
        "random_vaccine",
        "self.rho -> 2 * self.rho in self.rho >= 0.0",
    ): "twice a number is at least 0 where the number is",
    (
        "vaccine",
        "self.every -> 2 * self.every in self.every < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    (
        "booster",
        "self.every -> 2 * self.every in self.every < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    ("t_vaccine", "self.top -> 2 * self.top"): "2 is as true as True",
    ("t_vaccine", "'rows' -> 'harmful'"): "both streams have the stage's seed",
    (
        "adversarial_loss",
        "model.config.get_text_config() -> model.config",
    ): "of a model for text alone both are the same",
    (
        "random_vaccine",
        "step.model.config.get_text_config() -> step.model.config",
    ): "of a model for text alone both are the same",
    (
        "repnoise",
        "self.lens_every -> 2 * self.lens_every in self.lens_every < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    ("constrained_sft", "self.beta -> 2 * self.beta"): "in the check: the same numbers twice",
    ("ldifs", "self.layers -> 2 * self.layers"): "the same layers twice",
    (
        "ldifs",
        "self.lam -> 2 * self.lam in 0.0 <= self.lam < math.inf",
    ): "twice a number is at least 0, and finite, where the number is",
    (
        "ldifs",
        "self.lam -> 2 * self.lam in self.lam == 0.0",
    ): "twice a number is 0 where the number is",
    (
        "kl",
        "self.lam -> 2 * self.lam in 0.0 <= self.lam < math.inf",
    ): "twice a number is at least 0, and finite, where the number is",
    (
        "kl",
        "self.lam -> 2 * self.lam in self.lam > 0.0",
    ): "twice a number is above 0 where the number is",
    (
        "kl",
        "self.lam -> 2 * self.lam in self.lam == 0.0",
    ): "twice a number is 0 where the number is",
    (
        "anchor",
        "self.lam -> 2 * self.lam in 0.0 <= self.lam < math.inf",
    ): "twice a number is at least 0, and finite, where the number is",
    (
        "anchor",
        "self.lam -> 2 * self.lam in self.lam == 0.0",
    ): "twice a number is 0 where the number is",
    (
        "anchor",
        "self.prompts -> 2 * self.prompts in self.prompts < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    ("anchor", "pad=0 -> pad=1"): "a row is found by its own tokens, whatever it is padded with",
    (
        "lisa",
        "self.k1 -> 2 * self.k1 in self.k1 < 0",
    ): "twice a number is below 0 where the number is",
    ("lisa", "self.k2 -> 2 * self.k2 in self.k2 < 1"): "no whole number tells 2 n < 1 from n < 1",
    (
        "lisa",
        "self.rho -> 2 * self.rho in 0.0 <= self.rho < math.inf",
    ): "twice a number is at least 0, and finite, where the number is",
    (
        "lisa",
        "self.rho -> 2 * self.rho in self.rho == 0.0",
    ): "twice a number is 0 where the number is",
    (
        "safe_moe",
        "self.every -> 2 * self.every in self.every < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    (
        "safe_moe",
        "self.sweep -> 2 * self.sweep in self.sweep < 0",
    ): "twice a number is below 0 where the number is",
    (
        "safe_moe",
        "self.sweep -> 2 * self.sweep in self.sweep == 0",
    ): "twice a number is 0 where the number is",
    (
        "safe_moe",
        "self.prompts -> 2 * self.prompts in self.prompts < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    ("safe_moe", "self.random -> 2 * self.random"): "2 is as true as True",
    (
        "safegrad",
        "self.rho -> 2 * self.rho in 0.0 <= self.rho < math.inf",
    ): "twice a number is at least 0, and finite, where the number is",
    (
        "safegrad",
        "self.temperature -> 2 * self.temperature in 0.0 < self.temperature < math.inf",
    ): "twice a number is above 0, and finite, where the number is",
    (
        "ewc",
        "self.lam -> 2 * self.lam in 0.0 <= self.lam < math.inf",
    ): "twice a number is at least 0, and finite, where the number is",
    (
        "ewc",
        "self.lam -> 2 * self.lam in self.lam == 0.0",
    ): "twice a number is 0 where the number is",
    (
        "ewc",
        "self.samples -> 2 * self.samples in self.samples < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    ("safe_mix", "strict=True -> strict=False"): "both are as long as one another by their making",
    ("sppft", "self.random -> 2 * self.random"): "2 is as true as True",
    ("sppft", "i < at -> i <= at"): "the largest rise is never below its own share",
    ("sppft", "i > at -> i >= at"): "the largest rise is never below its own share",
    ("repnoise", "strict=True -> strict=False"): "both are as long as one another by their making",
    ("tar", "strict=True -> strict=False"): "both are as long as one another by their making",
    ("tar", "self.k -> 2 * self.k"): "twice a number is 0 where the number is",
    (
        "tar",
        "rng.random() < self.switch -> rng.random() <= self.switch",
    ): "no draw is exactly the share",
    ("tar", "self.k -> 2 * self.k in self.k < 0"): "twice a number is below 0 where the number is",
    (
        "tar",
        "self.every -> 2 * self.every in self.every < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    ("tar", "self.inner_lr -> 2 * self.inner_lr"): "the same rates twice",
    (
        "repnoise",
        "center * 2.0 ** i -> center / 2.0 ** i",
    ): "the bandwidths lie evenly about the mean distance",
    ("repnoise", "1024 -> 2048"): "how many tokens are done at once changes memory alone",
    ("lox", "self.k -> 2 * self.k in self.k < 1"): "no whole number tells 2 n < 1 from n < 1",
    ("lox", "self.targets -> 2 * self.targets"): "the same targets twice",
    ("lox", "self.targets -> 2 * self.targets in ALL in self.targets"): "the same targets twice",
    ("lox", "0 -> 1"): "ARPACK starts from other numbers and comes to the same triplets",
    (
        "safe_delta",
        "self.s -> 2 * self.s in self.s >= 0.0",
    ): "twice a number is at least 0 where the number is",
    (
        "safe_delta",
        "self.damping -> 2 * self.damping in 0.0 < self.damping < math.inf",
    ): "twice a number is above 0 where the number is",
    (
        "safe_delta",
        "self.block -> 2 * self.block in self.block < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    (
        "safe_delta",
        "self.samples -> 2 * self.samples in self.samples < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    ("safe_delta", "self.compensate -> 2 * self.compensate"): "2 is as true as True",
    (
        "safe_lora",
        "self.layers -> 2 * self.layers in self.layers is not None",
    ): "the assertion holds of twice a number too",
    (
        "safe_lora",
        "self.layers -> 2 * self.layers in self.layers < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    (
        "safe_lora",
        "self.rank -> 2 * self.rank in self.rank < 1",
    ): "no whole number tells 2 n < 1 from n < 1",
    ("safe_lora", "0 -> 1"): "ARPACK starts from other numbers and comes to the same directions",
    ("resta", "drawn < drop -> drawn <= drop"): "no draw is exactly the probability",
    (
        "antidote",
        "4194304 -> 8388608",
    ): "how many entries are done at once changes memory and speed alone",
    ("antidote", "strict=True -> strict=False"): "both are cut alike",
    ("antidote", "frozen=True -> frozen=False"): "no one writes to a cut",
    ("antidote", "0 -> 1"): "without ties nothing meets the threshold",
    (
        "one_shot",
        "self.lr -> 2 * self.lr in self.lr > 0",
    ): "twice a number is above 0 where the number is",
    ("refusal_ablation", "frozen=True -> frozen=False"): "no one writes to a direction",
    ("refusal_ablation", "left <= most -> left < most"): "what is left is never exactly the most",
    ("benign_outlier", "strict=True -> strict=False"): "a batch's states are those of its rows",
    ("gate", "frozen=True -> frozen=False"): "no one writes to them",
    ("gate", "strict=True -> strict=False"): "models with other prompts are refused before",
    (
        "gate",
        "below.low > margin -> below.low >= margin in below.low > margin",
    ): "no limit is exactly the margin",
    (
        "gate",
        "above.high < margin -> above.high <= margin in above.high < margin",
    ): "no limit is exactly the margin",
    ("noninferiority", "frozen=True -> frozen=False"): "no one writes to them",
    (
        "antidote",
        "stable=True -> stable=False",
    ): "torch's sort on the CPU is stable either way; on a GPU it need not be",
}

SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
HOUSEKEEPING = {
    "cpu",
    "detach",
    "double",
}  # calls that change where and how precisely a value lies, not the value
STREAMS = {"rows": "harmful", "harmful": "rows", "alignment": "rows"}


@dataclass(frozen=True)
class Mutant:
    path: Path
    what: str
    source: str

    @property
    def module(self) -> str:
        return f"titer.{self.path.parent.name}.{self.path.stem}"

    @property
    def reason(self) -> str | None:
        """Why no test could notice it, where none could."""
        twice = re.search(r"self\.(\w+) -> 2 \* self\.\1 in (check_\w+|rng\.choice)$", self.what)
        for check, reason in CHECKED.items() if twice else ():
            if twice and re.match(check, f"{twice[2]} {twice[1]}"):
                return reason
        return EQUIVALENT.get((self.path.stem, self.what.split(": ", 1)[-1]))


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may stand in the place of one node."""

    def but(**changes) -> ast.AST:
        other = copy.deepcopy(node)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    match node:
        case ast.BinOp():
            if type(node.op) in SWAPS:
                yield but(op=SWAPS[type(node.op)]())
            if isinstance(node.op, ast.Add | ast.Sub):
                yield node.left
                yield node.right
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield node.operand
        case ast.Compare():
            for i, op in enumerate(node.ops):
                if type(op) in SWAPS:
                    yield but(ops=[*node.ops[:i], SWAPS[type(op)](), *node.ops[i + 1 :]])
        case ast.Constant(value=bool()):
            yield but(value=not node.value)
        case ast.Constant(value=int() | float()):
            yield but(value=node.value * 2 if node.value else 1)
        case ast.Constant(value=str()) if node.value in STREAMS:
            yield but(value=STREAMS[node.value])
        case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Load()):
            yield ast.BinOp(ast.Constant(2), ast.Mult(), node)
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=[], keywords=[]) if (
            name not in HOUSEKEEPING
        ):
            yield value  # .unit(), .abs(), .sqrt() and the like
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.AugAssign():
            yield ast.Assign(
                [ast.Name(node.target.id, ast.Store())]
                if isinstance(node.target, ast.Name)
                else [node.target],
                node.value,
            )
        case ast.With():
            yield ast.If(ast.Constant(True), node.body, [])
        case ast.If():
            yield but(test=ast.Constant(False))


def skipped(tree: ast.Module) -> set[int]:
    """Nodes that say something to people alone: docstrings, annotations, error messages."""
    found: set[int] = set()
    for node in ast.walk(tree):
        aside: list[ast.AST | None] = []
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            aside = [node]
        elif isinstance(node, ast.AnnAssign):
            facts = "ClassVar" in ast.unparse(node.annotation)  # `about`, among others
            aside = [node.annotation, node.value if facts else None]
        elif isinstance(node, ast.FunctionDef):
            aside = [node.returns, *(argument.annotation for argument in node.args.args)]
        elif isinstance(node, ast.Raise):
            aside = [node.exc]
        found |= {id(child) for root in aside if root is not None for child in ast.walk(root)}
    return found


def mutants_of(path: Path) -> Iterator[Mutant]:
    tree = ast.parse(path.read_text())
    aside = skipped(tree)
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            for i, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(node, ast.AST) or id(node) in aside:
                    continue
                for variant in variants(node):
                    put(parent, name, i, variant)
                    source = ast.unparse(ast.fix_missing_locations(tree))
                    put(parent, name, i, node)
                    before, after = (
                        ast.unparse(ast.fix_missing_locations(n)).split("\n")[0]
                        for n in (node, variant)
                    )
                    of = f"{parent.arg}=" if isinstance(parent, ast.keyword) else ""
                    where = f" in {ast.unparse(parent)}" if isinstance(parent, ast.Compare) else ""
                    if isinstance(parent, ast.Call) and ast.unparse(parent.func).startswith(
                        ("check_", "rng.choice")
                    ):
                        where = f" in {ast.unparse(parent.func)}"
                    yield Mutant(
                        path,
                        f"line {getattr(node, 'lineno', '?')}: {of}{before} -> {of}{after}{where}",
                        source,
                    )


def put(parent: ast.AST, name: str, i: int | None, node: ast.AST) -> None:
    if i is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[i] = node


class Loader(SourceFileLoader):
    source: str

    def get_data(self, path: str) -> bytes:
        return self.source.encode() if path == self.path else super().get_data(path)

    def get_code(self, fullname: str):
        return compile(self.source, self.path, "exec")  # never from a cache


class Finder(PathFinder):
    """Finds a mutant in its method's place."""

    mutant: Mutant

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        if name == cls.mutant.module:
            spec.loader = Loader(name, str(cls.mutant.path))
            spec.loader.source = cls.mutant.source
        return spec


class Order:
    """Runs first the tests that fail most often for their seconds, as learned from the mutants
    before.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.runs: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}

    def value(self, name: str) -> float:
        return (self.failures[name] + 0.5) / (self.runs[name] + 1) / self.seconds.get(name, 1.0)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.value(item.nodeid), reverse=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        with (self.folder / str(os.getpid())).open("a") as file:
            file.write(f"{json.dumps([report.nodeid, report.failed, report.duration])}\n")

    def learn(self, pid: int) -> None:
        """Take in what a child reported."""
        reports, seconds = self.folder / str(pid), Counter[str]()
        for line in reports.read_text().splitlines() if reports.exists() else ():
            name, failed, duration = json.loads(line)
            self.failures[name] += failed
            seconds[name] += duration
        self.runs.update(seconds.keys())
        self.seconds |= seconds


def share_imports(module: str) -> None:
    """Import all of titer that does not need `module`, for the forks of this process to share."""
    sys.modules[module] = None  # type: ignore[assignment]  whatever imports it fails, and is left out
    for path in sorted((ROOT / "src/titer").rglob("*.py")):
        with contextlib.suppress(ImportError):
            importlib.import_module(
                ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(
                    ".__init__"
                )
            )
    del sys.modules[module]
    gc.collect()
    gc.freeze()  # what is here stays, so that no collection in a fork walks through it


def run(
    mutant: Mutant, tests: list[str], order: Order, seconds: float = resource.RLIM_INFINITY
) -> int:
    """Start the tests with the mutant in the method's place, in a fork; its process id.

    They have so many seconds of processor time.

    Each has a folder of its own for the tests' files: pytest deletes those of earlier runs when it
    ends, and of two that do so at once one may fail, which would be taken for a mutant noticed.
    """
    assert mutant.module not in sys.modules
    child = os.fork()
    if child == 0:
        code = 3
        try:
            if seconds != resource.RLIM_INFINITY:
                resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
                # for one that waits; on a busy machine the others take longer, too
                signal.alarm(10 * seconds)
            said = os.open(order.folder / f"said-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1)
            os.dup2(said, 2)
            Finder.mutant = mutant
            sys.meta_path.insert(0, Finder)
            torch.set_num_threads(1)
            files = f"--basetemp={order.folder / f'files-{os.getpid()}'}"
            code = int(
                pytest.main(
                    [
                        "-x",
                        "-q",
                        "-p",
                        "no:cacheprovider",
                        "--assert=plain",
                        # whole runs, which look at no equation, and processes of their own, which
                        # import the method as it is
                        "-m",
                        "not slow",
                        "-k",
                        "not ranks",
                        "--tb=line",
                        files,
                        *tests,
                    ],
                    [order],
                )
            )
        finally:
            os._exit(code)
    return child


def noticed(path: Path, mutants: list[Mutant], tests: list[str], slots: int) -> list[bool]:
    """Say of each mutant of a method if the tests fail on it. So many run at once as there are slots.

    The method itself comes first: the tests must pass on it, and it says how long they take.
    """
    itself = Mutant(path, "nothing", path.read_text())
    found, running = [False] * len(mutants), dict[int, int]()
    share_imports(itself.module)
    waiting = deque(range(len(mutants)))
    with tempfile.TemporaryDirectory() as folder:
        order = Order(Path(folder))
        child, status, used = os.wait4(run(itself, tests, order), 0)
        code = os.waitstatus_to_exitcode(status)
        if code == pytest.ExitCode.NO_TESTS_COLLECTED:  # all of them are slow, or of ranks
            return found
        if code:
            print((order.folder / f"said-{child}").read_text(), flush=True)
        assert not code, f"the tests of {path.stem} fail on the method itself"
        order.learn(child)
        seconds = int(max(LEAST, PATIENCE * (used.ru_utime + used.ru_stime)))
        while waiting or running:
            while waiting and len(running) < slots:
                i = waiting.popleft()
                running[run(mutants[i], tests, order, seconds)] = i
            child, status = os.wait()
            i = running.pop(child)
            found[i] = os.waitstatus_to_exitcode(status) != 0
            order.learn(child)
            shutil.rmtree(order.folder / f"files-{child}", ignore_errors=True)
    return found


def tests_of(path: Path) -> list[str]:
    module = f"titer.{path.parent.name}.{path.stem}"
    found = [
        test
        for test in sorted((ROOT / "tests").glob("test_*.py"))
        if re.search(rf"from {module} import", test.read_text()) and test.stem not in PAGES
    ]
    own = f"test_{path.stem}"
    # its own first, and of the others the short ones
    return [str(test) for test in sorted(found, key=lambda t: (t.stem != own, t.stat().st_size))]


def killed_by(test: str, path: Path, mutants: list[Mutant], slots: int) -> set[Mutant]:
    """The mutants of a method that a file of tests notices. It must pass on the method."""
    if not mutants:
        return set()
    with ProcessPoolExecutor(1, get_context("fork")) as fork:  # which alone imports titer
        kills = fork.submit(noticed, path, mutants, [test], slots).result()
    return {mutant for mutant, kill in zip(mutants, kills, strict=True) if kill}


def choose(mutants: list[Mutant], part: int) -> list[Mutant]:
    """Choose one mutant in `part`, by a hash of what it is; none that has an excuse."""

    def drawn(mutant: Mutant) -> bool:
        return int(hashlib.sha256(mutant.source.encode()).hexdigest(), 16) % part == 0

    return mutants if part == 1 else [m for m in mutants if not m.reason and drawn(m)]


def mutate(path: Path, slots: int, part: int) -> tuple[list[Mutant], set[Mutant], list[str]]:
    """Return the mutants of a method, those that are noticed, and the test files that look."""
    tests = tests_of(path)
    assert tests, f"no test file imports {path.stem}"
    found = choose(list(mutants_of(path)), part)
    found.sort(key=lambda mutant: mutant.reason is None)  # the excused first: they take longest
    killed, left = set[Mutant](), found
    for test in tests:  # what the method's own tests let live, others that use it may notice
        killed |= killed_by(test, path, left, slots)
        left = [mutant for mutant in left if mutant not in killed and not mutant.reason]
    return found, killed, tests


def main() -> int:
    assert not any(name.split(".")[0] == "titer" for name in sys.modules)
    parser = argparse.ArgumentParser(prog="tests/mutants.py")
    parser.add_argument("wanted", nargs="*", metavar="FILE", help="of these methods alone")
    parser.add_argument("--part", type=int, default=1, help="try one mutant in so many")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    package = ROOT / "src/titer"
    paths = [path for kind in KINDS for path in sorted((package / kind).glob("*.py"))]
    paths += [package / shared for shared in SHARED]
    if options.wanted:
        paths += [package / long for long in LONG]
        paths = [path for path in paths if path.stem in options.wanted]
    survivors = excused = total = 0
    # a method at a time on each processor: one would idle while a method runs as it is
    cores = os.cpu_count() or 1
    methods = max(1, min(cores, len(paths)))
    paths.sort(
        key=lambda path: path.stat().st_size, reverse=True
    )  # so that none is long at the end
    pool = ProcessPoolExecutor(methods, get_context("fork"))
    share, part = repeat(cores // methods), repeat(options.part)
    for path, (found, killed, tests) in zip(
        paths, pool.map(mutate, paths, share, part), strict=True
    ):
        for mutant in found:
            total += 1
            if mutant not in killed and mutant.reason:
                excused += 1
                print(f"  excused {path.stem} {mutant.what}: {mutant.reason}")
            elif mutant not in killed:
                survivors += 1
                print(f"  SURVIVED {path.stem} {mutant.what}", flush=True)
        print(
            f"{path.parent.name}/{path.stem}: {len(found)} mutants, tests "
            f"{', '.join(Path(t).stem for t in tests)}",
            flush=True,
        )
    print(
        f"{total} mutants: {total - survivors - excused} killed, {excused} excused, {survivors} "
        "survived"
    )
    return 1 if survivors or not total else 0


if __name__ == "__main__":
    sys.exit(main())
