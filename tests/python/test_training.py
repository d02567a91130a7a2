"""xformers.helpers.training: a resumed run is the uninterrupted one; files are whole; the loop does what it says."""

import json
import signal

import pytest
import torch
from torch import nn
from xformers.helpers.training import (
    EpochOrder,
    Precision,
    Trainer,
    UserError,
    load_checkpoint,
    one_cycle_linear,
    save_checkpoint,
    training_parser,
    warmup_cosine,
    write_json,
)

CPU = torch.device("cpu")


def trainer(steps=12, stop_at=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    y = x.sum(1, keepdim=True)
    order = EpochOrder(64, 8, seed=5)
    made = None

    def loss(chosen):
        if stop_at is not None and made.step == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return (model(x[chosen]) - y[chosen]).square().mean()

    made = Trainer(
        model,
        torch.optim.AdamW(model.parameters(), 1e-2),
        loss,
        order,
        steps=steps,
        schedule=warmup_cosine(0.25),
        precision=Precision("32", CPU),
        accumulate=2,
        evaluate=lambda: {"spread": float(model(x).std())},
        evaluate_every=5,
        settings={"width": 8, **options.pop("settings", {})},
        **options,
    )
    return made


def test_resumed_is_uninterrupted(tmp_path):
    whole = trainer()
    whole.run()
    file = tmp_path / "run.ckpt"
    first = trainer(stop_at=6, checkpoint=file)
    first.run()
    assert first.stopped == signal.SIGTERM and first.step == 7
    second = trainer(checkpoint=file, resume=True)
    second.run()
    assert [row["loss"] for row in second.train] == [row["loss"] for row in whole.train]
    assert [row["step"] for row in second.evaluations] == [5, 10, 12]
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoint_of_other_settings_is_refused(tmp_path):
    file = tmp_path / "run.ckpt"
    trainer(checkpoint=file).run()
    before = file.read_bytes()
    with pytest.raises(UserError, match="exists.  Fix: pass --resume"):
        trainer(checkpoint=file).run()
    with pytest.raises(UserError, match="is of a run with width 8"):
        trainer(checkpoint=file, resume=True, settings={"width": 9}).run()
    file.write_bytes(before[: len(before) // 2])
    with pytest.raises(UserError, match="damaged"):
        trainer(checkpoint=file, resume=True).run()
    with pytest.raises(UserError, match="--resume needs"):
        trainer(resume=True)


def test_files_are_whole(tmp_path):
    file = tmp_path / "deep" / "report.json"
    write_json(file, {"a": 1})
    assert json.loads(file.read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1} and len(list(file.parent.iterdir())) == 1
    with pytest.raises(UserError, match="cannot write"):
        write_json(file / "below", {})
    save_checkpoint(tmp_path / "x", {"t": torch.ones(2)})
    assert torch.equal(load_checkpoint(tmp_path / "x")["t"], torch.ones(2))
    with pytest.raises(UserError, match="cannot read"):
        load_checkpoint(tmp_path / "nothing")


def test_loss_that_is_not_finite():
    run = trainer()
    run.loss = lambda batch: run.model[0].weight.sum() * torch.inf
    with pytest.raises(UserError, match="the loss is .*inf at step 0"):
        run.run()


def test_every_item_once_per_epoch():
    order = EpochOrder(20, 4, seed=1)
    epochs = [torch.cat([order(5 * e + i) for i in range(5)]) for e in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in epochs)
    assert not torch.equal(*epochs) and torch.equal(order(0), epochs[0][:4])


def test_schedules():
    cosine = warmup_cosine(0.1, least=0.1, first=0.01)
    assert [cosine(x) for x in (0, 0.05, 0.1, 0.55, 1)] == pytest.approx([0.01, 0.5, 1, 0.55, 0.1])
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=101, pct_start=0.2, anneal_strategy="linear", cycle_momentum=False
    )
    ours = one_cycle_linear(19.2 / 100)  # theirs counts the warm-up's steps from 0 to pct_start * total - 1
    for step in range(100):
        assert ours(step / 100) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6, abs=1e-9)
        optimizer.step()
        theirs.step()


def test_options_with_dashes():
    parser = training_parser("a program")
    parser.add_argument("--max_epochs", type=int)
    options = parser.parse_args(["--max-epochs", "3", "--save-every=7"])
    assert (options.max_epochs, options.save_every) == (3, 7)


def test_precision():
    assert Precision("auto", CPU).name == "32"
    with Precision("bf16", CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
