"""The layers under several threads, in DataLoader workers, and in forked and in ending processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import gatework
from gatework.backends.cpu import threads as cpu_threads

LAYERS = [gatework.nn.LSTM, gatework.nn.GRU, gatework.nn.PeepholeLSTM, gatework.nn.RNN, gatework.nn.CoupledLSTM]


def build(make, **options):
    torch.manual_seed(1)
    return make(4, 6, dtype=torch.float64, **options), torch.randn(5, 3, 4, dtype=torch.float64)


def tensors(result):
    output, last = result
    return [output, *(last if isinstance(last, tuple) else [last])]


def gradients(layer, x):
    """The gradients of input and parameters, without touching .grad: a layer may be shared by threads."""
    x = x.detach().requires_grad_()
    loss = sum((y ** 2).sum() for y in tensors(layer(x)))
    return torch.autograd.grad(loss, [x, *layer.parameters()])


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def assert_close(found, expected, bound):
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=bound), (a - b).abs().max()


@pytest.fixture
def restore_threads():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize(("T", "B", "I", "H"), [(6, 1, 5, 33), (6, 7, 5, 33), (6, 1, 8, 256), (4, 3, 16, 64)],
                         ids=["T6-B1-I5-H33", "T6-B7-I5-H33", "T6-B1-I8-H256", "T4-B3-I16-H64"])
@pytest.mark.parametrize("make", LAYERS[:3])
@pytest.mark.usefixtures("restore_threads")
def test_results_do_not_depend_on_the_number_of_threads(make, T, B, I, H):
    torch.manual_seed(0)
    layer, x = make(I, H, dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64)
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        runs.append((tensors(layer(x)), gradients(layer, x)))
    for outputs, grads in runs[1:]:
        # Not bit for bit: the BLAS products around the loop may split their sums by thread, to 1e-16 per term.
        assert_close(outputs, runs[0][0], 1e-12)
        assert_close(grads, runs[0][1], 1e-11)


def test_the_same_call_gives_the_same_bits_again():
    layer, x = build(LAYERS[0], num_layers=2, bidirectional=True)
    expected = [*tensors(layer(x)), *gradients(layer, x)]
    for _ in range(5):
        assert_equal([*tensors(layer(x)), *gradients(layer, x)], expected)


def test_concurrent_calls_from_several_threads_give_the_right_results():
    jobs = []
    for k, make in enumerate(LAYERS * 2):
        layer, x = build(make)
        jobs.append((layer, x + k, [*tensors(layer(x + k)), *gradients(layer, x + k)]))
    found = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def work(k):
        layer, x, _ = jobs[k]
        start.wait()
        for _ in range(5):
            found[k] = [*tensors(layer(x)), *gradients(layer, x)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    for result, (_, _, expected) in zip(found, jobs, strict=True):
        # float64; torch runs its products with fewer threads inside a thread, which reorders sums
        assert_close(result, expected, 1e-11)


def test_one_layer_called_from_several_threads_gives_the_right_results():
    layer, _ = build(LAYERS[0])
    inputs = [torch.randn(3 + k, 1 + k, 4, dtype=torch.float64) for k in range(4)]
    expected = [layer(x)[0] for x in inputs]
    found = [[] for _ in inputs]

    def work(k):
        for _ in range(10):
            found[k].append(layer(inputs[k])[0])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    for results, right in zip(found, expected, strict=True):
        assert len(results) == 10
        assert_close(results, [right] * 10, 1e-12)  # float64, see above


# Processes.

class Outputs(Dataset):
    """Items that a layer computes, in whatever process asks for them."""

    def __init__(self, layer, x):
        self.layer, self.x = layer, x

    def __len__(self):
        return self.x.shape[1]

    def __getitem__(self, row):
        with torch.no_grad():
            return self.layer(self.x[:, row:row + 1])[0][:, 0]


# Forking beside torch's threads is what DataLoader does; Python 3.12 and later warn of it.
FORK_WARNING = "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"


@pytest.mark.filterwarnings(FORK_WARNING)
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers_can_call_a_layer_that_was_used_before(context):
    layer, x = build(gatework.nn.PeepholeLSTM)
    expected = layer(x)[0]
    layer(x)[0].sum().backward()  # both kernels exist and the threads have run
    items = list(DataLoader(Outputs(layer, x), num_workers=2, batch_size=None, multiprocessing_context=context,
                            timeout=120))
    # a batch of one row is summed in another order; float32 rounds values below 1 to 6e-8
    assert_close(items, list(expected.detach().unbind(1)), 2e-6)


def _trains_forks_and_trains(queue):
    # On one thread up to the fork, in a process that never had more: torch's own OpenMP pool does not survive one.
    torch.set_num_threads(1)
    torch.manual_seed(1)
    layer, x = gatework.nn.LSTM(16, 64, dtype=torch.float64), torch.randn(50, 16, 16, dtype=torch.float64)
    expected = gradients(layer, x)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        torch.set_num_threads(2)  # float64; BLAS may split sums by thread
        same = all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(gradients(layer, x), expected))
        os._exit(0 if same and cpu_threads._pool is not None else 1)
    queue.put(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_trains_with_threads_of_its_own_after_the_parent_has_trained():
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_trains_forks_and_trains, args=(queue,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert queue.get() == 0


def test_process_that_used_a_layer_ends_by_itself():
    code = ("import torch, gatework; layer = gatework.nn.LSTM(64, 64); "
            "layer(torch.randn(9, 4, 64))[0].sum().backward(); print('done')")
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "done\n", "")
