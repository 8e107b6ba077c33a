"""The forms of a convolution and of a transposed one: the textbook's, the phase form, one stride-1 convolution, and,
for few frames or few output channels, matrix products.

They compute the same numbers; nn/conv.py chooses. Kernels are [*taps, in / groups, out], not flipped; padding is
(left, right) per axis, and may be negative.
"""

import itertools
import math

import jax
import jax.numpy as jnp

BLOCK_CHANNELS = 16  # a folded signal of fewer channels than this is folded further: see `blocks`
CACHED = 4_500_000  # bytes of the windows that `kernel_crossed` makes at a time


def _numbers(axes: int) -> tuple[str, str, str]:
    space = "DHW"[-axes:]
    return f"N{space}C", f"{space}IO", f"N{space}C"


def conv_direct(x, kernel, stride, padding, dilation, groups):
    """`lax.conv_general_dilated` as it stands."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=_numbers(len(stride)),
        feature_group_count=groups,
    )


def conv_transpose_direct(x, kernel, stride, padding, dilation, groups):
    """The gradient of a convolution with respect to its input, as `lax.conv_transpose` writes it."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
    padding = [(span - 1 - left, span - 1 - right) for span, (left, right) in zip(spans, padding, strict=True)]
    return jax.lax.conv_general_dilated(
        x,
        jnp.flip(kernel, range(len(spans))),
        [1] * len(spans),
        padding,
        lhs_dilation=stride,
        rhs_dilation=dilation,
        dimension_numbers=_numbers(len(spans)),
        feature_group_count=groups,
    )


def conv_matmul(x, kernel, stride, padding, dilation, groups):
    """The same as `conv_direct`, without groups: one matrix product with the windows of the signal."""
    del groups
    x = _pad(x, [(0, 0, 0), *((left, right, 0) for left, right in padding), (0, 0, 0)])
    spans = [d * (k - 1) for k, d in zip(kernel.shape, dilation, strict=False)]
    frames = [(n - span - 1) // s + 1 for n, span, s in zip(x.shape[1:-1], spans, stride, strict=True)]
    windows = []
    for tap in _taps(kernel.shape[:-2]):
        first = [k * d for k, d in zip(tap, dilation, strict=True)]
        last = [start + (n - 1) * s + 1 for start, n, s in zip(first, frames, stride, strict=True)]
        windows.append(jax.lax.slice(x, [0, *first, 0], [len(x), *last, x.shape[-1]], [1, *stride, 1]))
    rows = jnp.concatenate(windows, -1).reshape(len(x) * math.prod(frames), -1)
    return (rows @ kernel.reshape(-1, kernel.shape[-1])).reshape(len(x), *frames, -1)


def conv_transpose_matmul(x, kernel, stride, padding, dilation, groups):
    """The same as `conv_transpose_direct`, over one axis, not dilated, without groups: a matrix product for every tap,
    all in one batch, and what belongs to one frame added. The kernel is read as it lies, not rearranged."""
    del groups, dilation
    (batch, frames, into), (step,), ((left, right),), taps = x.shape, stride, padding, len(kernel)
    parts = -(-taps // step)
    copies = jnp.broadcast_to(x.reshape(1, batch * frames, into), (taps, batch * frames, into))
    each = jax.lax.dot_general(copies, kernel, (((2,), (1,)), ((0,), (0,))))
    each = _pad(each, [(0, parts * step - taps, 0), (0, 0, 0), (0, 0, 0)])
    each = each.reshape(parts, step, batch, frames, -1).transpose(0, 2, 3, 1, 4)
    edge = (0, 0, 0)
    total = sum(_pad(part, [edge, (n, parts - 1 - n, 0), edge, edge]) for n, part in enumerate(each))
    length = (frames - 1) * step + taps - left - right
    y = total.reshape(batch, -1, total.shape[-1])
    return _pad(y, [edge, (-left, left + length - y.shape[1], 0), edge])


def conv_planes(x, kernel, stride, padding, dilation, groups):
    """The same as `conv_direct` with stride 1, without groups: one matrix product makes a plane [batch, *space] for
    every tap and output channel, and the planes are added where they belong."""
    del stride, groups
    *taps, into, out = kernel.shape
    columns = jnp.moveaxis(kernel, -1, -2).reshape(-1, into)
    planes = jax.lax.dot_general(columns, x.reshape(-1, into), (((1,), (1,)), ((), ())))
    planes = planes.reshape(-1, out, *x.shape[:-1])
    edges = _moves(taps, padding, dilation)
    total = sum(_pad(plane, [(0, 0, 0), (0, 0, 0), *edge]) for plane, edge in zip(planes, edges, strict=True))
    return jnp.moveaxis(total, 0, -1)


def conv_transpose_planes(x, kernel, stride, padding, dilation, groups):
    """The same as `conv_transpose_direct` with stride 1, without groups: of a signal of few channels by its windows,
    which are narrow; else, where few channels come out, by planes."""
    spans = [d * (k - 1) for k, d in zip(kernel.shape, dilation, strict=False)]
    edges = [(span - left, span - right) for span, (left, right) in zip(spans, padding, strict=True)]
    form = conv_matmul if x.shape[-1] < kernel.shape[-1] else conv_planes
    return form(x, jnp.flip(kernel, range(len(spans))), stride, edges, dilation, groups)


def kernel_planes(x, y, taps, padding, dilation):
    """The adjoint of `conv_planes` in its kernel: one matrix product of x with the moved planes of y."""
    back = [tuple((-left, -right, 0) for left, right, _ in edge) for edge in _moves(taps, padding, dilation)]
    planes = jnp.moveaxis(y, -1, 0)
    moved = jnp.stack([_pad(planes, [(0, 0, 0), (0, 0, 0), *edge]) for edge in back])
    columns = moved.reshape(-1, math.prod(x.shape[:-1])) @ x.reshape(-1, x.shape[-1])
    return jnp.moveaxis(columns.reshape(*taps, y.shape[-1], x.shape[-1]), -1, -2)


def kernel_crossed(x, y, taps, padding, dilation):
    """The adjoint of `conv_direct` in its kernel, with stride 1, without groups: one matrix product of windows of x,
    some taps each, with windows of y that lie so many taps apart.

    Neither side is then much narrower than the other, as a kernel is whose taps all go to one of them. The windows are
    made of some rows at a time, so that they are multiplied while they are in the cache; but on several devices a loop
    over rows would add up their sums at every turn, and all are made at once.
    """
    splits = _splits(taps, x.shape[-1], y.shape[-1])
    of_x, of_y = [], []
    for n, frames, (a, b), (left, _), d in zip(x.shape[1:-1], y.shape[1:-1], splits, padding, dilation, strict=True):
        far, near = (a - 1) * b * d, (b - 1) * d  # how far the last window of y, and of x, lies from the first
        first, last = max(0, left - near), min(frames + far, left + n)  # beyond them x is all zeros
        length = last - first
        of_x.append(((left - first, length + near - (left - first) - n, 0), [r * d for r in range(b)], length))
        of_y.append(((far - first, last - frames, 0), [far - q * b * d for q in range(a)], length))

    def product(rows):
        windows = [_windows(each, sides) for each, sides in zip(rows, (of_x, of_y), strict=True)]
        exact = jnp.promote_types(x.dtype, jnp.float32)
        return jax.lax.dot_general(*windows, (((0,), (0,)), ((), ())), preferred_element_type=exact)

    parts = _parts(len(x), math.prod(part[2] for part in of_x), splits, x, y)
    if parts == 1:
        total = product((x, y))
    else:
        rows = [each.reshape(parts, len(x) // parts, *each.shape[1:]) for each in (x, y)]
        like = jax.eval_shape(product, [each[0] for each in rows])
        start = jnp.zeros(like.shape, like.dtype)
        total, _ = jax.lax.scan(lambda total, rows: (total + product(rows), None), start, rows)
    axes = len(taps)
    total = total.reshape(*(b for _, b in splits), x.shape[-1], *(a for a, _ in splits), y.shape[-1])
    order = [n for axis in range(axes) for n in (axes + 1 + axis, axis)]
    total = total.transpose(*order, axes, 2 * axes + 1)
    total = total.reshape(*(a * b for a, b in splits), x.shape[-1], y.shape[-1])
    return jax.lax.slice(total, [0] * total.ndim, [*taps, x.shape[-1], y.shape[-1]]).astype(x.dtype)


def _splits(taps, into, out):
    """Per axis (windows of y, windows of x): so that they hold all taps, and as few numbers as can be."""
    each = [[(a, -(-k // a)) for a in range(1, k + 1)] for k in taps]
    width = lambda splits: math.prod(b for _, b in splits) * into + math.prod(a for a, _ in splits) * out
    return min(itertools.product(*each), key=width)


def _parts(rows, positions, splits, x, y):
    """In how many parts the rows are taken."""
    if jax.device_count() > 1:
        return 1
    width = math.prod(b for _, b in splits) * x.shape[-1] + math.prod(a for a, _ in splits) * y.shape[-1]
    size = positions * width * x.dtype.itemsize
    return next(n for n in range(1, rows + 1) if rows % n == 0 and (n == rows or rows // n * size <= CACHED))


def _windows(x, sides):
    """[batch * positions, windows * channels]; sides: per axis how it is padded, where the windows begin, their
    length."""
    x = _pad(x, [(0, 0, 0), *(edge for edge, _, _ in sides), (0, 0, 0)])
    lengths = [length for _, _, length in sides]
    cut = lambda begin: jax.lax.slice(
        x, [0, *begin, 0], [len(x), *(n + m for n, m in zip(begin, lengths, strict=True)), x.shape[-1]]
    )
    found = jnp.stack([cut(begin) for begin in itertools.product(*(starts for _, starts, _ in sides))], -2)
    return found.reshape(len(x) * math.prod(lengths), -1)


def _moves(taps, padding, dilation):
    """For every tap, how its plane of the signal's size is padded, or cut, to lie on the frames: (low, high, 0) per
    axis."""
    for tap in _taps(taps):
        each = zip(tap, taps, padding, dilation, strict=True)
        yield [(left - k * d, right - (n - 1 - k) * d, 0) for k, n, (left, right), d in each]


def _taps(sizes):
    return itertools.product(*map(range, sizes))


def blocks(channels: int) -> int:
    """How many output frames one folded frame makes, over one axis: more than one where the signal has few channels."""
    return max(1, BLOCK_CHANNELS // channels)


def conv_phase(x, kernel, stride, padding, dilation, groups):
    """The same as `conv_direct`: stride-many frames, or a block of strides, become the channels of one frame."""
    if groups == x.shape[-1] == kernel.shape[-1]:
        return _depthwise(x, kernel, stride, padding, dilation)
    if groups > 1:
        return _by_group(lambda x, kernel: conv_phase(x, kernel, stride, padding, dilation, 1), x, kernel, groups)
    axes = len(stride)
    if max(stride) > 1 and max(dilation) > 1:
        kernel, dilation = _dilate(kernel, dilation), (1,) * axes
    spans = [d * (k - 1) + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
    lengths = [(n + a + b - w) // s + 1 for n, (a, b), w, s in zip(x.shape[1:-1], padding, spans, stride, strict=True)]
    if max(dilation) > 1:
        return _unit(x, kernel, [left for left, _ in padding], lengths, dilation)

    many = [blocks(stride[0] * x.shape[-1])] if axes == 1 else [1] * axes
    folds = [s * u for s, u in zip(stride, many, strict=True)]
    outside, lefts, shifts = _aligned(kernel, stride, padding, many, folds)
    x = _pad(x, [(0, 0, 0), *((n, 0, 0) for n in outside), (0, 0, 0)])
    kernel = _banks(kernel, shifts, stride, many, folds)  # [R.., fold.., block.., in, out]
    kernel = _merge(kernel, axes, folds, many)
    y = _unit(_fold(x, folds), kernel, lefts, [-(-n // u) for n, u in zip(lengths, many, strict=True)], (1,) * axes)
    return _crop(_unfold(y, many), lengths)


def conv_transpose_phase(x, kernel, stride, padding, dilation, groups):
    """The same as `conv_transpose_direct`: all frames that one input frame starts are made as channels."""
    axes = len(stride)
    if max(stride) == 1:
        spans = [d * (k - 1) + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
        edges = [(span - 1 - left, span - 1 - right) for span, (left, right) in zip(spans, padding, strict=True)]
        return conv_phase(x, jnp.flip(kernel, range(axes)), stride, edges, dilation, groups)
    if groups > 1:
        part = lambda x, kernel: conv_transpose_phase(x, kernel, stride, padding, dilation, 1)
        return _by_group(part, x, kernel, groups)
    kernel = _dilate(kernel, dilation)
    if axes == 2 and stride[0] > 1:
        return _overlap_rows(x, kernel, stride, padding)
    sizes = zip(x.shape[1:-1], kernel.shape, stride, padding, strict=False)
    lengths = [(n - 1) * s + k - left - right for n, k, s, (left, right) in sizes]
    many = [1] * (axes - 1) + [blocks(math.prod(stride) * kernel.shape[-1])]
    folds = [s * u for s, u in zip(stride, many, strict=True)]
    outside, lefts, shifts = _aligned(kernel, stride, padding, many, folds)
    ends = [n + m for n, m in zip(lengths, outside, strict=True)]
    kernel = _banks(kernel, shifts, stride, many, folds)  # [R.., fold.., block.., in, out]
    kernel = jnp.flip(kernel, range(axes))
    order = [*range(axes), *range(2 * axes, 3 * axes), *range(axes, 2 * axes), 3 * axes, 3 * axes + 1]
    kernel = _merge(kernel.transpose(order), axes, many, folds)  # [R.., block * in, fold * out]
    lefts = [taps - 1 - m for taps, m in zip(kernel.shape, lefts, strict=False)]
    y = _unit(_fold(x, many), kernel, lefts, [-(-n // f) for n, f in zip(ends, folds, strict=True)], (1,) * axes)
    return jax.lax.slice(_unfold(y, folds), [0, *outside, 0], [x.shape[0], *ends, y.shape[-1] // math.prod(folds)])


def _overlap_rows(x, kernel, stride, padding):
    """Two axes: the last one as ever, with a channel for every tap of the first, then these rows are added where they
    belong. Folding both would pad the kernel on both: 5 x 5 taps at stride 2 become 6 x 6."""
    batch, rows, columns, into = x.shape
    taps, width, _, out = kernel.shape
    (step, _), (left, right) = stride, padding[0]
    length = (rows - 1) * step + taps - left - right
    many, edge = -(-length // step), (0, 0, 0)  # rows of a phase: every step-th of the result
    each = kernel.transpose(1, 2, 0, 3).reshape(width, into, taps * out)
    y = conv_transpose_phase(x.reshape(batch * rows, columns, into), each, stride[1:], padding[1:], (1,), 1)
    y = y.reshape(batch, rows, -1, taps, out)

    def moved(tap):
        first = (tap - left) // step
        return _pad(y[:, :, :, tap], [edge, (first, many - rows - first, 0), edge, edge])

    zero = jnp.zeros((batch, many, y.shape[2], out), y.dtype)
    of_phase = lambda phase: (tap for tap in range(taps) if (tap - left) % step == phase)
    phases = [sum(map(moved, of_phase(phase)), zero) for phase in range(step)]
    return _crop(jnp.stack(phases, 2).reshape(batch, many * step, y.shape[2], out), (length, y.shape[2]))


def _aligned(kernel, stride, padding, many, folds):
    """Per axis how the convolution comes to start at the start of a fold: the kernel gets `shift` zeros in front, and
    the folded signal is padded by `left`; or, where these zeros would cost a row of taps, the signal itself is moved,
    by `outside` frames. Three lists."""
    found = []
    for taps, s, (left, _), u, fold in zip(kernel.shape, stride, padding, many, folds, strict=False):
        shift = -left % fold
        rows, least = (-(-(taps + zeros + (u - 1) * s) // fold) for zeros in (shift, 0))
        found.append((left, 0, 0) if rows > least and left > 0 else (0, (left + shift) // fold, shift))
    return zip(*found, strict=True)


def _by_group(form, x, kernel, groups):
    parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    return jnp.concatenate([form(a, b) for a, b in parts], -1)


def _depthwise(x, kernel, stride, padding, dilation):
    """A channel of its own kernel each: the sum over taps of the shifted signal."""
    x = _pad(x, [(0, 0, 0), *((left, right, 0) for left, right in padding), (0, 0, 0)])
    total = 0.0
    for tap in _taps(kernel.shape[:-2]):
        first = [0, *(k * d for k, d in zip(tap, dilation, strict=True)), 0]
        spans = [d * (k - 1) for k, d in zip(kernel.shape, dilation, strict=False)]
        last = [
            x.shape[0],
            *(n - w + f for n, w, f in zip(x.shape[1:-1], spans, first[1:-1], strict=True)),
            x.shape[-1],
        ]
        total += jax.lax.slice(x, first, last, [1, *stride, 1]) * kernel[tap].reshape((1,) * (x.ndim - 1) + (-1,))
    return total


def _unit(x, kernel, lefts, lengths, dilation):
    """Stride-1 convolution that starts `left` before x and makes `length` frames.

    Its padding always sums to the span minus one. With more the weight gradient, with less the gradient's gradient is
    a convolution whose window is longer than its signal; XLA turns those round, into a form for which its CPU backend
    has only a loop, 60 times slower. What is left over is padded or cut outside.
    """
    spans = [d * (k - 1) for k, d in zip(kernel.shape, dilation, strict=False)]
    shape, outer, inner = x.shape[1:-1], [], []
    for n, left, span, length in zip(shape, lefts, spans, lengths, strict=True):
        inside = min(max(left, 0), span)
        front = left - inside
        outer.append((front, max(0, length - n - front), 0))
        inner.append((inside, span - inside))
    x = _pad(x, [(0, 0, 0), *outer, (0, 0, 0)])
    ones = [1] * len(spans)
    y = jax.lax.conv_general_dilated(
        x, kernel, ones, inner, rhs_dilation=dilation, dimension_numbers=_numbers(len(spans))
    )
    return _crop(y, lengths)


def _banks(kernel, shifts, stride, many, folds):
    """[*taps, in, out] -> [R.., fold.., block.., in, out]: one copy of the kernel per frame of a block, each one stride
    further on, in zeros that fill whole folds."""
    axes = len(stride)
    for axis in range(axes):
        taps, shift, s, u, fold = kernel.shape[axis], shifts[axis], stride[axis], many[axis], folds[axis]
        rows = -(-(taps + shift + (u - 1) * s) // fold)
        edges = [[(0, 0, 0)] * kernel.ndim for _ in range(u)]
        for j in range(u):
            edges[j][axis] = (shift + j * s, rows * fold - taps - shift - j * s, 0)
        kernel = jnp.stack([_pad(kernel, e) for e in edges], axes + axis)
    shape = [n for size, fold in zip(kernel.shape, folds, strict=False) for n in (size // fold, fold)]
    kernel = kernel.reshape(*shape, *kernel.shape[axes:])
    order = [*range(0, 2 * axes, 2), *range(1, 2 * axes, 2), *range(2 * axes, kernel.ndim)]
    return kernel.transpose(order)


def _merge(kernel, axes, inner, outer):
    """[R.., inner.., outer.., in, out] -> [R.., inner * in, outer * out]."""
    rows, (n_in, n_out) = kernel.shape[:axes], kernel.shape[-2:]
    order = [*range(2 * axes), 3 * axes, *range(2 * axes, 3 * axes), 3 * axes + 1]
    return kernel.transpose(order).reshape(*rows, math.prod(inner) * n_in, math.prod(outer) * n_out)


def _fold(x, folds):
    """[batch, *T, C] -> [batch, *ceil(T / fold), prod(fold) * C]."""
    if math.prod(folds) == 1:
        return x
    edges = [(0, -n % f, 0) for n, f in zip(x.shape[1:-1], folds, strict=True)]
    x = _pad(x, [(0, 0, 0), *edges, (0, 0, 0)])
    axes = len(folds)
    sizes = [n for size, f in zip(x.shape[1:-1], folds, strict=True) for n in (size // f, f)]
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
    rows = sizes[::2]
    return x.reshape(x.shape[0], *sizes, x.shape[-1]).transpose(order).reshape(x.shape[0], *rows, -1)


def _unfold(x, folds):
    """[batch, *T, prod(fold) * C] -> [batch, *(T * fold), C]."""
    if math.prod(folds) == 1:
        return x
    axes, rows = len(folds), x.shape[1:-1]
    x = x.reshape(x.shape[0], *rows, *folds, -1)
    order = [0, *(n for axis in range(axes) for n in (1 + axis, 1 + axes + axis)), 1 + 2 * axes]
    return x.transpose(order).reshape(x.shape[0], *(n * f for n, f in zip(rows, folds, strict=True)), x.shape[-1])


def _dilate(kernel, dilation):
    """The kernel with its taps `dilation` apart, zeros between."""
    return _pad(kernel, [*((0, 0, d - 1) for d in dilation), (0, 0, 0), (0, 0, 0)])


def _pad(x, edges):
    """`lax.pad` with zeros; x itself where there is nothing to pad."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), edges) if any(any(edge) for edge in edges) else x


def _crop(x, lengths):
    return jax.lax.slice(x, [0] * x.ndim, [x.shape[0], *lengths, x.shape[-1]])
