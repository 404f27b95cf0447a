"""Numbers below the normal ones, which processors multiply a hundred times slower."""

import math
import platform

import pytest
import torch

import gatework
from gatework.compiler import H, Input, Matrix, State, sigmoid, tanh

TINY = torch.finfo(torch.float32).tiny


def gate(x: Input, h: State, W: Matrix):
    return dict(h=sigmoid(W @ x))


def test_shut_gate_is_exactly_zero():
    layer = gatework.nn.Recurrent(gate, 1, 16)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1.0)
    x = torch.tensor([-86.0, -87.5, -1e30, -torch.inf]).reshape(4, 1, 1)
    output, _ = layer(x)
    assert torch.equal(output[1:], torch.zeros(3, 1, 16))
    # docs/design.md states 4.2e-7 of the value for float32
    torch.testing.assert_close(output[0], torch.full((1, 16), math.exp(-86)), rtol=4.2e-7, atol=0)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="only x86 code sets the flag")
@pytest.mark.parametrize("rows", [1, 32], ids=["B1", "B32"])
def test_fading_gradient_ends_in_zero_and_the_threads_keep_their_own_setting(rows):
    def plain(x: Input[H], h: State, U: Matrix):
        return dict(h=tanh(x + U @ h))

    layer = gatework.nn.Recurrent(plain, 64, 64)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(0.3)
    x = torch.randn(300, rows, 64, requires_grad=True)
    output, _ = layer(x)
    output[-1].sum().backward()  # fades by more than half in every step
    size = x.grad.abs()  # what the kernel wrote, no product after it
    assert not ((size > 0) & (size < TINY)).any()
    assert (size[0] == 0).all()
    assert (size[-1] > 0).any()
    many = torch.full((200_000,), TINY) * 1e-3  # large enough for both of torch's threads
    assert (many != 0).all()
