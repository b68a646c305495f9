"""Tasks of lm-evaluation-harness (`lm_eval`, the extra `lm-eval`), on a model as titer loads it.

The harness's own code asks, scores and writes; nothing of a figure is computed here. The model is the
one of every other command: a checkpoint, an adapter, a stack, a GGUF. A model with a chat template is
asked through `Template`, so the clock stands still, a thought is left empty, and no start token comes
on top of the template's. https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titer.data.rows import Row, Turn
from titer.data.template import Template
from titer.errors import nearest, reading
from titer.report.parts import write_together
from titer.runs.contender import Contender
from titer.runs.recipe import load_single
from titer.training.train import accelerator_for
from titer.version import __version__
from titer.weights import checkpoints, folders, stacks

RESULTS = "harness.json"
BATCH = 8  # requests that the model answers at once
SETTINGS = ("model.", "system=")  # how a setting of the recipe that counts here begins
# in a file that names others; it and they are found by their names, not by their paths
GROUP = re.compile(r"""^group:\s*["']?([\w.-]+)""", re.MULTILINE)


@dataclass(frozen=True)
class Figure:
    """A figure of a task as the harness gives it: most are shares from 0 to 1."""

    task: str
    metric: str
    value: float
    stderr: float | None  # None where the harness knows none
    n: int | None  # rows asked; None for a group of tasks


def run_harness(
    model: str,
    tasks: Sequence[str],
    out: Path,
    limit: int | None = None,
    settings: Sequence[str] = (),
    batch: int = BATCH,
) -> dict[str, Any]:
    """Measure a model by tasks, write the harness's results into a new folder, and return them.

    A task is a name of the harness, or a path (with a separator, or of a `.yaml` file): a task's file,
    or a folder of them. `limit` rows of each are asked. `settings` change fields of the model, as
    "model.dtype=bfloat16", or give a system prompt, as "system=Be brief.". Raises ValueError in one line
    where the package, a task, its data or the model is not to be had.
    """
    _check_numbers(limit, batch)
    for text in settings:
        if not text.startswith(SETTINGS):
            raise ValueError(
                f"--set {text!r}: the harness takes fields of the model, as model.dtype=bfloat16, "
                "and system=TEXT"
            )
    if Contender.read(model).server:
        raise ValueError(
            f"the model {model!r} is behind a server, which gives no log-probabilities of texts: "
            "give its checkpoint"
        )
    library = _load_harness()
    with write_together(out) as draft:
        manager = _open_manager(library, tasks)
        chosen = _load_tasks(library, manager, tasks)
        results = _evaluate(
            library,
            model,
            settings,
            batch,
            chosen,
            task_manager=manager,  # else it makes another, and reads its list again
            limit=limit,
        )
        text = json.dumps(results, indent=2, default=library.utils.handle_non_serializable)
        (draft / RESULTS).write_text(text + "\n", encoding="utf-8")
    return results


def read_figures(results: Mapping[str, Any]) -> Iterator[Figure]:
    """Yield the figures of what `run_harness` returns, in the harness's order."""
    for task, told in results["results"].items():
        asked = results.get("n-samples", {}).get(task, {}).get("effective")
        for name, value in told.items():
            metric, comma, by = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = told.get(f"{metric}_stderr,{by}")
            known = isinstance(stderr, int | float)
            yield Figure(
                task,
                metric if by == "none" else f"{metric} ({by})",
                float(value),
                float(stderr) if known else None,
                asked,
            )


def _check_numbers(limit: int | None, batch: int) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit}: ask at least 1 row of a task")
    if batch < 1:
        raise ValueError(f"--batch {batch}: the model answers at least 1 request at once")


def _load_harness() -> Any:
    """Load the harness, quieter than it is. Raises with how it is installed."""
    try:
        library = importlib.import_module("lm_eval")
        for part in ("models.huggingface", "tasks", "utils"):
            importlib.import_module(f"lm_eval.{part}")
    except ImportError as error:
        raise ValueError(
            f"lm-evaluation-harness is not installed ({error}): pip install 'titer[lm-eval]'"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant here
    return library


def _is_path(task: str) -> bool:
    return os.sep in task or task.endswith((".yaml", ".yml"))


def _place(task: str) -> Path:
    return Path(task).expanduser()


def _open_manager(library: Any, tasks: Sequence[str]) -> Any:
    """Return what finds tasks by name. Raises where a path leads nowhere."""
    if not tasks:
        raise ValueError("no task is given: --task NAME, or --task path/to/task.yaml")
    places = [_place(task) for task in tasks if _is_path(task)]
    for place in places:
        if not place.exists():
            raise ValueError(f"--task {place}: there is no such file or folder")
    # to read the harness's own list of some 14000 tasks takes seconds
    listed = len(places) < len(tasks) or any(map(_group, places))
    inside = [
        str(place if place.is_dir() else place.parent)
        for place in places
        if place.is_dir() or _group(place)
    ]
    return library.tasks.TaskManager(include_path=inside, include_defaults=listed)


def _load_tasks(library: Any, manager: Any, tasks: Sequence[str]) -> dict[str, Any]:
    """Return by name the tasks and groups of the harness that are meant, with their rows.

    Raises where one is unknown, or its data are not to be had.
    """
    found: dict[str, Any] = {}
    for task in tasks:
        for name in _names(library, manager, task):
            # whatever the library, the data set's host or the task's own code may raise
            with reading(f"the task {task!r}" + _data_set(manager, name)):
                found |= _top(manager.load([name]))
    for each in found.values():
        _check_safe(each)
    return found


def _group(place: Path) -> str:
    """Return the name of the group of tasks that a file, or one in a folder, defines, else nothing."""
    files = sorted(place.rglob("*.yaml")) if place.is_dir() else [place]
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return next((found[1] for text in texts if (found := GROUP.search(text))), "")


def _names(library: Any, manager: Any, task: str) -> list[str]:
    """Return what the harness calls a task that is given: a folder has several."""
    if not _is_path(task):
        if task in manager.all_tasks:
            return [task]
        beside = f"; for the folder give ./{task}" if Path(task).exists() else ""
        raise ValueError(
            f"unknown task {task!r}: {nearest(task, manager.all_tasks)}"
            f"`lm_eval ls tasks` lists the {len(manager.all_tasks)} that there are{beside}"
        )
    place = _place(task)
    if place.is_file():
        return [_group(place) or str(place)]
    own = library.tasks.TaskManager(include_path=str(place), include_defaults=False)
    if not own.all_subtasks:
        raise ValueError(f"--task {task}: no *.yaml in that folder is a task of the harness")
    return list(own.all_subtasks)


def _data_set(manager: Any, name: str) -> str:
    """Return the data set of a task as far as it is known before the task is loaded."""
    entry = manager.task_index.get(name)
    named = (entry.cfg or {}).get("dataset_path") if entry else None
    return f" on the data set {named!r}" if named else ""


def _top(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Return by name the groups and tasks that are in no other group."""
    groups = loaded.get("groups", {})
    within = {
        name
        for group in groups.values()
        for name in (
            *(task.task_name for task in group.get_all_tasks()),
            *(each.name for each in group.get_all_groups()),
        )
    }
    every = groups | loaded["tasks"]
    return {name: each for name, each in every.items() if name not in within}


def _check_safe(each: Any) -> None:
    """Raise where a task, or one of a group, runs what the model writes."""
    for task in each.get_all_tasks() if hasattr(each, "get_all_tasks") else [each]:
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(
                f"the task {task.task_name!r} runs the code that the model writes, which titer does "
                "not: run it by lm_eval itself, where that can do no harm"
            )


def _evaluate(
    library: Any,
    model: str,
    settings: Sequence[str],
    batch: int,
    tasks: Mapping[str, Any],
    **asking: Any,
) -> dict[str, Any]:
    place = str(stacks.merge_stack(model)) if stacks.is_stack(model) else model
    recipe = load_single("checkpoint", "evaluate", place, None, settings)
    files = folders.locate(recipe.model)
    network, words = checkpoints.load(recipe.model, accelerator_for().device)
    chat = words.chat_template is not None
    asked = library.models.huggingface.HFLM(
        pretrained=network,
        backend="causal",
        tokenizer=words,
        batch_size=batch,
        add_bos_token=False if chat else None,  # a chat template writes its own
    )
    if chat:
        asked.apply_chat_template = _Renderer(Template(words))
    # a person's task may name a column that its rows do not have, and only shows it here
    with reading(f"a row of {', '.join(tasks)}"):
        results: dict[str, Any] = library.simple_evaluate(
            asked,
            tasks=list(tasks.values()),
            batch_size=batch,
            log_samples=False,
            system_instruction=recipe.system,
            apply_chat_template=chat,
            **asking,
        )
    results["titer"] = {
        "version": __version__,
        "model": {"given": model, **folders.identify(files), "sha256": folders.digest(files)},
        "dtype": recipe.model.dtype,
        "chat template applied": chat,
        "system": recipe.system,
    }
    return results


@dataclass(frozen=True)
class _Renderer:
    """Puts the harness's conversations into a model's chat template as titer does."""

    template: Template

    def __call__(
        self, chat: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the text of a conversation up to the answer, or with the answer's beginning."""
        *before, last = [Turn(turn["role"], turn["content"]) for turn in chat]
        if add_generation_prompt:
            return self.template.prompt(Row(last.content, before=tuple(before)))
        *before, question = before  # behind it comes how the answer begins
        begun = last.content.strip()
        return self.template.prompt(
            Row(question.content, response=begun, before=tuple(before), begun=begun)
        )
