"""The goals, each with what the run measured: value, bar, met or not."""

import math

from attention_cuda.problem import rate, time_ms


class Bars:
    def __init__(self, record: dict):
        self.rows = {row["case"]: row for row in record["rows"]}
        self.record, self.table = record, []

    def add(self, name: str, value: float | None, bar: float | None = None, at_least: bool = True):
        met = None if bar is None or value is None else (value >= bar if at_least else value <= bar)
        sign = "" if bar is None else f"{'>=' if at_least else '<='} {bar:g}"
        self.table.append({"name": name, "value": value, "bar": sign, "met": met})

    def ratios(self, cases, direction, rival):
        for case in cases:
            ours, theirs = (rate(self.rows.get(case), direction, name) for name in ("xformers", rival))
            if ours and theirs:
                yield case, ours / theirs

    def geometric_mean(self, name, cases, direction, rival, bar):
        values = [ratio for _, ratio in self.ratios(cases, direction, rival)]
        mean = math.exp(sum(map(math.log, values)) / len(values)) if values else None
        self.add(f"{name}: {direction}, geometric mean of {len(values)} over {rival}", mean, bar)

    def worst(self, name, cases, direction, rival, bar):
        case, ratio = min(self.ratios(cases, direction, rival), key=lambda x: x[1], default=("", None))
        self.add(f"{name}: {direction}, least over {rival} ({case})", ratio, bar)

    def over_best(self, name, cases, direction, bar):
        """Geometric mean and least of our rate over the best rival that ran."""
        values = []
        for case in cases:
            row = self.rows[case]
            ours = rate(row, direction, "xformers")
            best = max((rate(row, direction, side) or 0 for side in row[direction] if side != "xformers"), default=0)
            if ours and best:
                values.append((ours / best, case))
        mean = math.exp(sum(math.log(value) for value, _ in values) / len(values)) if values else None
        self.add(f"{name}: {direction}, geometric mean of {len(values)} over the best rival", mean, bar)
        least, case = min(values, default=(None, ""))
        self.add(f"{name}: {direction}, least over the best rival ({case})", least)

    def dense(self):
        table = [case for case in self.rows if case[0] == "D"]
        for direction, bar in (("forward", 1.04), ("backward", 1.08)):
            self.over_best("bf16 table", table, direction, bar)
            for d in (64, 128, 256):
                self.over_best(f"D {d}", [c for c in table if c.startswith(f"D{d} ")], direction, None)
            self.over_best("S 1024", [c for c in table if " S1024 " in c], direction, None)
        for direction in ("forward", "backward"):
            self.geometric_mean("bf16 table", table, direction, "flash", 1.0)
            for d in (64, 128, 256):
                self.geometric_mean(f"D {d}", [c for c in table if c.startswith(f"D{d} ")], direction, "flash", None)
            self.geometric_mean("fp16", [c for c in self.rows if c.startswith("fp16 D")], direction, "flash", 1.0)
            self.geometric_mean("bf16 table", table, direction, "cudnn", None)
            rest = [c for c in table if direction == "forward" or not c.startswith("D256")]
            self.worst("bf16 table", rest, direction, "efficient", 1.8)
        self.worst("D 256", [c for c in table if c.startswith("D256")], "backward", "efficient", 4.0)

    def harder(self):
        for direction in ("forward", "backward"):
            self.worst("bias", [c for c in self.rows if c.startswith("bias")], direction, "efficient", 2.0)
            self.worst("dropout 0.1", [c for c in self.rows if c.startswith("dropout")], direction, "flash", 1.0)
            self.worst("fp32", [c for c in self.rows if c.startswith("fp32 D")], direction, "efficient", 1.5)
            self.worst("gqa", [c for c in self.rows if c.startswith("gqa")], direction, "flash", None)
            for d in ("96", "192", "192/128"):
                self.over_best(f"D {d}", [c for c in self.rows if c.startswith(f"wide D{d} ")], direction, 1.0)
            self.worst("few heads", [c for c in self.rows if c.startswith("few heads")], direction, "flash", None)
        for case, row in self.rows.items():
            for kind, errors in row.get("errors", {}).items():
                worst = max(a / b for a, b in zip(errors["xformers"], errors["efficient"], strict=True))
                self.add(f"{case}: {kind} error over efficient's", worst, 1.0, at_least=False)

    def shares(self):
        window, full = self.rows.get("window 1024 D128 S16384"), self.rows.get("D128 S16384 full")
        for direction in ("forward", "backward"):
            narrow, whole = (time_ms(row, direction, "xformers") for row in (window, full))
            if narrow and whole:
                share = (window["s"] * 1024 - 1024**2 / 2) / full["s"] ** 2
                self.add(
                    f"window 1024: {direction}, time over its share of the area", narrow / whole / share, 1.25, False
                )
            for case in ("packed 64..2048", "packed 64..2048 causal"):
                packed, dense = (rate(self.rows.get(case), direction, name) for name in ("xformers", "dense"))
                if packed and dense:
                    self.add(f"{case}: {direction}, rate over dense", packed / dense, 0.9)
        for kind, words, bar in (("full", "", 0.88), ("causal", " causal", 0.85)):
            rows = (self.rows.get(f"deterministic D128 S4096{words}"), self.rows.get(f"D128 S4096 {kind}"))
            repeatable, plain = (rate(row, "backward", "xformers") for row in rows)
            if repeatable and plain:
                self.add(f"deterministic backward, {kind}: rate over the default", repeatable / plain, bar)
        for words in ("", " causal"):
            shared = self.rows.get(f"gqa 32/8 D128 S4096{words}")
            own = self.rows.get(f"D128 S4096 {words.strip() or 'full'}")
            for direction, bar in (("forward", 0.97), ("backward", 1.0)):
                grouped, plain = (rate(row, direction, "xformers") for row in (shared, own))
                if grouped and plain:
                    self.add(
                        f"shared heads 32/8{words}: {direction}, rate over heads of their own", grouped / plain, bar
                    )
        for row in self.rows.values():
            paged = row.get("paged_forward", {})
            for name, got in paged.items():
                if name != "dense" and "tflops" in got and "tflops" in paged["dense"]:
                    self.add(f"{name}: forward, rate over dense", got["tflops"] / paged["dense"]["tflops"], 0.92)

    def modified(self):
        """Over our own plain call through the same kernels, and over flex_attention."""
        bars = {"sinks": (0.99, 0.98), "alibi": (0.93, 0.93), "softcap": (0.8, 0.85)}
        for case in (c for c in self.rows if c.startswith("modified")):
            row = self.rows[case]
            for name, each in bars.items():
                for direction, bar in zip(("forward", "backward"), each, strict=True):
                    ours, plain, flex = (rate(row, direction, side) for side in (name, "plain", f"flex {name}"))
                    if ours and plain:
                        self.add(f"{case}: {name}, {direction} over plain", ours / plain, bar)
                    if ours and flex:
                        self.add(f"{case}: {name}, {direction} over flex", ours / flex, 1.3)
        for words, bar in (("bias", 0.92), ("bias and its gradient", 0.92)):
            for direction in ("forward", "backward"):
                packed, dense = (rate(self.rows.get(f"{n} {words}"), direction, n) for n in ("packed", "dense"))
                if packed and dense:
                    self.add(f"packed {words}: {direction}, rate over dense", packed / dense, bar)
        for case, row in self.rows.items():
            times = row.get("modified_decode_ms", {})
            for name in ("sinks", "softcap", "alibi"):
                if name in times and "plain" in times:
                    bar = 1.03 if name != "alibi" else None
                    self.add(f"{case}: {name}, time over plain", times[name] / times["plain"], bar, False)

    def others(self):
        for row in self.rows.values():
            if "merge" in row:
                large = "M512" in row["case"]
                value = row["merge"]["gb_per_s"] / self.record["copy_gb_per_s"]
                self.add(f"{row['case']}: of copy", value, 0.85 if large else None)
            if "decode" in row:
                got = row["decode"]
                for key in ("gb_per_s", "graph_gb_per_s"):
                    best = max((side.get(key, 0) for name, side in got.items() if name != "xformers"), default=0)
                    if best and key in got["xformers"]:
                        self.add(f"{row['case']}: {key} over the best of PyTorch's", got["xformers"][key] / best)
            if "forward_floats_per_row" in row:
                for direction, bar in (("forward", 2), ("backward", 2 * row["head_dim"] + 8)):
                    value = row[f"{direction}_floats_per_row"]
                    self.add(f"{row['case']}: {direction}, floats per (batch, head, query)", value, bar, False)
        if "host_us" in self.record:
            self.add("host time of a call, us", self.record["host_us"]["forward"], 15, at_least=False)


def summary(record: dict) -> list[dict]:
    bars = Bars(record)
    bars.dense(), bars.harder(), bars.shares(), bars.modified(), bars.others()
    print("\nsummary" + " " * 66 + "value   bar     met")
    for line in bars.table:
        value = "-" if line["value"] is None else f"{line['value']:.3g}"
        met = {True: "yes", False: "NO", None: ""}[line["met"]]
        print(f"  {line['name']:70} {value:>6}  {line['bar']:7} {met}")
    return bars.table
