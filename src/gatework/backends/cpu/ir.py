"""A small writer of LLVM IR text: values, branches, counted loops. It knows nothing of cells."""

from __future__ import annotations

import struct
from contextlib import contextmanager

from .target import Target

FLOATS = {4: "float", 8: "double"}


class Module:
    """The text of one module: functions, and the intrinsics that they turned out to need."""

    def __init__(self, target: Target, size: int):
        self.target, self.size = target, size
        self.lanes = target.lanes(size)
        self.scalar = FLOATS[size]
        self.integer = f"i{8 * size}"
        self.vector = f"<{self.lanes} x {self.scalar}>"
        self.integers = f"<{self.lanes} x {self.integer}>"
        self.suffix = f"v{self.lanes}f{8 * size}"
        self.functions: list[str] = []
        self.names: set[str] = set()
        self.declared: dict[str, None] = {}

    def text(self) -> str:
        wide = f'"prefer-vector-width"="{self.target.bits}" "min-legal-vector-width"="{self.target.bits}"'
        estimate = '"reciprocal-estimates"="vec-divf:1"' if self.target.fast_division else ""
        attributes = f'attributes #0 = {{ nounwind {wide} {estimate} }}'
        return "\n".join([*self.declared, *self.functions, attributes, ""])


class Function:
    """One function under construction. Variables live in memory until LLVM's first pass puts them into registers."""

    def __init__(self, module: Module, name: str, arguments: list[str], internal: bool = True,
                 separate: bool = False):
        self.module, self.name = module, name
        module.names.add(name)
        self.head = (f"define {'internal ' if internal else ''}void @{name}({', '.join(arguments)}) #0 "
                     f"{'noinline ' if separate else ''}{{")
        self.slots: list[str] = []
        self.lines: list[str] = []
        self.count = 0

    def finish(self) -> None:
        self.line("ret void")
        self.module.functions += [self.head, "entry:", *self.slots, *self.lines, "}"]

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def value(self, text: str) -> str:
        self.count += 1
        name = f"%v{self.count}"
        self.lines.append(f"  {name} = {text}")
        return name

    # ---- integers and addresses

    def integer(self, op: str, a, b) -> str:
        return self.value(f"{op} i64 {a}, {b}")

    def larger(self, a: str, b: str) -> str:
        return self.value(f"select i1 {self.value(f'icmp sgt i64 {a}, {b}')}, i64 {a}, i64 {b}")

    def smaller(self, a: str, b: str) -> str:
        return self.value(f"select i1 {self.value(f'icmp slt i64 {a}, {b}')}, i64 {a}, i64 {b}")

    def at(self, pointer: str, byte_offset) -> str:
        return pointer if byte_offset == 0 else self.value(f"getelementptr i8, ptr {pointer}, i64 {byte_offset}")

    def load_word(self, pointer: str, index: int, kind: str = "i64") -> str:
        return self.value(f"load {kind}, ptr {self.at(pointer, 8 * index)}")

    # ---- control

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def variable(self, kind: str, initial: str | None = None) -> str:
        self.count += 1
        name = f"%m{self.count}"
        self.slots.append(f"  {name} = alloca {kind}")
        if initial is not None:
            self.line(f"store {kind} {initial}, ptr {name}")
        return name

    @contextmanager
    def while_below(self, counter: str, end):
        """Repeat while a variable is below the end; the block itself moves it on."""
        head, body, done = (self.fresh(s) for s in ("head", "body", "done"))
        self.line(f"br label %{head}")
        self.label(head)
        now = self.value(f"load i64, ptr {counter}")
        more = self.value(f"icmp slt i64 {now}, {end}")
        self.line(f"br i1 {more}, label %{body}, label %{done}")
        self.label(body)
        # An instruction of no words, which may change the number for all that LLVM knows: else its reduction of loops
        # weighs every address in them anew, a fifth of the time of compiling, and the code that it finds is no faster.
        yield self.value(f'call i64 asm "", "=r,0"(i64 {now}) nounwind memory(none)')
        self.line(f"br label %{head}")
        self.label(done)

    @contextmanager
    def loop(self, start, end, step="1"):
        """Count from start to end; the block is skipped where there is nothing to count."""
        counter = self.variable("i64", start)
        with self.while_below(counter, end) as now:
            yield now
            self.line(f"store i64 {self.integer('add', now, step)}, ptr {counter}")

    @contextmanager
    def when(self, condition: str):
        then, done = self.fresh("then"), self.fresh("done")
        self.line(f"br i1 {condition}, label %{then}, label %{done}")
        self.label(then)
        yield
        self.line(f"br label %{done}")
        self.label(done)

    def choose(self, selector: str, cases: dict[int, object]) -> None:
        """Run the writer of the case that the selector names; exactly one must match."""
        done = self.fresh("done")
        labels = {k: self.fresh("case") for k in cases}
        first = next(iter(cases))
        table = " ".join(f"i64 {k}, label %{labels[k]}" for k in cases if k != first)
        self.line(f"switch i64 {selector}, label %{labels[first]} [{table}]")
        for k, write in cases.items():
            self.label(labels[k])
            write()
            self.line(f"br label %{done}")
        self.label(done)

    # ---- the thread's setting for denormal numbers

    def flush_denormals(self) -> str | None:
        """Let results below the normal numbers be 0 in this thread; returns where its setting before is kept.

        Gradients that fade pass through denormal numbers, and every product with one takes a hundred times as long, in
        the loop and in the products after it.
        """
        if not self.module.target.flag_flushes:
            return None
        self.module.declared |= {f"declare void @llvm.x86.sse.{op}(ptr)": None for op in ("stmxcsr", "ldmxcsr")}
        before, during = self.variable("i32"), self.variable("i32")
        self.line(f"call void @llvm.x86.sse.stmxcsr(ptr {before})")
        flags = self.value(f"or i32 {self.value(f'load i32, ptr {before}')}, {1 << 15}")
        self.line(f"store i32 {flags}, ptr {during}")
        self.restore_denormals(during)
        return before

    def restore_denormals(self, setting: str | None) -> None:
        if setting is not None:
            self.line(f"call void @llvm.x86.sse.ldmxcsr(ptr {setting})")

    # ---- vectors of floating-point values

    def number(self, value: float) -> str:
        """A constant, spread over all lanes."""
        if self.module.size == 4:
            value = struct.unpack("<f", struct.pack("<f", value))[0]
        bits = struct.unpack("<Q", struct.pack("<d", value))[0]
        return f"splat ({self.module.scalar} 0x{bits:016X})"

    def integer_number(self, value: int) -> str:
        return f"splat ({self.module.integer} {value})"

    def arithmetic(self, op: str, a: str, b: str, flags: str = "") -> str:
        return self.value(f"{op} {flags} {self.module.vector} {a}, {b}")

    def intrinsic(self, name: str, *args: str, kind: str | None = None) -> str:
        m, v = self.module, self.module.vector
        m.declared[f"declare {v} @llvm.{name}.{m.suffix}({', '.join([v] * len(args))})"] = None
        return self.value(f"call {v} @llvm.{name}.{m.suffix}({', '.join(f'{v} {a}' for a in args)})")

    def fma(self, a: str, b: str, c: str) -> str:
        return self.intrinsic("fmuladd", a, b, c)

    def multiply_pairs(self, a: str, b: str, c: str) -> str:
        """c + the products of both bfloat16 that lie in each value of a and of b."""
        v = self.module.vector
        name, pairs = "llvm.x86.avx512bf16.dpbf16ps.512", "<32 x bfloat>"
        self.module.declared[f"declare {v} @{name}({v}, {pairs}, {pairs})"] = None
        a, b = (self.value(f"bitcast {v} {x} to {pairs}") for x in (a, b))
        return self.value(f"call {v} @{name}({v} {c}, {pairs} {a}, {pairs} {b})")

    def select(self, compare: str, a: str, b: str, yes: str, no: str) -> str:
        m = self.module
        c = self.value(f"fcmp {compare} {m.vector} {a}, {b}")
        return self.value(f"select <{m.lanes} x i1> {c}, {m.vector} {yes}, {m.vector} {no}")

    def prefetch(self, pointer: str, near: bool = True) -> None:
        """Call for a line of memory, into the first cache or only into the second."""
        self.module.declared["declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"] = None
        self.line(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 {3 if near else 2}, i32 1)")

    def _mask(self, valid: int) -> str:
        lanes = ", ".join(f"i1 {'true' if k < valid else 'false'}" for k in range(self.module.lanes))
        return f"<{lanes}>"

    def load(self, pointer: str, valid: int | None = None) -> str:
        """Load a vector; `valid` lanes of it, the rest zero, where it is given."""
        m = self.module
        if valid is None:
            return self.value(f"load {m.vector}, ptr {pointer}, align {m.size}")
        return self.load_where(pointer, self._mask(valid))

    def store(self, value: str, pointer: str, valid: int | None = None) -> None:
        m = self.module
        if valid is None:
            self.line(f"store {m.vector} {value}, ptr {pointer}, align {m.size}")
        else:
            self.store_where(value, pointer, self._mask(valid))

    def load_where(self, pointer: str, mask: str) -> str:
        """Load the lanes of a mask that is known later, the rest zero."""
        m, bits = self.module, f"<{self.module.lanes} x i1>"
        m.declared[f"declare {m.vector} @llvm.masked.load.{m.suffix}.p0(ptr, i32, {bits}, {m.vector})"] = None
        return self.value(f"call {m.vector} @llvm.masked.load.{m.suffix}.p0(ptr {pointer}, i32 {m.size}, {bits} "
                          f"{mask}, {m.vector} zeroinitializer)")

    def store_where(self, value: str, pointer: str, mask: str) -> None:
        m, bits = self.module, f"<{self.module.lanes} x i1>"
        m.declared[f"declare void @llvm.masked.store.{m.suffix}.p0({m.vector}, ptr, i32, {bits})"] = None
        self.line(f"call void @llvm.masked.store.{m.suffix}.p0({m.vector} {value}, ptr {pointer}, i32 {m.size}, {bits} "
                  f"{mask})")

    def first_lanes(self, valid: str) -> str:
        """A mask of so many lanes, which is a number known later."""
        lanes, count = f"<{self.module.lanes} x i32>", self.value(f"trunc i64 {valid} to i32")
        one = self.value(f"insertelement {lanes} poison, i32 {count}, i64 0")
        all_ = self.value(f"shufflevector {lanes} {one}, {lanes} poison, {lanes} zeroinitializer")
        numbers = ", ".join(f"i32 {k}" for k in range(self.module.lanes))
        return self.value(f"icmp slt {lanes} <{numbers}>, {all_}")

    def where(self, condition: str, mask: str) -> str:
        """A mask, or an empty one."""
        bits = f"<{self.module.lanes} x i1>"
        return self.value(f"select i1 {condition}, {bits} {mask}, {bits} zeroinitializer")

    def load_short(self, pointer: str, valid: int | None = None) -> str:
        """Load a vector of bfloat16, which is the upper half of float32."""
        m, kind = self.module, f"<{self.module.lanes} x i16>"
        if valid is None:
            bits = self.value(f"zext {kind} {self.value(f'load {kind}, ptr {pointer}, align 2')} to {m.integers}")
        else:
            bits = self.load_halves_where(pointer, self._mask(valid))
        return self.widened(bits)

    def widened(self, bits: str) -> str:
        """Of integers the lower halves, which are bfloat16."""
        m = self.module
        wide = self.value(f"shl {m.integers} {bits}, splat (i32 16)")
        return self.value(f"bitcast {m.integers} {wide} to {m.vector}")

    def load_halves_where(self, pointer: str, mask: str) -> str:
        """Load values of 16 bits, those of a mask, as integers."""
        m, kind, bits = self.module, f"<{self.module.lanes} x i16>", f"<{self.module.lanes} x i1>"
        name = f"llvm.masked.load.v{m.lanes}i16.p0"
        m.declared[f"declare {kind} @{name}(ptr, i32, {bits}, {kind})"] = None
        loaded = self.value(f"call {kind} @{name}(ptr {pointer}, i32 2, {bits} {mask}, {kind} zeroinitializer)")
        return self.value(f"zext {kind} {loaded} to {m.integers}")

    def half(self, pairs: str, upper: bool) -> str:
        """Of pairs of bfloat16 the lower or the upper ones."""
        m = self.module
        bits = self.value(f"and {m.integers} {pairs}, splat (i32 -65536)" if upper else
                          f"shl {m.integers} {pairs}, splat (i32 16)")
        return self.value(f"bitcast {m.integers} {bits} to {m.vector}")

    def load_spread_short(self, pointer: str) -> str:
        word = self.value(f"zext i16 {self.value(f'load i16, ptr {pointer}, align 2')} to i32")
        return self.spread(self.value(f"bitcast i32 {self.value(f'shl i32 {word}, 16')} to float"))

    def store_short(self, value: str, pointer: str, valid: int | None = None) -> None:
        """Round to bfloat16 and store."""
        m, kind = self.module, f"<{self.module.lanes} x i16>"
        short = self.value(f"fptrunc {m.vector} {value} to <{m.lanes} x bfloat>")
        if valid is None:
            self.line(f"store <{m.lanes} x bfloat> {short}, ptr {pointer}, align 2")
            return
        mask, name = f"<{m.lanes} x i1>", f"llvm.masked.store.v{m.lanes}i16.p0"
        m.declared[f"declare void @{name}({kind}, ptr, i32, {mask})"] = None
        bits = self.value(f"bitcast <{m.lanes} x bfloat> {short} to {kind}")
        self.line(f"call void @{name}({kind} {bits}, ptr {pointer}, i32 2, {mask} {self._mask(valid)})")

    def keep_valid(self, value: str, valid: int | None) -> str:
        m = self.module
        if valid is None:
            return value
        return self.value(f"select <{m.lanes} x i1> {self._mask(valid)}, {m.vector} {value}, "
                          f"{m.vector} zeroinitializer")

    def spread(self, scalar: str) -> str:
        m = self.module
        one = self.value(f"insertelement {m.vector} poison, {m.scalar} {scalar}, i64 0")
        return self.value(f"shufflevector {m.vector} {one}, {m.vector} poison, <{m.lanes} x i32> zeroinitializer")

    def load_spread(self, pointer: str) -> str:
        return self.spread(self.value(f"load {self.module.scalar}, ptr {pointer}, align {self.module.size}"))

    def total(self, value: str) -> str:
        """The sum over all lanes, in all lanes."""
        m = self.module
        m.declared[f"declare {m.scalar} @llvm.vector.reduce.fadd.{m.suffix}({m.scalar}, {m.vector})"] = None
        return self.spread(self.value(f"call reassoc {m.scalar} @llvm.vector.reduce.fadd.{m.suffix}({m.scalar} 0.0, "
                                      f"{m.vector} {value})"))
