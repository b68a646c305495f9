"""From names to folders: directories, the hub's cache, and one clear line for every way a download fails. No network."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from titer.data.hub import Found, cached_commit, find

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def snapshot(
    cache: Path, commit: str, kind: str = "model", name: str = "owner/name", main: bool = True
) -> Path:
    """A repository in the cache as a download leaves it."""
    root = cache / f"{kind}s--{name.replace('/', '--')}"
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (root / "refs").mkdir(exist_ok=True)
    if main:
        (root / "refs" / "main").write_text(commit)
    return folder


class Hub:
    """Stands for `snapshot_download`: keeps what it was asked, and fails or answers as told."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, name, **asked):
        self.asked.append({"name": name} | asked)
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture
def hub(monkeypatch):
    def install(answer) -> Hub:
        fake = Hub(answer)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
        return fake

    return install


def refused(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    request = httpx2.Request("GET", "https://huggingface.co/api/models/owner/name")
    return kind(
        f"{status} Client Error\nfor url", response=httpx2.Response(status, request=request)
    )


def test_a_directory_is_taken_as_it_is(tmp_path, monkeypatch, hub):
    asked = hub(AssertionError("a directory needs no hub")).asked
    (tmp_path / "owner/name").mkdir(parents=True)
    assert find(str(tmp_path / "owner")) == Found(tmp_path / "owner", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("owner/name") == Found(Path("owner/name"), None)  # although it could be a hub id
    assert find("~/owner") == Found(tmp_path / "owner", None)
    with pytest.raises(ValueError, match="revision='v1': model 'owner/name' is a local directory"):
        find("owner/name", revision="v1")
    assert asked == []


def test_a_cached_repository_needs_no_network(cache):
    folder = snapshot(cache, OLD)
    tables = snapshot(cache, NEW, "dataset")
    assert find("owner/name") == Found(folder, OLD)
    assert find("owner/name", revision=OLD) == Found(folder, OLD)
    assert find("owner/name", "dataset") == Found(tables, NEW)
    assert (cached_commit("owner/name"), cached_commit("owner/name", "dataset")) == (OLD, NEW)


def test_nothing_is_recorded_before_the_first_download(cache, tmp_path):
    assert cached_commit("owner/name") is None
    assert cached_commit(str(tmp_path)) is None
    (cache / "models--owner--name/refs").mkdir(parents=True)
    (cache / "models--owner--name/refs/main").write_text("")  # as an interrupted write leaves it
    assert cached_commit("owner/name") is None


def test_a_repository_stays_at_its_recorded_commit(cache, hub):
    download = hub(cache / "models--owner--name/snapshots" / NEW)
    assert find("owner/name").revision == NEW
    snapshot(cache, OLD)
    for revision in (None, "main", "v2"):
        find("owner/name", revision=revision)
    assert [call["revision"] for call in download.asked] == ["main", OLD, "main", "v2"]


@pytest.mark.parametrize(
    ("kind", "unsafe", "taken", "left"),
    [
        (
            *("model", False),
            *(
                [
                    "model-00001-of-00002.safetensors",
                    "model.safetensors.index.json",
                    "config.json",
                    "vocab.txt",
                    "chat_template.jinja",
                ],
            ),
            *(
                [
                    "pytorch_model.bin",
                    "weights.pt",
                    "modeling.py",
                    "onnx/config.json",
                    "original/x.safetensors",
                    "README.md",
                    "x.gguf",
                ],
            ),
        ),
        (
            "model",
            True,
            ["pytorch_model.bin", "modeling.py", "tokenizer.model", "adapter_model.safetensors"],
            ["model.h5", "sub/model.bin"],
        ),
        (
            *("dataset", False),
            *(
                [
                    "data/train-00000-of-00001.parquet",
                    "round0/30k/train.jsonl.xz",
                    "a.json.gz",
                    "b.csv",
                    "c.tsv",
                    "README.md",
                ],
            ),
            *(["loader.py", "image.png", "data.zip", "x.pkl"],),
        ),
    ],
)
def test_what_comes_of_a_repository(cache, hub, kind, unsafe, taken, left):
    download = hub(cache / NEW)
    find("owner/name", kind, unsafe=unsafe)
    [call] = download.asked
    assert (call["name"], call["repo_type"]) == ("owner/name", kind)
    patterns = {key: call[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(huggingface_hub.utils.filter_repo_objects([*taken, *left], **patterns)) == taken


def test_a_gated_repository_says_where_its_terms_are(cache, hub):
    hub(refused(errors.GatedRepoError, 403))
    message = "dataset 'owner/name' is gated: accept its terms on https://huggingface.co/datasets/owner/name, then run `hf auth login`"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        find("owner/name", "dataset")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            refused(errors.GatedRepoError, 401),
            "accept its terms on https://huggingface.co/owner/name, then",
        ),
        (
            refused(errors.RepositoryNotFoundError, 404),
            "no such directory here and no such repository on the hub",
        ),
        (
            refused(errors.RevisionNotFoundError, 404),
            "revision='v9': model 'owner/name' has none of that name; give a branch",
        ),
        (
            refused(errors.HfHubHTTPError, 503),
            "the hub cannot be reached for it (503 Client Error for url)",
        ),
        (
            httpx2.ConnectError("no route\nto host"),
            "(no route to host); where it can, run `hf download owner/name --local-dir FOLDER`",
        ),
        (errors.LocalEntryNotFoundError("nothing cached"), "(nothing cached)"),
        (errors.OfflineModeIsEnabled("offline"), "(offline)"),
    ],
)
def test_a_failed_download_is_one_line_that_says_what_to_do(cache, hub, failure, message):
    hub(failure)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        find("owner/name", revision="v9")
    assert "\n" not in str(caught.value)
    assert "owner/name" in str(caught.value)


def test_the_reason_is_what_went_wrong_first(cache, hub):
    failure = errors.LocalEntryNotFoundError(
        "An error happened while trying to locate the files on the Hub"
    )
    failure.__cause__ = httpx2.ConnectTimeout("timed out")
    hub(failure)
    with pytest.raises(ValueError, match=re.escape("cannot be reached for it (timed out); where")):
        find("owner/name")


def test_offline_the_first_download_is_refused_and_an_incomplete_one_too(cache):
    with pytest.raises(
        ValueError,
        match=r"dataset 'owner/name'.*HF_HUB_OFFLINE.*`hf download owner/name --repo-type dataset --local-dir",
    ):
        find("owner/name", "dataset")
    snapshot(cache, OLD)
    with pytest.raises(ValueError, match="hub cannot be reached"):
        find("owner/name", revision="v2")
    listing = cache / "models--owner--name/trees"
    listing.mkdir()
    files = {
        "config.json": {"size": 2, "blob_id": "0"},
        "model.safetensors": {"size": 8, "blob_id": "1"},
    }
    (listing / f"{OLD}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    with pytest.raises(ValueError, match="hub cannot be reached"):
        find("owner/name")
    (cache / f"models--owner--name/snapshots/{OLD}/model.safetensors").write_bytes(b"")
    assert find("owner/name").revision == OLD


@pytest.mark.parametrize(
    "name",
    [
        "",
        "name",
        "./owner",
        "a/b/c",
        "owner/",
        "own er/name",
        "../name",
        "owner/na--me",
        "/no/where",
    ],
)
def test_a_name_that_means_nothing_is_refused(tmp_path, monkeypatch, cache, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match="no such directory, and no hub id either: Give a directory, or an id like 'owner/name'",
    ) as caught:
        find(name)
    assert repr(name) in str(caught.value)


def test_the_nearest_directory_is_named_and_a_file_is_called_one(tmp_path, monkeypatch):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "weights").write_text("")
    with pytest.raises(ValueError, match="did you mean 'checkpoint'?"):
        find(str(tmp_path / "chekpoint"))
    monkeypatch.chdir(tmp_path.parent)
    for name in (str(tmp_path / "weights"), f"{tmp_path.name}/weights"):
        with pytest.raises(ValueError, match="weights' is a file: give a directory"):
            find(name)


def test_importing_it_is_light():
    code = "import sys, titer.data.hub; print('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )
