"""Release: a checkpoint rewritten a tensor at a time, as a stage of a run, and as a command."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import byte_level, tiny
from families import FAMILIES
from repair import moved, save, weights
from test_recipe import run as titer
from test_run import plan, recipe_file  # noqa: F401  fixtures
from titer import registry
from titer.progress import Silent
from titer.runs import recipe
from titer.runs.execute import Run
from titer.runs.plan import Plan
from titer.runs.store import Store
from titer.weights import adapters, checkpoints, folders, rewrite
from titer.weights.settings import Checkpoint, Lora

LOX = {"method": "lox", "k": 3, "alpha": 1.25}


def made(base: Path, aligned: Path, out: Path, config=LOX):
    """Return what an edit makes of two checkpoints, and its report."""
    out.mkdir(parents=True)
    edit = registry.build("edits", config)
    changes = rewrite.rewrite_tensors(
        edit,
        *(folders.locate(Checkpoint(str(folder))) for folder in (aligned, base)),
        out,
        lambda *_: None,
    )
    return weights(out), changes


def plain(aligned: dict, base: dict, k: int = 3, alpha: float = 1.25) -> dict[str, torch.Tensor]:
    """The equation in float64, for tensors of one and two axes."""
    found = {}
    for name, w in aligned.items():
        update = w.double() - base[name].double()
        if w.ndim == 2:
            u, s, vt = torch.linalg.svd(update, full_matrices=False)
            found[name] = w.double() + alpha * (u[:, :k] * s[:k]) @ vt[:k]
        else:
            found[name] = w.double()
    return found


@pytest.mark.parametrize(
    ("dtype", "within"),
    [(torch.float32, 1e-7), (torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)],
)
def test_every_matrix_is_rewritten_in_the_dtype_of_the_aligned_model(tmp_path, dtype, within):
    base, aligned = (
        save(tiny(dtype), tmp_path / "base"),
        save(moved(tiny(dtype)), tmp_path / "aligned"),
    )
    found, changes = made(base, aligned, tmp_path / "out")
    start, before = weights(aligned), weights(base)
    assert set(found) == set(start)
    for name, expected in plain(start, before).items():
        assert found[name].dtype == dtype
        torch.testing.assert_close(
            found[name].double(),
            expected,
            rtol=within,
            atol=1e-30 if dtype == torch.float32 else 1e-6,
        )
        if found[name].ndim == 1:
            assert torch.equal(found[name], start[name])
    matrices = [name for name in start if start[name].ndim == 2]
    assert "model.embed_tokens.weight" in matrices  # which is the head too
    assert list(changes.changed) == matrices
    assert changes.sizes == {name: start[name].numel() for name in matrices}
    assert changes.changed == {name: int((found[name] != start[name]).sum()) for name in matrices}
    for norm, of in ((changes.norm_before, start), (changes.norm_after, found)):
        squares = sum(
            float((of[name].double() - before[name].double()).square().sum()) for name in matrices
        )
        assert norm == pytest.approx(squares**0.5, rel=1e-5)


def test_the_result_is_a_checkpoint_like_the_aligned_one(tmp_path):
    base, aligned = (
        save(tiny(torch.bfloat16), tmp_path / "base"),
        save(moved(tiny(torch.bfloat16)), tmp_path / "aligned"),
    )
    (aligned / "stage.json").write_text("{}")  # of the stage that made it
    (aligned / "modeling.py").write_text("x = 1")  # without which it could not be loaded
    made(base, aligned, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in aligned.iterdir()
    } - {"stage.json"}
    for path in aligned.iterdir():
        if path.suffix != ".safetensors" and path.name != "stage.json":
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert torch.equal(
        model.lm_head.weight, weights(tmp_path / "out")["model.embed_tokens.weight"]
    )  # tied
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == byte_level().chat_template
    )
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_of_any_kind_come_to_the_same(tmp_path):
    small = {"max_shard_size": "20KB"}
    base, aligned = (
        save(tiny(torch.float32), tmp_path / "base"),
        save(moved(tiny(torch.float32)), tmp_path / "aligned"),
    )
    cut_base, cut = (
        save(tiny(torch.float32), tmp_path / "b", **small),
        save(moved(tiny(torch.float32)), tmp_path / "a", **small),
    )
    (cut / "consolidated.safetensors").write_bytes(
        b"the same weights in another format"
    )  # belongs to no index
    whole, changes = made(base, aligned, tmp_path / "whole")
    for name, (one, other) in {
        "one": (cut_base, aligned),
        "other": (base, cut),
        "both": (cut_base, cut),
    }.items():
        found, its = made(one, other, tmp_path / name)
        assert all(torch.equal(found[key], whole[key]) for key in whole)
        assert its.changed == changes.changed
    assert {path.name for path in (tmp_path / "both").iterdir()} == {
        path.name for path in cut.iterdir()
    } - {"consolidated.safetensors"}
    assert len(list((tmp_path / "both").glob("model-*.safetensors"))) > 3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "both").state_dict()
    assert all(torch.equal(loaded[key], whole[key]) for key in whole)


@pytest.mark.parametrize(
    "family", ["Phi3", "GPTNeoX", "OPT", "Mixtral", "Qwen3Moe", "GptOss", "DeepseekV3"]
)
def test_other_families_fused_experts_too_are_rewritten_and_load(tmp_path, family):
    size = len(byte_level())  # of the tokenizer beside it
    base = save(FAMILIES[family](vocabulary=size), tmp_path / "base")
    aligned = save(moved(FAMILIES[family](vocabulary=size)), tmp_path / "aligned")
    found, _ = made(base, aligned, tmp_path / "out", LOX | {"k": 2})
    start, before = weights(aligned), weights(base)
    for name, w in start.items():
        step, update = (
            (of[name] - w).double().reshape(-1, *w.shape[-2:])
            for of in (found, {name: 2 * w - before[name]})
        )
        if w.ndim == 1:
            assert torch.equal(found[name], w)
            continue
        for mine, matrix in zip(step, update, strict=True):
            s = torch.linalg.svdvals(matrix)
            assert float(torch.linalg.matrix_norm(mine)) == pytest.approx(
                1.25 * float(s[:2].norm()), rel=1e-3
            )
    checkpoints.load(str(tmp_path / "out"))


def test_what_alignment_left_as_it_was_stays_also_where_the_base_is_kept_wider(tmp_path):
    base = save(tiny(torch.float32), tmp_path / "base")
    aligned = save(
        moved(tiny(torch.float32), but=("k_proj.weight", "embed_tokens.weight")).bfloat16(),
        tmp_path / "aligned",
    )
    found, changes = made(base, aligned, tmp_path / "out")
    start = weights(aligned)
    for name, count in changes.changed.items():
        left = name.endswith(("k_proj.weight", "embed_tokens.weight"))
        assert (count == 0) == left == torch.equal(found[name], start[name])


def test_it_is_told_of_every_tensor(tmp_path):
    base, aligned = (
        save(tiny(torch.float32), tmp_path / "base"),
        save(moved(tiny(torch.float32)), tmp_path / "aligned"),
    )
    (tmp_path / "out").mkdir()
    files, seen = [folders.locate(Checkpoint(str(folder))) for folder in (aligned, base)], []
    rewrite.rewrite_tensors(
        registry.build("edits", LOX | {"targets": "q_proj"}),
        *files,
        tmp_path / "out",
        lambda *now: seen.append(now),
    )
    assert seen == [(1, 2, {}), (2, 2, {})]


def test_an_interrupted_one_is_no_checkpoint_and_goes_on_to_the_same(tmp_path):
    base, aligned = (
        save(tiny(torch.float32), tmp_path / "base"),
        save(moved(tiny(torch.float32)), tmp_path / "aligned"),
    )
    files = [folders.locate(Checkpoint(str(folder))) for folder in (aligned, base)]

    def kill(update, of, terms):
        if update == 3:
            raise KeyboardInterrupt

    (tmp_path / "cut").mkdir()
    with pytest.raises(KeyboardInterrupt):
        rewrite.rewrite_tensors(registry.build("edits", LOX), *files, tmp_path / "cut", kill)
    with pytest.raises(ValueError, match="is no checkpoint"):
        checkpoints.load(str(tmp_path / "cut"))
    rewrite.rewrite_tensors(registry.build("edits", LOX), *files, tmp_path / "cut", lambda *_: None)
    whole, _ = made(base, aligned, tmp_path / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / "cut").items())
    checkpoints.load(str(tmp_path / "cut"))


def resaved(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def configured(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


QUERY = "model.layers.1.self_attn.q_proj.weight"
SPOILT = {
    "other layers": (
        lambda base: save(tiny(torch.float32, layers=3), base),
        "num_hidden_layers': 3}",
    ),
    "other family": (
        lambda base: configured(base, model_type="mistral"),
        "'model_type': 'mistral'",
    ),
    "other width": (
        lambda base: save(tiny(torch.float32, vocabulary=300), base),
        "'model.embed_tokens.weight' is 300 x 32, not 400 x 32",
    ),
    "lacks a tensor": (
        lambda base: resaved(base, lambda tensors: tensors.pop(QUERY)),
        f"it has no '{QUERY}'",
    ),
    "is the same": (
        lambda base: save(moved(tiny(torch.float32)), base),
        "the base holds the weights of the aligned model",
    ),
    "whole numbers": (
        lambda base: resaved(base, lambda all: all.update({QUERY: all[QUERY].to(torch.int8)})),
        f"'{QUERY}' is stored as I8",
    ),
    "not finite": (
        lambda base: resaved(base, lambda tensors: tensors[QUERY].fill_(float("nan"))),
        "holds values that are not finite",
    ),
    "damaged": (
        lambda base: (base / "model.safetensors").write_bytes(b"12345678{}"),
        "model.safetensors cannot be read",
    ),
    "no weights": (
        lambda base: (base / "model.safetensors").rename(base / "other.safetensors"),
        "holds neither model.safetensors nor",
    ),
    "nowhere": (shutil.rmtree, "no such directory"),
}


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return save(tiny(torch.float32), tmp_path / "base"), save(
        moved(tiny(torch.float32)), tmp_path / "aligned"
    )


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_base_that_is_not_the_models_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, pair, spoilt
):
    base, aligned = pair
    spoil, message = SPOILT[spoilt]
    spoil(base)
    arguments = [
        "--reference",
        f"base={base}",
        "--out",
        str(tmp_path / "out"),
        "--set",
        "method.k=3",
    ]
    code, out, err = titer(monkeypatch, capsys, "release", str(aligned), *arguments)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(errors)) == (2, "", 1), err
    assert message in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--reference", "base={base}", "--set", "method.k=33"],
            "k=33: 'model.embed_tokens.weight' (400 x 32) has no such rank",
        ),
        (
            ["--reference", "base={base}", "--set", "method.alpha=0"],
            "alpha=0.0: extrapolation goes further by a finite factor above 0",
        ),
        (
            ["--reference", "base={base}", "--set", "method.targets=q_prj"],
            "unknown target 'q_prj': did you mean 'q_proj'",
        ),
        (
            ["--reference", "base={base}", "--set", "method.alpa=1"],
            "unknown key 'alpa': did you mean 'alpha'",
        ),
        (["--reference", "base={base}", "--method", "lx"], "unknown edit 'lx': did you mean 'lox'"),
        (
            ["--reference", "base={base}", "--method", "wise_ft"],
            "'wise_ft' edits what fine-tuning added, which no earlier stage has; its place is "
            "`edit`",
        ),
        ([], "needs the model that alignment started from: give it as --reference base=MODEL"),
        (
            ["--reference", "bse={base}"],
            "unknown reference of the edit 'lox': 'bse': did you mean 'base'",
        ),
        (["--reference", "{base}"], "--reference '{base}': give NAME=VALUE"),
        (
            ["--reference", "base={base}", "--set", "method.alpha=1e300"],
            "'model.embed_tokens.weight' leaves the range of torch.float32: edit less strongly",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, pair, arguments, message
):
    given = [argument.replace("{base}", str(pair[0])) for argument in arguments]
    code, out, err = titer(
        monkeypatch, capsys, "release", str(pair[1]), *given, "--out", str(tmp_path / "out")
    )
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(errors)) == (2, "", 1), err
    assert message.replace("{base}", str(pair[0])) in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["antidote", "scale", "random_mask", "wise_ft"])
def test_an_edit_of_the_adapter_cannot_release(method):
    reason = (
        f"pipelines.sft.release: '{method}' edits what fine-tuning added, "
        "which no earlier stage has; its place is `edit`"
    )
    with pytest.raises(ValueError, match=reason):
        recipe.load("lab", [f"pipelines.sft.release={method}"])


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("lox", "extrapolates all that the weights have moved"),
        ("random_lox", "takes a step of LoX's"),
    ],
)
def test_lox_cannot_follow_fine_tuning(monkeypatch, capsys, pair, tmp_path, method, why):
    with pytest.raises(
        ValueError, match=f"pipelines.sft.edit: '{method}' {why}.*; its place is `release`"
    ):
        recipe.load("lab", [f"pipelines.sft.edit={method}"])
    code, _, err = titer(
        monkeypatch,
        capsys,
        "edit",
        str(pair[1]),
        "--method",
        method,
        "--out",
        str(tmp_path / "out"),
    )
    assert (code, err.count("\n")) == (2, 1)
    assert why in err
    with pytest.raises(
        ValueError,
        match="match=LoX: scaling meets the norm after an edit of the fine-tuning update alone",
    ):
        registry.build("edits", {"method": "scale", "match": "lox"})


def released(documents: dict) -> dict[str, dict]:
    """The stages of every pipeline by kind."""
    return {
        name: {stage["kind"]: stage for stage in document["stages"]}
        for name, document in documents.items()
    }


def test_a_run_releases_between_alignment_and_fine_tuning(
    monkeypatch,
    capsys,
    plan,
    recipe_file,
    tmp_path,
):
    pipelines = {
        "sft": {"align": "sft"},
        "lox": {"align": "sft", "release": LOX, "edit": {"method": "wise_ft", "alpha": 0.5}},
        "null": {"align": "sft", "release": {"method": "random_lox", "match": LOX}},
        "both": {"align": {"method": "booster", "alpha": 0.01, "lam": 1}, "release": LOX},
    }
    out = tmp_path / "out"
    arguments = ["run", recipe_file, "--set", f"pipelines={json.dumps(pipelines)}", "--json"]
    code, printed, err = titer(monkeypatch, capsys, *arguments, "--out", str(out))
    assert code == 0, err
    documents = json.loads(printed)
    labels = [stage["label"] for stage in documents["lox"]["stages"]]
    assert labels == ["base", "align sft", "release lox", "finetune sft", "edit wise_ft"]
    by = released(documents)
    assert by["lox"]["align"] == by["null"]["align"] == by["sft"]["align"]  # scored once, unedited
    assert (
        len({by[name][kind]["weights"] for name in by for kind in by[name]}) == 1 + 2 + 3 + 4 + 1
    )  # base, align, release, finetune, edit
    for name in ("lox", "null", "both"):
        stage = by[name]["release"]
        assert set(stage["scores"]) == {
            *("harm", "margin", "task", "task_refused", "refused", "coherent", "prefill")
        }
        assert 0 < stage["facts"]["changed entries"] <= stage["facts"]["entries"]
        assert stage["facts"]["update norm after"] > stage["facts"]["update norm before"]
        found = weights(out / "stages" / stage["folder"] / "model")
        assert (
            checkpoints.fingerprint(
                checkpoints.load(str(out / "stages" / stage["folder"] / "model"))[0]
            )
            == stage["weights"]
        )
        tuned, _ = checkpoints.load(str(out / "stages" / by[name]["finetune"]["folder"] / "model"))
        under = tuned.get_base_model().state_dict()
        query = "model.layers.0.self_attn.q_proj"
        assert torch.equal(
            under[f"{query}.base_layer.weight"], found[f"{query}.weight"]
        )  # the user's data train over it
    start, aligned = (
        weights(Path(plan["model"])),
        weights(out / "stages" / by["lox"]["align"]["folder"] / "model"),
    )
    for name, expected in plain(aligned, start).items():
        torch.testing.assert_close(
            weights(out / "stages" / by["lox"]["release"]["folder"] / "model")[name].double(),
            expected,
        )
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("release lox") >= 2
    assert "Released HS" in page
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store/stages").iterdir()}
    again = ["--set", "pipelines.lox.release.alpha=0.5", "--out", str(tmp_path / "again")]
    assert titer(monkeypatch, capsys, *arguments, *again)[0] == 0
    fresh = [
        json.loads((path / "manifest.json").read_text())["about"]["kind"]
        for path in (tmp_path / "store/stages").iterdir()
        if path not in before
    ]
    scoring = [each for kind in ("answer", "judge", "margin") for each in [kind] * 3]
    assert sorted(fresh) == sorted(["edit", "finetune", "release", *scoring])  # alignment stays


def test_the_commands_come_to_what_a_run_does(monkeypatch, capsys, plan, recipe_file, tmp_path):
    pipelines = {"lox": {"align": "sft", "release": LOX}}
    code, printed, _ = titer(
        monkeypatch,
        capsys,
        "run",
        recipe_file,
        "--set",
        f"pipelines={json.dumps(pipelines)}",
        "--out",
        str(tmp_path / "run"),
        "--json",
    )
    assert code == 0
    stage = released(json.loads(printed))["lox"]["release"]
    common, method = ["--recipe", recipe_file, "--json"], ["--set", "method.k=3"]
    assert (
        titer(
            monkeypatch, capsys, "align", plan["model"], "--out", str(tmp_path / "aligned"), *common
        )[0]
        == 0
    )
    arguments = [
        str(tmp_path / "aligned"),
        "--reference",
        f"base={plan['model']}",
        "--out",
        str(tmp_path / "released"),
        *method,
    ]
    code, printed, err = titer(monkeypatch, capsys, "release", *arguments, *common)
    assert code == 0, err
    document = json.loads(printed)
    assert json.loads((tmp_path / "released/stage.json").read_text()) == document
    assert (document["kind"], document["method"]) == (
        "release",
        {"method": "lox", "k": 3, "alpha": 1.25, "targets": ["all"]},
    )
    assert document["reference models"]["base"]["sha256"] == folders.digest(
        folders.locate(Checkpoint(plan["model"]))
    )
    assert document["facts"] == {key: stage["facts"][key] for key in document["facts"]}
    assert (
        checkpoints.fingerprint(checkpoints.load(str(tmp_path / "released"))[0]) == stage["weights"]
    )
    assert titer(monkeypatch, capsys, "release", *arguments, *common)[1] == printed  # shown again
    code, _, err = titer(
        monkeypatch, capsys, "release", *arguments, "--set", "method.alpha=1", *common
    )
    assert (code, "holds something else" in err) == (2, True)
    code, printed, _ = titer(
        monkeypatch,
        capsys,
        "finetune",
        str(tmp_path / "released"),
        "--out",
        str(tmp_path / "tuned"),
        *common,
    )
    assert code == 0
    assert json.loads(printed)["model"]["sha256"] == document["sha256"]
    assert not any(flag["name"] == "template differs" for flag in json.loads(printed)["flags"])


def test_an_aligned_adapter_names_its_base_and_is_merged(
    monkeypatch,
    capsys,
    plan,
    recipe_file,
    tmp_path,
):
    common = ["--recipe", recipe_file, "--json"]
    lora = ["--set", "align.lora={r: 2, targets: [q_proj]}", "--out", str(tmp_path / "aligned")]
    assert titer(monkeypatch, capsys, "align", plan["model"], *lora, *common)[0] == 0
    arguments = ["release", str(tmp_path / "aligned"), "--set", "method.k=2", *common]
    code, printed, err = titer(monkeypatch, capsys, *arguments, "--out", str(tmp_path / "released"))
    assert code == 0, err
    assert not (tmp_path / "released/merged").exists()
    document = json.loads(printed)
    assert document["facts"]["tensors left as they were"] == 13  # all but two of q_proj
    base, found = weights(Path(plan["model"])), weights(tmp_path / "released")
    merged = adapters.merge_adapter(checkpoints.load(str(tmp_path / "aligned"))[0]).state_dict()
    for name, w in found.items():  # the update has rank 2: all of it is extrapolated
        torch.testing.assert_close(
            w, merged[name] + 1.25 * (merged[name] - base[name]), rtol=1e-6, atol=1e-7
        )
    code, again, _ = titer(
        monkeypatch,
        capsys,
        *arguments,
        "--reference",
        f"base={plan['model']}",
        "--out",
        str(tmp_path / "given"),
    )
    assert code == 0
    assert json.loads(again)["sha256"] == document["sha256"]


def test_a_run_from_an_adapter_has_the_merged_model_as_its_base(recipe_file, tmp_path, plan):
    model = adapters.add_lora(checkpoints.load(plan["model"])[0], Lora(r=2, targets=("q_proj",)))
    with torch.no_grad():
        for adapter in adapters.adapters(model).values():
            adapter.b.copy_(0.1 * torch.randn_like(adapter.b))
    checkpoints.save(
        model,
        checkpoints.load(plan["model"])[1],
        tmp_path / "start",
        folders.locate(Checkpoint(plan["model"])),
    )
    settings = [f"model={tmp_path / 'start'}", f"pipelines={json.dumps({'lox': {'release': LOX}})}"]
    setting = Plan.prepare(recipe.load(recipe_file, settings))
    stages = Run(setting, tmp_path / "run", Store(tmp_path / "store")).records(Silent())["lox"]
    merged = adapters.merge_adapter(model).state_dict()
    aligned, found = (
        weights(tmp_path / "run/stages" / stage.folder / "model") for stage in stages[1:3]
    )
    for name, expected in plain(aligned, merged).items():
        torch.testing.assert_close(found[name].double(), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["pipelines.sft.release=lox", "pipelines.sft.release.k=40"],
            "k=40: 'model.embed_tokens.weight'",
        ),
        (
            ["pipelines.sft.release=lox", "pipelines.sft.release.targets=[q_prj]"],
            "unknown target 'q_prj': did you mean 'q_proj'",
        ),
    ],
)
def test_a_run_finds_what_is_wrong_with_a_release_before_it_computes(
    recipe_file,
    settings,
    message,
):
    with pytest.raises(ValueError, match=message):
        Plan.prepare(recipe.load(recipe_file, settings))
