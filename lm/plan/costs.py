"""Costs of a compiled program on each device: FLOPs, HBM traffic, and bytes sent by collective and mesh axis."""
import math
import re

import numpy as np

from lm.plan import hlo

# Collective -> the bytes that each of n devices sends for an operand and a result of so many bytes, around a ring.
SENT = {
    'all-gather': lambda n, operand, result: result * (n - 1) / n,
    'all-reduce': lambda n, operand, result: 2 * operand * (n - 1) / n,
    'reduce-scatter': lambda n, operand, result: operand * (n - 1) / n,
    'all-to-all': lambda n, operand, result: operand * (n - 1) / n,
    'ragged-all-to-all': lambda n, operand, result: operand * (n - 1) / n,
    'collective-broadcast': lambda n, operand, result: operand,
    'collective-permute': lambda n, operand, result: operand,
}
# Word in the name of an attention kernel -> its products of [T H] with [S H]: 2 forward; backward, which recomputes the
# scores, 5 in one kernel, or 3 in that of the queries' gradient and 4 in that of the keys' and values'.
KERNELS = (('dkv', 4), ('dq', 3), ('bwd', 5), ('backward', 5), ('fwd', 2), ('forward', 2), ('fmha', 2))
# Opcodes that move no data of their own through HBM.
FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'iota',
        'after-all', 'partition-id', 'opt-barrier', 'async-start', 'async-update', 'async-done')
SLICES = ('dynamic-slice', 'slice', 'gather')


def measure(text, mesh, attended=1.0):
    """Returns {'flops', 'attention', 'hbm_bytes', 'collectives'} of one run on one device, from a module's text.

    `mesh` is {axis: size} in order and `attended` the share of all pairs of positions that attention kernels compute.
    attention is {head size: FLOPs} of such kernels, which `flops` includes; collectives is {(kind, axes): bytes sent},
    axes as by `axes`, joined by '+'.
    """
    program = hlo.parse(text)
    flops = traffic = 0
    sent, attention, counted = {}, {}, set()
    callers = _callers(program)
    for name, times in hlo.runs(program).items():
        body = program.computations[name]
        for instruction in body.values():
            flops += times * _flops(body, instruction)
            size, kernel = _attention_flops(body, instruction)
            attention[size] = attention.get(size, 0) + times * kernel * attended
            if name not in callers:
                traffic += times * _hbm_bytes(program, body, instruction)
            kind = _collective(program, name, instruction)
            identity = _collective_identity(callers, name, instruction) if kind in SENT else None
            if kind in SENT and identity not in counted:
                counted.add(identity)
                key = kind, '+'.join(axes(instruction, mesh))
                sent[key] = sent.get(key, 0) + times * _sent(kind, body, instruction, mesh)
    attention = {size: kernel for size, kernel in attention.items() if kernel}
    return {'flops': flops + sum(attention.values()), 'attention': attention, 'hbm_bytes': traffic,
            'collectives': {k: v for k, v in sent.items() if v}}


def _callers(program):
    """Returns {fused computation: the computation that its fusion is in}."""
    return {name: caller for caller, body in program.computations.items() for i in body.values()
            if i.opcode == 'fusion' for name in i.inner()}


def _collective_identity(callers, computation, instruction):
    """Returns a value that the fusions of one asynchronous collective share: their caller and its channel.

    TPUs split a collective over several fusions, each with computation that runs meanwhile. The channel alone does not
    tell: copies of a collective in other loops have it too.
    """
    channel = re.search(r'channel_id=(\d+)', instruction.rest)
    fused = channel and computation in callers
    return (callers[computation], channel[1]) if fused else (computation, instruction.name)


def _collective(program, computation, instruction):
    """Returns the kind of collective that an instruction is, or its opcode where it is none.

    An all-reduce that a TPU slices in the same fusion is a reduce-scatter; between TPU slices a collective is a send
    through the hosts.
    """
    between = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    if between and instruction.opcode == 'send':
        return between[1].lower().replace('_', '-')
    kind = instruction.opcode.removesuffix('-start')
    root = program.root(computation)
    sliced = kind == 'all-reduce' and root.opcode == 'dynamic-slice' and root.operands[0] == instruction.name
    return 'reduce-scatter' if sliced and computation.startswith('all-reduce-scatter') else kind


def _flops(body, instruction):
    """Returns the FLOPs of a product, 0 for any other instruction."""
    if instruction.opcode == 'dot':
        left = body[instruction.operands[0]].arrays[0].shape
        contracted = math.prod(left[axis] for axis in instruction.numbers('lhs_contracting_dims'))
        return 2 * math.prod(instruction.arrays[0].shape) * contracted
    if instruction.opcode == 'convolution':
        return convolution_flops(body, instruction)
    ragged = instruction.opcode == 'custom-call' and instruction.name.startswith('ragged-dot')
    if ragged and len(instruction.arrays) == 1:  # a row is multiplied by its group's matrix alone
        rows = next(array.shape for name in instruction.operands if name in body for array in body[name].arrays
                    if array.dtype in ('bf16', 'f32'))
        return 2 * math.prod(rows) * instruction.arrays[0].shape[-1]
    return 0


def convolution_flops(body, instruction):
    """Returns the FLOPs of a convolution, as which TPUs run every product, without those that multiply padding.

    A ragged product is a convolution with a leading axis of all groups, masked. Its kernel skips the rows of other
    groups, so a row counts once.
    """
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.rest)
    left, right, out = labels.groups()
    operands = [body[name].arrays[0].shape for name in instruction.operands[:2]]
    result = instruction.arrays[0].shape
    window = dict(re.findall(r'(\w+)=([\dx_\-]+)', (re.search(r'window={([^}]*)}', instruction.rest) or ['', ''])[1]))
    total = 2 * result[out.index('b')] * result[out.index('f')] * operands[1][right.index('i')]
    for axis in range(len(left) - 2):
        total *= _taps(operands[0][left.index(str(axis))], result[out.index(str(axis))], window, axis)
    return total / result[out.index('0')] if 'ragged_dot' in instruction.rest else total


def _taps(size, steps, window, axis):
    """Returns how many (output, window) positions read an input and not padding, along one axis of a convolution."""
    def attribute(name, default):
        return window[name].split('x')[axis] if name in window else default
    width, stride = int(attribute('size', 1)), int(attribute('stride', 1))
    low = int(attribute('pad', '0_0').split('_')[0])
    input_dilation, window_dilation = int(attribute('lhs_dilate', 1)), int(attribute('rhs_dilate', 1))
    at = np.arange(steps)[:, None] * stride + np.arange(width) * window_dilation - low
    return int(np.sum((at >= 0) & (at <= (size - 1) * input_dilation) & (at % input_dilation == 0)))


def _attention_flops(body, instruction):
    """Returns (H, FLOPs) of a custom call that is an attention kernel, over all pairs; (0, 0) of any other instruction.

    By its name and the shapes of queries and keys.
    """
    label = f'{instruction.name} {instruction.rest[:2000]}'
    if instruction.opcode != 'custom-call' or not re.search(r'splash|flash|fmha|attention', label):
        return 0, 0
    products = next((count for word, count in KERNELS if word in instruction.name or word in label[:300]), 2)
    arrays = [array for name in instruction.operands if name in body for array in body[name].arrays]
    shapes = [array.shape for array in arrays if array.dtype in ('bf16', 'f16', 'f32') and len(array.shape) > 2]
    if len(shapes) < 2:
        return 0, 0
    query, key = shapes[:2]
    keys = key[1] if 'fmha' in label else key[-2]  # cuDNN: [B S K H]; splash: [B K S H] or [K S H]
    return query[-1], 2 * products * math.prod(query) * keys


def _hbm_bytes(program, body, instruction):
    """Returns the bytes that one instruction reads from and writes to HBM."""
    reserved = instruction.opcode == 'custom-call' and 'AllocateBuffer' in instruction.rest
    if reserved or instruction.opcode in FREE or instruction.opcode.endswith('-done'):
        return 0
    if instruction.opcode.endswith('-start'):
        moved = instruction.arrays[:2]
        return min((a.size for a in moved), default=0) * sum(not a.fast for a in moved)
    arrays = [body[name].arrays for name in instruction.operands if name in body]
    read = [sum(a.size for a in operand if not a.fast) for operand in arrays]
    if instruction.opcode == 'fusion':
        inner = instruction.inner()[0]
        sliced = [min(size, _parameter_bytes(program, inner, at)) if size else 0 for at, size in enumerate(read)]
        return sum(sliced) + sum(min(array.size, size) for array, size in
                                 zip(instruction.arrays, _result_bytes(program, inner)) if not array.fast)
    written = sum(a.size for a in instruction.arrays if not a.fast)
    if instruction.opcode in SLICES:
        return written + min(sum(read), instruction.size)
    if instruction.opcode == 'dynamic-update-slice':
        return 2 * read[1]
    return sum(read) + written


def _parameter_bytes(program, computation, at):
    """Returns the bytes that a fused computation reads of parameter number `at`: the slices of one that it slices."""
    body = program.computations[computation]
    name = next((i.name for i in body.values() if i.opcode == 'parameter' and i.operands[0] == str(at)), None)
    return _bytes_read(program, body, name)


def _bytes_read(program, body, name):
    """Returns the bytes that the users of `name` in a computation read of it; math.inf where one may read all of it.

    So may the users of a computation's result, which are outside it.
    """
    if name is not None and body[name].root:
        return math.inf
    total = 0
    for user in body.values():
        if name not in user.operands:
            continue
        if user.opcode in SLICES:
            total += user.size
        elif user.opcode in ('bitcast', 'copy', 'reshape'):
            total += _bytes_read(program, body, user.name)
        elif user.opcode == 'fusion':
            total += sum(_parameter_bytes(program, user.inner()[0], at)
                         for at, operand in enumerate(user.operands) if operand == name)
        elif user.opcode != 'tuple' and not (user.opcode == 'dynamic-update-slice' and user.operands[0] == name):
            return math.inf
    return total


def _result_bytes(program, computation):
    """Returns the bytes that a fused computation writes of each result: of an in-place update, those of the update."""
    body, root = program.computations[computation], program.root(computation)
    results = [body[name] for name in root.operands] if root.opcode == 'tuple' else [root]
    sizes = []
    for result in results:
        while result.opcode in ('bitcast', 'copy', 'reshape') and result.operands[0] in body:
            result = body[result.operands[0]]
        if result.opcode == 'fusion':
            sizes.append(sum(_result_bytes(program, result.inner()[0])))
        else:
            sizes.append(body[result.operands[1]].size if result.opcode == 'dynamic-update-slice' else result.size)
    return sizes


def _sent(kind, body, instruction, mesh):
    """Returns the bytes that a device sends in a collective."""
    operand = sum(array.size for name in instruction.operands if name in body for array in body[name].arrays)
    n = len(replica_group(instruction, mesh))
    result = operand * n if kind == 'all-gather' else operand
    return SENT[kind](n, operand, result) if n > 1 else 0


def replica_group(instruction, mesh):
    """Returns the ids of the devices in the first replica group of a collective, in any of HLO's notations."""
    count = math.prod(mesh.values())
    pairs = re.search(r'source_target_pairs={((?:{\d+,\d+},?)*)}', instruction.rest)
    if pairs:
        ids = [int(n) for n in re.findall(r'\d+', pairs[1])]
        return next(([a, b] for a, b in zip(ids[::2], ids[1::2], strict=True) if a != b), ids[:1])
    listed = re.search(r'replica_groups={{([\d,]+)}', instruction.rest)
    if listed:
        return [int(n) for n in listed[1].split(',')]
    tiled = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', instruction.rest)
    if tiled:
        shape, dims, order = ([int(n) for n in part.split(',')] if part else None for part in tiled.groups())
        ids = np.arange(count).reshape(dims)
        return (ids.transpose(order) if order else ids).reshape(shape)[0].tolist()
    slices = re.search(r'_xla_megascale_target="{([\d,:]+)}', instruction.rest)
    if slices:
        ends = [[int(n) for n in part.split(':')] for part in slices[1].split(',')]
        slice_count = sum(end[-1] - end[0] + 1 for end in ends)
        return list(range(0, count, count // slice_count))
    named = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*{([^}]*)}', instruction.rest)
    if named:
        return _named_group(named[1], named[2])
    return list(range(count))


def _named_group(mesh, chosen):
    """Returns the first group of `mesh['a'=2,'b'=4] {'b'}`; an axis may be a part of one: `'b':(2)2`, 2 after a 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    for axis, name in reversed(list(enumerate(sizes))):
        match = re.search(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", chosen)
        if not match:
            ids = ids.take([0], axis)
        elif match[1]:
            before, size = int(match[1]), int(match[2])
            ids = ids.take(np.arange(size) * (sizes[name] // before // size), axis)
    return ids.reshape(-1).tolist()


def axes(instruction, mesh):
    """Returns the names of the mesh axes that a collective goes along.

    'fsdp:16' where it goes over 16 devices of the axis at a time, and those are not all.
    """
    at = np.array(np.unravel_index(replica_group(instruction, mesh), tuple(mesh.values())))
    sizes = {name: len(set(places.tolist())) for name, places in zip(mesh, at)}
    whole = 'source_target_pairs' in instruction.rest  # a permutation: pairs, but around all of the axis
    return tuple(name if whole or size == mesh[name] else f'{name}:{size}'
                 for name, size in sizes.items() if size > 1)
