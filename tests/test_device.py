"""Everything on another device than the CPU, without one: elsewhere.py pretends, and a tensor or generator of the wrong device raises as on a GPU."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from elsewhere import Elsewhere, pretended

from discdiff_nb import absorbing, continuous, d3pm, gaussian, joint, metrics, sampling, vae
from discdiff_nb.core import cosine_schedule, elbo, generate, linear_schedule, reciprocal_schedule
from discdiff_nb.d3pm import Absorbing
from discdiff_nb.ordinal import DiscretizedGaussian, NearestNeighbour
from discdiff_nb.gaussian import Gaussian
from discdiff_nb.layouts import PairNet, shapes_process
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.nets import Transformer, UNet, chain_nll, chain_sample
from discdiff_nb.train import fit, held_out_bits

K, T, B, D = 5, 12, 4, 6
NBS = Path(__file__).resolve().parent.parent / 'nbs'


def seed(n=0): return torch.Generator('cuda').manual_seed(n)
def classes(*shape, K=K): return torch.randint(K, shape, generator=seed(), device='cuda')
def times(B=B): return torch.arange(2, 2 + B, device='cuda')


PROCESSES = {
    'uniform': lambda: Multinomial(K, cosine_schedule(T)),
    'absorbing': lambda: Absorbing(K + 1, reciprocal_schedule(T)),
    'reweighted': lambda: absorbing.Reweighted(K + 1, reciprocal_schedule(T)),
    'remasking': lambda: sampling.Remasking(K + 1, reciprocal_schedule(T), 0.5),
    'ordinal': lambda: DiscretizedGaussian(K, linear_schedule(T, 0.01, 0.5)),
    'neighbour': lambda: NearestNeighbour(torch.linspace(-1, 1, K)[:, None], cosine_schedule(T), 2),
    'neighbour, embedded there': lambda: NearestNeighbour(torch.linspace(-1, 1, K, device='cuda')[:, None], cosine_schedule(T), 2),
    'neighbour, more classes than positions': lambda: NearestNeighbour(torch.linspace(-1, 1, 80)[:, None], cosine_schedule(T), 2),
    'hybrid': lambda: d3pm.hybrid(Multinomial(K, cosine_schedule(T)), 0.01),
    'Gaussian': lambda: Gaussian(K, linear_schedule(T, 0.01, 0.5)),
    'Gaussian, learned variance': lambda: Gaussian(K, linear_schedule(T, 0.01, 0.5), predict='x0', variance='learned'),
}


def inout(process): return dict(K=process.channels, real=True) if isinstance(process, Gaussian) else dict(K=process.K)


def test_posterior_without_x_t():
    with pretended():
        process, x0 = Absorbing(K + 1, reciprocal_schedule(T)), classes(B, D)
        assert type(absorbing.blind_posterior(process, x0, times())) is Elsewhere


@pytest.mark.parametrize('name', PROCESSES)
def test_process(name):
    with pretended():
        process, x0, t = PROCESSES[name](), classes(B, D), times()
        x_t = process.q_sample(x0, t, seed())
        answer = torch.randn(B, D, getattr(process, 'channels', process.K), generator=seed(), device='cuda')
        found = [x_t, process.L_t(answer, x0, x_t, t), process.L_T(x0), process.loss(answer, x0, x_t, t), process.prior((B, D), seed()),
                 process.step(answer, x_t, t, None, seed(1))]
        for both in (process.q_posterior(x0, x_t, t), process.p_posterior(answer, x_t, t)): found += both if isinstance(both, tuple) else [both]
        assert all(type(x) is Elsewhere for x in found)


@pytest.mark.parametrize('name', PROCESSES)
@pytest.mark.parametrize('options', [{}, dict(times='iid', mixed_precision='bf16', accumulate=2)])
def test_train_measure_draw(name, options):
    "The examples stay on the CPU, as users keep them; the network decides where."
    with pretended():
        process, x0, y = PROCESSES[name](), torch.randint(K, (20, 8, 8)), torch.arange(20) % 3
        net = UNet(T=T, shape=(8, 8), channels=8, multipliers=[1, 2], cond=dict(y=3), **inout(process)).to('cuda')
        held_out = held_out_bits(process, x0[:4], 2, cond=dict(y=y[:4]))
        model, losses = fit(process, net, x0, 3, batch_size=8, cond=dict(y=y), drop=0.2, held_out=held_out, save_every=2, **options)
        bound = elbo(process, model, x0.to('cuda'), 2, seed(), cond=dict(y=y.to('cuda')))
        drawn = generate(process, partial(model, y=y[:2].to('cuda')), (2, 8, 8), 3, seed())
        assert len(losses) == 3 and type(bound['each']) is type(drawn) is Elsewhere


def test_resume(tmp_path):
    with pretended():
        process, x0 = PROCESSES['uniform'](), torch.randint(K, (20, D))
        net = lambda: Transformer(K, T, (D,), 16, 1, 2, rope=True, local=3).to('cuda')
        whole = fit(process, net(), x0, 4, run=tmp_path / 'a', batch_size=8, save_every=2, held_out=lambda m: 0.)[1]
        with pytest.raises(KeyboardInterrupt):
            fit(process, net(), x0, 4, run=tmp_path / 'b', batch_size=8, save_every=2, held_out=interrupted)
        again = fit(process, net(), x0, 4, run=tmp_path / 'b', batch_size=8, save_every=2, resume=True, held_out=lambda m: 0.)[1]
        assert len(whole) == len(again) == 4


def interrupted(model, calls=[]):
    calls.append(model)
    if len(calls) == 2: raise KeyboardInterrupt
    return 0.


mask, uniform, normal = PROCESSES['absorbing'], PROCESSES['uniform'], PROCESSES['Gaussian']


def zeros(n): return lambda x_t, t, **cond: torch.zeros(*x_t.shape, n, device=x_t.device)


def p_of(S): return torch.rand(S, generator=seed(), device='cuda').double() + 0.1


def kept(): return torch.rand(B, D, generator=seed(), device='cuda') < 0.5


def pair(): return classes(B, 3, 8, 8, K=16), classes(B, 8, 8, K=4)


def net_of_pairs(): return PairNet(4, T, (8, 8), 8).to('cuda')


CALLS = {
    'few calls': lambda: sampling.generate_few_calls(mask(), zeros(K + 1), (B, D), 5, seed()),
    'few calls, uniform': lambda: sampling.generate_few_calls(uniform(), zeros(K), (B, D), 5, seed()),
    'by confidence': lambda: sampling.generate_by_confidence(mask(), zeros(K + 1), (B, D), 5, seed()),
    'ddim': lambda: generate(sampling.ddim(normal(), 0.5), zeros(1), (B, D), 5, seed()),
    'inpaint': lambda: sampling.inpaint(mask(), zeros(K + 1), classes(B, D), kept(), seed()),
    'known': lambda: generate(uniform(), zeros(K), (B, D), 5, seed(), known=(classes(B, D), kept())),
    'guided': lambda: generate(uniform(), sampling.guided(zeros(K), classes(B), K, 2.), (B, D), 5, seed()),
    'temperature, top p': lambda: generate(mask(), sampling.with_top_p(mask(), sampling.with_temperature(mask(), zeros(K + 1), 0.7), 0.9), (B, D), 5, seed()),
    'windowed': lambda: generate(mask(), sampling.windowed(mask(), zeros(K + 1), (4,), 2), (B, 7), 5, seed()),
    'log p given times': lambda: sampling.log_p_given_times(mask(), zeros(K + 1), classes(B, D), torch.full((B, D), K, device='cuda'),
                                                            sampling.reveal_times(mask(), (B, D), seed())),
    'continuous': lambda: continuous.unmasking_rate(continuous.cosine_alpha, torch.rand(B, generator=seed(), device='cuda')),
    'by masks': lambda: absorbing.nll_by_masks(zeros(K + 1), classes(B, D), K),
    'by orders': lambda: absorbing.order_nll(zeros(K + 1), classes(4), K),
    'perfect network': lambda: generate(uniform(), sampling.perfect_network(uniform(), p_of(K ** 2), 2), (B, 2), 5, seed()),
    'perfect network, mask': lambda: generate(mask(), sampling.perfect_network(mask(), p_of(K ** 2), 2), (B, 2), 5, seed()),
    'chain': lambda: chain_nll(Transformer(K, None, (D,), 16, 1, 2, causal=True).to('cuda'), classes(B, D)),
    'chain drawn': lambda: chain_sample(Transformer(K, None, (D,), 16, 1, 2, causal=True).to('cuda'), 3, seed()),
    'pair': lambda: shapes_process(T).L_t(net_of_pairs()(shapes_process(T).q_sample(pair(), times(), seed()), times()), pair(),
                                          shapes_process(T).q_sample(pair(), times(), seed()), times()),
    'pair drawn': lambda: generate(shapes_process(T), net_of_pairs(), ((2, 3, 8, 8), (2, 8, 8)), 3, seed())[1],
    'pair, mixed times': lambda: joint.mix_loss(shapes_process(T), net_of_pairs(), pair(), times(), seed()),
    'pair, weighted': lambda: joint.weighted_given_y(shapes_process(T), net_of_pairs(), (B, 3, 8, 8), classes(B, 8, 8, K=4),
                                                     classes(B, 8, 8, K=2).bool(), seed())[1],
    'VAE': lambda: vae.train_vae(classes(20, 8, 8), K, steps=2).elbo(classes(B, 8, 8), seed())['elbo'],
    'importance bound': lambda: vae.importance_bound(vae.train_vae(classes(20, 8, 8), K, steps=1), classes(B, 8, 8), 4, seed()),
    'level path': lambda: gaussian.path_log_weights(Gaussian(K, linear_schedule(T, 0.01, 0.5)), zeros(1), classes(B, D), seed()),
    'features': lambda: metrics.features_of(metrics.train_features(classes(20, 8, 8), classes(20, K=3), K, 3, steps=2), classes(B, 8, 8))[0],
}


@pytest.mark.parametrize('name', CALLS)
def test_call(name):
    with pretended(): assert type(CALLS[name]()) is Elsewhere


def test_numbers():
    with pretended():
        real, fake = (torch.randn(60, 4, generator=seed(n), device='cuda') for n in (1, 2))
        assert continuous.continuous_elbo(mask(), zeros(K + 1), classes(B, D), 3, seed())['total'] > 0
        assert metrics.scores(real, fake)['FD'] > 0 and metrics.frechet_infinity(real, fake, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('name, last', [('20_fashion_mnist', 'origin'), ('21_text', 'words')])
def test_chapter(name, last, monkeypatch):
    "The tiny size of the final notebooks, where they would find a GPU."
    monkeypatch.setenv('MPLBACKEND', 'agg')
    monkeypatch.chdir(NBS)
    names = {}
    with pretended():
        for cell in json.loads((NBS / f'{name}.ipynb').read_text())['cells']:
            code = ''.join(cell['source'])
            if '#| slow' in code: break
            if cell['cell_type'] == 'code' and 'eval: false' not in code: exec(compile(code, name, 'exec'), names)
        assert names['device']() == 'cuda' and last in names['log']


def test_the_pretence():
    "What a GPU refuses, and what it does not."
    with pretended():
        there, near = torch.ones(3, device='cuda'), torch.ones(3)
        refused = [lambda: there + near, lambda: torch.where(near > 0, there, 0.), lambda: F.embedding(torch.tensor([0], device='cuda'), near[None]),
                   lambda: there.numpy(), lambda: near[there.long()], lambda: torch.rand(3, device='cuda', generator=torch.Generator()),
                   lambda: torch.rand(3, generator=seed()), lambda: torch.cat([there, near]), lambda: there.lerp_(near, 0.5),
                   lambda: torch.nn.Linear(3, 3)(there)]
        for call in refused:
            with pytest.raises((RuntimeError, TypeError)): call()
        assert [there[near.long()].device.type, (there + 1.).device.type, (there * torch.tensor(2.)).device.type] == ['cuda'] * 3
        assert [there.cpu().device.type, there.to('cpu').numpy().sum(), near.to(there).device.type] == ['cpu', 3., 'cuda']
