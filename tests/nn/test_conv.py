"""Convolutions in every form against `jax.lax` in float64 and against PyTorch."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaudio.nn import conv as C
from jaxaudio.nn import forms

# time, in, out, taps, stride, padding, dilation, groups
CASES = {
    "wavegan_first": ((64,), 1, 3, (25,), (4,), "SAME", (1,), 1),
    "wavegan_inner": ((64,), 6, 5, (25,), (4,), "SAME", (1,), 1),
    "wavegan_stride_2": ((33,), 20, 5, (25,), (2,), "SAME", (1,), 1),
    "ragged": ((61,), 3, 5, (7,), (3,), ((5, 1),), (1,), 1),
    "valid": ((40,), 3, 4, (7,), (1,), ((0, 0),), (1,), 1),
    "wide_padding": ((40,), 3, 4, (7,), (1,), ((9, 12),), (1,), 1),
    "dilated": ((50,), 3, 4, (3,), (1,), "SAME", (9,), 1),
    "dilated_strided": ((50,), 3, 4, (3,), (2,), ((4, 3),), (5,), 1),
    "grouped": ((64,), 8, 12, (41,), (4,), ((20, 20),), (1,), 4),
    "depthwise": ((50,), 6, 6, (7,), (2,), ((6, 5),), (3,), 6),
    "image": ((12, 16), 2, 3, (5, 5), (2, 2), "SAME", (1, 1), 1),
    "image_one_way": ((9, 17), 2, 3, (3, 9), (1, 2), ((1, 1), (4, 4)), (1, 1), 1),
    "thin": ((30,), 8, 2, (5,), (1,), ((3, 1),), (3,), 1),
    "thin_shorter_than_its_kernel": ((5,), 5, 1, (17,), (1,), ((8, 9),), (1,), 1),
    "spread_image": ((9, 12), 2, 8, (3, 5), (1, 1), ((0, 3), (2, -1)), (1, 2), 1),
    "thin_image": ((9, 12), 8, 2, (3, 5), (1, 1), ((0, 3), (2, -1)), (1, 2), 1),
}
TRANSPOSED = {
    "wavegan_inner": ((16,), 6, 5, (25,), (4,), "SAME"),
    "wavegan_last": ((16,), 6, 1, (25,), (4,), "SAME"),
    "wavegan_stride_2": ((16,), 6, 1, (25,), (2,), "SAME"),
    "hifigan": ((9,), 6, 20, (16,), (8,), ((4, 4),)),
    "uncropped": ((9,), 3, 2, (5,), (3,), ((0, 0),)),
    "beyond_its_end": ((9,), 3, 2, (4,), (3,), ((1, -2),)),
    "image": ((4, 6), 3, 2, (5, 5), (2, 2), "SAME"),
    "image_one_way": ((4, 6), 3, 2, (3, 9), (1, 2), ((1, 1), (4, 4))),
    "image_beyond_its_end": ((4, 6), 3, 2, (5, 4), (3, 2), ((2, -2), (-1, 1))),
    "grouped": ((9,), 6, 4, (8,), (4,), ((2, 2),), 2),
}
PHASE = {"cpu": {kind: {"forward": "phase", "backward": "phase", "kernel": "phase"} for kind in C.FORMS["cpu"]}}
MATMUL = {"cpu": {"few": {"forward": "matmul", "backward": "matmul"}}}
CROSSED = {"cpu": {kind: {"kernel": "crossed"} for kind in C.FORMS["cpu"]}}
TABLES = {
    "phase": PHASE,
    "direct": {},
    "matmul": MATMUL,
    "crossed": CROSSED,
    "parts": CROSSED,
}  # each map has its form: these cover every mixture
PLANES = {"planes": {"cpu": {kind: C.FORMS["cpu"][kind] for kind in ("thin", "spread")}}}


def arrays(space, into, out, taps, groups=1, dtype=np.float64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *space, into))
    w = rng.standard_normal((*taps, into // groups, out))
    return jnp.asarray(x.astype(dtype)), jnp.asarray(w.astype(dtype))


def derivatives(f, x, w):
    """The value, both first derivatives and the derivative of a penalty on the slope, as WGAN-GP has it."""
    loss = lambda x, w: jnp.sum(jnp.sin(f(x, w)))
    penalty = lambda x, w: jnp.sum(jax.grad(loss)(x, w) ** 2)
    return f(x, w), *jax.grad(loss, (0, 1))(x, w), *jax.grad(penalty, (0, 1))(x, w)


def by(table, monkeypatch):
    """Every map is in the form of this table; "parts": some rows at a time."""
    monkeypatch.setattr(C, "FORMS", {**TABLES, **PLANES}[table])
    monkeypatch.setattr(C, "FEW", 10**6 if table == "matmul" else 0)
    if table == "parts":
        monkeypatch.setattr(forms, "CACHED", 1)
        monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("case", "table"),
    [
        *itertools.product(CASES, TABLES),
        *itertools.product((name for name in CASES if name.startswith(("thin", "spread"))), PLANES),
    ],
)
def test_every_form_computes_what_lax_computes_and_so_do_its_derivatives(case, table, float64, monkeypatch):
    space, into, out, taps, stride, padding, dilation, groups = CASES[case]
    x, w = arrays(space, into, out, taps, groups)
    padding = C.pairs(padding, x, w, stride, dilation)
    by(table, monkeypatch)
    both = [
        jax.jit(lambda x, w, f=f: derivatives(lambda x, w: f(x, w, stride, padding, dilation, groups), x, w))
        for f in (C.conv, forms.conv_direct)
    ]
    for ours, theirs in zip(*(f(x, w) for f in both), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("case", TRANSPOSED)
def test_every_transposed_form_computes_what_lax_computes_and_so_do_its_derivatives(case, table, float64, monkeypatch):
    space, into, out, taps, stride, padding, *groups = TRANSPOSED[case]
    x, w = arrays(space, into, out, taps, *groups)
    ones, (groups,) = (1,) * len(stride), groups or [1]
    padding = C.crops(padding, taps, stride)
    by(table, monkeypatch)
    ours = lambda x, w: C.conv_transpose(x, w, stride, padding, ones, groups)
    theirs = lambda x, w: forms.conv_transpose_direct(x, w, stride, padding, ones, groups)
    both = [jax.jit(lambda x, w, f=f: derivatives(f, x, w)) for f in (ours, theirs)]
    for mine, reference in zip(*(f(x, w) for f in both), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-10, atol=1e-10)


def test_transposed_convolution_scatters_what_its_definition_says():
    x, w = arrays((5,), 2, 3, (7,), dtype=np.float32)
    full = np.zeros((2, 4 * 3 + 7, 3))
    for t in range(5):
        for k in range(7):
            full[:, t * 3 + k] += x[:, t] @ w[k]
    np.testing.assert_allclose(C.conv_transpose(x, w, (3,), ((2, 3),)), full[:, 2:-3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [32, 33, 34, 35])
def test_same_padding_is_tensorflows(length):
    x, w = arrays((length,), 2, 3, (25,), dtype=np.float32)
    theirs = jax.lax.conv_general_dilated(x, w, (4,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    np.testing.assert_allclose(C.conv(x, w, (4,), "SAME", (1,)), theirs, rtol=1e-4, atol=1e-4)
    assert C.pairs("SAME", jnp.zeros((1, 64, 1)), jnp.zeros((25, 1, 1)), (4,), (1,)) == ((10, 11),)
    assert C.crops("SAME", (25,), (4,)) == ((10, 11),)


def test_convolutions_equal_pytorchs():
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    x, w = arrays((64,), 8, 12, (11,), 4, np.float32)
    ours = C.conv(x, w, (2,), 9, (2,), groups=4)
    theirs = torch.nn.functional.conv1d(
        torch.tensor(np.array(x)).mT,
        torch.tensor(np.array(w)).permute(2, 1, 0),
        stride=2,
        padding=9,
        dilation=2,
        groups=4,
    )
    np.testing.assert_allclose(ours, theirs.mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("groups", "dilation", "padding"), [(1, 1, 4), (2, 1, 4), (1, 2, 3), (2, 3, 0)])
def test_transposed_convolutions_equal_pytorchs(groups, dilation, padding):
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    x, w = arrays((16,), 6, 4, (16,), groups, np.float32)
    ours = C.conv_transpose(x, w, (8,), padding, (dilation,), groups)
    blocks = torch.tensor(np.array(w)).chunk(groups, -1)  # PyTorch's kernel is [in, out / groups, taps]
    kernel = torch.cat([block.permute(1, 2, 0) for block in blocks])
    theirs = torch.nn.functional.conv_transpose1d(
        torch.tensor(np.array(x)).mT, kernel, stride=8, padding=padding, dilation=dilation, groups=groups
    )
    np.testing.assert_allclose(ours, theirs.mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_weight_norm_equals_pytorchs(transposed):
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    x, _ = arrays((16,), 6, 5, (8,), dtype=np.float32)
    if transposed:
        layer, reference = C.ConvTranspose(5, (8,), (4,), 2, weight_norm=True), torch.nn.ConvTranspose1d(6, 5, 8, 4, 2)
        order = (1, 2, 0)
    else:
        layer, reference = C.Conv(5, (8,), (4,), 2, weight_norm=True), torch.nn.Conv1d(6, 5, 8, 4, 2)
        order = (2, 1, 0)
    params = layer.init(jax.random.key(0), x)["params"]
    direction = jnp.sqrt(jnp.sum(params["kernel"] ** 2, (0, 2) if transposed else (0, 1)))
    np.testing.assert_allclose(params["scale"], direction, rtol=1e-6)
    params["scale"] = params["scale"] * np.linspace(0.5, 2, params["scale"].size, dtype=np.float32)
    reference = torch.nn.utils.parametrizations.weight_norm(reference, dim=0)
    with torch.no_grad():
        reference.parametrizations.weight.original1.copy_(torch.tensor(np.array(params["kernel"])).permute(order))
        reference.parametrizations.weight.original0.copy_(torch.tensor(np.array(params["scale"])).reshape(-1, 1, 1))
        reference.bias.zero_()
        theirs = reference(torch.tensor(np.array(x)).mT).mT
    np.testing.assert_allclose(layer.apply({"params": params}, x), theirs, rtol=1e-4, atol=1e-5)


def test_the_layers_compute_in_bfloat16_with_float32_parameters():
    x, _ = arrays((16,), 6, 5, (8,), dtype=np.float32)
    layer = C.Conv(5, (8,), (4,), dtype="bfloat16")
    params = layer.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    low, high = layer.apply(params, x), C.Conv(5, (8,), (4,)).apply(params, x)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), high, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("case", ["wavegan_first", "wavegan_inner", "valid", "wide_padding"])
def test_no_convolution_of_the_compiled_penalty_step_is_turned_round(case):
    """Where a window is longer than its signal XLA swaps the two and reverses one, and its CPU backend has only a loop
    60 times slower for that. The numbers are the same, so only the compiled program tells."""
    space, into, out, taps, stride, padding, dilation, groups = CASES[case]
    x, w = arrays(space, into, out, taps, groups, np.float32)
    padding = C.pairs(padding, x, w, stride, dilation)
    step = lambda f: jax.jit(lambda x, w: derivatives(lambda x, w: f(x, w, stride, padding, dilation, groups), x, w))
    compiled = lambda f: step(f).lower(x, w).compile().as_text()
    assert "rhs_reversal" not in compiled(C.conv)
    if case in ("valid", "wide_padding"):
        assert "rhs_reversal" in compiled(forms.conv_direct), "the textbook form has the fault that this test looks for"


@pytest.mark.parametrize("case", ["wavegan_inner", "wavegan_last", "uncropped"])
def test_no_transposed_convolution_of_the_compiled_gradients_is_turned_round(case):
    space, into, out, taps, stride, padding = TRANSPOSED[case]
    x, w = arrays(space, into, out, taps, dtype=np.float32)
    step = jax.jit(lambda x, w: derivatives(lambda x, w: C.conv_transpose(x, w, stride, padding), x, w))
    assert "rhs_reversal" not in step.lower(x, w).compile().as_text()


def test_the_table_of_forms_is_what_the_layers_go_by(monkeypatch):
    """Each map of each kind of layer by its own entry."""
    x, w = arrays((16,), 16, 16, (8,), dtype=np.float32)
    maps = {
        "forward": lambda shape, x, y, w: C.forward(shape, x, w),
        "backward": lambda shape, x, y, w: C.backward(shape, y, w),
        "kernel": lambda shape, x, y, w: C.kernel_map(shape, x, y),
    }
    kinds = (("plain", 16, 1, 1), ("strided", 16, 4, 1), ("grouped", 16, 4, 2), ("narrow", 1, 4, 1))
    for kind, channels, stride, groups in kinds:
        kernel = w[:, : channels // groups]
        shape = C.Geometry((16,), channels, 16, (8,), (stride,), ((9, 8),), (1,), groups)
        assert shape.kind == kind
        monkeypatch.setattr(C, "FORMS", {})
        y = C.forward(shape, x[..., :channels], kernel)
        assert shape.frames == y.shape[1:-1]
        for name, apply in maps.items():
            arguments = (x[..., :channels], y, kernel)
            monkeypatch.setattr(C, "FORMS", {"cpu": {kind: {other: "phase" for other in maps if other != name}}})
            direct = str(jax.make_jaxpr(partial(apply, shape))(*arguments))
            assert direct.count("conv_general_dilated[") == 1
            monkeypatch.setattr(C, "FORMS", {"cpu": {kind: {name: "phase"}}})
            assert str(jax.make_jaxpr(partial(apply, shape))(*arguments)) != direct, (kind, name)


def test_layers_of_few_output_channels_are_computed_by_planes():
    shape = C.Geometry((16,), 16, 4, (8,), (1,), ((2, 2),), (1,), 1)
    assert {shape.form(name, 1000) for name in ("forward", "backward", "kernel")} == {"planes"}
    for other in ({"features": 5}, {"channels": 15}, {"stride": (2,)}, {"groups": 2}, {"taps": (17,)}):
        assert "planes" not in {shape._replace(**other).form(name, 1000) for name in ("forward", "backward", "kernel")}


def test_the_gradient_of_a_picture_of_few_channels_is_computed_by_planes():
    shape = C.Geometry((9, 8), 2, 8, (3, 5), (1, 1), ((1, 1), (2, 2)), (1, 1), 1)
    assert [shape.form(name, 1000) for name in ("forward", "backward", "kernel")] == ["phase", "planes", "crossed"]
    for other in ({"features": 6}, {"channels": 3}, {"stride": (1, 2)}, {"taps": (3, 6)}):
        assert "planes" not in {shape._replace(**other).form(name, 1000) for name in ("forward", "backward", "kernel")}


def test_few_frames_are_computed_by_matrix_products_and_many_are_not():
    shape = C.Geometry((16,), 64, 64, (8,), (4,), ((2, 2),), (1,), 1)
    dilated = shape._replace(dilation=(2,))
    assert (shape.frames, dilated.frames) == ((4,), (2,))
    large = shape._replace(channels=256, features=512)
    for of, name, few in (
        *((of, "forward", C.FEW) for of in (shape, large)),
        (shape, "backward", C.FEW),
        (large, "backward", C.FEW_OF_LARGE),
    ):
        assert of.form(name, few // 4) == "matmul"
        assert of.form(name, few // 4 + 1) != "matmul"
    longer = shape._replace(
        space=(16,), taps=(17,), padding=((8, 8),)
    )  # than the signal, which is as slow in any number
    assert longer.form("forward", 1000) == longer.form("backward", 1000) == "matmul"
    assert longer._replace(space=(17,)).form("forward", 1000) != "matmul"
    image = C.Geometry((4, 4), 64, 64, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    for other in (shape._replace(groups=2), image):
        assert other.form("forward", 1) != "matmul"
    for other in (shape._replace(stride=(1,)), dilated):
        assert other.form("backward", 1) != "matmul"


def test_the_kernel_map_of_a_picture_takes_some_rows_at_a_time_on_a_single_device(monkeypatch):
    shape = C.Geometry((9, 8), 4, 6, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    assert (shape.kind, shape.form("kernel", 6)) == ("picture", "crossed")
    x, y = jnp.ones((6, 9, 8, 4)), jnp.ones((6, 9, 8, 6))
    program = lambda: str(jax.make_jaxpr(partial(C.kernel_map, shape))(x, y))
    a_row = 4 * 9 * 8 * 3 * (4 + 6)  # bytes: three windows of both
    monkeypatch.setattr(forms, "CACHED", 2 * a_row)
    assert "scan[" not in program(), "each turn would be a sum over devices"
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert "length=3" in program()
    monkeypatch.setattr(forms, "CACHED", 6 * a_row)
    assert "scan[" not in program()
