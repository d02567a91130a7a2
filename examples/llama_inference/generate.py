"""Answers prompts with a LLaMA model in the layout of its authors: params.json, *.pth, tokenizer.model.

The weights are laid out anew once, beside CKPT_DIR, for the C++ program examples/llama, which computes."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checkpoint import converted, write_random_model
from tokenizers_of_models import load_tokenizer
from xformers.helpers.training import UserError, program
from xformers.helpers.training import write_json as write_report

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [
    "abc",
    "can you write a hello world program in C#",
    "peux tu resoudre le probleme des tours de Hanoi en ecrivant un programme python ?",
]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("ckpt_dir", nargs="?", type=Path, metavar="CKPT_DIR", help="params.json and *.pth")
parser.add_argument("-i", "--interactive", action="store_true", help="prompts from standard input, one a line")
parser.add_argument(
    "--no-instruction-tags", action="store_true", help="prompts as they are, without [INST] around them"
)
parser.add_argument("--prompt", action="append", help="instead of three examples; may come again")
parser.add_argument("--gen-length", type=int, default=1000, help="tokens at most")
parser.add_argument("--temperature", type=float, default=0.6, help="0: always the likeliest token")
parser.add_argument("--top-p", type=float, default=0.9)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
parser.add_argument("--program", type=Path, help="the C++ program; else that of XFORMERS_BUILD_DIR, or build/release")
parser.add_argument("--report", metavar="FILE.json", help="tokens and times")
parser.add_argument("--smoke", action="store_true", help="a small random model, compared with recomputation")
options = parser.parse_args()


def llama_program() -> Path:
    build = Path(os.environ.get("XFORMERS_BUILD_DIR", ROOT / "build/release"))
    path = options.program or build / "bin" / "llama"
    if not path.exists():
        raise UserError(f"{path} is not built.  Fix: make generate, or name the program with --program")
    return path.resolve()


def answer(model: Path, tokenizer, prompts: list[str]) -> dict:
    """Runs the program on all prompts at once, prints the answers, returns its report."""
    tagged = prompts if options.no_instruction_tags else [f"[INST]{prompt}[/INST]" for prompt in prompts]
    command = [llama_program(), "--model", model, "--tokens", options.gen_length, "--seed", options.seed]
    command += ["--temperature", options.temperature, "--top-p", options.top_p]
    command += ["--device", options.device, "--dtype", options.dtype]
    for prompt in tagged:
        command += ["--prompt-tokens", ",".join(map(str, tokenizer.encode(prompt)))]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command += ["--report", report, *(["--verify", "--temperature", 0] if options.smoke else [])]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(done.stderr.strip().removeprefix("llama: ") or f"llama ended with {done.returncode}")
        result = json.loads(report.read_text())
    for prompt, tokens in zip(tagged, result["tokens"], strict=True):
        print(f"{'=' * 40}\n> {prompt}\n{tokenizer.decode(tokens)}")
    print("=" * 40)
    for phase in ("prefill", "generation"):
        count, seconds = result[phase]["tokens"], result[phase]["seconds"]
        print(f"{phase}: {count} tokens in {seconds:.3f} s, {count / max(seconds, 1e-9):.0f} tokens/s")
    return {"texts": tagged, **result}


def interact(model: Path, tokenizer) -> None:
    while True:
        print("prompt> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        answer(model, tokenizer, [line.rstrip("\n")])


def main() -> int:
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "WORLD_SIZE is more than 1, and one process reads the files of all ranks.  Fix: start one process"
        )
    with tempfile.TemporaryDirectory() as folder:
        if options.smoke:
            options.ckpt_dir, options.gen_length = write_random_model(Path(folder)), 24
        if options.ckpt_dir is None:
            raise UserError("no CKPT_DIR.  Fix: name the folder of params.json, or pass --smoke")
        tokenizer = load_tokenizer(options.ckpt_dir)
        model = converted(options.ckpt_dir, tokenizer)
        if options.interactive:
            interact(model, tokenizer)
            return 0
        result = answer(model, tokenizer, options.prompt or PROMPTS)
    if options.report:
        write_report(options.report, result)
    verified = f", {result['verified']} tokens equal to recomputing the texts" if options.smoke else ""
    print(f"llama_inference: {sum(map(len, result['tokens']))} tokens for {len(result['tokens'])} prompts{verified}")
    return 0


program(main)
