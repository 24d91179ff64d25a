"""The text of a compiled program as values: computations of instructions, and how often each one runs."""
import math
import re
from dataclasses import dataclass

WIDTHS = {'pred': 1, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8, 'c64': 8}  # others, such as s32 and f8e4m3fn, say it
INNER = re.compile(r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
START = re.compile(r'\s+(?:ROOT )?%?[\w.\-]+ = ')


@dataclass(frozen=True)
class Array:
    """One array of a type. fast: kept in the chip's on-chip memory (S(1) in its layout), not in main memory."""

    dtype: str
    shape: tuple
    fast: bool

    @property
    def size(self):
        """Bytes, without padding."""
        digits = re.match(r'[a-z]+(\d+)', self.dtype)
        width = WIDTHS[self.dtype] if self.dtype in WIDTHS else int(digits[1]) / 8 if digits else 0
        return width * math.prod(self.shape)


@dataclass(frozen=True)
class Instruction:
    """`name = type opcode(operands), rest`; arrays: those of the type, in order; root: whether it is the result."""

    name: str
    opcode: str
    arrays: tuple
    operands: tuple
    rest: str
    root: bool

    @property
    def size(self):
        """Bytes of all arrays of the result."""
        return sum(array.size for array in self.arrays)

    def inner(self):
        """Returns the names of the computations that this one runs, but for branches."""
        return INNER.findall(self.rest)

    def numbers(self, attribute):
        """Returns the tuple of integers in `attribute={1,2}`; () where it is missing."""
        found = re.search(rf'\b{attribute}={{([\d,]*)}}', self.rest)
        return tuple(int(part) for part in found[1].split(',') if part) if found else ()


@dataclass(frozen=True)
class Program:
    """Computations {name: {instruction name: Instruction}} and the name of the one that is entered."""

    computations: dict
    entry: str

    def root(self, computation):
        """Returns the Instruction that is a computation's result."""
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
    """Yields lines, those that an attribute with line breaks of its own goes on over put together."""
    held = None
    for line in text.splitlines():
        if START.match(line) or line.startswith(('%', 'ENTRY', '}', 'HloModule')):
            if held is not None:
                yield held
            held = line
        elif held is not None:
            held += line
    if held is not None:
        yield held


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

    Loops count as often as they turn; each branch of a conditional counts an even share. Computations that only combine
    two numbers, as in a reduction, are not counted.
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
    """Returns [(computation, how often)] of what one instruction runs."""
    if instruction.opcode == 'while':
        turns = trips(program, body, instruction)
        return [(name, turns) for name in instruction.inner()]
    if instruction.opcode == 'conditional':
        branches = re.search(r'branch_computations={([^}]*)}', instruction.rest)
        names = re.findall(r'%?([\w.\-]+)', branches[1]) if branches else instruction.inner()
        return [(name, 1 / len(names)) for name in names]
    if instruction.opcode in ('fusion', 'call', 'async-start'):
        return [(name, 1) for name in instruction.inner()]
    return []


def trips(program, body, loop):
    """Returns how often a while loop turns: as the compiler notes it, or by the bound that its counter is held against.

    1 where neither tells.
    """
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if noted:
        return int(noted[1])
    condition = re.search(r'condition=%?([\w.\-]+)', loop.rest)[1]
    bounds = [int(i.operands[0]) for name in (condition, *_fused(program, condition))
              for i in program.computations[name].values() if i.opcode == 'constant' and _whole(i)]
    counter = next((i for i in program.computations[condition].values() if i.opcode == 'get-tuple-element'), None)
    if len(bounds) != 1 or counter is None:
        return 1
    index = int(re.search(r'index=(\d+)', counter.rest)[1])
    given, turned = body.get(loop.operands[0]), re.search(r'body=%?([\w.\-]+)', loop.rest)[1]
    start = _constant(body, given.operands[index]) if given and given.opcode == 'tuple' else None
    return max(1, -(-(bounds[0] - (start or 0)) // _step(program, turned, index)))


def _fused(program, computation):
    return [name for i in program.computations[computation].values() if i.opcode == 'fusion' for name in i.inner()]


def _whole(instruction):
    return instruction.arrays[0].dtype in ('s32', 'u32', 's64', 'u64') and instruction.operands[0].lstrip('-').isdigit()


def _constant(body, name):
    """Returns the integer that `name` is in a computation, None where it is no constant."""
    value = _behind(body, name)
    return int(value.operands[0]) if value is not None and value.opcode == 'constant' and _whole(value) else None


def _behind(body, name):
    while name in body and body[name].opcode in ('copy', 'bitcast', 'convert'):
        name = body[name].operands[0]
    return body.get(name)


def _step(program, turned, index):
    """Returns by how much the body of a loop raises its counter, element `index` of what it carries; 1 if not seen."""
    root, body = program.root(turned), program.computations[turned]
    if root.opcode != 'tuple':
        return 1
    raised = _behind(body, root.operands[index])
    steps = [_constant(body, name) for name in raised.operands] if raised is not None and raised.opcode == 'add' else []
    return next((step for step in steps if step), 1)
