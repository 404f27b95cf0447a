"""Memory that goes from one training step to the next: never in use twice, never more than was in use."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import gatework
from gatework.autograd import calls, lasting
from gatework.autograd.arrays import Torch


@pytest.fixture(autouse=True)
def small_arrays_last(monkeypatch):
    monkeypatch.setattr(lasting, "LARGE", 256)
    monkeypatch.setattr(lasting, "_pool", lasting._Pool())


def gradients(layer, x):
    output, _ = layer(x)
    return [d.clone() for d in torch.autograd.grad(output.square().sum(), list(layer.parameters()))]


def free():
    lasting._pool.settle()
    return lasting._pool.free


def addresses() -> list[int]:
    return sorted(m.ctypes.data for m in free())


def spoil() -> None:
    """Make all that is free not a number."""
    for m in free():
        m.fill(255)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return gatework.nn.LSTM(5, 16, num_layers=2, bidirectional=True)


@pytest.fixture
def single():
    return gatework.nn.LSTM(5, 16)  # the outputs of two directions are put together by torch


def test_the_next_step_works_in_the_memory_of_the_last_one_and_finds_the_same(layer):
    x = torch.randn(20, 4, 5)
    first = gradients(layer, x)
    gradients(layer, x)  # from this one on programs do it
    left = addresses()
    assert len(left) >= 12  # of every layer and direction at least the gates, and the gradients of two matrices
    for _ in range(3):
        spoil()
        assert all(map(torch.equal, gradients(layer, x), first))
        assert addresses() == left


def test_what_a_backward_pass_works_in_serves_the_next_step_too(monkeypatch):
    monkeypatch.setattr(calls.Call, "_repeated", lambda *_: None)  # what programs write is memory to work in
    layer, x = gatework.nn.RNN(5, 16, num_layers=2), torch.randn(20, 4, 5)
    first = gradients(layer, x)
    left = addresses()
    spoil()
    assert all(map(torch.equal, gradients(layer, x), first))
    assert addresses() == left


def test_steps_of_all_lengths_hold_half_as_much_again_as_the_largest_had_in_use_at_most(layer):
    for steps in (80, 3, 40, 7, 19, 21, 80, 5, 30, 50):
        gradients(layer, torch.randn(steps, 4, 5))
        assert sum(map(len, free())) <= 1.5 * lasting._pool.most_lent
        assert lasting._pool.lent == 0
    assert lasting._pool.most_lent <= 2 * 2 * 80 * 4 * 16 * 4 * 8  # eight values of each unit in two layers, two ways


def test_a_stack_of_layers_takes_nothing_new_after_its_first_steps():
    stack = torch.nn.ModuleList(gatework.nn.LSTM(16, 16) for _ in range(5))

    def step() -> None:
        y = x
        for one in stack:
            y = one(y)[0]
        y.sum().backward()
        stack.zero_grad()

    x = torch.randn(6, 4, 16)  # all that is kept is about as large as the gradients
    for _ in range(3):
        step()
    left = addresses()
    step()
    assert addresses() == left


def test_a_height_that_does_not_come_again_is_not_held_forever(single):
    held = [single(torch.randn(80, 4, 5))[0] for _ in range(20)]
    del held
    high = sum(map(len, free()))
    for _ in range(700):  # each of which takes some six arrays
        gradients(single, torch.randn(20, 4, 5))
    assert sum(map(len, free())) < high / 10


def test_memory_that_there_is_not_is_not_counted(single, monkeypatch):
    right = torch.empty

    def empty(*shape, **options):
        if options.get("dtype") == torch.uint8:
            raise RuntimeError("not enough memory")
        return right(*shape, **options)

    with monkeypatch.context() as scarce:
        scarce.setattr(torch, "empty", empty)
        with pytest.raises(RuntimeError, match="not enough memory"):
            single(torch.randn(20, 4, 5))
    assert not free()
    assert lasting._pool.lent == 0
    assert single(torch.randn(20, 4, 5))[0].isfinite().all()


def test_two_graphs_at_once_share_no_memory(layer):
    a, b = torch.randn(20, 4, 5), torch.randn(20, 4, 5)
    wanted = gradients(layer, a), gradients(layer, b)
    outputs = [layer(x)[0] for x in (a, b)]
    spoil()
    found = [torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in outputs]
    for one, other in zip(found, wanted):
        assert all(map(torch.equal, one, other))


def test_a_graph_that_is_kept_keeps_its_memory(layer):
    output, _ = layer(torch.randn(20, 4, 5))
    total = output.square().sum()
    first = [d.clone() for d in torch.autograd.grad(total, list(layer.parameters()), retain_graph=True)]
    spoil()
    gradients(layer, torch.randn(20, 4, 5))
    spoil()
    assert all(map(torch.equal, torch.autograd.grad(total, list(layer.parameters())), first))


@pytest.mark.parametrize("hold", [lambda y: y, lambda y: y[3], lambda y: y.detach(), lambda y: y.detach().numpy()[1:],
                                  lambda y: y.untyped_storage(), lambda y: memoryview(y.detach().numpy()),
                                  lambda y: y.detach().view(-1).split(7)])
def test_memory_comes_back_when_nobody_holds_anything_in_it(single, hold):
    output = single(torch.randn(20, 4, 5))[0]
    address, held = output.data_ptr(), hold(output)
    del output
    assert address not in addresses()
    del held
    assert address in addresses()


def test_an_output_and_a_gradient_are_tensors_of_their_own_and_no_larger_than_they_seem(single):
    for steps in (20, 15):  # the shorter one lies in memory of the longer one
        x = torch.randn(steps, 4, 5, requires_grad=True)
        output, _ = single(x)
        output.sum().backward()
        for made in (output, x.grad, single.weight_hh_l0.grad):
            assert not made._is_view()
            assert made.untyped_storage().nbytes() == made.nbytes
        single.zero_grad()


def test_autograd_takes_a_gradient_over_as_it_is(layer):
    made = []
    layer.weight_hh_l0.register_hook(lambda d: made.append(d.data_ptr()))
    layer(torch.randn(20, 4, 5))[0].sum().backward()
    assert made == [layer.weight_hh_l0.grad.data_ptr()]


def test_a_graph_that_is_dropped_leaves_its_memory_and_a_pass_without_gradients_lets_go_of_it(layer):
    x = torch.randn(20, 4, 5)
    layer(x)
    assert free()
    layer(x)
    for _ in range(3):  # a walk, a walk that is recorded, and a program
        with torch.no_grad():
            output, _ = layer(x)
        del output
        assert not free()


def test_memory_of_another_device_is_left_to_torch():
    made = Torch(torch.empty(0, device="meta")).lasting(1000, 10)
    assert made.device.type == "meta"
    del made
    assert not free()


def test_hooks_may_move_what_is_kept(layer):
    x = torch.randn(20, 4, 5)
    wanted = gradients(layer, x)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: (spoil(), t)[1]):
        found = gradients(layer, x)
    assert all(map(torch.equal, found, wanted))


def test_memory_may_come_back_while_another_thread_or_this_one_is_at_it(single):
    output = single(torch.randn(20, 4, 5))[0]
    address = output.data_ptr()
    with lasting._lock:
        del output
    assert address in addresses()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_trains_though_a_thread_was_at_the_memory(layer):
    x = torch.randn(20, 4, 5)
    gradients(layer, x)
    with lasting._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that waits for the lock
            torch.set_num_threads(1)  # the threads of BLAS do not survive a fork
            gradients(layer, x)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_threads_train_beside_each_other(layer):
    x = torch.randn(20, 4, 5)
    wanted = gradients(layer, x)

    def train(_) -> bool:
        return all(all(map(torch.equal, gradients(layer, x), wanted)) for _ in range(30))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(train, range(4)))
