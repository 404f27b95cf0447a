"""Layers inside the rest of torch: second derivatives, vmap, torch.func, DDP, export, compile, checkpoints, files."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import multiprocessing

import gatework
from gatework import autograd, cells
from gatework.compiler import Input, Matrix, State, tanh

CLOSE = dict(rtol=1e-10, atol=1e-11)  # float64, some ten terms in each sum
LAYERS = ["LSTM", "GRU", "RNN", "PeepholeLSTM", "CoupledLSTM"]


def pair(kind: str, **options):
    """A layer of ours and the loop that it stands for, of the same weights, in float64."""
    torch.manual_seed(0)
    ours = getattr(gatework.nn, kind)(2, 3, dtype=torch.float64, **options)
    slow = copy.deepcopy(ours)
    slow.backend = "reference"
    return ours, slow


# Derivatives of derivatives.

@pytest.mark.parametrize("kind", LAYERS)
def test_second_derivatives_are_right_without_asking_for_another_backend(kind):
    ours, _ = pair(kind, bidirectional=True)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: ours(x)[0], (x,), fast_mode=True)
    weights = [p.detach().requires_grad_() for p in ours.parameters()]
    names = [n for n, _ in ours.named_parameters()]
    assert torch.autograd.gradgradcheck(
        lambda *w: torch.func.functional_call(ours, dict(zip(names, w)), (x.detach(),))[0], weights, fast_mode=True)


def test_gradient_penalty_equals_that_of_torch():
    theirs = torch.nn.LSTM(2, 3, dtype=torch.float64)
    ours = gatework.nn.LSTM(2, 3, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for layer in (ours, theirs):
        (slope,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [x, *layer.parameters()]))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, **CLOSE)


def test_second_derivatives_go_through_lengths_resets_records_and_checkpoints():
    layer = gatework.nn.Recurrent(cells.lstm, 2, 3, bidirectional=True, initial_state=True, checkpoint_every=2,
                                  dtype=torch.float64)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    resets = torch.rand(4, 3) < 0.4

    def run(x):
        output, _, records = layer(x, lengths=[4, 0, 2], resets=resets, record="c")
        return output, records["c_l0"]

    assert torch.autograd.gradgradcheck(run, (x,), fast_mode=True)


# torch.func.

@pytest.mark.parametrize("kind", LAYERS)
def test_vmap_over_batches_equals_a_loop_over_them(kind):
    ours, _ = pair(kind)
    x = torch.randn(5, 4, 2, 2, dtype=torch.float64)
    found = torch.func.vmap(lambda x: ours(x)[0])(x)
    for a, b in zip(found, x):
        torch.testing.assert_close(a, ours(b)[0], **CLOSE)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_per_sample_equal_those_of_single_rows(kind):
    ours, _ = pair(kind)
    weights = {n: p.detach() for n, p in ours.named_parameters()}
    x = torch.randn(4, 5, 2, dtype=torch.float64)

    def loss(weights, row):
        return torch.func.functional_call(ours, weights, (row.unsqueeze(1),))[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(weights, x)
    for b in range(5):
        ours.zero_grad()
        ours(x[:, b:b + 1])[0].square().sum().backward()
        for name, p in ours.named_parameters():
            torch.testing.assert_close(found[name][b], p.grad, **CLOSE)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own use of it
def test_forward_mode_derivative_equals_reverse_mode():
    ours, _ = pair("GRU")
    x, d = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    _, slope = torch.func.jvp(lambda x: ours(x)[0].sum(), (x,), (d,))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(ours(x)[0].sum(), x)
    torch.testing.assert_close(slope, (gradient * d).sum(), **CLOSE)


def test_kernels_that_were_asked_for_say_that_they_cannot_be_transformed():
    layer = gatework.nn.LSTM(2, 3, backend="cpu")
    with pytest.raises(ValueError, match='torch.func.*use backend="auto"'):
        torch.func.vmap(lambda x: layer(x)[0])(torch.randn(2, 4, 1, 2))


# torch.compile and torch.export: one graph, and the kernels in it.

class Model(torch.nn.Module):
    """A layer with work before and after it."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Linear(3, 2)
        self.layer = gatework.nn.Recurrent(cells.lstm, 2, 5, num_layers=2, bidirectional=True, **options)
        self.head = torch.nn.Linear(10, 1)

    def forward(self, x, lengths=None, resets=None):
        output, _, records = self.layer(self.embed(x), lengths=lengths, resets=resets, record="f")
        return self.head(output), records["f_l1_reverse"]


GIVEN = {"dense": {}, "lengths": dict(lengths=torch.tensor([4, 0, 2])),
         "resets": dict(resets=torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.bool))}
GIVEN["both"] = GIVEN["lengths"] | GIVEN["resets"]


def values_and_gradients(run, model, x, given):
    x = x.clone().requires_grad_()
    made = run(x, **given)
    loss = sum(y.square().sum() for y in made)
    return [*made, *torch.autograd.grad(loss, [x, *model.parameters()])]


@pytest.mark.parametrize("options", [{}, dict(initial_state=True), dict(checkpoint_every=2)], ids=str)
@pytest.mark.parametrize("option", GIVEN)
def test_compiled_model_is_one_graph_and_gives_the_same_values_and_gradients(option, options):
    torch._dynamo.reset()
    model = Model(**options)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 3)
    found = values_and_gradients(compiled, model, x, GIVEN[option])
    wanted = values_and_gradients(model, model, x, GIVEN[option])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # the compiler may add up in another order, in float32


def test_two_backward_passes_over_one_compiled_graph_give_the_same_gradients():
    # The second one would find what the first one has written over what was kept for it.
    torch.manual_seed(0)
    layer, x = gatework.nn.LSTM(3, 5), torch.randn(6, 2, 3, requires_grad=True)
    wanted = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x)[0].square().sum(), wanted)
    loss = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0].square().sum()
    for kept in (True, True, False):
        for a, b in zip(torch.autograd.grad(loss, wanted, retain_graph=kept), expected):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # float32 may be added up in another order


def test_a_layer_that_is_called_twice_alike_in_a_compiled_graph_has_both_gradients():
    # The compiler makes one forward node of them.
    torch.manual_seed(0)
    layer, x = gatework.nn.LSTM(3, 5), torch.randn(6, 2, 3)

    def loss():
        return layer(x)[0].square().sum() + layer(x)[0].sin().sum()

    wanted = list(layer.parameters())
    expected = torch.autograd.grad(loss(), wanted)
    for a, b in zip(torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), wanted), expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # float32 may be added up in another order


def test_compiled_model_takes_other_lengths_without_compiling_again():
    torch._dynamo.reset()
    model, graphs = Model(), []
    compiled = torch.compile(model, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    x = torch.randn(4, 3, 3)
    for lengths in ([4, 0, 2], [1, 1, 1], [3, 4, 4]):
        given = dict(lengths=torch.tensor(lengths))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, **given)[0], model(x, **given)[0], rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1


def test_compiled_layer_that_was_never_called_takes_any_steps_and_rows_in_few_graphs():
    torch._dynamo.reset()

    def fresh(x: Input, h: State, W: Matrix, U: Matrix):
        return dict(h=tanh(W @ x + U @ h))

    layer, graphs = gatework.nn.Recurrent(fresh, 2, 5), []
    compiled = torch.compile(layer, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    for shape in ((4, 3), (5, 2), (9, 7), (6, 4)):
        x = torch.randn(*shape, 2)
        torch.testing.assert_close(compiled(x)[0], layer(x)[0], rtol=1e-5, atol=1e-6)
    assert len(graphs) <= 2  # one for the first sizes, one for all


def test_compiled_layer_refuses_lengths_that_are_out_of_range():
    torch._dynamo.reset()
    compiled = torch.compile(gatework.nn.LSTM(2, 5), fullgraph=True, backend="eager")
    with pytest.raises(ValueError, match="from 0 to the 4 steps; they go from -1 to 9"):
        compiled(torch.randn(4, 3, 2), lengths=torch.tensor([9, -1, 2]))


def test_exported_program_takes_any_steps_and_rows():
    model = Model().eval()
    T, B = torch.export.Dim("T", min=2, max=100), torch.export.Dim("B", min=2, max=100)
    dynamic = {"x": {0: T, 1: B}, "lengths": {0: B}, "resets": {0: T, 1: B}}
    program = torch.export.export(model, (torch.randn(4, 3, 3),), GIVEN["both"], dynamic_shapes=dynamic)
    x, given = torch.randn(7, 2, 3), dict(lengths=torch.tensor([0, 6]), resets=torch.rand(7, 2) < 0.3)
    for a, b in zip(program.module()(x, **given), model(x, **given)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_exported_program_runs_in_another_process_that_has_a_layer_of_the_same_cell(tmp_path):
    x, layer = torch.randn(4, 3, 2), gatework.nn.PeepholeLSTM(2, 5).eval()
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "program.pt2")
    torch.save([x, layer(x)[0].detach()], tmp_path / "example.pt")
    run = """
import sys, torch, gatework.nn
gatework.nn.PeepholeLSTM(2, 7)
program = torch.export.load(sys.argv[1] + "/program.pt2")
x, output = torch.load(sys.argv[1] + "/example.pt")
torch.testing.assert_close(program.module()(x)[0], output)
"""
    subprocess.run([sys.executable, "-c", run, str(tmp_path)], check=True)


def test_program_that_runs_a_cell_which_nobody_made_says_what_to_do():
    x = torch.randn(4, 3, 2)
    with pytest.raises(RuntimeError, match="make a layer of the same cell"):
        torch.ops.gatework.scan("0123", "h", [x], [], [], False, None, 0, False, False, False)


@pytest.mark.parametrize("option", GIVEN)
def test_exported_program_gives_the_same_values_and_names_the_operator(option):
    model = Model().eval()
    x = torch.randn(4, 3, 3)
    program = torch.export.export(model, (x,), GIVEN[option])
    for a, b in zip(program.module()(x, **GIVEN[option]), model(x, **GIVEN[option])):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert "gatework.scan" in str(program.graph)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch 2.15 on its own check
@pytest.mark.parametrize("every", [0, 2])
def test_registered_operator_passes_the_checks_of_torch(every):
    torch.manual_seed(0)
    cell = autograd.register(gatework.trace(cells.lstm))
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(3, 4, dtype=torch.float64) for _ in range(2)]
    weights = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((16, 2), (16, 4), (16,), (16,))]
    sizes = torch.tensor([3, 1, 1])  # one place less than there are
    given = (cell.fingerprint, "h,i", [x], states, weights, False, sizes, every, False, False, True)
    torch.library.opcheck(torch.ops.gatework.scan, given)


# Training.

def train_one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    layer = gatework.nn.Recurrent(cells.peephole_lstm, 2, 5, bidirectional=True)
    model = torch.nn.parallel.DistributedDataParallel(layer)
    x = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(1))[:, rank * 3:rank * 3 + 3]
    model(x, lengths=[4, 2, 3])[0].square().sum().backward()
    if rank == 0:
        torch.save([p.grad for p in layer.parameters()], f"{folder}/gradients.pt")
    del model  # while there is a group: freed after it, this once waited for ever
    torch.distributed.barrier()  # nobody leaves while another still speaks
    torch.distributed.destroy_process_group()


def test_two_processes_under_ddp_find_the_mean_of_their_gradients(tmp_path):
    multiprocessing.spawn(train_one_of_two, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    torch.manual_seed(0)
    layer = gatework.nn.Recurrent(cells.peephole_lstm, 2, 5, bidirectional=True)
    x = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(1))
    (layer(x, lengths=[4, 2, 3] * 2)[0].square().sum() / 2).backward()
    for a, p in zip(found, layer.parameters()):
        torch.testing.assert_close(a, p.grad, rtol=1e-5, atol=1e-6)  # float32 sums in another order


def test_checkpointing_of_torch_gives_the_same_gradients():
    layer = gatework.nn.LSTM(2, 5, dtype=torch.float64)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for run in (layer, lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)):
        found.append(torch.autograd.grad(run(x)[0].square().sum(), [x, *layer.parameters()]))
    for a, b in zip(*found):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_is_saved_and_loaded_by_safetensors(kind, tmp_path):
    from safetensors.torch import load_model, save_model
    layer, other = (getattr(gatework.nn, kind)(2, 5, num_layers=2, bidirectional=True) for _ in range(2))
    save_model(layer, tmp_path / "layer.safetensors")
    load_model(other, tmp_path / "layer.safetensors")
    x = torch.randn(4, 3, 2)
    assert torch.equal(layer(x)[0], other(x)[0])


# Long sequences.

class Kept:
    """The bytes that a forward pass keeps for the backward pass, each storage counted once."""

    def __enter__(self):
        self.storages = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda t: t)
        self.hooks.__enter__()
        return self

    def _keep(self, tensor):
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def bytes_beside(self, *tensors) -> int:
        known = {t.untyped_storage().data_ptr() for t in tensors}
        return sum(n for address, n in self.storages.items() if address not in known)


def test_checkpoints_keep_a_fifth_of_the_activations_or_less():
    kept = []
    for every in (None, "auto"):
        layer = gatework.nn.Recurrent(cells.lstm, 8, 64, checkpoint_every=every)
        x = torch.randn(20_000, 1, 8)
        with Kept() as k:
            layer(x)
        kept.append(k.bytes_beside(x, *layer.parameters()))
    assert kept[1] <= 0.2 * kept[0]
    assert kept[0] > 20_000 * 64 * 4 * 5  # four gates and two states, one of them the output


def test_chunks_with_a_detached_state_have_the_gradients_of_each_chunk_alone():
    layer = gatework.nn.LSTM(2, 5, dtype=torch.float64)
    x = torch.randn(6, 3, 2, dtype=torch.float64)
    found, wanted, state = [], [], None
    for chunk in x.split(2):
        first = None if state is None else tuple(s.detach() for s in state)
        output, state = layer(chunk, first)
        found.append(torch.autograd.grad(output.sum(), list(layer.parameters())))
        given = None if first is None else tuple(s.clone() for s in first)
        wanted.append(torch.autograd.grad(layer(chunk, given)[0].sum(), list(layer.parameters())))
    for a, b in zip(found, wanted):
        assert all(torch.equal(p, q) for p, q in zip(a, b))
