"""Between two looks `fit` does not wait for a GPU: the pretended one of elsewhere.py counts what would. What the skipped checks would have found
is found before, or after."""

import math
from unittest import mock

import pytest
import torch
from elsewhere import pretended
from test_device import PROCESSES, K, T, inout, seed

from discdiff_nb import core, train
from discdiff_nb.core import ClassError, NotFiniteError, linear_schedule, unchecked
from discdiff_nb.d3pm import Absorbing, hybrid
from discdiff_nb.fast import FastMultinomial
from discdiff_nb.gaussian import Gaussian
from discdiff_nb.layouts import Mix, PairNet, shapes_process
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.nets import Transformer, UNet
from discdiff_nb.ordinal import DiscretizedGaussian, NearestNeighbour

STEPS = 4


def waits_between_looks(process, net, x0, y=None, **options):
    "What would wait for the device after the first step, up to the look after the last one."
    step, ends = train._step, []
    cond = {} if y is None else dict(cond=dict(y=y), drop=0.2)
    with pretended() as gpu:
        def marked(r):
            step(r)
            ends.append(len(gpu.waits))

        with mock.patch.object(train, '_step', marked): losses = train.fit(process(), net().to('cuda'), x0, STEPS, batch_size=8, **cond, **options)[1]
        assert len(losses) == len(ends) == STEPS and len(gpu.waits) > ends[-1] # the look
        return gpu.waits[ends[0]:ends[-1]]


def rows(): return torch.randint(K, (20, 6)), torch.arange(20) % 3
def row_net(process): return Transformer(T=T, shape=(6,), width=16, depth=1, heads=2, cond=dict(y=3), **inout(process))


MORE = {'fast': lambda: FastMultinomial(K, core.cosine_schedule(T)), 'hybrid mask': lambda: hybrid(PROCESSES['absorbing'](), 0.1),
        'Gaussian, v': lambda: Gaussian(K, linear_schedule(T, 0.01, 0.5), predict='v', variance='beta')}
OPTIONS = [{}, dict(times='iid', mixed_precision='bf16', accumulate=2), dict(mixed_precision='fp16')]


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('name', PROCESSES | MORE)
def test_process(name, options):
    with pretended(): process = (PROCESSES | MORE)[name]()
    assert waits_between_looks(lambda: process, lambda: row_net(process), *rows(), **options) == []


SHARP = {
    'ordinal': lambda: DiscretizedGaussian(60, linear_schedule(T, 1e-3, 0.5)),
    'neighbour': lambda: NearestNeighbour(torch.linspace(-1, 1, 200)[:, None], core.cosine_schedule(T), 2)}


@pytest.mark.parametrize('sharp', [False, True])
@pytest.mark.parametrize('name', ['ordinal', 'neighbour', 'neighbour, more classes than positions'])
def test_losses_that_nobody_looks_at(name, sharp):
    "Where logits span less than 600 nats the loss is the same; where they span more it is never below, and its gradient is finite."
    g = torch.Generator().manual_seed(0)
    with pretended():
        process = SHARP[name.split(',')[0]]() if sharp else PROCESSES[name]()
        x0, t = torch.randint(process.K, (20, 6), generator=g).to('cuda'), torch.arange(20).to('cuda') % T + 1
        x_t = process.q_sample(x0, t, seed(1))
        first = -800 * (torch.arange(process.K) > 0) # a network that is sure of class 0
        for out in (torch.randn(20, 6, process.K, generator=g), 60 * torch.randn(20, 6, process.K, generator=g), first.expand(20, 6, -1).float()):
            out = out.to('cuda').requires_grad_()
            want = process.L_t(out, x0, x_t, t)
            with unchecked(): found = process.L_t(out, x0, x_t, t)
            gradient, = torch.autograd.grad(found.sum(), out)
            assert found.isfinite().all() and gradient.isfinite().all()
            assert (found >= want * (1 - 1e-9) - 1e-9).all()
            if not torch.equal(out[0, 0].detach().to('cpu'), first.float()): torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
        assert not sharp or (found > want + 1).any() # here it tells


def test_times_that_nobody_looks_at():
    "Ordinal noise knows two pairs of times without a look: from 0, and one step. Others become NaN, which `fit` finds."
    with pretended():
        process, x = PROCESSES['ordinal'](), torch.arange(K)[None].expand(3, -1).to('cuda')
        s, t = (torch.tensor(v).to('cuda') for v in ([0, 2, 1], [T, 3, 4]))
        row, column = process.log_row(x, s, t), process.log_column(x, s, t)
        with unchecked(): row_unseen, column_unseen = process.log_row(x, s, t), process.log_column(x, s, t)
        torch.testing.assert_close(row_unseen[:1], row[:1])
        assert row_unseen[1:].isnan().all()
        torch.testing.assert_close(column_unseen[1:2], column[1:2])
        assert column_unseen[0].isnan().all() and column_unseen[2].isnan().all()


@pytest.mark.parametrize('options', OPTIONS)
def test_pair(options):
    pair = torch.randint(16, (20, 3, 8, 8)), torch.randint(4, (20, 8, 8))
    for process in (shapes_process(T), Mix(*shapes_process(T).halves)):
        assert waits_between_looks(lambda: process, lambda: PairNet(4, T, (8, 8), 8), pair, **options) == []


def test_data_on_the_device():
    with pretended(): x0, y = (x.to('cuda') for x in rows())
    process = PROCESSES['uniform']()
    assert waits_between_looks(lambda: process, lambda: row_net(process), x0, y) == []


@pytest.mark.parametrize('net', [
    lambda: UNet(K, T, (6,), 8, (1, 2), ordered_classes=K, logistic=3, input_residual=True),
    lambda: UNet(K, T, (6, 8), 8, (1, 2), attention=(6,), heads=2),
    lambda: Transformer(K, T, (6,), 16, 1, 2, rope=True, local=3)])
def test_net(net):
    shape = net().shape
    assert waits_between_looks(PROCESSES['uniform'], net, torch.randint(K, (20, *shape))) == []


def waiting_process(wait):
    class Waiting(Multinomial):
        def loss(self, out, x0, x_t, t):
            L = self.L_t(out, x0, x_t, t)
            wait(L, t)
            return L
    return Waiting(K, core.cosine_schedule(T))


table = torch.ones(T + 1)
WAITS = {
    'item': lambda L, t: L.sum().item(), 'bool': lambda L, t: bool((L > 0).all()), 'if': lambda L, t: 1 if L.sum() > 0 else 0, 'int': lambda L, t: int(t[0]),
    'float': lambda L, t: float(L[0]), 'print': lambda L, t: f'{L[0]:.1f}', 'tolist': lambda L, t: L.tolist(), 'extremes': lambda L, t: [v.item() for v in t.aminmax()],  # noqa: E501
    'in': lambda L, t: 1 in t, 'equal': lambda L, t: torch.equal(t, t), 'nonzero': lambda L, t: L.nonzero(), 'one argument': lambda L, t: torch.where(L > 0),
    'mask': lambda L, t: L[L > 0], 'mask written': lambda L, t: L.detach().clone().__setitem__(L > 0, L[:1].detach()), 'index_put': lambda L, t: L.index_put((L > 0,), L[:1]),  # noqa: E501
    'masked_select': lambda L, t: L.masked_select(L > 0), 'unique': lambda L, t: t.unique(), 'bincount': lambda L, t: torch.bincount(t),
    'repeats': lambda L, t: L.repeat_interleave(t), 'cpu': lambda L, t: L.cpu(), 'to the CPU': lambda L, t: L.to('cpu'), 'to': lambda L, t: table.to(L.device),
    'not pinned': lambda L, t: table.to(L.device, non_blocking=True), 'pinned': lambda L, t: table.pin_memory().to(L.device), 'copy_': lambda L, t: L.new_zeros(T + 1).copy_(table),  # noqa: E501
    'tensor': lambda L, t: torch.tensor([1., 2.], device=L.device), 'as_tensor': lambda L, t: torch.as_tensor([1, 2], device=L.device),
    'new_tensor': lambda L, t: L.new_tensor(0.), 'a list as index': lambda L, t: L[[0, 1]], 'an index from here': lambda L, t: L[torch.arange(2)],
    'a number of the device as index': lambda L, t: L[t[0] * 0], 'a number from here': lambda L, t: torch.where(L > 0, L.detach(), torch.tensor(0.))}
FREE = {
    'index': lambda L, t: L[t * 0], 'where': lambda L, t: torch.where(L > 0, L, 0.), 'slice': lambda L, t: L[1:3, None], 'pinned': lambda L, t: table.pin_memory().to(L.device, non_blocking=True),  # noqa: E501
    'gathered': lambda L, t: core.gather_t(table, t, 1), 'full': lambda L, t: L.new_full((), 3), 'made there': lambda L, t: torch.arange(5, device=L.device),
    'generator': lambda L, t: torch.rand(3, generator=seed(3), device=L.device), 'dtype': lambda L, t: L.double().to(L), 'repeats': lambda L, t: L.repeat_interleave(2),  # noqa: E501
    'checks': lambda L, t: (core.check_t(t, T), core.check_classes(t, T + 1), core.check_finite(L, 'L'), core.earlier_time(t, t - 1, T)),
}


@pytest.mark.parametrize('name', WAITS)
def test_the_count_sees(name):
    "One wait a step is found, with the line of the package that it is in or was called from."
    found = waits_between_looks(lambda: waiting_process(WAITS[name]), lambda: Transformer(K, T, (6,), 16, 1, 2), torch.randint(K, (20, 6)))
    assert len(found) >= STEPS - 1 and found[0][1].startswith('train.py:') and found[0][1].endswith(' gradients')


@pytest.mark.parametrize('name', FREE)
def test_the_count_lets_pass(name):
    assert waits_between_looks(lambda: waiting_process(FREE[name]), lambda: Transformer(K, T, (6,), 16, 1, 2), torch.randint(K, (20, 6))) == []


class Wrong(Absorbing):
    "At one call x_t holds a class that there is not, or what noise cannot make of x_0."
    def __init__(self, call, change):
        super().__init__(K + 1, core.reciprocal_schedule(T))
        self.calls, self.call, self.change = 0, call, change
    def q_sample(self, x0, t, generator=None):
        self.calls += 1
        x_t = super().q_sample(x0, t, generator)
        return self.change(x_t) if self.calls == self.call else x_t


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
@pytest.mark.parametrize('change', [lambda x_t: x_t + K + 2, lambda x_t: torch.where(x_t == K, 0, (x_t + 1) % K)])
def test_the_first_step_is_checked(device, change):
    with pretended():
        net = Transformer(K + 1, T, (6,), 16, 1, 2).to(device)
        x0 = torch.randint(1, K, (20, 6))
        with pytest.raises((ClassError, IndexError)): train.fit(Wrong(1, change), net, x0, 3, batch_size=8)


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_a_later_nan_is_found(device, tmp_path):
    "With the number of its step, and nothing saved after it."
    calls = []

    def spoil(L, t): calls.append(0)

    class Spoiled(Multinomial):
        def loss(self, out, x0, x_t, t):
            spoil(out, t)
            return self.L_t(out * (math.nan if len(calls) == 4 else 1), x0, x_t, t)
    with pretended():
        net = Transformer(K, T, (6,), 16, 1, 2).to(device)
        with pytest.raises(NotFiniteError, match='at step 3; .*checkpoint.safetensors, step 2'):
            train.fit(Spoiled(K, core.cosine_schedule(T)), net, torch.randint(K, (20, 6)), 5, batch_size=8, run=tmp_path / 'run', save_every=2)


def test_checks_are_back_after_the_loop():
    "Also after an error, and for what is measured on the way."
    held_out = []
    with pretended():
        def measure(net): held_out.append(core.CHECKING.get())
        with pytest.raises(TypeError): train.fit(PROCESSES['uniform'](), Transformer(K, T, (6,), 16, 1, 2), torch.randint(K, (20, 6)), 4, held_out=measure, save_every=2)  # noqa: E501
        assert held_out == [True] and core.CHECKING.get()
    with pytest.raises(KeyError), unchecked(): raise KeyError
    assert core.CHECKING.get()
