"""Memory that one training step leaves to the next: never in use twice, never more than was in use, nothing leaks."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import gatework
from gatework.autograd import calls, lasting


@pytest.fixture(autouse=True)
def small_arrays_last(monkeypatch):
    monkeypatch.setattr(lasting, "LARGE", 256)
    lasting.let_go()
    yield
    lasting.let_go()


def gradients(layer, x):
    output, _ = layer(x)
    return torch.autograd.grad(output.square().sum(), list(layer.parameters()))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return gatework.nn.LSTM(5, 16, num_layers=2, bidirectional=True)


def addresses() -> list[int]:
    return sorted(m.data_ptr() for m in lasting._free)


def test_the_next_step_works_in_the_memory_of_the_last_one_and_finds_the_same(layer):
    x = torch.randn(20, 4, 5)
    first = gradients(layer, x)
    left = addresses()
    assert len(left) >= 4  # of every layer and direction at least the gates
    for m in lasting._free:
        m.fill_(255)  # NaN
    assert all(map(torch.equal, gradients(layer, x), first))
    assert addresses() == left


def test_what_a_backward_pass_writes_is_left_to_the_next_step_too(monkeypatch):
    monkeypatch.setattr(calls.Call, "_repeated", lambda *_: None)  # what programs write is memory to work in
    layer, x = gatework.nn.RNN(5, 16, num_layers=2), torch.randn(20, 4, 5)  # keeps nothing but its output
    first = gradients(layer, x)
    left = addresses()
    assert left  # one piece serves both layers
    for m in lasting._free:
        m.fill_(255)
    assert all(map(torch.equal, gradients(layer, x), first))
    assert addresses() == left


def test_steps_of_all_lengths_hold_no_more_than_a_step_keeps(layer):
    gradients(layer, torch.randn(20, 4, 5))
    most = len(lasting._free)
    for steps in (3, 40, 7, 19, 21, 80, 5):
        gradients(layer, torch.randn(steps, 4, 5))
        assert len(lasting._free) <= most


def test_two_graphs_at_once_share_no_memory(layer):
    a, b = torch.randn(20, 4, 5), torch.randn(20, 4, 5)
    wanted = gradients(layer, a), gradients(layer, b)
    outputs = [layer(x)[0] for x in (a, b)]
    found = [torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in outputs]
    for one, other in zip(found, wanted):
        assert all(map(torch.equal, one, other))


def test_a_graph_that_is_kept_keeps_its_memory(layer):
    output, _ = layer(torch.randn(20, 4, 5))
    total = output.square().sum()
    first = torch.autograd.grad(total, list(layer.parameters()), retain_graph=True)
    assert not lasting._free
    gradients(layer, torch.randn(20, 4, 5))
    assert all(map(torch.equal, torch.autograd.grad(total, list(layer.parameters())), first))


def test_a_graph_that_is_dropped_and_a_pass_without_gradients_hold_nothing(layer):
    x = torch.randn(20, 4, 5)
    layer(x)
    assert not lasting._free
    gradients(layer, x)
    assert lasting._free
    with torch.no_grad():
        layer(x)
    assert not lasting._free


def test_memory_of_another_device_stays_with_torch():
    lasting.leave([torch.empty(1000, device="meta")], [0])
    assert not lasting._free


def test_tensors_that_hooks_have_moved_are_not_taken(layer):
    x = torch.randn(20, 4, 5)
    wanted = gradients(layer, x)
    lasting.let_go()
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t):
        found = gradients(layer, x)
    assert not lasting._free
    assert all(map(torch.equal, found, wanted))


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
