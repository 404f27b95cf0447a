"""The layers inside what torch offers: copying, saving, compilation, autocast, backward passes of all kinds."""

import copy
import io
import pickle

import pytest
import torch

import gatework

LAYERS = {
    "LSTM": lambda **k: gatework.nn.LSTM(4, 6, **k),
    "GRU": lambda **k: gatework.nn.GRU(4, 6, **k),
    "RNN": lambda **k: gatework.nn.RNN(4, 6, **k),
    "PeepholeLSTM": lambda **k: gatework.nn.PeepholeLSTM(4, 6, **k),
    "CoupledLSTM": lambda **k: gatework.nn.CoupledLSTM(4, 6, **k),
    "projected": lambda **k: gatework.nn.LSTM(4, 6, proj_size=3, **k),
    "reset-before": lambda **k: gatework.nn.Recurrent(gatework.cells.gru_reset_before, 4, 6, **k),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def build(name="LSTM", **options):
    torch.manual_seed(1)
    layer = LAYERS[name](**options)
    return layer, torch.randn(5, 3, 4, dtype=options.get("dtype"))


def tensors(result):
    output, last = result
    return [output, *(last if isinstance(last, tuple) else [last])]


def gradients(layer, x):
    layer.zero_grad()
    x = x.detach().requires_grad_()
    sum((y ** 2).sum() for y in tensors(layer(x))).backward()
    return [x.grad, *(p.grad.clone() for p in layer.parameters())]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def assert_close(found, expected, bound):
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=bound), (a - b).abs().max()


@every_layer
def test_deepcopy_computes_the_same_and_shares_no_parameter(name):
    layer, x = build(name)
    expected = tensors(layer(x))
    other = copy.deepcopy(layer)
    assert_equal(tensors(other(x)), expected)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(1.0)
    assert_equal(tensors(other(x)), expected)


@every_layer
def test_pickled_layer_computes_the_same(name):
    layer, x = build(name, num_layers=2, bidirectional=True)
    other = pickle.loads(pickle.dumps(layer))
    assert_equal(tensors(other(x)), tensors(layer(x)))
    assert_equal(gradients(other, x), gradients(layer, x))


def test_state_dict_is_saved_and_loaded_with_weights_only():
    layer, x = build()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = gatework.nn.LSTM(4, 6)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_equal(tensors(other(x)), tensors(layer(x)))


@pytest.mark.parametrize(("convert", "dtype"), [(lambda m: m.double(), torch.float64),
                                            (lambda m: m.to(torch.float64), torch.float64),
                                            (lambda m: m.double().float(), torch.float32)],
                         ids=["double", "to", "double-float"])
def test_converted_model_computes_in_the_new_dtype(convert, dtype):
    layer, x = build(num_layers=2)
    expected = tensors(layer(x))
    model = convert(torch.nn.Sequential(layer))
    found = tensors(model(x.to(dtype)))
    assert all(v.dtype == dtype for v in found)
    # float32 rounds a dozen sums of ten values below 1 at 6e-8 each
    assert_close([v.float() for v in found], expected, 2e-6)
    assert all(g.dtype == dtype for g in gradients(layer, x.to(dtype)))


CHANGES = {
    "in-place": lambda p: p.mul_(0.5),
    "data": lambda p: p.data.mul_(0.5),  # invisible to torch's version counter, and common in older training loops
    "data-replaced": lambda p: setattr(p, "data", p.data * 0.5),
    "detach": lambda p: p.detach().mul_(0.5),
    "numpy": lambda p: p.detach().numpy().__imul__(0.5),  # invisible, too
}


@pytest.mark.parametrize("grad", [True, False], ids=["training", "no_grad"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_parameters_are_seen_by_the_next_call(change, grad):
    layer, x = build("GRU", dtype=torch.float64)
    theirs = torch.nn.GRU(4, 6, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        layer(x)
        with torch.no_grad():
            for p in layer.parameters():
                CHANGES[change](p)
        found = tensors(layer(x))
    theirs.load_state_dict(layer.state_dict())
    assert_close(found, tensors(theirs(x)), 1e-10)  # float64, the bound


def test_new_layers_compute_with_their_own_weights_wherever_they_lie_in_memory():
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    for _ in range(60):  # a freed layer's memory goes to a following one, with the same count of changes
        layer, theirs = gatework.nn.GRU(4, 6, dtype=torch.float64), torch.nn.GRU(4, 6, dtype=torch.float64)
        theirs.load_state_dict(layer.state_dict())
        assert_close(tensors(layer(x)), tensors(theirs(x)), 1e-10)  # float64, the bound
        del layer, theirs


# Compilation. These backends trace everything that inductor would and need no C++ compiler.

@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "PeepholeLSTM"])
def test_compiled_model_has_no_graph_break_and_the_same_gradients(name, backend):
    torch.compiler.reset()
    layer, x = build(name, num_layers=2, bidirectional=True, dtype=torch.float64)
    expected = [*tensors(layer(x)), *gradients(layer, x)]
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    found = [*tensors(compiled(x)), *gradients(compiled, x)]
    assert_close(found, expected, 1e-12)  # float64; tracing may reorder what stands around the kernels


def test_compiled_model_serves_other_lengths_and_batches():
    torch.compiler.reset()
    layer, _ = build(dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps, rows in ((5, 3), (9, 2), (2, 7)):
        x = torch.randn(steps, rows, 4, dtype=torch.float64)
        assert_close(tensors(compiled(x)), tensors(layer(x)), 1e-12)  # float64, the same sums


# What is kept for the backward pass.

def saved_bytes(run):
    """The bytes that a forward pass keeps for a backward pass, every storage counted once."""
    kept = {}

    def keep(value):
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        result = run()
    return sum(kept.values()), result


@every_layer
def test_no_grad_in_evaluation_saves_nothing_and_gives_the_same(name):
    layer, x = build(name)
    expected = [v.detach() for v in tensors(layer(x))]
    layer.eval()
    with torch.no_grad():
        count, result = saved_bytes(lambda: layer(x))
    assert count == 0
    assert_equal(tensors(result), expected)
    with torch.inference_mode():
        assert_equal(tensors(layer(x)), expected)


def test_training_saves_less_than_torch_nn_lstm():
    T, B, H = 50, 8, 32
    x = torch.randn(T, B, H)
    ours, result = saved_bytes(lambda: gatework.nn.LSTM(H, H)(x))
    theirs, expected = saved_bytes(lambda: torch.nn.LSTM(H, H)(x))
    assert result[0].requires_grad
    assert expected[0].requires_grad
    assert 0 < ours <= theirs


def test_backward_in_evaluation_mode_equals_training_mode():
    layer, x = build(num_layers=2)
    expected = gradients(layer, x)
    assert_equal(gradients(layer.eval(), x), expected)


def test_two_backward_passes_over_one_graph_give_the_same_gradients():
    layer, x = build(num_layers=2)
    x.requires_grad_()
    loss = (layer(x)[0] ** 2).sum()
    wanted = [x, *layer.parameters()]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    assert_equal(torch.autograd.grad(loss, wanted, retain_graph=True), first)
    assert_equal(torch.autograd.grad(loss, wanted), first)


def test_gradients_accumulate_over_calls():
    layer, x = build(dtype=torch.float64)
    single = gradients(layer, x)[1:]
    layer.zero_grad()
    for _ in range(2):
        sum((y ** 2).sum() for y in tensors(layer(x))).backward()
    assert_close([p.grad for p in layer.parameters()], [2 * g for g in single], 1e-12)  # float64: two equal terms


@pytest.mark.parametrize("state", [0, 1], ids=["h", "c"])
def test_gradient_of_a_first_state_alone_equals_torch_nn(state):
    layer, x = build(dtype=torch.float64)
    theirs = torch.nn.LSTM(4, 6, dtype=torch.float64)
    theirs.load_state_dict(layer.state_dict())
    found = []
    for module in (layer.requires_grad_(False), theirs.requires_grad_(False)):
        torch.manual_seed(3)
        first = [torch.randn(1, 3, 6, dtype=torch.float64) for _ in range(2)]
        first[state].requires_grad_()
        module(x, tuple(first))[0].sum().backward()
        found.append(first[state].grad)
        assert first[1 - state].grad is None
    assert_close(found[:1], found[1:], 1e-10)  # float64, the bound


def test_layer_trains_behind_and_before_other_modules():
    torch.manual_seed(0)
    before, layer, after = torch.nn.Embedding(11, 4), gatework.nn.GRU(4, 6), torch.nn.Linear(6, 11)
    parameters = [*before.parameters(), *layer.parameters(), *after.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    symbols = torch.arange(12).remainder(11).unsqueeze(1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        logits = after(layer(before(symbols[:-1]))[0])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), symbols[1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.0  # ln 11 = 2.4 for a guess
    assert losses[-1] < 0.5  # the sequence is fully predictable


# Autocast.

@pytest.mark.parametrize("name", ["LSTM", "GRU", "PeepholeLSTM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32-input", "bfloat16-input"])
def test_autocast_to_bfloat16_works_and_stays_close(name, dtype):
    layer, x = build(name, num_layers=2)
    expected = gradients(layer, x)
    output = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(layer, x.to(dtype))
        close = layer(x.to(dtype))[0]
    # bfloat16 has 8 bits: 4e-3 per rounded factor, of values below 1, over 5 steps and 2 layers
    assert_close([close.float()], [output], 3e-2)
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).norm() <= 0.05 * b.norm() + 1e-3


def test_first_states_of_the_autocast_dtype_are_taken():
    layer, x = build()
    h, c = torch.randn(1, 3, 6).bfloat16(), torch.randn(1, 3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = tensors(layer(x, (h, c)))
    # as above: 4e-3 per rounded factor
    assert_close([v.float() for v in found], tensors(layer(x, (h.float(), c))), 3e-2)


# Values that are no numbers.

@every_layer
def test_nan_in_one_row_comes_out_of_that_row_from_its_step_on_and_of_no_other(name):
    layer, x = build(name)
    clean = layer(x)[0]
    x[2, 1, 0] = float("nan")
    output = layer(x)[0]
    assert output[2:, 1].isnan().all()
    assert torch.equal(output[:2], clean[:2])
    assert torch.equal(output[:, [0, 2]], clean[:, [0, 2]])


@every_layer
def test_nan_in_a_first_state_comes_out(name):
    layer, x = build(name)
    states = [torch.zeros(1, 3, layer.sizes[e.dims[0]]) for e in layer.cell.states.values()]
    for s in states:
        s[0, 1, 0] = float("nan")
    output = layer(x, states[0] if len(states) == 1 else tuple(states))[0]
    assert output[:, 1].isnan().any(-1).all()
    assert not output[:, [0, 2]].isnan().any()


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30], ids=["inf", "-inf", "1e30"])
def test_infinite_products_saturate_the_gates_as_in_torch_nn(name, value):
    layer, x = build(name)
    theirs = getattr(torch.nn, name)(4, 6)
    theirs.load_state_dict(layer.state_dict())
    with torch.no_grad():
        for module in (layer, theirs):
            module.bias_ih_l0.fill_(value)
    # saturated values are 0, 1 and -1 up to float32 rounding
    assert_close([layer(x)[0]], [theirs(x)[0]], 1e-6)
    assert layer(x)[0].isfinite().all()


def test_layers_of_the_same_equations_share_one_cell_and_its_kernels():
    one, other = gatework.nn.LSTM(3, 4), gatework.nn.LSTM(3, 4)
    assert one.cell is other.cell is copy.deepcopy(one).cell is pickle.loads(pickle.dumps(one)).cell
    assert one.cell is not gatework.nn.LSTM(3, 4, bias=False).cell
