"""A run of a language model on bytes: options, training, bits per byte beside a bigram's, a sample, the report."""

import argparse
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from xformers.helpers.training import (
    EpochOrder,
    Precision,
    Trainer,
    UserError,
    choose_device,
    saving_of,
    training_parser,
    warmup_cosine,
)
from xformers.helpers.training import write_json as write_report

from .corpora import Text, load_text
from .rules import Brackets

VOCABULARY = 256


def language_parser(description: str | None, **defaults: object) -> argparse.ArgumentParser:
    parser = training_parser(description)
    text = parser.add_argument_group("text")
    text.add_argument("--data", default="stdlib", help="a file or folder, stdlib (of this Python), markov, brackets")
    text.add_argument("--size", type=int, default=2_000_000, help="bytes of markov and brackets")
    train = parser.add_argument_group("training")
    train.add_argument("--max_epochs", type=float, help="an epoch has a window beginning at every byte of the text")
    train.add_argument("--steps", type=int, help="of the optimiser, instead of --max_epochs")
    train.add_argument("--batch", type=int, help="windows at a time")
    train.add_argument("--ref_batch", type=int, help="windows in a step of the optimiser")
    train.add_argument("--learning_rate", type=float)
    train.add_argument("--weight_decay", type=float, default=0.1, help="but of biases and norms")
    train.add_argument("--evals", type=int, default=10, help="validation measurements")
    train.add_argument("--eval_windows", type=int, default=64)
    sample = parser.add_argument_group("sample")
    sample.add_argument("--prompt", default="Friends of my soul")
    sample.add_argument("--sample_bytes", type=int, default=1000)
    sample.add_argument("--temperature", type=float, default=1.0)
    sample.add_argument("--top_k", type=int, default=10)
    parser.set_defaults(**defaults)
    return parser


def bigram_bits_per_byte(train: torch.Tensor, windows: torch.Tensor) -> float:
    """How well the byte before predicts the next: counted in `train`, measured on windows [count, context + 1]. A
    byte's own frequency counts as one more pair of each byte before it."""
    bytes_ = torch.bincount(train.long(), minlength=VOCABULARY).double()
    pairs = torch.bincount(train[:-1].long() * VOCABULARY + train[1:].long(), minlength=VOCABULARY**2).double()
    pairs = pairs.view(VOCABULARY, VOCABULARY)
    unigram = (bytes_ + 1) / (len(train) + VOCABULARY)
    bits = -torch.log2((pairs + unigram) / (pairs.sum(1, keepdim=True) + 1))
    return float(bits[windows[:, :-1].long(), windows[:, 1:].long()].mean())


def validation_windows(text: torch.Tensor, context: int, count: int) -> torch.Tensor:
    """[count, context + 1]: side by side, spread over the text; fewer where it is short."""
    places = (len(text) - 1) // context
    count = min(count, places)
    starts = torch.arange(count) * places // count * context
    return text[starts[:, None] + torch.arange(context + 1)]


@torch.no_grad()
def sample(model: nn.Module, prompts: list[bytes], length: int, context: int, temperature: float, top_k: int) -> list:
    """`length` bytes behind each prompt (all of one length), from the `top_k` likeliest; 0: the likeliest."""
    model.eval()
    device = next(model.parameters()).device
    tokens = torch.tensor([list(prompt) for prompt in prompts], device=device)
    for _ in range(length):
        logits = model(tokens[:, -context:])[:, -1].float()
        if temperature == 0:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            values, ids = (logits / temperature).topk(min(top_k, VOCABULARY))
            chosen = ids.gather(1, torch.multinomial(values.softmax(-1), 1))
        tokens = torch.cat([tokens, chosen], 1)
    return [bytes(row) for row in tokens.tolist()]


def balanced_share(model: nn.Module, rule: Brackets, context: int, lines: int) -> float:
    """Of sampled whole lines, those in which every bracket is closed by its own; temperature 1, all bytes."""
    written = sample(model, [b"\n"] * 64, context - 1, context, 1.0, VOCABULARY)
    whole = [line for text in written for line in text.split(b"\n")[1:-1] if line][:lines]
    return sum(map(rule.balanced, whole)) / max(len(whole), 1)


def decayed(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups of parameters: biases and norms go without decay."""
    kept = {id(p) for m in model.modules() if isinstance(m, (nn.Linear, nn.Embedding)) for p in [m.weight]}
    groups = {True: [], False: []}
    for parameter in model.parameters():
        groups[id(parameter) in kept].append(parameter)
    return [{"params": groups[k], "weight_decay": weight_decay if k else 0.0} for k in (True, False) if groups[k]]


def train_language_model(options: argparse.Namespace, build: Callable[[], nn.Module], name: str) -> int:
    device = choose_device(options.device)
    text: Text = load_text(options.data, options.seed, options.size)
    context = options.block_size
    for part in (text.train, text.validation):
        if len(part) <= context:
            raise UserError(
                f"{text.source} has {len(text.train)} bytes for training and {len(text.validation)} for validation, "
                f"expected more than {context} in each.  Fix: more text, or a smaller --block_size"
            )
    prompt = options.prompt.encode()
    torch.manual_seed(options.seed)
    model = build().to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"text: {text.files} files, {(len(text.train) + len(text.validation)) / 1e6:.1f} MB from {text.source}")
    print(f"model: {parameters / 1e6:.2f} M parameters, attention {options.attention}, on {device}", flush=True)

    windows = validation_windows(text.validation, context, options.eval_windows)
    bigram = bigram_bits_per_byte(text.train, windows)
    order = EpochOrder(len(text.train) - context, options.batch, options.seed)
    accumulate = max(1, options.ref_batch // order.batch)
    tokens = order.batch * accumulate * context  # of a step
    steps = options.steps or max(1, round(options.max_epochs * (order.per_epoch // accumulate)))
    within = torch.arange(context + 1)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        rows = rows.to(device).long()
        return F.cross_entropy(model(rows[:, :-1]).float().flatten(0, 1), rows[:, 1:].flatten())

    def evaluate() -> dict[str, float]:
        values = [float(loss(part)) * len(part) for part in windows.split(options.batch)]
        return {"bits_per_byte": sum(values) / len(windows) / math.log(2)}

    precision = Precision(options.precision, device)
    settings = {k: v for k, v in vars(options).items() if k not in ("checkpoint", "resume", "report", "save_every")}
    trainer = Trainer(
        model,
        torch.optim.AdamW(decayed(model, options.weight_decay), options.learning_rate, betas=(0.9, 0.95)),
        loss,
        lambda number: text.train[order(number)[:, None] + within],
        steps=steps,
        schedule=warmup_cosine(min(0.2, 512 * 20 * accumulate / tokens / steps), least=0.1, first=1e-2),
        precision=precision,
        accumulate=accumulate,
        clip=1.0,
        evaluate=evaluate,
        evaluate_every=max(1, steps // options.evals),
        **saving_of(options),
        settings={**settings, "source": text.source},
    )
    trainer.run()
    if trainer.stopped:
        return 128 + trainer.stopped
    with precision.autocast():
        (written,) = sample(model, [prompt], options.sample_bytes, context, options.temperature, options.top_k)
        balanced = None
        if isinstance(text.rule, Brackets):
            balanced = balanced_share(model, text.rule, context, options.sample_bytes)
    shown = written.decode(errors="replace")
    bits = trainer.evaluations[-1]["bits_per_byte"]
    floor = text.rule.bits_per_byte if text.rule else None
    report = {
        "program": name,
        "attention": options.attention,
        "device": str(device),
        "dtype": {"32": "float32", "16": "float16", "bf16": "bfloat16"}[precision.name],
        "threads": torch.get_num_threads(),
        "model": {
            "layers": options.n_layer,
            "dim": options.n_embd,
            "heads": options.n_head,
            "context": context,
            "parameters": parameters,
        },
        "text": {
            "source": text.source,
            "files": text.files,
            "train_bytes": len(text.train),
            "validation_bytes": len(text.validation),
            "validation_bytes_used": windows[:, 1:].numel(),
        },
        "batch": order.batch * accumulate,
        "steps": trainer.step,
        "seconds": trainer.seconds,
        "tokens_per_second": trainer.step * tokens / max(trainer.seconds, 1e-9),
        "train": [
            {"step": row["step"] - 1, "seconds": row["seconds"], "bits_per_byte": row["loss"] / math.log(2)}
            for row in trainer.train
        ],
        "validation": trainer.evaluations,
        "validation_bits_per_byte": bits,
        "bigram_bits_per_byte": bigram,
        "floor_bits_per_byte": floor,
        "balanced": balanced,
        "sample": shown,
    }
    if options.report:
        write_report(options.report, report)
    print(f"sample:\n{shown}")
    beside = "" if floor is None else f", the text's entropy {floor:.3f}"
    beside += "" if balanced is None else f", {100 * balanced:.1f} % of sampled lines balance"
    print(
        f"{name}: validation {bits:.3f} bits per byte, bigram {bigram:.3f}{beside}, {trainer.seconds:.0f} s of training"
    )
    return 0
