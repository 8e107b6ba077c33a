"""What was measured of a machine: the file of its rows, the table of them, and what has become slower.

A row is what benchmarks.step, realtime or sampling says of one model, and what `python -m benchmarks` adds: `program`,
`case` (all that was asked for), `words` (how the model differs from its preset) and, in place of numbers that could not
be had, `failed`, the reason.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxaudio.core import InputError

Row = Mapping[str, Any]
NOISE = 0.05  # share by which a median is lower, at least, where something is called slower
HEADS = (
    *("model", "by", "type", "parameters", "compile, s", "steps/s (quartiles)", "x real time", "GFLOP/s"),
    *("of a matrix product", "peak memory, MiB", "PyTorch eager, steps/s: ratio", "`torch.compile`: ratio"),
    *("input wait", "sampling, x real time", "coding, x real time"),
)
PEERS = {"torch": HEADS[10], "torch.compile": HEADS[11]}


class Rate(NamedTuple):
    """Quartiles of a speed, and the GFLOP/s of a matrix product in the same run."""

    low: float
    middle: float
    high: float
    limit: float

    def below(self, other: "Rate") -> bool:
        """By more than the noise, as it is and as a share of the limit."""
        pairs = (self, other), (self.share(), other.share())
        return all(a.high < b.low and a.middle < (1 - NOISE) * b.middle for a, b in pairs)

    def share(self) -> "Rate":
        """Per GFLOP/s."""
        return Rate(*(value / self.limit for value in self[:3]), 1.0)


def read(path: Path) -> list[Row]:
    """The rows of a file. Raises InputError where there are none."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError("it is no list")
        for row in rows:
            row["case"], row["versions"]["device"], rates(row), table([row])
    except OSError as problem:
        raise InputError(f"{path} cannot be read ({problem.strerror}): name a file of python -m benchmarks") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as problem:
        reason = f"{type(problem).__name__}: {problem}"
        raise InputError(f"{path} holds no rows as python -m benchmarks writes them ({reason}): delete it") from None
    return rows


def write(path: Path, rows: Sequence[Row]) -> None:
    """All rows, a line each, in place of the file: it holds the old ones or the new ones, whenever this is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    lines = ",\n".join(json.dumps(known(row), allow_nan=False) for row in rows)
    fresh.write_text(f"[\n{lines}\n]\n", encoding="ascii")
    fresh.replace(path)


def known(value: Any) -> Any:
    """The value with None for numbers that are none, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: known(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replaced(rows: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The rows with the new ones, which are of one case, where rows of that case stood, or at the end."""
    case = new[0]["case"]
    place = next((i for i, row in enumerate(rows) if row["case"] == case), len(rows))
    keep = lambda part: [row for row in part if row["case"] != case]
    return [*keep(rows[:place]), *new, *keep(rows[place:])]


def rates(row: Row) -> dict[str, Rate]:
    """The speeds that a row tells, by name: more is better."""
    if "failed" in row:
        return {}
    if row["program"] == "step":
        stage = f" ({stage_of(row)})" if stage_of(row) else ""
        return {f"{row['case']}{stage}, steps/s": Rate(*row["steps_per_second"], row["matmul_gflops"])}
    if row["program"] == "sampling":
        name, limit = f"{row['case']}, samples/s", row["matmul_gflops"]
        return {f"{name} of {each['streams']}": Rate(*each["samples_per_second"], limit) for each in row["rows"]}
    return {
        f"{row['case']}, {part} of {whole['batch']}, times real time": Rate(*factors, whole["matmul_gflops"])
        for whole in row["offline"]
        for part, factors in whole["factors"].items()
    }


def stage_of(row: Row) -> str:
    """The stage of the training; empty where there is but one."""
    stage = row.get("stage")
    return "" if stage is None else ", ".join(map(str, stage)) if isinstance(stage, list | tuple) else str(stage)


def caption(rows: Sequence[Row]) -> str:
    """What all rows were measured with."""
    versions = [row["versions"] for row in rows]
    each = lambda found: ", ".join(dict.fromkeys(str(x) for x in found if x))
    packages = [f"{name} {each(v.get(name) for v in versions)}" for name in ("jax", "torch") if name in versions[0]]
    limits = [rate.limit for row in rows for rate in rates(row).values()]
    products = f"matrix products at {min(limits):.0f} to {max(limits):.0f} GFLOP/s" if limits else ""
    loads = [row.get("other_load_cores") or 0.0 for row in rows]
    revisions = f"revision {each(row.get('git') for row in rows)}"
    device = each(v["device"] for v in versions)
    told = (device, *packages, products, revisions, f"other load up to {max(loads):.2f} cores")
    return "; ".join(part for part in told if part)


def table(rows: Sequence[Row]) -> str:
    """A line for every program of a training step, in Markdown; what each model's sampling and coding gives stands in
    its first. Below it, what does not run."""
    lines = []
    for name in dict.fromkeys(map(title, rows)):
        mine = [row for row in rows if title(row) == name]
        steps = [training(row) for row in mine if row["program"] == "step"] or [{HEADS[0]: name}]
        for row in mine:
            steps[0] |= OTHERS[row["program"]](row) if row["program"] != "step" else {}
        lines += steps
    shown = [[line.get(head, "") for head in HEADS] for line in lines]
    widths = [max(map(len, column)) for column in zip(HEADS, *shown, strict=True)]
    drawn = lambda cells: "| " + " | ".join(x.ljust(n) for x, n in zip(cells, widths, strict=True)) + " |"
    rule = "|" + "|".join("-" * (n + 2) for n in widths) + "|"
    return "\n".join([drawn(HEADS), rule, *map(drawn, shown), *notes(rows)])


def title(row: Row) -> str:
    """The model of a row."""
    return f"`{' '.join((row['preset'], *row['words']))}`"


def training(row: Row) -> dict[str, str]:
    """The cells of a row of benchmarks.step."""
    how = {"by": row["parallel"].rpartition("(")[2].rstrip(")"), "type": row["dtype"]}
    name = {"model": " ".join(filter(None, (title(row), stage_of(row))))} | how
    if "failed" in row:
        return name | {"steps/s (quartiles)": "fails"}
    low, middle, high = row["steps_per_second"]
    done, limit = row["operations_per_step"] * middle / 1e9, row["matmul_gflops"]
    waited = row.get("input_wait")
    return name | {
        "parameters": f"{sum(row['parameters'].values()) / 1e6:.2f}M",
        "compile, s": f"{row['compile_s']:.1f}",
        "steps/s (quartiles)": f"{short(middle)} ({short(low)} to {short(high)})",
        "x real time": short(row["audio_per_second"]),
        "GFLOP/s": short(done),
        "of a matrix product": f"{row['share_of_matmul']:.0%} of {short(limit)}",
        "peak memory, MiB": f"{row['peak_memory_mib']:.0f}",
        "input wait": "" if waited is None else f"{waited:.2%}",
        **{head: peer(row, name) for name, head in PEERS.items()},
    }


def peer(row: Row, name: str) -> str:
    """How the same step in PyTorch compares; empty where that was not asked."""
    if f"{name}_ratio" in row:
        return f"{short(row[f'{name}_steps_per_second'])}: {row[f'{name}_ratio']:.2f}"
    return "fails" if f"{name}_failed" in row else "no peer" if row.get("peer") is False else ""


def sampling(row: Row) -> dict[str, str]:
    """The cell of a row of benchmarks.sampling."""
    if "failed" in row:
        return {"sampling, x real time": "fails"}
    told = [f"{short(each['real_time'])} ({each['streams']} at once)" for each in row["rows"]]
    ratio = [f"PyTorch eager: {row['torch_ratio']:.2f}"] if "torch_ratio" in row else []
    return {"sampling, x real time": ", ".join(told + ratio)}


def coding(row: Row) -> dict[str, str]:
    """The cell of a row of benchmarks.realtime: of one sound at a time."""
    if "failed" in row:
        return {"coding, x real time": "fails"}
    told = {part: factors[1] for part, factors in row["offline"][0]["factors"].items()}
    if "stream" in row:
        told["stream"] = row["stream"]["factor"]
    return {"coding, x real time": ", ".join(f"{part} {short(factor)}" for part, factor in told.items())}


OTHERS: dict[str, Callable[[Row], dict[str, str]]] = {"sampling": sampling, "realtime": coding}


def notes(rows: Sequence[Row]) -> list[str]:
    """What does not run and why, a line each."""
    found = []
    for row in rows:
        about = f"{row['case']} ({stage_of(row)})" if stage_of(row) else row["case"]
        told = {"": row.get("failed"), " beside `torch`": row.get("torch_failed")}
        told[" beside `torch.compile`"] = row.get("torch.compile_failed")
        found += [f"- `{about}`{beside} does not run: {reason}" for beside, reason in told.items() if reason]
    return ["", *found] if found else []


def short(value: float) -> str:
    """Three digits or more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


class Change(NamedTuple):
    """How rows differ from older ones."""

    slower: list[str]  # what is, and by how much
    gone: list[str]  # what ran then and fails now, and why
    unmeasured: list[str]  # what is only in the older rows
    new: list[str]  # what is only in the newer ones
    alike: int  # speeds that are not slower

    @property
    def worse(self) -> bool:
        """Whether something is slower or runs no longer."""
        return bool(self.slower or self.gone)

    def __str__(self) -> str:
        lines = [f"slower: {text}" for text in self.slower] + [f"no longer runs: {text}" for text in self.gone]
        lines += [f"not measured now: {text}" for text in self.unmeasured]
        lines += [f"not measured then: {text}" for text in self.new]
        return "\n".join([*lines, f"{len(self.slower)} of {len(self.slower) + self.alike} speeds are lower than then"])


def compared(old: Sequence[Row], new: Sequence[Row]) -> Change:
    """What is slower than it was by more than the noise: in its median and in its median as a share of what the
    machine's matrix product reached in the same run, both beyond the quartiles of both and beyond NOISE."""
    then, now = ({name: rate for row in rows for name, rate in rates(row).items()} for rows in (old, new))
    cases = {name: row["case"] for row in old for name in rates(row)}
    failed = {row["case"]: row["failed"] for row in new if "failed" in row}
    both = [name for name in then if name in now]
    lost = [name for name in then if name not in now]
    return Change(
        slower=[told(name, then[name], now[name]) for name in both if now[name].below(then[name])],
        gone=[f"{name}: {failed[cases[name]]}" for name in lost if cases[name] in failed],
        unmeasured=[name for name in lost if cases[name] not in failed],
        new=[name for name in now if name not in then],
        alike=sum(not now[name].below(then[name]) for name in both),
    )


def told(name: str, then: Rate, now: Rate) -> str:
    """A speed that is lower than it was."""
    lost, share = (1 - b.middle / a.middle for a, b in ((then, now), (then.share(), now.share())))
    return (
        f"{name}: {short(now.middle)} (quartiles {short(now.low)} to {short(now.high)}) where it was "
        f"{short(then.middle)} ({short(then.low)} to {short(then.high)}), {lost:.0%} lower; "
        f"{share:.0%} as a share of a matrix product's rate"
    )
