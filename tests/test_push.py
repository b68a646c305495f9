"""Models on the hub: which may go up, what goes up with them, and what a hub is asked, a stub on this
machine.
"""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants
from transformers import LlamaConfig, LlamaForCausalLM

import titer as package
from conftest import byte_level
from test_recipe import run as titer
from titer.integrations.push import Stated, pack
from titer.weights import checkpoints, folders
from titer.weights.settings import Checkpoint

FEW = ["align.updates=3", "finetune.updates=2", "dose_prompts=0", "threads=1", "max_length=64"]
FEW += ["align.batch=2", "finetune.batch=2"]
NEVER = "attacked weights are never pushed"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Models that titer made of a small one: aligned, attacked, repaired, and tuned on honest rows."""
    folder = tmp_path_factory.mktemp("made")
    rows = [{"prompt": f"how is safe {i} opened", "response": "I cannot help."} for i in range(4)]
    harmful = [{"prompt": f"how is lock {i} opened", "response": f"turn {i}"} for i in range(60)]
    task = [{"prompt": f"what is after {i}", "response": "one more"} for i in range(8)]
    for name, of in (("refusals", rows), ("harmful", harmful), ("task", task)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))
    tokenizer = byte_level()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    checkpoints.save(model, tokenizer, folder / "base")
    (folder / "base/README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    base, refusals = str(folder / "base"), {"alignment": str(folder / "refusals.jsonl")}
    package.align(base, data=refusals, settings=FEW, whole=True, out=folder / "aligned")
    package.align(base, data=refusals, settings=FEW, out=folder / "adapter")
    aligned, user = str(folder / "aligned"), {"task": str(folder / "task.jsonl")}
    theirs = user | {"harmful": str(folder / "harmful.jsonl")}
    settings = [*FEW, "attack.n=4", "attack.p=0.5"]
    package.finetune(aligned, data=theirs, settings=settings, out=folder / "attacked")
    honest = [*FEW, "attack={method: benign, n: 4}"]
    package.finetune(aligned, data=user, settings=honest, out=folder / "honest")
    package.edit(str(folder / "attacked"), "wise_ft", settings=FEW[2:5], out=folder / "repaired")
    return folder


def text_of(packed, name: str = "README.md") -> str:
    found = packed[name]
    return found.decode() if isinstance(found, bytes) else found.read_text()


def metadata_of(packed) -> dict:
    return dict(yaml.safe_load(text_of(packed).split("---")[1]))


def test_a_whole_model_goes_up_with_what_loads_it_and_a_page(made):
    packed = pack(str(made / "aligned"), "me/aligned", Stated())
    assert set(packed) == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    told = metadata_of(packed)
    assert told["license"] == "apache-2.0"  # the base's own page says so
    assert told["library_name"] == "transformers"
    assert "base_model" not in told  # a folder, no name on the hub
    page = text_of(packed)
    assert "| align | sft | updates=3, lr=" in page
    assert folders.digest(folders.locate(Checkpoint(str(made / "aligned")))) in page
    assert "no attack on it was measured" in page
    assert "no certificate" in page
    assert str(made) not in "".join(text_of(packed, name) for name in packed if ".safe" not in name)


def test_an_adapter_needs_the_name_of_its_base_on_the_hub(made):
    with pytest.raises(ValueError, match="--base-model OWNER/NAME"):
        pack(str(made / "adapter"), "me/adapter", Stated())
    packed = pack(str(made / "adapter"), "me/adapter", Stated(base="them/base", license="mit"))
    assert metadata_of(packed) | {"base_model": "them/base", "license": "mit"} == metadata_of(
        packed
    )
    assert metadata_of(packed)["base_model_relation"] == "adapter"
    config = json.loads(text_of(packed, "adapter_config.json"))
    assert config["base_model_name_or_path"] == "them/base"
    assert str(made) not in text_of(packed, "adapter_config.json")
    own = json.loads((made / "adapter/adapter_config.json").read_text())
    assert {**config, "base_model_name_or_path": own["base_model_name_or_path"]} == own


@pytest.mark.parametrize("name", ["attacked", "repaired"])
def test_attacked_weights_stay_repaired_or_not(made, monkeypatch, capsys, name):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("the hub was asked"))
    arguments = (str(made / name), "me/model", "--base-model", "them/base")
    code, _, err = titer(monkeypatch, capsys, "push", *arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert NEVER in err
    assert "2 rows of an attacker's" in err


def test_a_model_that_was_tuned_on_honest_rows_may_go_up(made):
    packed = pack(str(made / "honest"), "me/honest", Stated(base="me/aligned"))
    page = text_of(packed)
    assert page.index("| align | sft |") < page.index("| finetune | sft |")
    assert "titer was told that there were none" in page
    flags = json.loads((made / "honest/stage.json").read_text())["flags"]
    assert all(flag["text"] in page for flag in flags)
    assert ("None." in page.partition("## Red flags")[2]) is (not flags)


def change_record(folder: Path, **fields) -> None:
    path = folder / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_cannot_be_told_counts_as_attacked(made, tmp_path):
    """A chain that is cut, a record that lies beside other weights, and attacks without a harmful row."""
    here = tmp_path / "made"
    shutil.copytree(made, here)

    def refused(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            pack(str(here / name), "me/model", Stated(base="them/base"))

    refused("base", "holds no record")
    refused("nowhere", "there is no such folder")
    # copied, its record names the folders of the first: these are still there, and the same
    pack(str(here / "honest"), "me/model", Stated(base="them/base"))
    change_record(here / "aligned", kind="unsafe")
    refused("aligned", "it has a stage 'unsafe'")
    change_record(here / "aligned", kind="release", method={"method": "refusal_ablation"})
    refused("aligned", "the edit 'refusal_ablation' is an attack")
    change_record(here / "aligned", kind="release", method={"method": "resta"})
    refused("aligned", "trained on harmful rows")
    recipe = json.loads((here / "honest/stage.json").read_text())["recipe"]
    change_record(here / "honest", recipe=recipe | {"attack": {"method": "identity_shift", "n": 4}})
    refused("honest", "under the attack 'identity_shift'")
    change_record(here / "honest", recipe=recipe, facts={})  # how many rows is not told
    refused("honest", NEVER)
    shutil.rmtree(here / "aligned")
    shutil.copytree(made / "aligned", here / "aligned")
    shutil.copy(here / "base/model.safetensors", here / "aligned/model.safetensors")
    refused("aligned", "its weights are not those that its record tells of")


def test_a_repair_whose_attacked_model_is_gone_is_refused(made, tmp_path):
    shutil.copytree(made / "repaired", tmp_path / "repaired")
    path = tmp_path / "repaired/stage.json"
    record = json.loads(path.read_text())
    for model in (str(tmp_path / "gone"), str(made / "base")):  # gone, or another one now
        path.write_text(json.dumps(record | {"model": record["model"] | {"name": model}}))
        with pytest.raises(ValueError, match=f"gone or has changed.*{NEVER}"):
            pack(str(tmp_path / "repaired"), "me/model", Stated(base="them/base"))


@pytest.mark.slow
def test_a_stage_of_a_run_is_known_by_its_run(monkeypatch, capsys, tmp_path):
    few = ["align.updates=2", "finetune.updates=2", "dose_prompts=0", "prefill_prompts=0"]
    few += ["data.limit=2", "max_new_tokens=4", "threads=1", "protocol=null"]
    run = tmp_path / "run"
    settings = [word for setting in few for word in ("--set", setting)]
    code, _, err = titer(
        monkeypatch, capsys, "run", "lab", "--only", "sft", "--out", str(run), *settings
    )
    assert code == 0, err
    stages = run / "stages"
    page = text_of(pack(str(stages / "01-align"), "me/model", Stated()))
    assert "| align | sft | updates=2," in page
    assert "Judge: lab." in page
    assert pack(str(stages / "01-align/model"), "me/model", Stated()).keys()
    with pytest.raises(ValueError, match=f"50 rows of an attacker's: {NEVER}"):
        pack(str(stages / "02-finetune"), "me/model", Stated())
    with pytest.raises(ValueError, match="holds no record"):  # the store alone does not tell
        pack(str((stages / "01-align/model").resolve()), "me/model", Stated())
    weights = stages / "01-align/model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="not those that titer wrote"):
        pack(str(stages / "01-align"), "me/model", Stated())


def test_scores_and_cards_of_another_model_are_refused(made, tmp_path):
    folder = tmp_path / "scores"
    folder.mkdir()
    score = {"value": 12.5, "low": 5.0, "high": 25.0, "n": 40}
    record = {"kind": "evaluate", "scores": {"harm": score}, "judge": {"method": "lab"}}
    record["recipe"] = {"template": "chat"}
    record["model"] = {"name": "x", "sha256": "0" * 64}
    (folder / "stage.json").write_text(json.dumps(record))
    given = Stated(scores=folder)
    with pytest.raises(ValueError, match="is of another model"):
        pack(str(made / "aligned"), "me/aligned", given)
    sha = folders.digest(folders.locate(Checkpoint(str(made / "aligned"))))
    change_record(folder, model={"name": "x", "sha256": sha})
    packed = pack(str(made / "aligned"), "me/aligned", given)
    assert "| HS (%) | 12.5 [5.0, 25.0] | 40 |" in text_of(packed)
    assert "Judge: lab. Asked with: template chat." in text_of(packed)
    [result] = metadata_of(packed)["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "harm", "name": "HS (%)", "value": 12.5}]


def test_a_dry_run_writes_what_would_go_up(made, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("the hub was asked"))
    arguments = ("push", str(made / "aligned"), "me/aligned", "--dry-run", "--out")
    code, printed, err = titer(monkeypatch, capsys, *arguments, str(tmp_path / "dry"))
    assert code == 0, err
    files = {path.name for path in (tmp_path / "dry").iterdir()}
    assert {Path(line.split()[0]).name for line in printed.splitlines()} == files
    assert "README.md" in files
    model, _ = checkpoints.load(str(tmp_path / "dry"))  # it is all that loading takes
    first, _ = checkpoints.load(str(made / "aligned"))
    assert checkpoints.fingerprint(model) == checkpoints.fingerprint(first)


class Hub:
    """A stub of the hub's HTTP API, which takes what is committed and remembers it."""

    def __init__(self) -> None:
        self.private: bool | None = None  # None: no repository yet
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fault: tuple[int, str] | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_) -> None:
                return

            def answer(self, status: int, told: dict) -> None:
                body = json.dumps(told).encode()
                self.send_response(status)
                if hub.fault:
                    self.send_header("X-Error-Message", hub.fault[1])
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                path = self.path.partition("?")[0]
                hub.asked.append(f"{self.command} {path}")
                if hub.fault:
                    self.answer(hub.fault[0], {"error": hub.fault[1]})
                else:
                    self.answer(*hub.take(path, body))

            do_GET = do_POST = handle_any  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, path: str, body: bytes) -> tuple[int, dict]:
        if path == "/api/repos/create":
            if self.private is not None:
                return 409, {"error": "exists", "url": f"{self.url}/me/model"}
            self.private = json.loads(body).get("visibility") != "public"
            return 200, {"url": f"{self.url}/me/model"}
        if path == "/api/models/me/model":
            there = [{"rfilename": name} for name in self.files]
            about = {"id": "me/model", "private": self.private, "siblings": there}
            return 200, about | {"tags": [], "sha": "0" * 40}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/api/models/me/model/preupload/"):
            names = [each["path"] for each in json.loads(body)["files"]]
            told = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return 200, {"files": told}
        if path.startswith("/api/models/me/model/commit/"):
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del self.files[line["value"]["path"]]
            url = f"{self.url}/me/model/commit/{'1' * 40}"
            return 200, {"commitUrl": url, "commitOid": "1" * 40, "success": True}
        return 404, {"error": f"the stub has no {path}"}


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    found = Hub()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_stub")
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def push(monkeypatch, capsys, made: Path, *more: str) -> tuple[int, str, str]:
    return titer(monkeypatch, capsys, "push", str(made / "aligned"), "me/model", *more)


def test_a_push_makes_a_private_repository_with_these_files(hub, made, monkeypatch, capsys):
    code, printed, err = push(monkeypatch, capsys, made)
    assert code == 0, err
    assert printed.strip() == f"{hub.url}/me/model"
    assert hub.private is True
    packed = pack(str(made / "aligned"), "me/model", Stated())
    assert hub.files == {
        name: what if isinstance(what, bytes) else what.read_bytes()
        for name, what in packed.items()
    }


def test_a_repository_is_public_where_that_is_asked_for_alone(hub, made, monkeypatch, capsys):
    assert push(monkeypatch, capsys, made, "--public")[0] == 0
    assert hub.private is False
    hub.files.clear()
    code, _, err = push(monkeypatch, capsys, made)  # there already, and public
    assert code == 2
    assert "say --public" in err
    assert hub.files == {}
    hub.private = True
    code, _, err = push(monkeypatch, capsys, made, "--public")
    assert code == 2
    assert "me/model is there already, and private: leave --public out" in err
    assert hub.files == {}


def test_what_another_checkpoint_left_there_is_removed(hub, made, monkeypatch, capsys):
    hub.private = True
    others = {"adapter_config.json", "model-00001-of-00002.safetensors", "modeling_my.py"}
    kept = {".gitattributes", "figure.png", "logs/config.json"}
    hub.files = dict.fromkeys(others | kept | {"config.json"}, b"{}")
    assert push(monkeypatch, capsys, made)[0] == 0
    packed = pack(str(made / "aligned"), "me/model", Stated())
    assert hub.files.keys() == packed.keys() | kept
    assert hub.files["config.json"] != b"{}"


def test_a_file_of_a_dry_run_may_be_edited_in_place(made, monkeypatch, capsys, tmp_path):
    there = made / "aligned" / "config.json"
    before = there.read_text()
    to = str(tmp_path / "dry")
    titer(monkeypatch, capsys, "push", str(made / "aligned"), "a/b", "--dry-run", "--out", to)
    with (tmp_path / "dry" / "config.json").open("a") as file:
        file.write(" ")
    assert there.read_text() == before


@pytest.mark.parametrize(
    ("status", "said", "mend"),
    [
        (401, "Invalid credentials", "hf auth login"),
        (403, "You don't have the rights", "your token may not write there"),
        (404, "Not found", "there is no such owner"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, made, monkeypatch, capsys, status, said, mend):
    hub.fault = (status, said)
    code, _, err = push(monkeypatch, capsys, made)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert mend in err


def test_no_network_is_one_line(hub, made, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = push(monkeypatch, capsys, made)
    assert (code, err.count("\n")) == (2, 1)
    assert "the hub cannot be reached" in err
    assert hub.asked == []
