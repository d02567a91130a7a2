"""microgpt train --checkpoint-blocks: the same numbers in less memory."""

import json
import re

from programs import TINY


def test_checkpointed_blocks_learn_the_same(microgpt, text, tmp_path):
    curves, said = [], []
    for more in ((), ("--checkpoint-blocks",)):
        report = tmp_path / f"{len(more)}.json"
        arguments = ("train", "--text", text, *TINY, "--steps", 8, "--dropout", 0.2, "--dtype", "bfloat16", *more)
        said.append(microgpt.succeeds(*arguments, "--report", report))
        curves.append([point["bits_per_byte"] for point in json.loads(report.read_text())["train"]])
    assert curves[0] == curves[1]
    assert "checkpointed" not in said[0]
    found = re.search(r"blocks are checkpointed: a step takes ([\d.]+) MB beside the model, ([\d.]+) MB less", said[1])
    assert found and float(found[2]) > 0.3 * float(found[1])
