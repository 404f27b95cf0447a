"""The directions of a bidirectional layer side by side: the same results, where that pays and nowhere else."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from examples import assert_close

import gatework
from gatework.autograd import arrays, calls
from gatework.backends.cpu import kernel

LONG = (150, 1, 20, 70)  # T, B, I, H: worth more than a thread, and one row is nothing to share


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def side_by_side(monkeypatch):
    """How often programs have run side by side."""
    counted = []
    run = calls.run_side_by_side
    monkeypatch.setattr(calls, "run_side_by_side", lambda runs, size: (counted.append(len(runs)), run(runs, size)))
    return counted


def made(layer, x, weight: float = 1.0):
    x = x.clone().requires_grad_()
    output, last = layer(x)
    last = last if isinstance(last, tuple) else (last,)
    total = (output * torch.linspace(-1, 1, output.numel()).view(output.shape).to(output)).sum() * weight
    total = total + sum((s * (k + 2)).sum() for k, s in enumerate(last))
    return output, *last, *torch.autograd.grad(total, [x, *layer.parameters()])


def close(found, wanted, bound: float) -> None:
    assert_close(dict(enumerate(found)), dict(enumerate(wanted)), bound)


def expected(layer, x):
    layer.backend = "reference"
    found = made(layer, x)
    layer.backend = "auto"
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [dict(), dict(num_layers=2), dict(batch_first=True), dict(initial_state=True)])
@pytest.mark.parametrize("cell", [gatework.nn.LSTM, gatework.nn.GRU, gatework.nn.PeepholeLSTM])
def test_both_directions_at_once_make_what_the_equations_say(side_by_side, cell, options, dtype):
    T, B, size, hidden = LONG
    torch.manual_seed(0)
    layer = cell(size, hidden, bidirectional=True, dtype=dtype, **options)
    x = torch.randn(*((B, T) if layer.batch_first else (T, B)), size, dtype=dtype)
    wanted = expected(layer, x)
    for _ in range(4):  # walked, recorded, and from then on side by side
        # Sums over 150 steps that the equations add up in another order.
        close(made(layer, x), wanted, 1e-12 if dtype == torch.float64 else 2e-5)
    assert set(side_by_side) == {2}
    assert len(side_by_side) >= 2 * 2 * layer.num_layers  # the third and the fourth call, forward and backward


def test_the_bits_are_those_of_one_after_the_other(side_by_side):
    T, B, size, hidden = LONG
    layer, x = gatework.nn.LSTM(size, hidden, bidirectional=True), torch.randn(T, B, size)
    walked, *others = (made(layer, x) for _ in range(4))
    assert side_by_side
    for found in others:
        assert all(map(torch.equal, found, walked))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_goes_where_it_goes_one_after_the_other(side_by_side, value):
    T, B, size, hidden = LONG
    layer, x = gatework.nn.LSTM(size, hidden, bidirectional=True), torch.randn(T, B, size)
    x[70, 0, 3] = value
    walked, *others = (made(layer, x) for _ in range(4))
    assert side_by_side
    for found in others:
        assert all(torch.equal(a.nan_to_num(1e9), b.nan_to_num(1e9)) for a, b in zip(found, walked))
    if value != value:
        output = walked[0][:, 0]
        assert output[:70, :hidden].isfinite().all()
        assert output[70:, :hidden].isnan().all()
        assert output[:71, hidden:].isnan().all()
        assert output[71:, hidden:].isfinite().all()


def test_several_threads_share_a_layer(side_by_side):
    T, B, size, hidden = LONG
    layer, x = gatework.nn.LSTM(size, hidden, bidirectional=True), torch.randn(T, B, size)
    wanted = [made(layer, x) for _ in range(3)][-1]

    def train(_) -> bool:
        torch.set_num_threads(2)
        return all(all(map(torch.equal, made(layer, x), wanted)) for _ in range(10))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(train, range(3)))
    assert len(side_by_side) > 30


def test_directions_that_are_asked_for_different_things_do_not_mix(side_by_side):
    T, B, size, hidden = LONG
    torch.manual_seed(0)
    layer, x = gatework.nn.LSTM(size, hidden, bidirectional=True), torch.randn(T, B, size)
    layer.weight_hh_l0_reverse.requires_grad_(False)
    wanted = {}
    for backend in ("reference", "auto", "auto", "auto", "auto"):
        layer.backend = backend
        output, (h, c) = layer(x)
        total = output[:, :, :hidden].square().sum() + (h[1] * 3).sum() + (c[0] * 5).sum()
        trained = [p for p in layer.parameters() if p.requires_grad]
        found = torch.autograd.grad(total, trained)
        wanted.setdefault("gradients", found)
        close(found, wanted["gradients"], 2e-5)
    assert side_by_side


def test_a_graph_that_is_kept_and_a_derivative_of_the_derivative(side_by_side):
    T, B, size, hidden = LONG
    layer, x = gatework.nn.LSTM(size, hidden, bidirectional=True), torch.randn(T, B, size, requires_grad=True)
    for _ in range(3):
        total = layer(x)[0].square().sum()
        first, = torch.autograd.grad(total, x, retain_graph=True)
        again, = torch.autograd.grad(total, x, create_graph=True)
        second, = torch.autograd.grad(again.sum(), layer.weight_hh_l0_reverse)
    layer.backend = "reference"
    wanted, = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
    twice, = torch.autograd.grad(wanted.sum(), layer.weight_hh_l0_reverse)
    close([first], [wanted], 2e-5)
    close([again], [wanted], 2e-5)
    close([second], [twice], 1e-4)  # the reference, both times, from outputs that differ by roundings
    assert side_by_side


@pytest.mark.parametrize(("what", "T", "B", "threads"), [("too little work", 5, 1, 2), ("rows for all", 150, 8, 2),
                                                         ("one thread", 150, 1, 1)])
def test_directions_go_one_after_the_other_where_that_is_as_fast(side_by_side, what, T, B, threads):
    torch.set_num_threads(threads)
    layer, x = gatework.nn.LSTM(20, 70, bidirectional=True), torch.randn(T, B, 20)
    for _ in range(4):
        made(layer, x)
    assert not side_by_side


def test_inference_runs_side_by_side_too(side_by_side):
    T, B, size, hidden = LONG
    layer, x = gatework.nn.GRU(size, hidden, bidirectional=True), torch.randn(T, B, size)
    wanted = expected(layer, x)[:2]
    with torch.inference_mode():
        for _ in range(4):
            close(layer(x), wanted, 2e-5)
    assert len(side_by_side) >= 2


def test_large_products_and_loops_that_others_share_are_right_alone_too(side_by_side, monkeypatch):
    """Programs that would start teams of their own inside run as one thread of the team that runs both."""
    monkeypatch.setattr(kernel.Kernel, "leaves_threads_idle", lambda *_: True)
    torch.manual_seed(0)
    layer, x = gatework.nn.LSTM(140, 130, bidirectional=True), torch.randn(60, 6, 140)
    wanted = expected(layer, x)
    for _ in range(4):
        close(made(layer, x), wanted, 2e-5)
    assert side_by_side


def test_other_dtypes_and_devices_are_refused_by_name_in_either_direction():
    layer, x = gatework.nn.LSTM(20, 70, bidirectional=True), torch.randn(9, 1, 20)
    layer.weight_hh_l0_reverse = torch.nn.Parameter(layer.weight_hh_l0_reverse.double())
    with pytest.raises(TypeError, match="parameter U of lstm is torch.float64"):
        layer(x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_runs_them_without_the_team(side_by_side):
    T, B, size, hidden = LONG
    layer, x = gatework.nn.LSTM(size, hidden, bidirectional=True), torch.randn(T, B, size)
    wanted = [made(layer, x) for _ in range(3)][-1]
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        torch.set_num_threads(1)  # for torch itself and BLAS, whose threads do not survive a fork
        torch.get_num_threads = lambda: 2
        arrays.Torch.threads = staticmethod(torch.get_num_threads)
        good = all(torch.allclose(a, b, atol=1e-4) for _ in range(3) for a, b in zip(made(layer, x), wanted))
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
