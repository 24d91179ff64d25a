"""A parser of HLO text: computations of instructions, and how often each computation runs."""
import math
import re
from dataclasses import dataclass

ITEMSIZE = {'pred': 1, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8, 'c64': 8}  # else bits in the name: s32, f8e4m3fn
INNER = re.compile(r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
START = re.compile(r'\s+(?:ROOT )?%?[\w.\-]+ = ')


@dataclass(frozen=True)
class Array:
    """An array type. fast: in the chip's on-chip memory (S(1) in its layout) instead of HBM."""

    dtype: str
    shape: tuple
    fast: bool

    @property
    def size(self):
        """Bytes, without padding."""
        digits = re.match(r'[a-z]+(\d+)', self.dtype)
        itemsize = ITEMSIZE[self.dtype] if self.dtype in ITEMSIZE else int(digits[1]) / 8 if digits else 0
        return itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Instruction:
    """`name = type opcode(operands), rest`. arrays: of the type, in order. root: whether it is the result."""

    name: str
    opcode: str
    arrays: tuple
    operands: tuple
    rest: str
    root: bool

    @property
    def size(self):
        """Bytes of all its arrays."""
        return sum(array.size for array in self.arrays)

    def inner(self):
        """Returns the names of the computations that it calls, but for the branches of a conditional."""
        return INNER.findall(self.rest)

    def numbers(self, attribute):
        """Returns the tuple of integers in `attribute={1,2}`; () where it is missing."""
        match = re.search(rf'\b{attribute}={{([\d,]*)}}', self.rest)
        return tuple(int(part) for part in match[1].split(',') if part) if match else ()


@dataclass(frozen=True)
class Program:
    """Computations {name: {instruction name: Instruction}} and the name of the entry computation."""

    computations: dict
    entry: str

    def root(self, computation):
        """Returns the root Instruction of a computation."""
        return next(i for i in self.computations[computation].values() if i.root)


def parse(text):
    """Returns the Program of a compiled module's text."""
    computations, entry, body = {}, None, None
    for line in _joined(text):
        if line.startswith(('%', 'ENTRY')):
            name = re.match(r'(?:ENTRY )?%?([\w.\-]+)', line)[1]
            entry = name if line.startswith('ENTRY') else entry
            body = computations.setdefault(name, {})
        elif body is not None and START.match(line):
            instruction = _instruction(line.strip())
            body[instruction.name] = instruction
    return Program(computations, entry)


def _joined(text):
    """Yields the logical lines of a module: an attribute may contain line breaks, which are removed."""
    logical = None
    for line in text.splitlines():
        if START.match(line) or line.startswith(('%', 'ENTRY', '}', 'HloModule')):
            if logical is not None:
                yield logical
            logical = line
        elif logical is not None:
            logical += line
    if logical is not None:
        yield logical


def _instruction(line):
    root, line = line.startswith('ROOT '), line.removeprefix('ROOT ')
    name, _, rest = line.partition(' = ')
    kind, rest = _balanced(rest) if rest.startswith('(') else rest.split(' ', 1)
    opcode, _, rest = rest.strip().partition('(')
    inside, rest = _balanced(f'({rest}')
    arrays = tuple(Array(dtype, tuple(int(n) for n in shape.split(',') if n), 'S(1)' in layout)
                   for dtype, shape, layout in re.findall(r'(\w+)\[([\d,]*)\](\{[^}]*\})?', kind))
    operands = tuple(re.findall(r'%([\w.\-]+)', inside)) or (inside[1:-1],)
    opcode = {'fusion-start': 'fusion'}.get(opcode.strip(), opcode.strip())
    return Instruction(name.lstrip('%'), opcode, arrays, operands, rest, root)


def _balanced(text):
    """Returns (the parenthesised head of text, what follows it)."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == '(') - (letter == ')')
        if not depth:
            return text[:at + 1], text[at + 1:]
    raise ValueError(f'unbalanced: {text[:80]}')


def runs(program):
    """Returns {computation: how often it runs} in one run of the program, fused and asynchronous ones included.

    The body of a loop counts by its trip count, each branch of a conditional an even share. The scalar computations of
    reductions are left out.
    """
    counts = {}

    def visit(name, times):
        counts[name] = counts.get(name, 0) + times
        body = program.computations[name]
        for instruction in body.values():
            for inner, share in _calls(program, body, instruction):
                visit(inner, times * share)
    visit(program.entry, 1)
    return counts


def _calls(program, body, instruction):
    """Returns [(computation, how often it runs)] of the computations that one instruction calls."""
    if instruction.opcode == 'while':
        trips = trip_count(program, body, instruction)
        return [(name, trips) for name in instruction.inner()]
    if instruction.opcode == 'conditional':
        branches = re.search(r'branch_computations={([^}]*)}', instruction.rest)
        names = re.findall(r'%?([\w.\-]+)', branches[1]) if branches else instruction.inner()
        return [(name, 1 / len(names)) for name in names]
    if instruction.opcode in ('fusion', 'call', 'async-start'):
        return [(name, 1) for name in instruction.inner()]
    return []


def trip_count(program, body, loop):
    """Returns the trip count of a while loop: the compiler's annotation, or from its counter's start, step and bound.

    1 where neither is found.
    """
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if noted:
        return int(noted[1])
    condition = re.search(r'condition=%?([\w.\-]+)', loop.rest)[1]
    fused = [name for i in program.computations[condition].values() if i.opcode == 'fusion' for name in i.inner()]
    bounds = [int(i.operands[0]) for name in (condition, *fused)
              for i in program.computations[name].values() if _is_integer(i)]
    counter = next((i for i in program.computations[condition].values() if i.opcode == 'get-tuple-element'), None)
    if len(bounds) != 1 or counter is None:
        return 1
    index = int(re.search(r'index=(\d+)', counter.rest)[1])
    carry, loop_body = body.get(loop.operands[0]), re.search(r'body=%?([\w.\-]+)', loop.rest)[1]
    start = _integer(body, carry.operands[index]) if carry and carry.opcode == 'tuple' else None
    return max(1, -(-(bounds[0] - (start or 0)) // _step(program, loop_body, index)))


def _is_integer(instruction):
    """Returns whether an instruction is an integer constant."""
    return instruction.opcode == 'constant' and (
        instruction.arrays[0].dtype in ('s32', 'u32', 's64', 'u64') and instruction.operands[0].lstrip('-').isdigit())


def _integer(body, name):
    """Returns the integer constant that `name` is in a computation, or None."""
    value = _source(body, name)
    return int(value.operands[0]) if value is not None and _is_integer(value) else None


def _source(body, name):
    """Returns the instruction whose value `name` is a copy, bitcast or conversion of; None for a foreign name."""
    while name in body and body[name].opcode in ('copy', 'bitcast', 'convert'):
        name = body[name].operands[0]
    return body.get(name)


def _step(program, loop_body, index):
    """Returns what a loop's body adds to the counter, element `index` of the carry; 1 where no addition is found."""
    root, body = program.root(loop_body), program.computations[loop_body]
    if root.opcode != 'tuple':
        return 1
    added = _source(body, root.operands[index])
    steps = [_integer(body, name) for name in added.operands] if added is not None and added.opcode == 'add' else []
    return next((step for step in steps if step), 1)
