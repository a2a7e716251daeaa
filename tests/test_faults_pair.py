"""What once went wrong in chapters 10, 13, 18 and 22, each with its whole kind."""
import contextlib
import copy
import hashlib
import io
import math
import pickle
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from discdiff_nb import core, d3pm, gaussian, joint, layouts, metrics, multinomial, nets
from discdiff_nb.core import INTEGERS

SMALL = [dtype for dtype in INTEGERS if dtype != torch.int64]


def test_clean_mix_visits_every_mode_at_every_time():
    "Mode and time of a training batch are independent, whatever the batch size, when t rises along the batch."
    T = 100
    process, g = layouts.shapes_process(T), torch.Generator().manual_seed(0)
    nothing = tuple(torch.zeros(64, *s).long() for s in ((1, 1, 1), (1, 1)))
    share = torch.tensor([1 / 2, 1 / 4, 1 / 4])[:, None].expand(3, T).flatten()
    for B, batches in ((1, 6000), (3, 4000), (64, 2000)):
        seen = torch.zeros(4, T + 1)
        for _ in range(batches):
            t = 1 + ((torch.arange(B) + torch.rand((), generator=g)) * T / B).long().clamp(max=T - 1)
            _, times = joint.clean_mix(process, tuple(half[:B] for half in nothing), t, g)
            mode = 2 * (times[:, 0] == 0) + (times[:, 1] == 0)
            seen.index_put_((mode, t), torch.ones(B), accumulate=True)
        count, n = seen[:3, 1:].reshape(-1), seen.sum()
        p = share / T
        assert seen[3].sum() == 0 and (count > 0).all(), B
        assert ((count - n * p).abs() < 4 * (n * p * (1 - p)).sqrt()).all(), B


NETWORKS = {
    'unet': lambda K, **o: nets.UNet(K, 10, (8,), 8, attention=(4,), heads=2, **o),
    'transformer': lambda K, **o: nets.Transformer(K, 10, (6,), 16, 1, 2, **o),
    'causal': lambda K, **o: nets.Transformer(K, None, (6,), 16, 1, 2, causal=True, **o)}
COND = dict(y=10, z=3, text=(120, 5))


def awake(net):
    "Fill the layers that start at zero."
    for p in net.parameters(): p.data.add_(0.1 * torch.randn_like(p))
    return net.eval()


@pytest.mark.parametrize('dtype', SMALL)
@pytest.mark.parametrize('name', NETWORKS)
def test_networks_read_every_integer_dtype(name, dtype):
    "Classes, times, labels and texts of any integer dtype give the numbers of int64, up to K = 1024."
    torch.manual_seed(0)
    more = [] if name == 'causal' else [dict(ordered_classes=256, input_residual=True), dict(ordered_classes=256, logistic=2, input_residual=True)]
    for K, options in ((257, {}), (1024, {}), *[(257, o) for o in more]):
        net = awake(NETWORKS[name](K, cond=COND, **options))
        top = min(K - 1, torch.iinfo(dtype).max)
        x = torch.arange(top + 1 - 3 * net.shape[0], top + 1).view(3, -1)
        t, y, text = torch.tensor([1, 9, 10]), torch.tensor([0, 9, 10]), torch.randint(120, (3, 5))
        z = torch.randn(3, 3)
        want = net(x, t, y=y, z=z, text=text)
        got = net(x.to(dtype), t.to(dtype), y=y.to(dtype), z=z, text=text.to(dtype))
        assert torch.equal(got, want) and want.std() > 0
        if name == 'causal':
            given = dict(y=y, z=z, text=text)
            small = {k: v if k == 'z' else v.to(dtype) for k, v in given.items()}
            assert torch.equal(nets.chain_nll(net, x.to(dtype), **small), nets.chain_nll(net, x, **given))


@pytest.mark.parametrize('dtype', SMALL)
def test_the_parts_of_networks_read_every_integer_dtype(dtype):
    "What is called from outside: readers, times, the shifted row, the answer."
    torch.manual_seed(0)
    x = torch.tensor([[0, 100, 127]])
    assert torch.equal(nets.before(x.to(dtype), 1024), nets.before(x, 1024))
    assert nets.before(x.to(dtype), 1024)[0, 0] == 1024
    for read in (nets.Ordered(1024, 4, 1000), nets.Words(1024, 3, 4)):
        assert torch.equal(read(x.to(dtype)), read(x))
    time = nets.Time(1024, 8)
    assert torch.equal(time(x[0, 1:].to(dtype)), time(x[0, 1:]))
    assert torch.equal(nets.time_features(x[0].to(dtype), 127, 8), nets.time_features(x[0], 127, 8))
    net = nets.UNet(129, 10, (4,), 8, ordered_classes=128, input_residual=True)
    out = torch.randn(1, 3, 129)
    assert torch.equal(nets.answer(net, out, x.to(dtype)), nets.answer(net, out, x))


@pytest.mark.parametrize('dtype', SMALL)
@pytest.mark.parametrize('ignore', [None, 0, 3, 255, -1, -129, 300, 70_000])
def test_maps_of_every_integer_dtype(dtype, ignore):
    "A label that the maps' dtype cannot hold is compared all the same."
    g = torch.Generator().manual_seed(0)
    guess, truth = torch.randint(5, (2, 12, 6, 6), generator=g)
    if ignore is not None and torch.iinfo(dtype).min <= ignore <= torch.iinfo(dtype).max:
        truth[:, 0] = ignore
    small = guess.to(dtype), truth.to(dtype)
    for f in (metrics.confusion, metrics.miou):
        assert torch.equal(f(*small, 5, ignore), f(guess, truth, 5, ignore))
    assert torch.equal(metrics.class_shares(small[1], 5, ignore), metrics.class_shares(truth, 5, ignore))
    assert metrics.fsd(*small[::-1], 5, ignore) == metrics.fsd(truth, guess, 5, ignore)
    x, y = guess.flatten(1), truth.flatten(1).clamp(0, 4)
    assert metrics.prdc(x.to(dtype), y.to(dtype), 2) == metrics.prdc(x, y, 2)
    assert metrics.kid(x.to(dtype), y.to(dtype)) == metrics.kid(x, y)
    assert metrics.copying(x.to(dtype), y.to(dtype), x.to(dtype)) == metrics.copying(x, y, x)


@pytest.mark.parametrize('dtype', SMALL)
def test_the_feature_network_reads_every_integer_dtype(dtype):
    g = torch.Generator().manual_seed(0)
    x, labels = torch.randint(100, (9, 6, 6), generator=g), torch.randint(3, (9,), generator=g)
    net = metrics.train_features(x, labels, 1024, 3, 4, steps=3)
    small = metrics.train_features(x.to(dtype), labels.to(dtype), 1024, 3, 4, steps=3)
    for a, b in zip(metrics.features_of(net, x), metrics.features_of(small, x.to(dtype))):
        assert torch.equal(a, b)


def pair(T=6, K=5, y_process=multinomial.Multinomial):
    "An image of 3 numbers with 16 levels, a layout of 2 classes, and a network of fixed random answers."
    process = joint.Joint(gaussian.Gaussian(16, core.cosine_schedule(T), predict='x0'),
                          y_process(K, core.reciprocal_schedule(T)))
    table = torch.randn(T + 1, K, K, generator=torch.Generator().manual_seed(1))
    def model(z_t, t): return torch.tanh(z_t[0])[..., None].float(), table[t[:, None], z_t[1]]
    return process, model


def gens(n): return [torch.Generator().manual_seed(100 + i) for i in range(n)]


@pytest.mark.parametrize('dtype', SMALL)
def test_joint_reads_every_integer_dtype(dtype):
    "Tables of K20, the noise of K21, the chain of a pair, training and weights."
    g = torch.Generator().manual_seed(0)
    M, K, N = 2, 3, 2
    mu, A = torch.randn(K ** M, N, generator=g), torch.randn(K ** M, N, N, generator=g)
    tables = mu, A @ A.mT + torch.eye(N), torch.rand(M, K, generator=g).softmax(-1)
    y, x = torch.randint(K, (7, M), generator=g), torch.randn(7, N, generator=g)
    assert torch.equal(joint.nc_log_density(x, y.to(dtype), *tables), joint.nc_log_density(x, y, *tables))
    for a, b in zip(joint.nc_kernel(x[0], y[0].to(dtype), 0.7, 0.4, K), joint.nc_kernel(x[0], y[0], 0.7, 0.4, K)):
        assert torch.equal(a, b)
    process, _ = pair(K=min(1024, torch.iinfo(dtype).max + 1))
    top = process.halves[1].K - 1
    pairs = torch.randint(16, (4, 3), generator=g), torch.tensor([[0, 1], [2, top], [top, top], [5, 6]])
    small = tuple(half.to(dtype) for half in pairs)
    t = torch.tensor([1, 2, 4, 6])
    model = lambda z_t, t: (torch.tanh(z_t[0])[..., None], torch.sin(torch.arange(top + 1.) * (z_t[1] + t[:, None])[..., None]))
    seed = lambda: torch.Generator().manual_seed(7)
    z = process.q_sample(pairs, t, seed())
    z_small = z[0], z[1].to(dtype)
    assert all(torch.equal(a, b) for a, b in zip(process.q_sample(small, t.to(dtype), seed()), z))
    out = model(z, t)
    assert torch.equal(process.L_t(out, small, z_small, t.to(dtype)), process.L_t(out, pairs, z, t))
    assert torch.equal(process.L_T(small), process.L_T(pairs))
    assert torch.equal(process.loss(out, small, z_small, t.to(dtype)), process.loss(out, pairs, z, t))
    u = t.clamp(min=2) # the image arrives at 0 for all examples or for none
    for a, b in zip(process.step(out, z_small, u.to(dtype), generator=seed()), process.step(out, z, u, generator=seed())):
        assert torch.equal(a, b)
    assert core.elbo(process, model, small, generator=seed())['total'] == core.elbo(process, model, pairs, generator=seed())['total']
    keep = tuple(torch.rand(half.shape, generator=g) < 0.5 for half in pairs)
    shape = (4, 3), (4, 2)
    drawn = [core.generate(process, model, shape, generator=seed(), known=(clean, keep)) for clean in (small, pairs)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn))
    weighted = [joint.weighted_given_y(process, model, (4, 3), clean[1], keep[1], seed()) for clean in (small, pairs)]
    assert torch.equal(weighted[0][1], weighted[1][1])
    for a, b in zip(joint.clean_mix(process, small, t.to(dtype), seed()), joint.clean_mix(process, pairs, t, seed())):
        for part, same in zip(core.as_tuple(a), core.as_tuple(b)): assert torch.equal(part, same)
    by_time = lambda z_t, times: model(z_t, times[:, 1])
    assert torch.equal(joint.mix_loss(process, by_time, small, t.to(dtype), seed()), joint.mix_loss(process, by_time, pairs, t, seed()))
    assert torch.equal(joint.given_y(by_time, small[1])(z[0], t.to(dtype)), joint.given_y(by_time, pairs[1])(z[0], t))


@pytest.mark.parametrize('dtype', SMALL)
def test_the_tiny_and_the_shapes_network_read_every_integer_dtype(dtype):
    torch.manual_seed(0)
    p = torch.rand(4, 9).double()
    process = joint.Joint(gaussian.Gaussian(4, core.cosine_schedule(5), predict='x0'), multinomial.Multinomial(3, core.cosine_schedule(5)))
    z, t = (torch.randn(6, 1).double(), torch.randint(3, (6, 2))), torch.tensor([1, 2, 3, 4, 5, 1])
    model = joint.bayes_model(process, p / p.sum())
    for a, b in zip(model((z[0], z[1].to(dtype)), t.to(dtype)), model(z, t)): assert torch.equal(a, b)
    net, z, t = awake(layouts.PairNet(4, 100, (8, 8), 8)), (torch.randn(2, 3, 8, 8), torch.randint(4, (2, 8, 8))), torch.tensor([1, 100])
    for a, b in zip(net((z[0], z[1].to(dtype)), t.to(dtype)), net(z, t)): assert torch.equal(a, b)


def test_the_shapes_network_refuses_what_it_was_not_built_for():
    net, x, y, t = layouts.PairNet(4, 100, (8, 8), 8), torch.randn(2, 3, 8, 8), torch.zeros(2, 8, 8).long(), torch.tensor([1, 100])
    for z_t, times, error in (((x.long(), y), t, core.DtypeError), ((x, y + 4), t, core.ClassError),
                              ((x, y), t + 1, core.TimeError), (x, t, core.ShapeError)):
        with pytest.raises(error): net(z_t, times)


@pytest.mark.parametrize('which', range(3))
def test_float32_and_float64_agree_for_pairs(which):
    "Logits of a pair in either dtype: the same bound to 1e-3 or 1e-7 nats, also with -inf; tables of K20 in mixed dtypes."
    process, model = pair(T=(1, 4, 1000)[which])
    g = torch.Generator().manual_seed(0)
    pairs = torch.randint(16, (8, 3), generator=g), torch.randint(5, (8, 2), generator=g)
    t = torch.randint(1, process.T + 1, (8,), generator=g)
    z = process.q_sample(pairs, t, g)
    for spoil in (lambda x: x, lambda x: x.where(torch.arange(5) != pairs[1][..., None], -math.inf), lambda x: 80 * x):
        x_out, y_out = model(z, t)
        out = x_out, spoil(y_out)
        a, b = (process.L_t(tuple(o.to(dtype) for o in out), pairs, z, t).double() for dtype in (torch.float32, torch.float64))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-7)
    mu, Sigma = torch.randn(5, 2, generator=g), torch.eye(2).expand(5, 2, 2)
    Theta, x, y = torch.full((1, 5), 0.2), torch.randn(6, 2, generator=g), torch.randint(5, (6, 1), generator=g)
    want = joint.nc_log_density(x.double(), y, mu.double(), Sigma.double(), Theta.double())
    for i in range(4):
        mixed = [v.double() if i == j else v for j, v in enumerate((x, mu, Sigma, Theta))]
        got = joint.nc_log_density(mixed[0], y, *mixed[1:])
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    assert joint.nc_log_density(x.half(), y, mu.half(), Sigma.half(), Theta).isfinite().all()


def test_tables_with_nan_or_of_another_shape_are_refused():
    mu, Sigma, Theta = torch.zeros(4, 1), torch.ones(4, 1, 1), torch.full((1, 4), 0.25)
    x, y, nan = torch.zeros(1, 1), torch.zeros(1, 1).long(), torch.full((1, 1), math.nan)
    for args, error in (((nan, y, mu, Sigma, Theta), core.NotFiniteError), ((x, y, mu * math.nan, Sigma, Theta), core.NotFiniteError),
                        ((x, y, mu, Sigma, Theta * math.nan), core.NotFiniteError), ((x, y, mu, Sigma, Theta[0]), core.ShapeError)):
        with pytest.raises(error): joint.nc_log_density(*args)


def test_the_constant_has_its_limits():
    "C of K22 where a variance is 0, and a KL of two point masses."
    v = torch.tensor([0., 0., 2., 2.])
    assert joint.variance_constant(v, torch.tensor([0., 2., 0., 2.])).tolist() == [0, math.inf, math.inf, 0]
    zero, log = torch.zeros(1, 1), torch.zeros(1, 1, 1)
    for gap, want in ((0., 0.), (1., math.inf)):
        terms = joint.nc_kl(zero, zero, zero + gap, zero, log, log)
        assert sum(terms.values()).item() == want
    small, big = (joint.variance_constant(torch.tensor(0.3, dtype=d), torch.tensor(0.3003, dtype=d)) for d in (torch.float32, torch.float64))
    assert abs(small - big) < 1e-3 * big


@pytest.mark.parametrize('y_process', [multinomial.Multinomial, d3pm.Absorbing])
@pytest.mark.parametrize('wrap', [lambda p: p, gaussian.clipped])
def test_a_joint_process_of_wrapped_halves_is_copied_and_pickled(y_process, wrap):
    "The copies give the numbers of the original, and do not share its tables."
    process, model = pair(y_process=y_process)
    process = joint.Joint(wrap(process.halves[0]), process.halves[1])
    copies = copy.deepcopy(process), copy.copy(process), pickle.loads(pickle.dumps(process))
    shape = (4, 3), (4, 2)
    made = [core.generate(p, model, shape, generator=torch.Generator().manual_seed(3)) for p in (process, *copies)]
    for z in made[1:]: assert all(torch.equal(a, b) for a, b in zip(z, made[0]))
    copies[0].halves[0].schedule.alpha_bar.zero_()
    again = core.generate(process, model, shape, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(again, made[0]))


def test_the_models_of_one_half_are_copied_and_pickled():
    net, x, y = awake(layouts.PairNet(4, 100, (8, 8), 8)), torch.randn(2, 3, 8, 8), torch.zeros(2, 8, 8).long()
    t = torch.tensor([1, 100])
    for model, z in ((joint.given_x(net, x), y), (joint.given_y(net, y), x)):
        for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(same(z, t), model(z, t))
        with pytest.raises(core.ShapeError): model(z[:1], t[:1])


@pytest.mark.parametrize('y_process', [multinomial.Multinomial, d3pm.Absorbing])
def test_a_pair_is_the_same_in_any_batch(y_process):
    "With a generator for each example, pair i does not depend on its neighbours: samples, known halves, weights, bounds."
    process, model = pair(y_process=y_process)
    shape = lambda n: ((n, 3), (n, 2))
    x, y = core.generate(process, model, shape(5), generator=gens(5))
    for i in range(5):
        alone = core.generate(process, model, shape(1), generator=gens(5)[i:i + 1])
        assert torch.equal(alone[0], x[i:i + 1]) and torch.equal(alone[1], y[i:i + 1])
    clean = torch.randint(16, (5, 3)), torch.randint(4, (5, 2))
    keep = torch.rand(5, 3) < 0.5, torch.rand(5, 2) < 0.5
    held = core.generate(process, model, shape(5), generator=gens(5), known=(clean, keep))
    (_, y_w), log_w = joint.weighted_given_y(process, model, (5, 3), clean[1], keep[1], gens(5))
    each = core.elbo(process, model, clean, generator=gens(5))['each']
    for i in range(5):
        row, g = slice(i, i + 1), lambda: gens(5)[i:i + 1]
        some, kept = core.index_batch(clean, row), core.index_batch(keep, row)
        alone = core.generate(process, model, shape(1), generator=g(), known=(some, kept))
        assert all(torch.equal(a, b[row]) for a, b in zip(alone, held))
        (_, y_one), w_one = joint.weighted_given_y(process, model, (1, 3), some[1], kept[1], g())
        assert torch.equal(y_one, y_w[row])
        torch.testing.assert_close(w_one, log_w[row])
        torch.testing.assert_close(core.elbo(process, model, some, generator=g())['each'], each[row])
    mu, Sigma, Theta = torch.randn(4, 2), torch.eye(2).expand(4, 2, 2), torch.full((1, 4), 0.25)
    x, y = joint.nc_sample(5, mu, Sigma, Theta, gens(5))
    for i in range(5):
        x_one, y_one = joint.nc_sample(1, mu, Sigma, Theta, gens(5)[i:i + 1])
        assert torch.equal(y_one, y[i:i + 1]) and torch.allclose(x_one, x[i:i + 1])


@pytest.mark.parametrize('y_process', [multinomial.Multinomial, d3pm.Absorbing])
def test_weights_do_not_look_at_what_is_not_kept(y_process):
    "Entries that are not kept may hold anything; the weights are finite or -inf, never NaN; rows without an axis work too."
    process, model = pair(y_process=y_process)
    y0, keep = torch.randint(4, (300, 2)), torch.rand(300, 2) < 0.5
    one = joint.weighted_given_y(process, model, (300, 3), y0, keep, torch.Generator().manual_seed(0))
    for junk in (-7, 4, 10**9):
        other = joint.weighted_given_y(process, model, (300, 3), y0.where(keep, junk), keep, torch.Generator().manual_seed(0))
        assert torch.equal(one[1], other[1]) and torch.equal(one[0][1], other[0][1])
    assert not one[1].isnan().any() and (one[0][1] == y0)[keep].all()
    for bad, error in ((keep.long(), core.DtypeError), (keep[:, :1], core.ShapeError)):
        with pytest.raises(error): joint.weighted_given_y(process, model, (300, 3), y0, bad, torch.Generator())
    flat = lambda z_t, t: tuple(part[:, 0] for part in model(tuple(half[:, None] for half in z_t), t))
    (x, y), w = joint.weighted_given_y(process, flat, (300,), y0[:, 0], keep[:, 0], torch.Generator().manual_seed(0))
    assert x.shape == y.shape == w.shape == (300,) and (y == y0[:, 0])[keep[:, 0]].all()


class Drops(torch.nn.Module):
    "A network for pairs that shows in its answer whether it is evaluated."
    def __init__(self, K):
        super().__init__()
        self.K, self.dropout, self.modes = K, torch.nn.Dropout(0.5), []
    def forward(self, z_t, t):
        self.modes.append((self.training, self.dropout.training))
        return self.dropout(z_t[0].float())[..., None], torch.zeros(*z_t[1].shape, self.K)


def test_measuring_is_done_in_evaluation_mode_and_the_mode_comes_back():
    "Pairs, halves, weights, chains, features: dropout and batch statistics are off, and each submodule keeps its mode."
    process, _ = pair()
    net = Drops(5)
    net.dropout.train()
    clean, g = (torch.randint(16, (6, 3)), torch.randint(5, (6, 2))), torch.Generator().manual_seed(0)
    keep = torch.ones(6, 2).bool()
    core.elbo(process, net, clean, n_t=2, generator=g)
    core.elbo(process.halves[0], joint.given_y(net, clean[1]), clean[0], n_t=2, generator=g)
    core.elbo(process.halves[1], joint.given_x(net, gaussian.to_levels(clean[0], 16)), clean[1], n_t=2, generator=g)
    core.generate(process.halves[0], joint.given_y(net, clean[1]), (6, 3), generator=g)
    joint.weighted_given_y(process, net, (6, 3), clean[1], keep, g)
    assert set(net.modes) == {(False, False)} and net.training and net.dropout.training
    torch.manual_seed(0)
    chain = awake(nets.Transformer(5, None, (6,), 16, 1, 2, causal=True, dropout=0.5))
    x, seed = torch.randint(5, (4, 6)), lambda: torch.Generator().manual_seed(0)
    want = nets.chain_nll(chain, x), nets.chain_sample(chain, 4, seed())
    chain.train()
    got = nets.chain_nll(chain, x), nets.chain_sample(chain, 4, seed())
    assert all(torch.equal(a, b) for a, b in zip(got, want)) and all(m.training for m in chain.modules())
    features = metrics.train_features(torch.randint(5, (9, 6, 6)), torch.randint(3, (9,)), 5, 3, 4, steps=3)
    images = torch.randint(5, (7, 6, 6))
    want = metrics.features_of(features, images)
    features.train()
    got = metrics.features_of(features, images, batch_size=3)
    for a, b in zip(got, want): torch.testing.assert_close(a, b)
    assert features.training and features.scale.training


def test_a_chain_is_drawn_with_a_generator_for_each_example():
    torch.manual_seed(0)
    net = awake(nets.Transformer(5, None, (6,), 16, 1, 2, causal=True))
    x = nets.chain_sample(net, 4, gens(4))
    for i in range(4): assert torch.equal(nets.chain_sample(net, 1, gens(4)[i:i + 1])[0], x[i])


def lattice(draw, n, d):
    "Points with few values, copies among them."
    high = draw(st.integers(0, 4))
    values = draw(st.lists(st.lists(st.integers(0, high), min_size=d, max_size=d), min_size=n, max_size=n))
    return torch.tensor(values)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_scores_on_ties(data):
    "Equal sets score as the chapter says whatever ties in them; any two sets score as their definitions say."
    draw = data.draw
    n, m, d = draw(st.integers(2, 9)), draw(st.integers(2, 9)), draw(st.integers(1, 3))
    x, y, k = lattice(draw, n, d), lattice(draw, m, d), draw(st.integers(1, min(n, m) - 1))
    same = x[torch.randperm(n, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))]
    block = draw(st.integers(1, 9))
    assert metrics.prdc(x, same, k, block) == dict(precision=1., recall=1., density=1., coverage=1.)
    assert metrics.prdc(x, y + 100, k) == dict(precision=0., recall=0., density=0., coverage=0.)
    assert metrics.prdc(x, y, k, block) == pytest.approx(by_places(x, y, k), abs=1e-12)
    if n > d: assert abs(metrics.frechet_distance(x, same)) < 1e-9
    want = metrics.copying(same, x, same)
    assert want['u'] == 0.5 and want['z'] == 0
    distance, row = metrics.nearest(y, x, n)
    torch.testing.assert_close((y.double()[:, None] - x[row].double()).square().sum(-1).sqrt(), distance)
    assert torch.equal(row.sort(1).values, torch.arange(n).expand(m, n))
    if n == m:
        same_nats = metrics.paired(x[:, 0], x[:, 0], 3)
        assert same_nats['difference'] == same_nats['se'] == 0


def by_places(real, fake, k):
    "Precision to coverage, ball by ball, point by point, in rational numbers."
    def balls(x):
        for i in range(len(x)):
            own = sorted(((x[i] - p) ** 2).sum().item() for p in x)
            near = sum(o < own[k] for o in own)
            yield x[i], own[k], Fraction(k - near, own.count(own[k]))
    def part(ball, p):
        centre, r, share = ball
        gap = ((centre - p) ** 2).sum().item()
        return Fraction(1) if gap < r else share if gap == r else Fraction(0)
    shares = [[part(ball, p) for p in fake] for ball in balls(real)]
    other = [[part(ball, p) for p in real] for ball in balls(fake)]
    mean = lambda hits: sum(hits) / len(hits)
    return dict(precision=mean([any(column) for column in zip(*shares)]), recall=mean([any(column) for column in zip(*other)]),
                density=float(sum(map(sum, shares)) / (k * len(fake))), coverage=mean([any(line) for line in shares]))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_prdc_agrees_with_the_package_where_no_distances_tie(data):
    package = pytest.importorskip('prdc')
    draw = data.draw
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    n, m, d = draw(st.integers(3, 30)), draw(st.integers(3, 30)), draw(st.integers(1, 4))
    x, y = torch.randn(n, d, generator=g, dtype=torch.float64), torch.randn(m, d, generator=g, dtype=torch.float64)
    k = draw(st.integers(1, min(n, m) - 2))
    with contextlib.redirect_stdout(io.StringIO()): want = package.compute_prdc(x.numpy(), y.numpy(), k)
    assert metrics.prdc(x, y, k) == pytest.approx({name: float(v) for name, v in want.items()}, abs=1e-9)


def test_constant_sets_and_rare_classes():
    "Sets without any spread, and maps of one class."
    one, other = torch.ones(9, 3), torch.zeros(9, 3)
    assert metrics.frechet_distance(one, one) == 0 and metrics.frechet_distance(one, other) == 3
    assert metrics.kid(one, one) == 0 and abs(metrics.kid(one, other) - 7) < 1e-12
    assert metrics.copying(other, one, other) == dict(u=0.5, z=0.)
    assert metrics.copying(one, one, other)['u'] == 1 and metrics.copying(other, one, one)['u'] == 0
    assert metrics.inception_score(torch.eye(4)[torch.zeros(9).long()]) == 1
    maps = torch.zeros(9, 4, 4).long()
    assert metrics.miou(maps, maps, 3) == 1 and metrics.miou(maps, maps + 1, 3) == 0 and metrics.fsd(maps, maps, 3) == 0
    assert metrics.fsd(maps, maps + 1, 3) == 2 * 100 ** 2
    assert metrics.mean_se(torch.ones(5))[1] == 0
    assert metrics.spread(lambda x: x.mean(), (torch.ones(10),)) == (1., 0.)


def test_the_clean_half_has_time_0_and_no_loss():
    "What a network for pairs is shown when a half is clean, and what its training counts."
    shown = []
    def model(z_t, times):
        shown.append((z_t, times))
        return z_t[0][..., None], torch.zeros(*z_t[1].shape, 5)
    x, y, t = torch.randn(3, 3), torch.tensor([[0, 1], [2, 3], [4, 0]]), torch.tensor([1, 4, 6])
    assert joint.given_x(model, x)(y, t).shape == (3, 2, 5) and joint.given_y(model, y)(x, t).shape == (3, 3, 1)
    for (z_t, times), i in zip(shown, (0, 1)):
        assert torch.equal(z_t[0], x) and torch.equal(z_t[1], y)
        assert torch.equal(times[:, 1 - i], t) and (times[:, i] == 0).all()
    process, _ = pair()
    clean, t = (torch.randint(16, (8, 3)), torch.randint(5, (8, 2))), torch.full((8,), 3)
    seed = lambda: torch.Generator().manual_seed(0)
    got = joint.mix_loss(process, model, clean, t, seed())
    z_t, times = joint.clean_mix(process, clean, t, seed())
    halves = zip(process.halves, model(z_t, times), clean, z_t, times.T, (3, 2))
    want = sum(6 * half.loss(out, x0, x_t, t)[u > 0].sum() / 8 / n for half, out, x0, x_t, u, n in halves)
    torch.testing.assert_close(got, want)


def wrong_metrics():
    "Name -> a call that cannot have a meaning, and the error that says so."
    g = torch.Generator().manual_seed(0)
    f, nats = torch.randn(40, 16, generator=g), torch.randn(9, generator=g)
    maps, eye, zero = torch.randint(4, (9, 8, 8), generator=g), torch.eye(6), torch.zeros(6)
    images, labels = torch.randint(17, (9, 8, 8), generator=g), torch.zeros(9).long()
    def net(): return metrics.train_features(images, labels, 17, steps=1)
    return {
        'one example': (lambda: metrics.paired(nats[:1], nats[:1], 64), core.DataError),
        'N <= d': (lambda: metrics.frechet_distance(f[:16], f), core.DataError),
        'no covariance': (lambda: metrics.frechet_gaussians(zero, -eye, zero, eye), core.DataError),
        'NaN': (lambda: metrics.kid(f, f.log()), core.NotFiniteError),
        'k = N': (lambda: metrics.prdc(f, f, k=40), core.ShapeError),
        'one part': (lambda: metrics.spread(metrics.kid, (f, f), n=1), core.ShapeError),
        'no score': (lambda: metrics.spread(None, (f, f)), core.DtypeError),
        'no tensors': (lambda: metrics.spread(metrics.kid, (f, 3)), core.DtypeError),
        'no sets': (lambda: metrics.spread(metrics.kid, ()), core.DtypeError),
        'a set of one': (lambda: metrics.spread(metrics.kid, (f, f[:1])), core.DataError),
        'no distributions': (lambda: metrics.inception_score(f), core.DataError),
        'classes too high': (lambda: metrics.miou(maps, maps + 7, 5), core.ClassError),
        'maps of floats': (lambda: metrics.class_shares(maps.float(), 4), core.DtypeError),
        'few maps': (lambda: metrics.fsd(maps[:4], maps, 4), core.DataError),
        'only ignored': (lambda: metrics.class_shares(maps.where(torch.arange(9).view(-1, 1, 1) > 0, 4), 4, 4), core.DataError),
        'no training set': (lambda: metrics.nearest(f, f[:0]), core.DataError),
        'labels missing': (lambda: metrics.train_features(images, labels[:-1], 17), core.ShapeError),
        'one image': (lambda: metrics.train_features(images[:1], labels[:1], 17), core.DataError),
        'no steps': (lambda: metrics.train_features(images, labels, 17, steps=0), core.ShapeError),
        'levels too high': (lambda: metrics.features_of(net(), images + 17), core.ClassError)}


@pytest.mark.parametrize('name', wrong_metrics())
def test_metrics_refuse_what_has_no_meaning(name):
    call, error = wrong_metrics()[name]
    with pytest.raises(error): call()


def test_fd_says_what_to_do_with_few_examples():
    with pytest.raises(core.DataError, match='with N <= d = 16 FD measures N; project to fewer features, or use kid'):
        metrics.frechet_distance(torch.randn(16, 16), torch.randn(40, 16))


def test_the_inception_path_with_random_weights(tmp_path, monkeypatch):
    "The whole path of FID on the true architecture, with random weights under the name and the checksum of the file."
    fidelity = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3')
    Net, path = fidelity.FeatureExtractorInceptionV3, tmp_path / 'inception' / metrics.INCEPTION['name']
    torch.manual_seed(0)
    with monkeypatch.context() as m:
        m.setattr(fidelity, 'load_state_dict_from_url', lambda *a, **k: None)
        m.setattr(Net, 'load_state_dict', lambda *a, **k: None)
        net = Net('inception', ['2048'])
    path.parent.mkdir()
    torch.save(net.state_dict(), path)
    monkeypatch.setitem(metrics.INCEPTION, 'sha256', hashlib.sha256(path.read_bytes()).hexdigest())
    rgb = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    f, p = metrics.inception_features(rgb, root=tmp_path, download=False, batch_size=3)
    assert f.shape == (4, 2048) and p.shape == (4, 1008) and torch.allclose(p.sum(1), torch.ones(4))
    torch.testing.assert_close(f, net(rgb)[0])
