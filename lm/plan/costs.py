"""What a compiled program does on each device: FLOPs, bytes through memory, bytes sent by collective and mesh axis."""
import math
import re

import numpy as np

from lm.plan import hlo

# Collective -> the bytes that each of n devices sends for an operand of one byte and a result of r, around a ring.
SENT = {
    'all-gather': lambda n, operand, result: result * (n - 1) / n,
    'all-reduce': lambda n, operand, result: 2 * operand * (n - 1) / n,
    'reduce-scatter': lambda n, operand, result: operand * (n - 1) / n,
    'all-to-all': lambda n, operand, result: operand * (n - 1) / n,
    'ragged-all-to-all': lambda n, operand, result: operand * (n - 1) / n,
    'collective-broadcast': lambda n, operand, result: operand,
    'collective-permute': lambda n, operand, result: operand,
}
# Name of an attention kernel -> how many products of [T H] with [S H] it makes: two forward; backward it makes the
# scores anew, in one kernel (5) or in one for queries (3) and one for keys and values (4).
KERNELS = (('dkv', 4), ('dq', 3), ('bwd', 5), ('backward', 5), ('fwd', 2), ('forward', 2), ('fmha', 2))
UNREAD = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'iota',
          'after-all', 'partition-id', 'opt-barrier', 'async-start', 'async-update', 'async-done')

SLICES = ('dynamic-slice', 'slice', 'gather')


def measure(text, sizes, seen=1.0):
    """Returns {'flops', 'memory_bytes', 'collectives'} of one run on one device, from a compiled module's text.

    `sizes` is {mesh axis: size} in order and `seen` the share of all pairs that attention kernels compute. collectives
    is {(kind, axes): bytes sent}, axes as by `axes`, joined by '+'.
    """
    program = hlo.parse(text)
    flops = memory = 0
    sent, counted = {}, set()
    callers = _callers(program)
    for name, times in hlo.runs(program).items():
        body = program.computations[name]
        for instruction in body.values():
            flops += times * _flops(program, body, instruction, seen)
            if name not in callers:
                memory += times * _through_memory(program, body, instruction)
            kind = _collective(program, name, instruction)
            part = _part(callers, name, instruction) if kind in SENT else None
            if kind in SENT and part not in counted:
                counted.add(part)
                key = kind, '+'.join(axes(instruction, sizes))
                sent[key] = sent.get(key, 0) + times * _sent(kind, body, instruction, sizes)
    return {'flops': flops, 'memory_bytes': memory, 'collectives': {k: v for k, v in sent.items() if v}}


def _callers(program):
    """Returns {fused computation: the one that runs it}."""
    return {name: caller for caller, body in program.computations.items() for i in body.values()
            if i.opcode == 'fusion' for name in i.inner()}


def _part(callers, computation, instruction):
    """Returns what all parts of a collective have in common, which TPUs fuse with what goes on meanwhile: its channel
    and the computation that runs them. Copies of it in other loops have the channel too.
    """
    channel = re.search(r'channel_id=(\d+)', instruction.rest)
    fused = channel and computation in callers
    return (callers[computation], channel[1]) if fused else (computation, instruction.name)


def _collective(program, computation, instruction):
    """Returns what an instruction is as a collective: a sum that TPUs cut in the same kernel is scattered by it, and
    what slices of TPUs send each other goes through their hosts.
    """
    between = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    if between and instruction.opcode == 'send':
        return between[1].lower().replace('_', '-')
    kind = instruction.opcode.removesuffix('-start')
    root = program.root(computation)
    cut = kind == 'all-reduce' and root.opcode == 'dynamic-slice' and root.operands[0] == instruction.name
    return 'reduce-scatter' if cut and computation.startswith('all-reduce-scatter') else kind


def _flops(program, body, instruction, seen):
    if instruction.opcode == 'dot':
        left = body[instruction.operands[0]].arrays[0].shape
        contracted = math.prod(left[axis] for axis in instruction.numbers('lhs_contracting_dims'))
        return 2 * math.prod(instruction.arrays[0].shape) * contracted
    if instruction.opcode == 'convolution':
        return _convolution(body, instruction)
    if instruction.opcode == 'custom-call':
        return _kernel(body, instruction, seen)
    return 0


def _convolution(body, instruction):
    """Returns the FLOPs of a convolution, as which TPUs run every product: only taps that meet an input are counted.

    Ragged products have an axis of all groups first, masked; their kernel is told where groups begin, so that a row
    counts for its own group alone.
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
    """Returns how many pairs of an output place and a window place meet an input, along one axis of a convolution."""
    def part(name, missing):
        return window[name].split('x')[axis] if name in window else missing
    width, stride, low = int(part('size', 1)), int(part('stride', 1)), int(part('pad', '0_0').split('_')[0])
    spread, dilation = int(part('lhs_dilate', 1)), int(part('rhs_dilate', 1))
    at = np.arange(steps)[:, None] * stride + np.arange(width) * dilation - low
    return int(np.sum((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)))


def _kernel(body, instruction, seen):
    """Returns the FLOPs of an attention kernel, by its name and the shapes of queries and keys, or of a ragged product,
    of which a row meets one group's matrix; 0 of any other call.
    """
    if instruction.name.startswith('ragged-dot') and len(instruction.arrays) == 1:
        rows = next(array.shape for name in instruction.operands if name in body for array in body[name].arrays
                    if array.dtype in ('bf16', 'f32'))
        return 2 * math.prod(rows) * instruction.arrays[0].shape[-1]
    said = f'{instruction.name} {instruction.rest[:2000]}'
    if not re.search(r'splash|flash|fmha|attention', said):
        return 0
    products = next((count for word, count in KERNELS if word in instruction.name or f'{word}' in said[:300]), 2)
    arrays = [array for name in instruction.operands if name in body for array in body[name].arrays]
    shapes = [array.shape for array in arrays if array.dtype in ('bf16', 'f16', 'f32') and len(array.shape) > 2]
    if len(shapes) < 2:
        return 0
    query, key = shapes[:2]
    keys = key[1] if 'fmha' in said else key[-2]  # [B S K H], or [B K S H] and without B
    return 2 * products * math.prod(query) * keys * seen


def _through_memory(program, body, instruction):
    """Returns the bytes that one instruction reads from and writes to main memory."""
    reserved = instruction.opcode == 'custom-call' and 'AllocateBuffer' in instruction.rest
    if reserved or instruction.opcode in UNREAD or instruction.opcode.endswith('-done'):
        return 0
    if instruction.opcode.endswith('-start'):
        moved = instruction.arrays[:2]
        return min((a.size for a in moved), default=0) * sum(not a.fast for a in moved)
    arrays = [body[name].arrays for name in instruction.operands if name in body]
    read = [sum(a.size for a in each if not a.fast) for each in arrays]
    if instruction.opcode == 'fusion':
        inner = instruction.inner()[0]
        part = [min(size, _taken(program, inner, at)) if size else 0 for at, size in enumerate(read)]
        return sum(part) + sum(min(array.size, size) for array, size in zip(instruction.arrays, _left(program, inner))
                               if not array.fast)
    written = sum(a.size for a in instruction.arrays if not a.fast)
    if instruction.opcode in SLICES:
        return written + min(sum(read), instruction.size)
    if instruction.opcode == 'dynamic-update-slice':
        return 2 * read[1]
    return sum(read) + written


def _taken(program, computation, at):
    """Returns the bytes that a fused computation reads of parameter number `at`: the slices of one that it slices."""
    inner = program.computations[computation]
    name = next((i.name for i in inner.values() if i.opcode == 'parameter' and i.operands[0] == str(at)), None)
    return _read(program, inner, name)


def _read(program, inner, name):
    total = 0
    for user in inner.values():
        if name not in user.operands:
            continue
        if user.opcode in SLICES:
            total += user.size
        elif user.opcode in ('bitcast', 'copy', 'reshape'):
            total += _read(program, inner, user.name)
        elif user.opcode == 'fusion':
            total += sum(_taken(program, user.inner()[0], at)
                         for at, given in enumerate(user.operands) if given == name)
        elif user.opcode != 'tuple' and not (user.opcode == 'dynamic-update-slice' and user.operands[0] == name):
            return math.inf
    return total


def _left(program, computation):
    """Returns the bytes that a fused computation writes of each of its results: of one updated in place, the update."""
    inner, root = program.computations[computation], program.root(computation)
    results = [inner[name] for name in root.operands] if root.opcode == 'tuple' else [root]
    sizes = []
    for result in results:
        while result.opcode in ('bitcast', 'copy', 'reshape') and result.operands[0] in inner:
            result = inner[result.operands[0]]
        if result.opcode == 'fusion':
            sizes.append(sum(_left(program, result.inner()[0])))
        else:
            sizes.append(inner[result.operands[1]].size if result.opcode == 'dynamic-update-slice' else result.size)
    return sizes


def _sent(kind, body, instruction, sizes):
    operand = sum(array.size for name in instruction.operands if name in body for array in body[name].arrays)
    n = len(group(instruction, sizes))
    result = operand * n if kind == 'all-gather' else operand
    return SENT[kind](n, operand, result) if n > 1 else 0


def group(instruction, sizes):
    """Returns the ids of the devices that the first one of a collective shares it with, itself included."""
    count = math.prod(sizes.values())
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
        many = sum(each[-1] - each[0] + 1 for each in ends)
        return list(range(0, count, count // many))
    named = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*{([^}]*)}', instruction.rest)
    if named:
        return _named(named[1], named[2])
    return list(range(count))


def _named(mesh, chosen):
    """Returns the first group of `mesh['a'=2,'b'=4] {'b'}`; an axis may be a part of one: `'b':(2)2`, 2 after a 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    for axis, name in reversed(list(enumerate(sizes))):
        found = re.search(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", chosen)
        if not found:
            ids = ids.take([0], axis)
        elif found[1]:
            before, size = int(found[1]), int(found[2])
            ids = ids.take(np.arange(size) * (sizes[name] // before // size), axis)
    return ids.reshape(-1).tolist()


def axes(instruction, sizes):
    """Returns the names of the mesh axes that a collective goes along.

    'fsdp:16' where it goes over 16 devices of the axis at a time, and those are not all.
    """
    at = np.array(np.unravel_index(group(instruction, sizes), tuple(sizes.values())))
    taken = {name: len(set(places.tolist())) for name, places in zip(sizes, at)}
    whole = 'source_target_pairs' in instruction.rest
    return tuple(name if whole or count == sizes[name] else f'{name}:{count}'
                 for name, count in taken.items() if count > 1)
