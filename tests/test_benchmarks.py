"""The benchmark of all models: what is measured, what is kept of it, the tables, and what has become slower."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import record
from benchmarks.step import beside
from jaxaudio import zoo
from tests.commands import run
from tests.conftest import REPOSITORY

VERSIONS = {"python": "3.11.7", "jax": "0.10.2", "torch": "2.13.0", "device": "1 cpu"}
STUB = """
import json, pathlib, sys, time
case, path = sys.argv[1:]
row = {"steps_per_second": [1.9, 2.0, 2.1], "matmul_gflops": 200.0, "stage": None, "dtype": "float32",
       "parallel": "1 cpu (pmap)" if "pmap" in case else "1 cpu (jit)", "parameters": {"critic": 1, "generator": 2},
       "compile_s": 9.0, "operations_per_step": 5e10, "share_of_matmul": 0.5, "audio_per_second": 32.0,
       "peak_memory_mib": 100.0, "input_wait": float("nan"), "other_load_cores": 0.0, "git": "of the process"}
if case.startswith("sampling"):
    each = {"streams": 1, "samples_per_second": [10.0, 11.0, 12.0], "real_time": 3.5}
    row = {"rows": [each], "matmul_gflops": 200.0}
if case.startswith("realtime"):
    whole = {"batch": 1, "factors": {"encode": [8.0, 9.0, 10.0], "both": [4.0, 5.0, 6.0]}, "matmul_gflops": 200.0}
    row = {"offline": [whole], "stream": {"factor": 2.5}}
with open(path, "a") as file:
    file.write("" if "segan" in case else json.dumps(row) + "\\n")
    if "rave" in case and "step" in case:
        file.write(json.dumps({**row, "stage": "critic"}) + "\\n" + '{"half')
        file.flush()
        time.sleep(60)
if "segan" in case:
    sys.exit("Traceback (most recent call last):\\nnumpy.SomeError: no\\tmemory\\n  a note")
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """The results' folder. All programs but one that fails and one that hangs tell the same, and at once."""
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    monkeypatch.setattr(benchmarks, "command", lambda case, rows: [sys.executable, path, case.about, rows])
    monkeypatch.setattr(benchmarks, "machine", lambda: {"backend": "cpu", "versions": VERSIONS})
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def row(case="step rave:small", **other):
    """Of a step, as a file has it."""
    numbers = {"steps_per_second": [1.9, 2.0, 2.1], "matmul_gflops": 200.0, "stage": "critic", "dtype": "float32"}
    numbers |= {"parallel": "1 cpu (jit)", "parameters": {"critic": 1_500_000}, "compile_s": 9.0}
    numbers |= {"operations_per_step": 5e10, "share_of_matmul": 0.5, "audio_per_second": 32.0, "input_wait": 0.0004}
    numbers |= {"peak_memory_mib": 100.0, "other_load_cores": 0.25, "git": "abc"}
    told = {"program": case.split()[0], "case": case, "preset": case.split()[1], "words": [], "versions": VERSIONS}
    return told | numbers | other


def failed(case, reason="out of memory"):
    kept = ("program", "case", "preset", "words", "versions", "dtype", "parallel")
    return {name: value for name, value in row(case).items() if name in kept} | {"failed": reason}


def changed(old, new):
    return record.compared([row(**old)], [row(**new)])


def cells(table):
    """Of every line, by the head of its column."""
    lines = [line[1:-1].split("|") for line in table.split("\n\n")[0].splitlines()]
    heads, _, *others = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(heads, line, strict=True)) for line in others]


def test_every_model_is_measured_in_all_ways_that_it_has():
    found = list(benchmarks.cases((), benchmarks.Options(), accelerator=False))
    assert {case.spec.split(":")[0] for case in found} == set(zoo.names())
    about = [case.about for case in found]
    assert len(set(about)) == len(about)
    assert [each for each in about if "rave" in each] == [
        "step rave:small",
        "step rave:small --model.dtype bfloat16",
        "step rave:small --parallel pmap",
        "realtime rave:small",
    ]
    assert "sampling samplernn:digits" in about
    assert "realtime specvae:paper" in about
    assert {case.how for case in found if case.dtype == "bfloat16" or case.parallel == "pmap"} == {benchmarks.BRIEF}
    assert {case.how for case in found if case.program == "sampling"} == {("--against", "torch")}
    on_gpu = list(benchmarks.cases((), benchmarks.Options(against="none"), accelerator=True))
    assert {case.spec for case in on_gpu} == {f"{name}:paper" for name in zoo.names()}
    assert {case.how for case in on_gpu if case.dtype == "bfloat16"} == {("--against", "none")}


def test_quick_has_a_model_of_every_family_and_float32_by_jit_alone():
    found = list(benchmarks.cases((), benchmarks.Options(quick=True), accelerator=False))
    families = {zoo.names()[case.spec.split(":")[0]].split(".")[1] for case in found}
    assert families == set(zoo.FAMILIES)
    assert {(case.dtype, case.parallel) for case in found} == {("float32", "jit")}
    assert all("--windows" in case.how for case in found)
    assert {"eager", "torch"} == {case.how[1] for case in found if "--against" in case.how}
    (one,) = benchmarks.cases(("segan:tiny", "segan:tiny"), benchmarks.Options(quick=True), accelerator=True)
    assert one.about == "step segan:tiny", "twice named is measured once; it is unconditional as it is"


def test_models_are_made_like_those_in_pytorch_and_the_programs_take_the_words():
    """All options of all cases are known to the programs, by their own parsers."""
    from benchmarks import realtime, rows, sampling, step

    programs = {"step": step, "sampling": sampling, "realtime": realtime}
    for quick in (False, True):
        for case in benchmarks.cases(("hifigan", "specgan", "samplernn"), benchmarks.Options(quick=quick), False):
            words = benchmarks.command(case, "rows.jsonl")[3:]
            ((spec, options),) = rows.named(programs[case.program].Options, case.program, words, "")
            assert spec == case.spec
            assert options.model.dtype == case.dtype
            assert getattr(options.model, "mel_windows", ()) == ()
            assert not getattr(options.model, "conditional", False)
    pytest.importorskip("torch", reason="the peers need the extra `compare`")
    with pytest.raises(ValueError, match="no-conditional"):
        beside(zoo.load("specgan:digits"), None, False)


def test_whoever_measures_leaves_the_accelerator_to_the_processes():
    code = "from benchmarks import __main__ as b; print(len(list(b.cases((), b.Options(), True))) > 14)"
    nothing = {**os.environ, "JAX_PLATFORMS": "cuda"}  # where a device is asked for, this fails
    nothing.pop("XLA_FLAGS", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=nothing, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_one_that_fails_and_one_that_hangs_get_a_row_with_the_reason_and_the_others_go_on(stub, capsys):
    specs = ("segan:tiny", "rave:tiny", "wavernn:tiny")
    code, out, err = run(benchmarks.main, *specs, "--quick", "--limit", 1.5, capsys=capsys)
    assert code == 0, err
    path = stub / "cpu-quick.json"
    assert out.splitlines()[-1] == f"the rows are in {path}"
    rows = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert [(each["case"], each.get("stage"), each.get("failed")) for each in rows] == [
        ("step segan:tiny", None, "numpy.SomeError: no memory"),
        ("step rave:tiny", None, None),
        ("step rave:tiny", "critic", None),
        ("step rave:tiny", None, "not done in 1.5 s: give it more by --limit"),
        ("realtime rave:tiny", None, None),
        ("step wavernn:tiny", None, None),
        ("sampling wavernn:tiny", None, None),
    ]
    assert all(each["versions"] == VERSIONS and each["git"] != "of the process" for each in rows)
    assert rows[1]["input_wait"] is None
    segan, rave, critic, hung, wavernn = cells(out[out.index("| model") :])
    assert segan["steps/s (quartiles)"] == hung["steps/s (quartiles)"] == "fails"
    assert rave["coding, x real time"] == "encode 9, both 5, stream 2.5"
    assert wavernn["sampling, x real time"] == "3.5 (1 at once)"
    assert critic["model"] == "`rave:tiny` critic"
    assert "- `step segan:tiny` does not run: numpy.SomeError: no memory" in out


def test_rows_of_a_case_that_is_measured_again_are_replaced_where_they_stand(stub, capsys):
    path = stub / "cpu.json"
    before = [
        row("step dac:tiny"),
        row("step wavernn:tiny --parallel pmap"),
        failed("step wavernn:tiny"),
        row("step x:y"),
    ]
    record.write(path, before)
    assert run(benchmarks.main, "wavernn:tiny", capsys=capsys)[0] == 0
    rows = record.read(path)
    assert [each["case"].removeprefix("step ") for each in rows] == [
        *("dac:tiny", "wavernn:tiny --parallel pmap", "wavernn:tiny", "x:y"),
        *("wavernn:tiny --model.dtype bfloat16", "sampling wavernn:tiny"),
    ]
    assert [rows[0], rows[3]] == [before[0], before[3]]
    assert rows[1]["parameters"] == rows[2]["parameters"] == {"critic": 1, "generator": 2}
    stages = [row(stage="a"), row(stage="b")]
    assert record.replaced(stages, [row(stage="c")]) == [row(stage="c")], "all stages that were"


def test_a_run_that_is_stopped_keeps_all_cases_but_that_one(stub, monkeypatch, capsys):
    def until_the_second(case, limit):
        if case.parallel == "pmap":
            raise KeyboardInterrupt
        return [row()]

    monkeypatch.setattr(benchmarks, "measured", until_the_second)
    code, _, err = run(benchmarks.main, "segan:tiny", "--json", stub / "new" / "a.json", capsys=capsys)
    assert code == 130
    assert err.endswith("interrupted\n")
    assert [each["case"] for each in record.read(stub / "new" / "a.json")] == [
        "step segan:tiny",
        "step segan:tiny --model.dtype bfloat16",
    ]
    assert [path.name for path in (stub / "new").iterdir()] == ["a.json"]


def test_a_table_has_a_line_per_program_of_a_step_and_tells_what_there_is_no_number_for():
    ratios = {"torch_ratio": 1.581, "torch_steps_per_second": 1.265, "torch.compile_failed": "no | second derivative"}
    alone = row("step tokengru:small", peer=False, stage=[1, True], input_wait=None)
    factors = {"offline": [{"factors": {"encode": [8.0, 1234.4, 2e3]}, "batch": 1, "matmul_gflops": 1.0}]}
    coded = {**failed("realtime rave:small"), **factors}
    del coded["failed"]
    rows = [
        row(peer=True, **ratios),
        alone,
        coded,
        failed("realtime dac:small"),
        row("step rave:small", stage="decoder"),
    ]
    critic, decoder, tokengru, dac = cells(record.table(rows))
    assert critic == {
        "model": "`rave:small` critic",
        "by": "jit",
        "type": "float32",
        "parameters": "1.50M",
        "compile, s": "9.0",
        "steps/s (quartiles)": "2 (1.9 to 2.1)",
        "x real time": "32",
        "GFLOP/s": "100",
        "of a matrix product": "50% of 200",
        "peak memory, MiB": "100",
        "PyTorch eager, steps/s: ratio": "1.26: 1.58",
        "`torch.compile`: ratio": "fails",
        "input wait": "0.04%",
        "sampling, x real time": "",
        "coding, x real time": "encode 1234",
    }
    assert decoder["PyTorch eager, steps/s: ratio"] == decoder["coding, x real time"] == ""
    assert tokengru["model"] == "`tokengru:small` 1, True"
    assert tokengru["PyTorch eager, steps/s: ratio"] == tokengru["`torch.compile`: ratio"] == "no peer"
    assert tokengru["input wait"] == ""
    assert dac["model"] == "`dac:small`"
    assert dac["coding, x real time"] == "fails"
    assert record.table(rows).endswith(
        "\n\n- `step rave:small (critic)` beside `torch.compile` does not run: no | second derivative\n"
        "- `realtime dac:small` does not run: out of memory"
    )


def test_all_result_files_are_printed_and_nothing_is_measured(stub, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "machine", lambda: pytest.fail("it looks for devices"))
    record.write(stub / "nvidia-h200.json", [row(versions={**VERSIONS, "device": "1 NVIDIA H200"}, git="def")])
    record.write(stub / "cpu.json", [row(), row("step segan:tiny", other_load_cores=None, matmul_gflops=450.0)])
    record.write(stub / "none.json", [])
    code, out, _ = run(benchmarks.main, "--table", capsys=capsys)
    assert code == 0
    first, second = out.split("**nvidia-h200**")
    told = "1 cpu; jax 0.10.2; torch 2.13.0; matrix products at 200 to 450 GFLOP/s; revision abc; other load up to 0.25"
    assert first.startswith(f"**cpu**: {told} cores\n\n| model ")
    assert second.startswith(": 1 NVIDIA H200; ")
    assert len(cells(first[first.index("| model") :])) == 2


@pytest.mark.parametrize(
    ("new", "slower"),
    [
        ({"steps_per_second": [1.6, 1.7, 1.8]}, True),
        ({"steps_per_second": [1.86, 1.88, 1.89], "matmul_gflops": 201.0}, True),
        ({"steps_per_second": [1.6, 1.7, 1.95]}, False),  # its quartiles reach those of before
        ({"steps_per_second": [1.85, 1.899, 1.9]}, False),
        ({"steps_per_second": [1.6, 1.7, 1.8], "matmul_gflops": 170.0}, False),  # so is the machine
        ({"steps_per_second": [1.9, 2.0, 2.1], "matmul_gflops": 400.0}, False),  # a fast machine excuses nothing
        ({"steps_per_second": [2.9, 3.0, 3.1]}, False),
    ],
)
def test_slower_is_what_is_so_beyond_the_quartiles_as_it_is_and_beside_the_matrix_product(new, slower):
    change = changed({}, new)
    assert change.worse == slower
    assert (len(change.slower), change.alike) == ((1, 0) if slower else (0, 1))
    assert change.gone == change.new == change.unmeasured == []


def test_a_median_that_is_lower_by_less_than_the_noise_is_not_slower():
    narrow = {"steps_per_second": [2.0, 2.0, 2.0]}
    assert not changed(narrow, {"steps_per_second": [1.91, 1.91, 1.91]}).worse
    assert changed(narrow, {"steps_per_second": [1.89, 1.89, 1.89]}).worse
    assert "1.89 (quartiles 1.89 to 1.89) where it was 2 (2 to 2), 6% lower; 6% as a share" in str(
        changed(narrow, {"steps_per_second": [1.89, 1.89, 1.89]})
    )


def test_what_is_missing_then_or_now_is_named_and_what_fails_now_is_worse():
    streams = [{"streams": n, "samples_per_second": [9.0, 10.0, 11.0]} for n in (1, 16)]
    slow = [streams[0], {"streams": 16, "samples_per_second": [4.0, 5.0, 6.0]}]
    drawn = row("sampling wavernn:small", rows=streams)
    old = [row(), row(stage="decoder"), row("step dac:small"), drawn, failed("step a:b")]
    new = [row(), failed("step rave:small"), row("step segan:tiny"), {**drawn, "rows": slow}, row("step a:b")]
    change = record.compared(old, new)
    assert change.gone == ["step rave:small (decoder), steps/s: out of memory"]
    assert change.unmeasured == ["step dac:small (critic), steps/s"]
    assert change.new == ["step segan:tiny (critic), steps/s", "step a:b (critic), steps/s"]
    assert [text.split(":")[0:2] for text in change.slower] == [["sampling wavernn", "small, samples/s of 16"]]
    assert change.alike == 2
    assert record.compared(old[:1], new[:2]).worse is False
    assert record.compared(old[:2], new[:2]).worse is True


def test_coding_is_compared_part_by_part():
    whole = lambda both: {"batch": 8, "factors": {"encode": [9.0] * 3, "both": [both] * 3}, "matmul_gflops": 200.0}
    old, new = (row("realtime rave:small", offline=[whole(both)]) for both in (8.0, 7.0))
    (text,) = record.compared([old], [new]).slower
    assert text.startswith("realtime rave:small, both of 8, times real time: 7 ")


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0), (1.2, 4)])
def test_the_exit_code_tells_whether_something_is_slower(factor, expected, stub, capsys):
    path = stub / "old" / "a.json"
    then = {"steps_per_second": [factor * rate for rate in (1.9, 2.0, 2.1)], "stage": None}
    record.write(path, [row("step wavernn:tiny", **then), row("step dac:tiny")])
    code, out, _ = run(benchmarks.main, "wavernn:tiny", "--quick", "--compare", path, "--json", path, capsys=capsys)
    assert code == expected
    assert "not measured now: step dac:tiny (critic), steps/s\n" in out
    assert "not measured then: sampling wavernn:tiny, samples/s of 1\n" in out
    assert f"{expected // 4} of 1 speeds are lower than then by {path}" in out
    assert record.read(path)[0]["steps_per_second"] == [1.9, 2.0, 2.1], "read before it is written over"


BROKEN = {
    "no JSON": ("[{", "JSONDecodeError"),
    "no text": (b"\xff\xfe", "UnicodeDecodeError"),
    "no list": ("{}", "it is no list"),
    "no rows": ("[3]", "TypeError"),
    "no numbers": (json.dumps([{**row(), "steps_per_second": [1.0]}]), "TypeError"),
    "no rate": (json.dumps([{**row(), "matmul_gflops": None}]), "TypeError"),
    "another program": (json.dumps([{**row(), "program": "conv"}]), "KeyError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_gets_one_line_wherever_it_is_named(case, stub, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "measured", lambda case, limit: pytest.fail("it measures first"))
    content, reason = BROKEN[case]
    stub.mkdir()
    path = stub / "cpu.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for words in (["segan:tiny", "--compare", path], ["segan:tiny"], ["--table"]):
        code, _, err = run(benchmarks.main, *words, capsys=capsys)
        assert code == 2
        assert f"{path} holds no rows as python -m benchmarks writes them (" in err
        assert reason in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wavegann"], "there is no model named 'wavegann' (did you mean wavegan?)"),
        (["wavegan:tinny"], "there is no preset of wavegan named 'tinny' (did you mean tiny?)"),
        (["segan:tiny", "--limit", "0"], "limit is 0.0"),
        (["segan:tiny", "--limit", "nan"], "limit is nan"),
        (["segan:tiny", "--table"], "--table prints what was measured before"),
        (["--table", "--quick"], "--table prints what was measured before"),
        (["--table"], "has no results: run python -m benchmarks first"),
        (["segan:tiny", "--compare", "{tmp}/nowhere.json"], "nowhere.json cannot be read (No such file"),
        (["segan:tiny", "--compare", "{tmp}"], "cannot be read (Is a directory)"),
        (["segan:tiny", "--json", "{tmp}/stub.py/a.json"], "stub.py"),
        (["segan:tiny", "--compare", "{tmp}/gpu.json"], "is of 1 NVIDIA H200 and this machine has 1 cpu"),
        (["segan:tiny", "--compare", "{tmp}/dac.json"], "none of the cases to measure, such as step segan:tiny"),
    ],
)
def test_wrong_input_gets_one_line_before_anything_is_measured(words, message, stub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "measured", lambda case, limit: pytest.fail("it measures first"))
    record.write(tmp_path / "gpu.json", [row(versions={**VERSIONS, "device": "1 NVIDIA H200"})])
    record.write(tmp_path / "dac.json", [row("step dac:tiny")])
    code, _, err = run(benchmarks.main, *(word.format(tmp=tmp_path) for word in words), capsys=capsys)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_file_is_named_after_the_device():
    assert [benchmarks.file_name(each) for each in ("1 cpu", "1 NVIDIA H200", "8 TPU v5 lite", "11 cpu")] == [
        *("cpu", "nvidia-h200", "8-tpu-v5-lite", "11-cpu"),
    ]


def test_why_a_process_ended_is_told():
    assert benchmarks.reason(-9, "") == "ended by SIGKILL: it said nothing"
    assert benchmarks.reason(2, "W0000 a warning\nstep.py: batch_size 6 does not split\n") == (
        "step.py: batch_size 6 does not split"
    )
    assert benchmarks.reason(1, "jax.errors.JaxRuntimeError: no memory\n\nat: 0x1\n") == (
        "jax.errors.JaxRuntimeError: no memory"
    )


def test_a_model_is_measured_as_a_user_asks_for_it(tmp_path, monkeypatch, capsys):
    """In processes of their own: the device is found, and what a model tells is what the table wants."""
    short = ("--windows", "1", "--seconds", "0.01", "--input-seconds", "0")
    monkeypatch.setattr(benchmarks, "SHORT", {**benchmarks.SHORT, "step": short})
    path = tmp_path / "a.json"
    code, out, err = run(benchmarks.main, "classifier:tiny", "--quick", "--json", path, capsys=capsys)
    assert code == 0, err
    (found,) = record.read(path)
    assert (found["preset"], found["dtype"], found["peer"]) == ("classifier:tiny", "float32", True)
    assert ("torch_ratio" if importlib.util.find_spec("torch") else "torch_failed") in found
    assert found["versions"]["device"] == "1 cpu"
    (line,) = cells(out[out.index("| model") :])
    assert line["by"] == "jit"
    assert all(
        line[head]
        for head in (
            "PyTorch eager, steps/s: ratio",
            "steps/s (quartiles)",
            "GFLOP/s",
            "parameters",
            "peak memory, MiB",
        )
    )
