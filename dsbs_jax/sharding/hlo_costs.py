"""What a compiled program costs one device, read off its optimised HLO: arithmetic and bytes over the links.

`jax.stages.Compiled.cost_analysis` counts the body of a loop once. Here every computation counts as often as it runs:
a loop's body by its trip count (of loops that count up to a constant, which is what `lax.scan` becomes), a conditional
by its dearest branch. What has no constant trip count (a `while_loop` that may end early) counts by the bound it is
compared with.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "token": 0, "opaque": 0, "s4": 0.5, "u4": 0.5}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_INTEGER = re.compile(r"[su](32|64)\[\]")
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(|\{)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one run of a program, for each device.

    Attributes:
      flops: of matrix products (dots and convolutions), a multiplication and an addition counting as two.
      collective_bytes: bytes that a device sends over its links, by the ring algorithms' counts: of a result of B bytes
        among n devices, (n-1)/n B for an all-gather, an all-to-all and a reduce-scatter (of its operand), twice that
        for an all-reduce, B for a permutation.
    """

    flops: float
    collective_bytes: float


def program_costs(text: str) -> Costs:
    """The costs of a compiled program.

    Args:
      text: `jax.stages.Compiled.as_text()`: scheduled, partitioned HLO of one device.

    Raises:
      ValueError: for a text without entry computation, and for a loop whose trip count cannot be read off it.
    """
    program = _Program(text)
    total = program.cost(program.entry).closed()
    return Costs(total.flops, total.bytes)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def called(self) -> list[str]:
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if branches:
            return [name.strip().lstrip("%") for name in branches[1].split(",")]
        return _CALLED.findall(self.attributes)


@dataclasses.dataclass
class _Cost:
    """`open`: collectives met inside fusions. A TPU runs one all-gather as several fusions (start, parts beside
    products, done), each of which names it: the computation that holds them counts it once."""

    flops: float = 0.0
    bytes: float = 0.0
    open: dict[tuple[str, ...], float] = dataclasses.field(default_factory=dict)

    def add(self, other: _Cost) -> None:
        self.flops += other.flops
        self.bytes += other.bytes
        # Bytes stay open until the computation that holds the fusions is done.
        self.open |= other.open

    def closed(self, times: int = 1) -> _Cost:
        """That of so many runs, each of which sends its own."""
        return _Cost(times * self.flops, times * (self.bytes + sum(self.open.values())))


class _Program:
    def __init__(self, text: str):
        self.computations: dict[str, dict[str, _Instruction]] = {}
        self.entry = ""
        self._devices = math.prod(
            int(count) for count in re.findall(r"(?:num_partitions|replica_count)=(\d+)", text.split("\n", 1)[0])
        )
        current: dict[str, _Instruction] = {}
        for line in text.splitlines():
            if _INSTRUCTION.match(line):
                instruction = _parse(line)
                current[instruction.name] = instruction
            elif line.rstrip().endswith("{") and (head := _COMPUTATION.match(line)):
                current = self.computations[head[1]] = {}
                if line.startswith("ENTRY"):
                    self.entry = head[1]
        if not self.entry:
            raise ValueError("This is no HLO module: it has no ENTRY computation.")

    @functools.cache  # noqa: B019, lives as long as its one caller
    def cost(self, name: str) -> _Cost:
        total = _Cost()
        for instruction in self.computations[name].values():
            opcode = instruction.opcode
            if opcode == "while":
                body = _attribute(instruction, "body").lstrip("%")
                total.add(self.cost(body).closed(self._trips(instruction)))
            elif opcode == "conditional":
                total.add(max((self.cost(branch) for branch in instruction.called()), key=lambda cost: cost.flops))
            elif opcode in ("fusion", "call", "async-start", "custom-call"):
                for callee in instruction.called():
                    total.add(self.cost(callee))
            elif opcode == "dot":
                total.flops += self._dot(name, instruction)
            elif opcode == "convolution":
                total.flops += self._convolution(name, instruction)
            elif opcode.removesuffix("-start") in _COLLECTIVES:
                channel = re.search(r"channel_id=\d+", instruction.attributes)
                key = (opcode, channel[0] if channel else f"{name}/{instruction.name}", instruction.shape.split("{")[0])
                total.open[key] = self._sent(name, instruction)
        return total

    def _operand(self, computation: str, instruction: _Instruction, number: int) -> str:
        return self.computations[computation][instruction.operands[number]].shape

    def _dot(self, computation: str, instruction: _Instruction) -> float:
        left = _dims(self._operand(computation, instruction, 0))
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2.0 * math.prod(_dims(instruction.shape)) * math.prod(left[axis] for axis in axes)

    def _convolution(self, computation: str, instruction: _Instruction) -> float:
        """Products of the kernel positions that meet the input: a TPU writes batched products as padded windows."""
        left, right, out = _attribute(instruction, "dim_labels").replace("->", "_").split("_")
        input_dims = dict(zip(left, _dims(self._operand(computation, instruction, 0)), strict=True))
        kernel_dims = dict(zip(right, _dims(self._operand(computation, instruction, 1)), strict=True))
        out_dims = dict(zip(out, _dims(instruction.shape), strict=True))
        window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
        options = dict(item.split("=") for item in window[1].split()) if window else {}
        spatial = sorted(label for label in left if label.isdigit())
        products = 1.0
        for at, label in enumerate(spatial):

            def option(name: str, default: str, at: int = at) -> str:
                return options[name].split("x")[at] if name in options else default

            low = int(option("pad", "0_0").split("_")[0])
            products *= _valid_positions(
                input_dims[label],
                kernel_dims[label],
                out_dims[label],
                int(option("stride", "1")),
                low,
                int(option("lhs_dilate", "1")),
                int(option("rhs_dilate", "1")),
            )
        groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
        batch = input_dims["b"] / int(groups[1] if groups else 1)
        return 2.0 * products * batch * kernel_dims["i"] * kernel_dims["o"]

    def _sent(self, computation: str, instruction: _Instruction) -> float:
        """Bytes a device sends for one collective."""
        kind = instruction.opcode.removesuffix("-start")
        operands = sum(_size(self._operand(computation, instruction, n)) for n in range(len(instruction.operands)))
        size = self._group_size(instruction)
        share = (size - 1) / size
        # A TPU writes a reduce-scatter as an all-reduce inside a computation of this name.
        scatters = kind == "reduce-scatter" or computation.startswith("all-reduce-scatter")
        match kind:
            case "all-gather":
                return operands * (size - 1)
            case "all-reduce":
                return operands * share * (1 if scatters else 2)
            case "collective-permute":
                return operands
        return operands * share

    def _group_size(self, instruction: _Instruction) -> int:
        """The devices that take part in one group of a collective."""
        text = instruction.attributes
        if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
            return listed[1].count(",") + 1
        if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
            return int(iota[2])
        if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
        return self._devices

    def _trips(self, loop: _Instruction) -> int:
        """How often a loop runs: what XLA noted, else its counter's bound over the counter's increment, from 0."""
        if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(noted[1])
        condition = _attribute(loop, "condition").lstrip("%")
        bounds = {value for value in map(_integer, self._all(condition)) if value is not None}
        if len(bounds) != 1:
            raise ValueError(f"The loop {loop.name} compares its counter with {sorted(bounds)}: no trip count.")
        return -(-bounds.pop() // self._increment(condition, _attribute(loop, "body").lstrip("%")))

    def _increment(self, condition: str, body: str) -> int:
        """What one turn adds to the counter. A TPU's products that overlap with collectives count by twos."""
        # The counter is the one integer of the loop's state that the condition reads.
        read = [one for one in self._all(condition) if one.opcode == "get-tuple-element" and _INTEGER.match(one.shape)]
        if len(read) != 1:
            return 1
        state = self.root(body)
        added = self.computations[body][state.operands[int(_attribute(read[0], "index"))]]
        scope, arguments = self.computations[body], None
        if added.opcode == "fusion":
            scope, arguments = self.computations[added.called()[0]], added.operands
            added = self.root(added.called()[0])
        if added.opcode != "add":
            return 1
        for name in added.operands:
            operand = scope[name]
            if operand.opcode == "parameter" and arguments is not None:
                operand = self.computations[body][arguments[int(operand.attributes.strip("()"))]]
            if (value := _integer(operand)) is not None:
                return value
        return 1

    def root(self, computation: str) -> _Instruction:
        return next(one for one in self.computations[computation].values() if one.is_root)

    def _all(self, computation: str) -> Iterator[_Instruction]:
        for instruction in self.computations[computation].values():
            yield instruction
            if instruction.opcode in ("fusion", "call"):
                yield from self._all(instruction.called()[0])


def _integer(instruction: _Instruction) -> int | None:
    """The value of an integer constant."""
    constant = re.match(r"\((\d+)\)", instruction.attributes)
    known = instruction.opcode == "constant" and _INTEGER.match(instruction.shape) and constant
    return int(constant[1]) if known and constant else None


def _parse(line: str) -> _Instruction:
    head = _INSTRUCTION.match(line)
    assert head is not None
    rest = line[head.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    at = rest.index("(")
    opcode, rest = rest[:at], rest[at:]
    end, is_root = _closing(rest), line.lstrip().startswith("ROOT ")
    if opcode in ("constant", "parameter"):
        return _Instruction(head[1], shape, opcode, (), rest[: end + 1], is_root)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    return _Instruction(head[1], shape, opcode, operands, rest[end:], is_root)


def _closing(text: str) -> int:
    """Where the parenthesis that opens `text` closes."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at
    raise ValueError(f"A parenthesis does not close in {text[:80]!r}.")


def _attribute(instruction: _Instruction, name: str) -> str:
    found = re.search(rf"{name}=([^,\s]+)", instruction.attributes)
    if found is None:
        raise ValueError(f"The instruction {instruction.name} has no {name}.")
    return found[1]


def _dims(shape: str) -> list[int]:
    found = _ARRAY.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _size(shape: str) -> float:
    """Bytes of an array, or of all arrays of a tuple."""
    total = 0.0
    for kind, dims in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", shape)):
        width = re.search(r"\d+", kind)
        each = _BYTES[kind] if kind in _BYTES else int(width[0]) / 8 if width else 0
        total += each * math.prod(int(size) for size in dims.split(",") if size)
    return total


@functools.cache
def _valid_positions(inputs: int, kernel: int, outputs: int, stride: int, low: int, dilate: int, spread: int) -> int:
    """Pairs of kernel and output positions along one dimension that fall on an input and not on padding."""
    last = (inputs - 1) * dilate
    count = 0
    for k in range(kernel):
        # Output o reads position o * stride - low + k * spread of the dilated input.
        start = k * spread - low
        first = max(0, -(start // stride)) if start < 0 else 0
        stop = min(outputs, (last - start) // stride + 1)
        if dilate == 1:
            count += max(0, stop - first)
        else:
            count += sum((o * stride + start) % dilate == 0 for o in range(first, stop))
    return count
