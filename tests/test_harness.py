"""Tasks of lm-evaluation-harness on a model as titer loads it, against log-probabilities taken here."""

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import byte_level
from test_recipe import run as titer
from titer.data.rows import Row, Turn
from titer.data.template import Template
from titer.integrations.harness import _Renderer, read_figures, run_harness
from titer.weights import checkpoints, folders
from titer.weights.settings import Checkpoint

needs_harness = pytest.mark.skipif(
    not find_spec("lm_eval"), reason="lm_eval is not installed: pip install 'titer[lm-eval]'"
)
# what it and what it imports warn of, on import and later
quiet = pytest.mark.filterwarnings("ignore")
CHOICES = [
    "rope",
    "coin",
    "lamp",
    "door",
]  # of one length: else the shortest is always the likeliest
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {rows}
  cache_dir: {cache}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


ROWS = 12


def write_task(folder: Path, name: str = "doors", picks: list[int] | None = None) -> Path:
    """Write a task of multiple choice and its rows; the place of its YAML.

    Right is what a model picks, but for the first three rows, so another model has fewer right.
    """
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "question": f"what opens lock {i * i}?",
            "choices": CHOICES,
            "answer": (pick + (i < 3)) % 4,
        }
        for i, pick in enumerate(picks or range(ROWS))
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = folder / f"{name}.yaml"
    place.write_text(
        TASK.format(name=name, rows=folder / f"{name}.jsonl", cache=folder / "cache").lstrip()
    )
    return place


def save_model(folder: Path, chat: bool = True) -> Path:
    """Save a small model, drawn wide enough that its choices differ from row to row."""
    torch.manual_seed(3)
    words = byte_level()
    # a year that depends on whose clock the template is told: titer's stands still
    year = "{{ strftime_now('%Y') }}" * 4
    words.chat_template = f"{year}{words.chat_template}" if chat else None
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=None,
        eos_token_id=1, initializer_range=0.6,
    )  # fmt: skip
    checkpoints.save(LlamaForCausalLM(config), words, folder)
    return folder


def chosen(model: str, chat: bool) -> list[int]:
    """Return which choice has the highest log-probability in every row, by one pass for each."""
    network, words = checkpoints.load(model)
    network.eval()
    found = []
    for i in range(ROWS):
        asked = f"what opens lock {i * i}?"
        text = Template(words).prompt(Row(asked)) if chat else asked
        before = words(text, add_special_tokens=False)["input_ids"]
        sums = []
        for choice in CHOICES:
            # the harness parts a choice from the text before it by a space, unless a template does
            behind = words(choice if chat else f" {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = network(torch.tensor([before + behind])).logits[0].double()
            logs = logits.log_softmax(-1)[len(before) - 1 : -1]
            sums.append(float(logs.gather(1, torch.tensor(behind)[:, None]).sum()))
        found.append(sums.index(max(sums)))
    return found


@needs_harness
@quiet
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "no template"])
def test_the_accuracy_is_that_of_the_models_own_log_probabilities(
    monkeypatch, capsys, tmp_path, chat
):
    model = save_model(tmp_path / "model", chat)
    picks = chosen(str(model), chat)
    assert len(set(picks)) > 1  # else a constant answer would pass
    task, expected = write_task(tmp_path / "task", picks=picks), (ROWS - 3) / ROWS
    out = tmp_path / "out"
    code, printed, err = titer(
        monkeypatch, capsys, "harness", str(model), "--task", str(task), "--out", str(out)
    )
    assert code == 0, err
    said = "was applied" if chat else "was not applied"
    assert f"The chat template {said}" in printed
    assert f"{expected:.4f}" in printed
    results = json.loads((out / "harness.json").read_text())
    [figure] = read_figures(results)
    assert (figure.task, figure.metric, figure.n) == ("doors", "acc", ROWS)
    assert figure.value == pytest.approx(expected)
    assert figure.stderr == pytest.approx(math.sqrt(expected * (1 - expected) / (ROWS - 1)))
    assert results["titer"]["chat template applied"] is chat
    assert results["titer"]["model"]["sha256"] == folders.digest(
        folders.locate(Checkpoint(str(model)))
    )


@needs_harness
@quiet
def test_a_stack_and_its_adapter_are_measured_as_titer_loads_them(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    model = save_model(tmp_path / "model")
    network, words = checkpoints.load(str(model))
    torch.manual_seed(1)
    adapted = get_peft_model(
        network, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    adapter = tmp_path / "adapter"
    checkpoints.save(adapted, words, adapter, folders.locate(Checkpoint(str(model))))
    picks = chosen(str(adapter), True)
    assert picks[:8] != chosen(str(model), True)[:8]
    task = write_task(tmp_path / "tasks", picks=picks)
    for i, given in enumerate((str(adapter), f"{model} + {adapter}")):
        results = run_harness(given, [f"{task.parent}/"], tmp_path / f"out{i}", limit=8)
        [figure] = read_figures(results)
        assert (figure.value, figure.n) == (5 / 8, 8)
    assert results["titer"]["model"]["stacked from"] == [str(model), str(adapter)]


@needs_harness
@quiet
@pytest.mark.slow  # a group may name the harness's own tasks, so their list is read
def test_a_group_of_a_persons_own_tasks_is_found_by_its_file(tmp_path):
    model = save_model(tmp_path / "model")
    for name in ("doors", "gates"):
        write_task(tmp_path / "tasks", name)
    group = tmp_path / "tasks" / "both.yaml"
    group.write_text("group: both\ntask: [doors, gates]\naggregate_metric_list:\n  - metric: acc\n")
    results = run_harness(str(model), [str(group)], tmp_path / "out", limit=4)
    values = {figure.task: figure.value for figure in read_figures(results)}
    assert set(values) == {"both", "doors", "gates"}
    assert values["both"] == values["doors"]  # the same rows twice


@needs_harness
@quiet
@pytest.mark.slow  # to read the harness's own list takes seconds
def test_tasks_that_are_not_to_be_had_are_one_line(monkeypatch, capsys, tmp_path):
    out = tmp_path / "out"

    def said(task: str) -> str:
        code, _, err = titer(
            monkeypatch, capsys, "harness", "lab", "--task", task, "--out", str(out)
        )
        assert code == 2, err
        [line] = [line for line in err.splitlines() if line.startswith("error: ")]
        assert not out.exists()
        return line

    assert "unknown task 'arc_eassy': did you mean 'arc_easy'?" in said("arc_eassy")
    assert "no such file or folder" in said(str(tmp_path / "none.yaml"))
    (tmp_path / "empty").mkdir()
    assert "no *.yaml in that folder" in said(str(tmp_path / "empty"))
    assert "'allenai/ai2_arc'" in said("arc_easy")
    wrong = write_task(tmp_path / "wrong")
    wrong.write_text(wrong.read_text().replace("{{question}}", "{{question.words.first}}"))
    assert "doors" in said(str(wrong))
    unsafe = write_task(tmp_path / "unsafe")
    unsafe.write_text(unsafe.read_text() + "unsafe_code: true\n")
    assert "runs the code that the model writes" in said(str(unsafe))


def test_without_the_package_a_line_says_how_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    out = str(tmp_path / "out")
    code, _, err = titer(monkeypatch, capsys, "harness", "lab", "--task", "arc_easy", "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'titer[lm-eval]'" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--limit", "0"], "--limit 0: ask at least 1 row"),
        (["--batch", "0"], "--batch 0: the model answers at least 1"),
        (["--set", "align.lr=1"], "'align.lr=1': the harness takes fields of the model"),
    ],
)
def test_options_that_make_no_sense_are_one_line(monkeypatch, capsys, tmp_path, given, message):
    out = str(tmp_path / "out")
    code, _, err = titer(
        monkeypatch, capsys, "harness", "lab", "--task", "arc_easy", "--out", out, *given
    )
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_a_model_behind_a_server_is_refused(tmp_path):
    with pytest.raises(ValueError, match="behind a server, which gives no log-probabilities"):
        run_harness("m@http://127.0.0.1:1/v1", ["arc_easy"], tmp_path / "out")


def test_conversations_are_put_into_the_template_as_titer_does(template):
    render = _Renderer(template)
    system, first = Turn("system", "Be brief."), (Turn("user", "a?"), Turn("assistant", "b"))
    turns = [system, *first, Turn("user", "c?")]
    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert render(chat) == template.prompt(Row("c?", before=(system, *first)))
    begun = render([*chat, {"role": "assistant", "content": "It is "}], add_generation_prompt=False)
    assert begun == f"{render(chat)} It is"  # as this template writes an answer
