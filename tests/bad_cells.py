"""Cells with one mistake each, and the message it gets. The line to be named is marked "# <- here"."""

from __future__ import annotations

import math

import numpy as np

from gatework.compiler import (
    Bias,
    Blocks,
    Constant,
    H,
    Input,
    Matrix,
    Scalar,
    Size,
    State,
    Vector,
    layer_norm,
    maximum,
    mean,
    sigmoid,
    sum,
    tanh,
    where,
)

WIDE = Size("N")


def control_flow_if(x: Input, h: State, W: Matrix):
    a = W @ x + h
    if a > 0.0:  # <- here
        a = tanh(a)
    return dict(h=a)


def control_flow_and(x: Input, h: State, W: Matrix):
    a = W @ x + h
    return dict(h=where((a > 0.0) and (a < 1.0), a, h))  # <- here


def control_flow_not(x: Input, h: State, W: Matrix):
    a = W @ x + h
    return dict(h=where(not a, a, h))  # <- here


def control_flow_while(x: Input, h: State, W: Matrix):
    a = W @ x + h
    while a < 1.0:  # <- here
        a = a + 1.0
    return dict(h=a)


def conditional_expression(x: Input, h: State, W: Matrix):
    a = W @ x + h
    return dict(h=a if h < a else h)  # <- here


def chained_comparison(x: Input, h: State, W: Matrix):
    a = W @ x + h
    return dict(h=where(0.0 < a < 1.0, a, h))  # <- here


def python_max(x: Input, h: State, W: Matrix):
    return dict(h=max(W @ x, h))  # <- here


def equality(x: Input, h: State, W: Matrix):
    a = W @ x
    return dict(h=where(a == h, a, h))  # <- here


def inequality(x: Input, h: State, W: Matrix):
    a = W @ x
    return dict(h=where(a != 0.0, a, h))  # <- here


def math_function(x: Input, h: State, W: Matrix):
    return dict(h=math.exp(W @ x) + h)  # <- here


def numpy_function(x: Input, h: State, W: Matrix):
    return dict(h=np.tanh(W @ x) + h)  # <- here


def numpy_array(x: Input, h: State, W: Matrix):
    return dict(h=np.asarray(W @ x) + h)  # <- here


def array_constant(x: Input, h: State, W: Matrix):
    return dict(h=W @ x + np.ones(3) * h)  # <- here


def text_as_value(x: Input, h: State, W: Matrix):
    return dict(h=W @ x + h * "2")  # <- here


def round_value(x: Input, h: State, W: Matrix):
    return dict(h=float(W @ x) + h)  # <- here


def indexing(x: Input, h: State, W: Matrix):
    return dict(h=W @ x + h[0])  # <- here


def slicing(x: Input, h: State, W: Matrix):
    return dict(h=W @ x + h[1:])  # <- here


def unpacking(x: Input, h: State, W: Matrix):
    a, b = W @ x  # <- here
    return dict(h=a + b + h)


def looping(x: Input, h: State, W: Matrix):
    return dict(h=[a + 1.0 for a in W @ x])  # <- here


def python_len(x: Input, h: State, W: Matrix):
    return dict(h=W @ x / len(h))  # <- here


def rounding(x: Input, h: State, W: Matrix):
    return dict(h=round(W @ x) + h)  # <- here


def bitwise_and(x: Input, h: State, W: Matrix):
    a = W @ x
    return dict(h=where((a > 0.0) & (a < 1.0), a, h))  # <- here


def bitwise_not(x: Input, h: State, W: Matrix):
    a = W @ x
    return dict(h=where(~(a > 0.0), a, h))  # <- here


def method(x: Input, h: State, W: Matrix):
    return dict(h=(W @ x + h).tanh())  # <- here


def power(x: Input, h: State, W: Matrix):
    return dict(h=(W @ x + h) ** 2)  # <- here


def reverse_power(x: Input, h: State, W: Matrix):
    return dict(h=2.0 ** (W @ x + h))  # <- here


def floor_division(x: Input, h: State, W: Matrix):
    return dict(h=(W @ x + h) // 2.0)  # <- here


def remainder(x: Input, h: State, W: Matrix):
    return dict(h=(W @ x + h) % 2.0)  # <- here


def product_of_vectors(x: Input, h: State, W: Matrix):
    return dict(h=(W @ x) @ h)  # <- here


def matrix_on_the_right(x: Input, h: State, W: Matrix):
    return dict(h=x @ W + h)  # <- here


def matrix_times_element(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=W @ x + U * h)  # <- here


def element_times_matrix(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=W @ x + h * U.i)  # <- here


def matrix_plus(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=(W + U) @ x + h)  # <- here


def matrix_in_function(x: Input, h: State, W: Matrix):
    return dict(h=W @ x + tanh(W) * h)  # <- here


def matrix_of_matrix(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=U @ (W @ U) + h + W @ x)  # <- here


def matrix_of_scalar(x: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=W @ x + U @ sum(h))  # <- here


def sum_of_scalar(x: Input, h: State, W: Matrix):
    return dict(h=W @ x + sum(sum(h)) * h)  # <- here


def mixed_sizes(x: Input, h: State, W: Matrix):
    a = W @ x
    return dict(h=a + x + h)  # <- here


def mixed_sizes_in_function(x: Input, h: State, W: Matrix):
    a = W @ x
    return dict(h=maximum(x, a) + h)  # <- here


def mixed_sizes_in_where(x: Input, h: State, W: Matrix):
    a = W @ x
    return dict(h=where(x < 0.0, a, h))  # <- here


def two_widths(x: Input, h: State, W: Matrix):
    a = W.a @ x
    return dict(h=a + W.b @ h)  # <- here


def whole_and_rows(x: Input, h: State, W: Matrix, b: Bias):
    a = W @ x + b
    return dict(h=tanh(a + b.h) + h)  # <- here


def rows_and_whole(x: Input, h: State, W: Matrix, b: Bias):
    a = W @ x + b.h
    return dict(h=tanh(a + b) + h)  # <- here


def row_of_a_row(x: Input, h: State, W: Matrix):
    return dict(h=W.i.j @ x + h)  # <- here


def row_of_a_value(x: Input, h: State, W: Matrix):
    return dict(h=W @ x + h.i)  # <- here


def next_state_of_wrong_size(x: Input, h: State, W: Matrix):
    a = W @ x + h
    return dict(h=sum(a))  # <- here


def next_state_of_another_size(x: Input, h: State, c: State[WIDE], W: Matrix):
    a = tanh(W @ x + h)  # <- here
    return dict(h=tanh(a), c=a)


def wrong_kind_of_size(x: Input, h: State, W: Matrix):
    return dict(h=W @ x + Vector["H"])  # <- here


def size_of_a_scalar(x: Input, dt: Scalar, h: State, W: Matrix):
    return dict(h=W @ x + dt * h + Scalar[H])  # <- here


def size_of_a_scalar_in_its_annotation(x: Input, dt: Scalar[H], h: State, W: Matrix):  # <- here
    return dict(h=W @ x + dt * h)


def matrix_of_a_scalar_input(x: Input, dt: Scalar, h: State, W: Matrix, U: Matrix):
    return dict(h=W @ x + U @ dt + h)  # <- here


def scalar_before_the_input(dt: Scalar, x: Input, h: State, W: Matrix):  # <- here
    return dict(h=W @ x + dt * h)


def only_a_scalar(dt: Scalar, h: State, U: Matrix):  # <- here
    return dict(h=tanh(U @ h + dt))


def blocks_of_an_input(x: Input, h: State, R: Blocks):
    return dict(h=tanh(R @ x + h))  # <- here


def blocks_as_a_value(x: Input, h: State, W: Matrix, R: Blocks):
    return dict(h=tanh(W @ x + R * h))  # <- here


def mean_of_a_scalar(x: Input, h: State, W: Matrix):
    return dict(h=W @ x + mean(sum(h)) * h)  # <- here


def norm_of_two_sizes(x: Input, h: State, W: Matrix):
    a, _ = layer_norm(h, x)  # <- here
    return dict(h=W @ x + a)


def unused_input(x: Input, mask: Input, h: State, W: Matrix):  # <- here
    return dict(h=tanh(W @ x + h))


def unused_parameter(x: Input, h: State, W: Matrix, U: Matrix):  # <- here
    return dict(h=tanh(W @ x + h))


def unused_row(x: Input, h: State, W: Matrix, b: Bias):
    i = sigmoid(W @ x + b.i)
    f = sigmoid(W @ x + b.f)  # <- here
    return dict(h=tanh(i + h)), dict(f=f)


def state_not_returned(x: Input, h: State, c: State, W: Matrix):  # <- here
    return dict(h=tanh(W @ x + h + c))


def returns_no_state(x: Input, h: State, W: Matrix):  # <- here
    a = W @ x
    return dict(h=tanh(a + h), a=a)


def returns_a_value(x: Input, h: State, W: Matrix):  # <- here
    return tanh(W @ x + h)


def returns_nothing(x: Input, h: State, W: Matrix):  # <- here
    h = tanh(W @ x + h)


def returns_three(x: Input, h: State, W: Matrix):  # <- here
    return dict(h=tanh(W @ x + h)), dict(), dict()


def returns_its_input(x: Input, h: State, W: Matrix):  # <- here
    return dict(h=h)


def records_a_list(x: Input, h: State, W: Matrix):  # <- here
    a = tanh(W @ x + h)
    return dict(h=a), dict(both=[a, h])


def records_a_matrix(x: Input, h: State, W: Matrix):  # <- here
    a = tanh(W @ x + h)
    return dict(h=a), dict(weights=W)


def missing_annotation(x: Input, h: State, W):  # <- here
    return dict(h=tanh(W @ x + h))


def wrong_annotation(x: Input, h: State, W: Matrix, eps: float = 1e-5):  # <- here
    return dict(h=tanh(W @ x + h) + eps)


def unknown_annotation(x: Input, h: State, W: Matrx):  # <- here  # noqa: F821
    return dict(h=tanh(W @ x + h))


def star_arguments(x: Input, h: State, *W: Matrix):  # <- here
    return dict(h=tanh(W[0] @ x + h))


def no_input(h: State, U: Matrix):  # <- here
    return dict(h=tanh(U @ h))


def only_a_constant(x: Constant, h: State, U: Matrix):  # <- here
    return dict(h=tanh(U @ h + x))


def no_state(x: Input, W: Matrix):  # <- here
    return dict(h=tanh(W @ x))


MESSAGE = {
    control_flow_if: "where", control_flow_and: "where", control_flow_not: "where", control_flow_while: "where",
    conditional_expression: "where", chained_comparison: "where", python_max: "maximum",
    equality: "==", inequality: "!=", math_function: "exp", numpy_function: "gatework.compiler",
    numpy_array: "gatework.compiler", array_constant: "ndarray", text_as_value: "str",
    round_value: "no number", indexing: "indexed", slicing: "indexed", unpacking: "unpacked", looping: "unpacked",
    python_len: "no number", rounding: "no number", bitwise_and: r"a \* b", bitwise_not: r"1\.0 - a",
    method: r"sigmoid\(a\)", power: r"a \* a", reverse_power: "exp", floor_division: "//", remainder: "%",
    product_of_vectors: "Matrix", matrix_on_the_right: "left side of @", matrix_times_element: "@",
    element_times_matrix: "@", matrix_plus: "@", matrix_in_function: "@", matrix_of_matrix: "U @ x",
    matrix_of_scalar: "scalar", sum_of_scalar: "no features",
    mixed_sizes: r"\[H\] and \[I\]", mixed_sizes_in_function: r"\[H\] and \[I\]",
    mixed_sizes_in_where: r"\[H\] and \[I\]", two_widths: "second Matrix", whole_and_rows: "whole and by rows",
    rows_and_whole: "whole and by rows", row_of_a_row: "row", row_of_a_value: "row",
    next_state_of_wrong_size: r"has size \[\]", next_state_of_another_size: r"\[H\].*\[N\]",
    wrong_kind_of_size: "Size", size_of_a_scalar: r"Input\[H\]",
    size_of_a_scalar_in_its_annotation: r"Input\[H\]", matrix_of_a_scalar_input: "scalar",
    scalar_before_the_input: "first input", only_a_scalar: "annotated Input", blocks_of_an_input: "size H",
    blocks_as_a_value: "R @ x", mean_of_a_scalar: r"mean\(\).*no features", norm_of_two_sizes: r"\[H\] and \[I\]",
    unused_input: "input mask", unused_parameter: "parameter U",
    unused_row: r"b\.f", state_not_returned: "state c", returns_no_state: "not one of its states",
    returns_a_value: "must return dict", returns_nothing: "must return dict", returns_three: "must return dict",
    returns_its_input: "computes nothing", records_a_list: "list", records_a_matrix: "Matrices",
    missing_annotation: "argument W", wrong_annotation: "eps.*float|eps.*bare", unknown_annotation: "Matrx",
    star_arguments: r"\*W", no_input: "annotated Input", only_a_constant: "annotated Input",
    no_state: "annotated State",
}
