"""Quantisers against `transformers`, against loops that say what they are, and against closed forms."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxaudio.core import Shard
from jaxaudio.nn import quantize as Q
from jaxaudio.nn.conv import folded

BOOKS, SIZE, DIM, WIDTH = 3, 16, 4, 6
ONE = Shard()
LEVELS = (4, 3)  # one even, one odd
KINDS = {
    "factorised": Q.Factorised(BOOKS, SIZE, DIM),
    "averaged": Q.Averaged(BOOKS, SIZE),
    "scalar": Q.Scalar(BOOKS, LEVELS),
}
key = jax.random.key


def latent(seed=1, batch=5, frames=7, width=WIDTH):
    return 2 * jax.random.normal(key(seed), (batch, frames, width))


@cache
def made(kind):
    """A quantiser and its variables, none of them at the value it starts from."""
    module = KINDS[kind]

    @jax.jit
    def moved():
        keys = iter(jax.random.split(key(2), 99))
        variables = module.init(key(0), latent(), None, ONE)
        return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), variables)

    return module, moved()


follow = jax.jit(Q.follow, static_argnums=(2, 3), static_argnames="least")


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# What all quantisers promise


@pytest.mark.parametrize("kind", KINDS)
def test_leading_codes_give_exactly_the_latent_of_so_many_codebooks(kind):
    module, variables = made(kind)
    call = jax.jit(lambda z, kept: module.apply(variables, z, kept, ONE))
    restored = jax.jit(lambda codes: module.apply(variables, codes, method="restored"))
    z, earlier = latent(), None
    whole = call(z, None)
    assert whole.codes.shape == (5, 7, BOOKS)
    assert whole.codes.dtype == jnp.int32
    for books in range(1, BOOKS + 1):
        found = call(z, jnp.full(5, books))
        np.testing.assert_array_equal(found.codes, whole.codes)
        np.testing.assert_array_equal(restored(whole.codes[..., :books]), found.latent)
        assert earlier is None or np.any(earlier != found.latent)
        earlier = found.latent
    np.testing.assert_array_equal(whole.latent, earlier)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_that_do_not_count_leave_the_latent_and_the_losses_of_their_example_alone(kind):
    module, variables = made(kind)
    kept = jnp.array([1, 3, 2, 3, 1])
    call = jax.jit(lambda z, kept: module.apply(variables, z, kept, ONE))
    found = call(latent(), kept)
    for i, books in enumerate(kept):
        alone = call(latent()[i : i + 1], books[None])
        jax.tree.map(lambda x, y, i=i: close(x[i], y[0]), found, alone)


@pytest.mark.parametrize("kind", ["factorised", "averaged"])
def test_every_product_is_precise_and_no_array_has_an_entry_per_frame_row_and_dimension(kind):
    module, variables = made(kind)

    def loss(variables, z):
        found = module.apply(variables, z, None, ONE)
        return jnp.sum(found.latent**2) + jnp.sum(found.commitment + found.codebook)

    programs = [jax.make_jaxpr(jax.grad(loss, (0, 1)))(variables, latent())]
    if kind == "averaged":
        programs.append(jax.make_jaxpr(lambda t: Q.follow(t, latent(), 0.99, ONE, key(5)))(variables["codebooks"]))
        programs.append(jax.make_jaxpr(lambda z: Q.start(z, BOOKS, SIZE, ONE, key(5)))(latent()))
    equations = [e for program in programs for e in every(program.jaxpr)]
    products = [e for e in equations if e.primitive.name == "dot_general"]
    assert len(products) >= BOOKS
    assert all(e.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for e in products)
    assert max(x.aval.size for e in equations for x in e.outvars) <= 5 * 7 * SIZE


def every(jaxpr):
    """All its equations, those of the programs in it too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from every(inner)


def test_the_largest_score_is_the_first_of_equals():
    scores = jnp.array([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0], [-2.0, -3.0, -1.0], [1.0, jnp.nan, 0.0]])
    np.testing.assert_array_equal(Q.largest(scores), [1, 0, 2, -1])


# The Descript codec's


def factorised_by_hand(params, z, kept):
    """The quantiser of example after example and codebook after codebook, by differences."""
    latents, codes, losses = np.zeros(z.shape), np.zeros((*z.shape[:2], BOOKS), int), np.zeros(len(z))
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    for b, left in enumerate(z):
        for i in range(BOOKS):
            book = jax.tree.map(np.asarray, params[f"codebook_{i}"])
            project = lambda x, p: x @ p["kernel"] * (p["scale"] / np.linalg.norm(p["kernel"], axis=0)) + p["bias"]
            query = project(left, book["into"])
            taken = np.argmin(((unit(query)[:, None] - unit(book["rows"])) ** 2).sum(-1), -1)
            part = project(book["rows"][taken], book["out"])
            left, codes[b, :, i] = left - part, taken
            if i < kept[b]:
                latents[b] += part
                losses[b] += np.mean((query - book["rows"][taken]) ** 2)
    return latents, codes, losses


def test_factorised_is_the_loop_over_codebooks_and_dropout_masks_but_the_sum_and_the_losses():
    module, variables = made("factorised")
    kept = np.array([2, 1, 3, 3, 2])
    found = jax.jit(module.apply, static_argnums=3)(variables, latent(), jnp.asarray(kept), ONE)
    latents, codes, losses = factorised_by_hand(variables["params"], np.asarray(latent()), kept)
    np.testing.assert_array_equal(found.codes, codes)
    close(found.latent, latents)
    close(found.commitment, losses)
    close(found.codebook, losses)


@pytest.mark.parametrize("kept", [1, 2, BOOKS])
def test_factorised_and_its_gradients_are_those_of_transformers(kept, monkeypatch):
    """One example at a time: there the losses are means over the batch. A kept count is drawn, so it is planted."""
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    dac = pytest.importorskip("transformers.models.dac.modeling_dac", reason="transformers is not installed")
    config = dac.DacConfig(
        encoder_hidden_size=1, n_codebooks=BOOKS, codebook_size=SIZE, codebook_dim=DIM, quantizer_dropout=1.0
    )
    config.hidden_size = WIDTH
    theirs = dac.DacResidualVectorQuantizer(config).train()
    module, variables = made("factorised")
    params = jax.tree.map(np.asarray, variables["params"])
    for i, quantizer in enumerate(theirs.quantizers):
        book = params[f"codebook_{i}"]
        quantizer.codebook.weight.data = torch.tensor(book["rows"])
        for layer, ours in ((quantizer.in_proj, book["into"]), (quantizer.out_proj, book["out"])):
            torch.nn.utils.parametrizations.weight_norm(layer)
            layer.parametrizations.weight.original0.data = torch.tensor(ours["scale"]).reshape(-1, 1, 1)
            layer.parametrizations.weight.original1.data = torch.tensor(ours["kernel"].T[:, :, None])
            layer.bias.data = torch.tensor(ours["bias"])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([kept]))
    z = latent(batch=1, frames=40)
    their_z = torch.tensor(np.asarray(z).transpose(0, 2, 1), requires_grad=True)
    their_latent, codes, _, commitment, codebook = theirs(their_z)
    (torch.sin(their_latent).sum() + 0.25 * commitment.sum() + codebook.sum()).backward()

    def loss(params, z):
        found = module.apply({"params": params}, z, jnp.array([kept]), ONE)
        return jnp.sum(jnp.sin(found.latent)) + jnp.sum(0.25 * found.commitment + found.codebook), found

    (grads, slope), found = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, z)
    np.testing.assert_array_equal(found.codes, codes.numpy().transpose(0, 2, 1))
    close(found.latent, their_latent.detach().numpy().transpose(0, 2, 1))
    close(found.commitment, commitment.detach().numpy())
    close(found.codebook, codebook.detach().numpy())
    close(slope, their_z.grad.numpy().transpose(0, 2, 1), 1e-4)
    for i, quantizer in enumerate(theirs.quantizers):
        grad = grads[f"codebook_{i}"]
        close(grad["rows"], quantizer.codebook.weight.grad.numpy(), 1e-4)
        for layer, ours in ((quantizer.in_proj, grad["into"]), (quantizer.out_proj, grad["out"])):
            close(ours["scale"], layer.parametrizations.weight.original0.grad.numpy().reshape(-1), 1e-4)
            close(ours["kernel"], layer.parametrizations.weight.original1.grad.numpy()[:, :, 0].T, 1e-4)
    restored, *_ = theirs.from_codes(codes[:, :kept])
    ours = module.apply(variables, found.codes[..., :kept], method="restored")
    close(ours, restored.detach().numpy().transpose(0, 2, 1))


def test_a_gradient_passes_straight_through_the_lookup():
    module = Q.Factorised(1, SIZE, DIM)
    params = jax.jit(lambda: module.init(key(0), latent(), None, ONE)["params"])()

    def looked_up(params, z):
        return jnp.sum(jnp.cos(latent(3)) * module.apply({"params": params}, z, None, ONE).latent)

    book = params["codebook_0"]
    project = lambda x, p: x @ (p["kernel"] * (p["scale"] / jnp.linalg.norm(p["kernel"], axis=0))[None])
    without = lambda z: jnp.sum(jnp.cos(latent(3)) * project(project(z, book["into"]), book["out"]))
    rows, slope = jax.jit(jax.grad(looked_up, (0, 1)))(params, latent())
    close(slope, jax.jit(jax.grad(without))(latent()))
    assert np.all(np.asarray(rows["codebook_0"]["rows"]) == 0)


def test_each_loss_pulls_at_its_own_side():
    module, variables = made("factorised")
    total = lambda which: lambda params, z: jnp.sum(getattr(module.apply({"params": params}, z, None, ONE), which))
    for which, pulled in (("commitment", "into"), ("codebook", "rows")):
        last = jax.jit(jax.grad(total(which)))(variables["params"], latent())["codebook_2"]
        moved = {name for name in ("into", "rows") if any(np.any(x != 0) for x in jax.tree.leaves(last[name]))}
        assert moved == {pulled}


def test_weight_norm_folds_away():
    module, variables = made("factorised")
    light = folded(module, variables, latent(), None, ONE)
    assert "scale" not in str(jax.tree.structure(light))
    call = jax.jit(lambda variables: module.apply(variables, latent(), None, ONE))
    close(call({"params": light}).latent, call(variables).latent)
    codes = call(variables).codes
    assert module.apply({"params": light}, codes, method="restored").shape == (5, 7, WIDTH)


# Codebooks of moving averages


@cache
def averager(books, size):
    return jax.jit(Q.Averaged(books, size).apply, static_argnums=3)


def averaged(tables):
    return partial(averager(*tables["count"].shape), {"codebooks": tables})


def tables_of(seed=4, books=2, size=8, width=WIDTH):
    one, two = jax.random.split(key(seed))
    embedding = jax.random.normal(one, (books, size, width))
    count = jax.random.uniform(two, (books, size), minval=3.0, maxval=9.0)
    return {"embedding": embedding, "average": embedding * count[..., None], "count": count}


def test_averaged_is_the_residual_quantiser_of_transformers():
    torch = pytest.importorskip("torch", reason="the parity with PyTorch needs the extra `compare`")
    encodec = pytest.importorskip(
        "transformers.models.encodec.modeling_encodec", reason="transformers is not installed"
    )
    config = encodec.EncodecConfig(codebook_size=SIZE, codebook_dim=WIDTH, hidden_size=WIDTH)
    theirs = encodec.EncodecResidualVectorQuantizer(config)
    theirs.layers, theirs.num_quantizers = theirs.layers[:BOOKS], BOOKS
    tables = tables_of(books=BOOKS, size=SIZE)
    for layer, embedding in zip(theirs.layers, tables["embedding"], strict=True):
        layer.codebook.embed.data = torch.tensor(np.asarray(embedding))
    codes = theirs.encode(torch.tensor(np.asarray(latent()).transpose(0, 2, 1)))
    found = averaged(tables)(latent(), None, ONE)
    np.testing.assert_array_equal(found.codes, codes.numpy().transpose(1, 2, 0))
    close(found.latent, theirs.decode(codes).numpy().transpose(0, 2, 1))


def test_averaged_passes_gradients_to_the_latent_alone():
    tables, kept = tables_of(), jnp.array([2, 1, 2, 1, 2])
    z, weight = latent(), jnp.cos(latent(3))
    slope = jax.grad(lambda z: jnp.sum(weight * averaged(tables)(z, kept, ONE).latent))(z)
    close(slope, weight)
    pulled, moved = jax.grad(lambda z, t: jnp.sum(averaged(t)(z, kept, ONE).commitment), (0, 1))(z, tables)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(moved))
    codes, left, sums, loss = averaged(tables)(z, None, ONE).codes, z, 0, 0
    for i in range(2):
        left = left - tables["embedding"][i][codes[..., i]]
        counts = (i < kept).reshape(-1, 1, 1)
        sums, loss = sums + counts * left, loss + jnp.mean((counts * left) ** 2, (1, 2))
    close(pulled, 2 * sums / left[0].size)
    found = averaged(tables)(z, kept, ONE)
    close(found.commitment, loss)
    assert np.all(np.asarray(found.codebook) == 0)


def test_an_update_is_the_moving_average_of_each_codebooks_own_input():
    tables, z, decay = tables_of(), latent(), 0.9
    new = follow(tables, z, decay, ONE, key(5), least=0.0)
    left = np.asarray(z, np.float64).reshape(-1, WIDTH)
    for i in range(2):
        embedding, average, count = (np.asarray(tables[n][i], np.float64) for n in ("embedding", "average", "count"))
        taken = np.argmin(((left[:, None] - embedding) ** 2).sum(-1), -1)
        for code in range(8):
            count[code] = decay * count[code] + (1 - decay) * np.sum(taken == code)
            average[code] = decay * average[code] + (1 - decay) * left[taken == code].sum(0)
        smooth = (count + 1e-5) / (count.sum() + 8e-5) * count.sum()
        close(new["count"][i], count)
        close(new["average"][i], average)
        close(new["embedding"][i], average / smooth[:, None])
        left = left - embedding[taken]


def test_many_updates_with_the_same_batch_are_a_geometric_series():
    centres = 10 * jnp.eye(4, WIDTH)
    z = (centres[jnp.arange(40) % 4] + 0.1 * jax.random.normal(key(0), (40, WIDTH))).reshape(4, 10, WIDTH)
    count = jnp.array([[3.0, 4.0, 5.0, 6.0]])
    tables = {"embedding": centres[None] + 1.0, "average": (centres[None] + 1.0) * count[..., None], "count": count}
    update = jax.jit(lambda tables: Q.follow(tables, z, 0.9, ONE, key(5)))
    new = tables
    for _ in range(12):
        new = update(new)
    kept, sums = 0.9**12, z.reshape(10, 4, WIDTH).sum(0)
    close(new["count"], kept * count + (1 - kept) * 10)
    close(new["average"], kept * tables["average"] + (1 - kept) * sums[None])


def test_a_dead_code_becomes_a_row_of_the_batch_and_gets_a_fair_start():
    tables = tables_of(books=2, size=6)
    away = tables["embedding"].at[:, 2:4].set(1e3)
    tables = {**tables, "embedding": away, "count": tables["count"].at[:, 2:4].set(0.1)}
    z = latent()
    new = follow(tables, z, 0.99, ONE, key(5))
    left = np.asarray(z).reshape(-1, WIDTH)
    for i in range(2):
        fresh = np.asarray(new["embedding"][i])
        for code in (2, 3):
            assert np.any(np.all(fresh[code] == left, 1))
            close(new["count"][i, code], 35 / 6)
            close(new["average"][i, code], fresh[code] * 35 / 6)
        assert np.any(fresh[2] != fresh[3])
        alive = [0, 1, 4, 5]
        close(new["count"][i, alive], follow(tables, z, 0.99, ONE, key(5), least=0.0)["count"][i, jnp.array(alive)])
        codes = averaged(tables)(z, None, ONE).codes
        left = left - np.asarray(tables["embedding"][i])[np.asarray(codes[..., i]).reshape(-1)]
    before, after = (jnp.mean((averaged(t)(z, None, ONE).latent - z) ** 2) for t in (tables, new))
    assert after < before
    again = follow(new, z, 0.99, ONE, key(6))
    close(again["embedding"], follow(new, z, 0.99, ONE, key(6), least=0.0)["embedding"])


def test_a_start_by_k_means_finds_clusters_and_beats_rows_of_the_batch():
    centres = 8 * jax.random.normal(key(7), (8, WIDTH))
    z = (centres[jnp.arange(400) % 8] + 0.2 * jax.random.normal(key(8), (400, WIDTH))).reshape(4, 100, WIDTH)
    begin = jax.jit(partial(Q.start, codebooks=2, size=8, shard=ONE), static_argnames="rounds")
    distortion = lambda tables: float(jnp.mean((averaged(tables)(z, None, ONE).latent - z) ** 2))
    first, last = (begin(z, key=key(9), rounds=rounds) for rounds in (0, 50))
    assert distortion(last) < 0.7 * distortion(first)
    taken = np.asarray(averaged(last)(z, None, ONE).codes[..., 0]).reshape(-1)
    for code in range(8):
        mine = np.asarray(z).reshape(-1, WIDTH)[taken == code]
        close(last["count"][0, code], len(mine))
        if len(mine):
            close(last["embedding"][0, code], mine.mean(0), 1e-4)
            close(last["average"][0, code], mine.sum(0), 1e-4)


def test_k_means_leaves_a_code_that_nothing_falls_to_where_it_is():
    points = latent(batch=1, frames=3)
    tables = Q.start(jnp.tile(points, (4, 1, 1)), 1, 8, ONE, key(1), rounds=3)
    assert int(jnp.sum(tables["count"] == 0)) >= 5
    gaps = jnp.linalg.norm(tables["embedding"][0][:, None] - points, axis=-1)
    close(jnp.min(gaps, 1), np.zeros(8))


@pytest.mark.parametrize("devices", [2, 4])
def test_tables_start_and_follow_alike_on_any_number_of_devices(devices):
    z = latent(batch=4, frames=10)
    dead = {**tables_of(), "count": tables_of()["count"].at[:, 1:3].set(0.0)}

    def both(z, shard):
        return Q.start(z, 2, 8, shard, key(1)), Q.follow(dead, z, 0.99, shard, key(5))

    alone = jax.jit(lambda z: both(z, ONE))(z)
    several = jax.pmap(lambda z: both(z, Shard("data")), "data", devices=jax.devices()[:devices])
    apart = several(z.reshape(devices, -1, 10, WIDTH))
    for device in range(devices):
        jax.tree.map(lambda x, y, d=device: close(x, y[d]), alone, apart)
    np.testing.assert_array_equal(alone[1]["embedding"][:, 1:3], apart[1]["embedding"][0][:, 1:3])


@pytest.mark.parametrize("size", [16, 64])  # fewer and more than the rows
def test_a_fresh_table_becomes_rows_of_the_first_batch_and_keeps_them_in_the_second(size):
    z = latent()
    tables = jax.jit(lambda: Q.Averaged(2, size).init(key(0), z, None, ONE)["codebooks"])()
    first = follow(tables, z, 0.99, ONE, key(5))
    rows = {tuple(row) for row in np.asarray(z).reshape(-1, WIDTH)}
    assert {tuple(row) for row in np.asarray(first["embedding"][0])} <= rows
    assert size > len(rows) or len(np.unique(first["embedding"][0], axis=0)) == size
    second = follow(first, latent(6), 0.99, ONE, key(7))
    jax.tree.map(close, second, follow(first, latent(6), 0.99, ONE, key(7), least=0.0))


# Finite scalar quantisation


def test_scalar_rounds_as_the_papers_listing_does():
    """Mentzer et al. 2023, appendix A.1, in float64."""
    module = KINDS["scalar"]
    z = np.asarray(latent(frames=60), np.float64)
    found = module.apply({}, jnp.asarray(z, jnp.float32), None, ONE)
    values, codes = np.zeros(z.shape), np.zeros((*z.shape[:2], BOOKS), int)
    for column in range(WIDTH):
        levels = LEVELS[column % 2]
        half = (levels - 1) * (1 - 1e-3) / 2
        offset = 0.0 if levels % 2 else 0.5
        bounded = np.tanh(z[..., column] + np.tan(offset / half)) * half - offset
        values[..., column] = np.round(bounded) / (levels // 2)
        digits = np.round(bounded).astype(int) + levels // 2
        assert set(np.unique(digits)) == set(range(levels))
        codes[..., column // 2] += digits * (1, LEVELS[0])[column % 2]
    np.testing.assert_array_equal(found.codes, codes)
    close(found.latent, values, 1e-6)
    assert np.all(np.asarray(found.commitment) == 0)


def test_scalar_passes_the_gradient_of_its_bound():
    module, z = Q.Scalar(1, (4,)), jnp.linspace(-2.0, 2.0, 9).reshape(1, 9, 1)
    slope = jax.grad(lambda z: jnp.sum(module.apply({}, z, None, ONE).latent))(z)
    half = 3 * (1 - 1e-3) / 2
    close(slope, half / 2 / np.cosh(np.asarray(z) + np.tan(0.5 / half)) ** 2)


def test_every_scalar_code_is_a_latent_of_its_own():
    module = Q.Scalar(1, (5, 2, 3))
    codes = jnp.arange(30).reshape(1, 30, 1)
    points = module.apply({}, codes, method="restored")
    assert len(np.unique(points[0], axis=0)) == 30
    assert float(jnp.max(jnp.abs(points))) == 1.0
