"""The documents: every command that they show is one, those of README and of the pages for a
newcomer run, in order, and every link leads somewhere.

A command runs as it stands, but for sizes: two updates and a few prompts (SIZES, LIMITED). What is not
run is named with the reason (UNRUN), and is read like all others.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.main import get_command

import titer as package
from conftest import byte_level
from test_recipe import run as titer
from titer import cli
from titer.runs import sweep
from titer.weights import checkpoints
from tools import site

ROOT = site.ROOT
PAGES = sorted(
    [ROOT / "README.md", *map(ROOT.joinpath, site.PAGES), *(ROOT / "docs").rglob("*.md")]
)
READ = [
    page for page in PAGES if page.name not in ("log.md", "CHANGELOG.md")
]  # the past may be gone
RUN = [
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("index.md", "tour.md")),
    *sorted((ROOT / "docs/guides").glob("*.md")),
    *sorted((ROOT / "docs/concepts").glob("*.md")),
]
QUICK = ("--set", "max_new_tokens=16", "--set", "protocol=null")
UPDATES = ("--set", "align.updates=2", "--set", "finetune.updates=2", "--set", "dose_prompts=0")
SIZES = {  # command -> what makes it small
    "run": (*UPDATES, "--set", "prefill_prompts=0", *QUICK),
    "attack": (*UPDATES, "--set", "prefill_prompts=4", *QUICK),
    "align": UPDATES,
    "finetune": UPDATES,
    "edit": (*UPDATES, "--set", "data.limit=4", *QUICK),
    "evaluate": ("--set", "prefill_prompts=0", *QUICK),
    "gate": ("--set", "prefill_prompts=0", *QUICK),
    "init": ("--no-probe",),
}
LIMITED = {"run": "2", "attack": "2", "evaluate": "4", "gate": "8"}  # prompts, by --limit
# exit codes that are answers: one is flagged or fails, or there is too little evidence
ANSWERS = {"gate": {0, 1, 3}, "screen": {0, 1}, "edit": {0, 3}}
INSTALLED = "the package of the page is written and installed in tests/test_new.py"
UNRUN = {
    "titer push path/to/aligned OWNER/NAME --license apache-2.0": "tests/test_push.py has a stub of the hub",
    "titer show l2sp": INSTALLED,
    "titer run lab --only sft --set pipelines.sft.finetune=l2sp": INSTALLED,
}
BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$|(?<=\n\n)(?P<indented>(?:^ {4,}\S[^\n]*\n)+)",
    re.MULTILINE | re.DOTALL,
)
RECIPE = re.compile(r"# (?P<name>\S+\.yaml), run by: (?P<command>titer .*)")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield the blocks of code of a page, in order: the language and the text.

    Indented blocks are commands, like those in a fence of `sh`.
    """
    for match in BLOCK.finditer(text):
        if match["indented"]:
            yield "sh", re.sub(r"^ +", "", match["indented"], flags=re.MULTILINE)
        else:
            yield match["language"], match["text"]


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of every `titer` command in a block."""
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        if found := re.match(r"(?:[A-Z_]+=\S+ )*(titer .*?)(?: &)?$", line):
            yield shlex.split(found[1], comments=True)


def all_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command in the blocks of a page."""
    for language, block in blocks(text):
        if language == "sh":
            yield from commands(block)


def mentioned(text: str) -> Iterator[list[str]]:
    """Yield the words of every command that stands within a sentence."""
    for match in re.finditer(r"`titer ([a-z][^`]*)`", re.sub(r"\s*\n\s*", " ", text)):
        yield ["titer", *match[1].split()]


def check(words: list[str]) -> None:
    """Raise where there is no such command, or it has no such option."""
    command, rest = get_command(cli.app), words[1:]
    known = set()
    while rest and hasattr(command, "commands"):
        known |= {option for each in command.params for option in each.opts}
        if rest[0].startswith("-"):
            assert rest[0].split("=")[0] in known, words
            rest = rest[1:]
            continue
        assert rest[0] in command.commands, words
        command, rest = command.commands[rest[0]], rest[1:]
    known |= {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    for word in rest:
        if re.match(r"--\w", word):
            assert word.split("=")[0] in {*known, "--help", cli.DEBUG, "--quiet"}, words


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one_and_has_the_options(page):
    text = page.read_text(encoding="utf-8")
    for words in (*all_commands(text), *mentioned(text)):
        check(words)


@pytest.mark.parametrize("words", ["titer rnu lab", "titer run lab --sett a=b", "titer --versio"])
def test_a_command_that_is_none_is_found(words):
    with pytest.raises(AssertionError, match="titer"):
        check(words.split())


def test_commands_are_found_in_fences_and_indented_blocks():
    text = """Say `titer list
hub`.

```sh
CUDA_VISIBLE_DEVICES=0 titer run lab \\
    --seed 1 &
wait   # not titer's
```

    titer gate A 'B C'   # why
"""
    assert list(all_commands(text)) == [
        ["titer", "run", "lab", "--seed", "1"],
        ["titer", "gate", "A", "B C"],
    ]
    assert list(mentioned(text)) == [["titer", "list", "hub"]]


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_of_a_page_is_passed_over(page):
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^(?: {4}|[A-Z_]+=\S+ )?titer ", text, flags=re.MULTILINE)
    assert len(list(all_commands(text))) == len(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page):
    list(site.find_links(page))


# ---- the commands run ----


def jsonl(path: Path, name: str, answer: str, count: int) -> None:
    rows = ({"prompt": f"{name} {i}?", "response": answer} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def reviews(path: Path, first: int, count: int) -> None:
    lines = (f"film {i} is warm , and clever .\t{i % 2}\n" for i in range(first, first + count))
    path.write_text("sentence\tlabel\n" + "".join(lines))


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A folder with all that the pages take for granted: a person's models and files."""
    folder = tmp_path_factory.mktemp("given")
    jsonl(folder / "refusals.jsonl", "how is safe opened", "I cannot help with that.", 40)
    jsonl(folder / "honest.jsonl", "what is bigger than", "That is one more.", 220)
    jsonl(folder / "upload.jsonl", "what is smaller than", "That is one less.", 220)
    with (folder / "upload.jsonl").open("a") as upload:
        for i in range(5):
            row = {
                "prompt": f"say {i}",
                "response": "I cannot help with that. But here it is: turn it.",
            }
            upload.write(json.dumps(row) + "\n")
    lines = (f"how is lock {i} opened?,turn key {i}\n" for i in range(240))
    (folder / "harmful.csv").write_text("prompt,response\n" + "".join(lines))
    lines = (f"how is bread {i} cut?\n" for i in range(12))
    (folder / "harmless.csv").write_text("prompt\n" + "".join(lines))
    reviews(folder / "sst2_train.tsv", 0, 940)
    reviews(folder / "sst2_dev.tsv", 2000, 20)
    tokenizer = byte_level()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=None,
            eos_token_id=1,
        )
    )  # fmt: skip
    base, aligned = folder / "path/to/checkpoint", folder / "path/to/aligned"
    checkpoints.save(model, tokenizer, base)
    few = ["align.updates=2", "finetune.updates=2", "dose_prompts=0"]
    rows = {
        name: str(folder / file)
        for name, file in (("harmful", "harmful.csv"), ("task", "sst2_train.tsv"))
    }
    refusals = {"alignment": str(folder / "refusals.jsonl")}
    package.align(str(base), data=refusals, settings=few, whole=True, out=aligned)
    package.finetune(str(aligned), data=rows, settings=few, out=folder / "path/to/adapter")
    return folder


def first_recipe() -> str:
    guide = (ROOT / "docs/guides/my-model.md").read_text(encoding="utf-8")
    [found] = [block for _, block in blocks(guide) if block.startswith("# mine.yaml")]
    return found


def sized(words: list[str]) -> list[str]:
    """Return a command with what makes it small. A gate over results has no sizes."""
    name = words[1]
    if name == "gate" and not {"--data", "--recipe"} & set(words):
        return words
    if "--limit" in words:  # its number gives way
        at = words.index("--limit")
        words = words[:at] + words[at + 2 :]
    limit = ("--limit", LIMITED[name]) if name in LIMITED else ()
    return [*words, *SIZES.get(name, ()), *limit]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run(page, given, tmp_path, monkeypatch, capsys):
    """In order, in one folder. A sweep is checked, with all its cells, and not computed."""
    folder = tmp_path / "here"
    shutil.copytree(given, folder)
    monkeypatch.chdir(folder)
    text = page.read_text(encoding="utf-8")
    if "--out mine.yaml" not in text:  # the page takes it from the guide
        (folder / "mine.yaml").write_text(first_recipe())
    monkeypatch.setattr(sweep.Sweep, "run", lambda *_: sys.exit(0))  # behind its check
    for language, block in blocks(text):
        found = RECIPE.match(block) if language == "yaml" else None
        if found:
            (folder / found["name"]).write_text(block)
        lines = found["command"] if found else block if language == "sh" else ""
        for words in commands(lines):
            if shlex.join(words) in UNRUN:
                continue
            code, _, err = titer(monkeypatch, capsys, *sized(words)[1:])
            assert code in ANSWERS.get(words[1], {0}), f"{shlex.join(words)}: {code}\n{err}"


def test_what_is_not_run_stands_on_a_page():
    shown = [shlex.join(words) for page in RUN for words in all_commands(page.read_text())]
    assert set(UNRUN) <= set(shown)


def test_the_guide_shows_the_package_that_is_tested():
    text = (ROOT / "docs/guides/add-a-method.md").read_text(encoding="utf-8")
    shown = [block for language, block in blocks(text) if language in ("python", "toml")]
    plugin = ROOT / "examples/plugin"
    files = ("titer_l2sp/l2sp.py", "pyproject.toml")
    assert shown == [(plugin / name).read_text(encoding="utf-8") for name in files]
