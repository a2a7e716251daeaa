"What core promises for every process: integers of any dtype, randomness of each example, a network's mode, limits, shapes, errors that fit."
import copy
import inspect
import math
import pickle
import re
import pytest
import torch
from hypothesis import given, settings, strategies as st
from discdiff_nb import core, gaussian, multinomial, oracle, vae
from discdiff_nb.absorbing import Reweighted
from discdiff_nb.core import (INTEGERS, INTEGER_NAMES, ClassError, DtypeError, Process, Schedule,
                              ScheduleError, ShapeError, TimeError, alpha_between, as_tuple,
                              check_classes, check_t, cosine_schedule, earlier_time, elbo,
                              gather_t, generate, index_batch, linear_schedule, overwrite_known,
                              reciprocal_schedule)
from discdiff_nb.d3pm import Absorbing, hybrid
from discdiff_nb.ordinal import DiscretizedGaussian, NearestNeighbour
from discdiff_nb.data import reduce_levels
from discdiff_nb.gaussian import (
    Gaussian, PREDICT, VARIANCE, ancestral_step, bayes_network, checked_levels, clipped, ddpm_loss,
    decoder_nll, decoder_variance, gaussian_kl, jump, level_loss, level_posterior, log_bin,
    path_log_weights, posterior, predicted_x0, reverse_step, reverse_variance, simple_loss, step_kl,
    target_line, target_weight, to_levels)
from discdiff_nb.joint import Joint
from discdiff_nb.multinomial import (Multinomial, checked_step, keep_or_redraw,
                                     log_sums, log_uniform_row, remove_self_likelihood, uniform_kl, weighted_cross_entropy)
from discdiff_nb.oracle import (Dense, Q_between, conditional, index_of, judge_counts, kl_elbo, path_elbo,
    path_joint, pick_rows, reverse_matrix, table_model)
from discdiff_nb.sampling import Remasking
from discdiff_nb.vae import (VAE, hvae_elbo, hvae_tables, importance_bound, log_likelihood, random_time_bound, train_vae,
                             vdm_terms)


def seeds(*numbers): return [torch.Generator().manual_seed(n) for n in numbers]


def uniform_Q(T, K):
    beta = (torch.arange(T + 1).double() / (T + 2))[:, None, None]
    return (1 - beta) * torch.eye(K).double() + beta / K


PROCESSES = {
    'multinomial': lambda: Multinomial(5, cosine_schedule(6)),
    'dense': lambda: Dense(uniform_Q(6, 5), torch.full((5,), 0.2)),
    'gaussian': lambda: Gaussian(5, linear_schedule(6, 0.01, 0.5)),
    'gaussian v': lambda: Gaussian(5, cosine_schedule(6), predict='v', variance='learned'),
}


def network(process):
    "One row of answers for each example, from nothing but this example."
    channels = getattr(process, 'channels', process.K)
    def model(x_t, t):
        wave = torch.sin(3. * x_t.double()[..., None] + torch.arange(channels) + t.reshape(-1, *[1] * x_t.ndim))
        return wave + wave.roll(1, 1)
    return model


@pytest.mark.parametrize('name', PROCESSES)
def test_a_sample_does_not_depend_on_its_batch(name):
    process = PROCESSES[name]()
    model = network(process)
    together = generate(process, model, (4, 8), generator=seeds(5, 6, 7, 8))
    for i in range(4):
        alone = generate(process, model, (1, 8), generator=seeds(5 + i)[0])
        assert torch.equal(together[i:i + 1], alone)
    assert torch.equal(together[1:3], generate(process, model, (2, 8), generator=tuple(seeds(6, 7))))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize('name', PROCESSES)
def test_known_entries_and_the_bound_take_one_generator_per_example(name):
    process = PROCESSES[name]()
    model, x0 = network(process), torch.arange(24).reshape(3, 8) % 5
    keep = torch.arange(8).expand(3, 8) < 4
    if name.startswith('gaussian'): known = None
    else: known = x0, keep
    together = generate(process, model, (3, 8), generator=seeds(5, 6, 7), known=known)
    alone = generate(process, model, (1, 8), generator=seeds(7), known=known and (x0[2:], keep[2:]))
    assert torch.equal(together[2:], alone)
    whole, pieces = (elbo(process, model, x0, n_t=2, generator=seeds(5, 6, 7), batch_size=n)['each'] for n in (3, 2))
    torch.testing.assert_close(whole, pieces, rtol=1e-12, atol=0)


@pytest.mark.parametrize('name', PROCESSES)
def test_a_list_of_another_length_is_refused(name):
    process = PROCESSES[name]()
    for generator in (seeds(1, 2), seeds(1, 2, 3, 4), []):
        with pytest.raises(ShapeError, match='generator'): generate(process, network(process), (3, 8), generator=generator)
        with pytest.raises(ShapeError, match='generator'): elbo(process, network(process), torch.zeros(3, 8).long(), generator=generator)


class Dropping(torch.nn.Module):
    "Logits of which half are dropped in training."
    def __init__(self, channels):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Dropout(0.5), torch.nn.Linear(20, channels))
    def forward(self, x_t, t): return self.inner(x_t[..., None].float())


@pytest.mark.parametrize('name', PROCESSES)
def test_the_bound_and_the_samples_are_of_the_network_without_dropout(name):
    torch.manual_seed(0)
    process, x0 = PROCESSES[name](), torch.arange(24).reshape(3, 8) % 5
    net = Dropping(getattr(process, 'channels', 5))
    results = []
    for mode in (True, False):
        net.train(mode)
        results.append((elbo(process, net, x0, generator=seeds(0)[0])['each'], generate(process, net, (3, 8), generator=seeds(0)[0])))
        assert all(module.training == mode for module in net.modules())
    for trained, evaluated in zip(*results): assert torch.equal(trained, evaluated)


def test_each_submodule_gets_its_own_mode_back_also_after_an_error():
    net = Dropping(5).train()
    net.inner[0].eval()
    before = [module.training for module in net.modules()]
    process = PROCESSES['multinomial']()
    class Broken(Dropping):
        def forward(self, x_t, t): raise KeyError('broken')
    broken = Broken(5).train()
    broken.inner[0].eval()
    with pytest.raises(KeyError): elbo(process, broken, torch.zeros(3, 8).long())
    with pytest.raises(KeyError): generate(process, broken, (3, 8))
    assert [module.training for module in broken.modules()] == before


# Integers of every size

def below(top): return torch.arange(top + 1)
def times(top): return torch.arange(1, top + 1)
def column(top): return times(top)[:, None]
def row(top): return below(top)[None]
def wave(*shape): return torch.sin(torch.arange(math.prod(shape)).double()).reshape(shape)
def waves(x_t, t): return wave(*x_t.shape, 1024)


LONG = linear_schedule(1100, 1e-3, 0.05)
UNIFORM, LEVELS = Multinomial(1024, LONG), Gaussian(1024, LONG, 'v', 'learned')
TINY, TINY_MODEL = Dense(uniform_Q(3, 2), torch.tensor([0.5, 0.5])), table_model(2, 2, 3)
PATHS = path_joint(uniform_Q(3, 2), torch.tensor([0.4, 0.6]))
HIERARCHY = [wave(4).log_softmax(-1), wave(4, 5).log_softmax(-1)], [wave(5, 4).log_softmax(-1)]
AUTO = VAE(1024, (1,), latent=2, hidden=4).eval()
def floats(t): return torch.linspace(-2, 2, len(t))
def answers(t): return torch.linspace(-1, 1, 2 * len(t)).reshape(len(t), 2)
def before(top): return times(top) - 1, times(top)
def one(k): return lambda top: (torch.tensor(k),)
def pair(*values): return lambda top: tuple(map(torch.tensor, values))
def flipped(top): return row(top), row(top).flip(1)


CALLS = {  # name: (function of classes and times, these as int64 up to a largest number), ...
    'core.gather_t': [(lambda t: gather_t(LONG.alpha_bar, t, 2), lambda top: (below(top),))],
    'core.alpha_between': [(lambda s, t: alpha_between(LONG, s, t, 2), before)],
    'core.check_t': [(lambda t: check_t(t, 1100), lambda top: (times(top),))],
    'core.check_classes': [(lambda x: check_classes(x, 1024), lambda top: (below(top),))],
    'core.earlier_time': [(lambda s, t: earlier_time(t, s, 1100), before), (lambda t: earlier_time(t, None, 1100), lambda top: (times(top),))],
    'core.index_batch': [(lambda i: index_batch(3 * torch.arange(1024), i), lambda top: (below(top).flip(0),))],
    'core.overwrite_known': [(lambda x_t, x0: overwrite_known(UNIFORM, x_t, (x0, x_t > 3), 5, seeds(0)[0]), flipped)],
    'core.elbo': [(lambda x0: elbo(UNIFORM, waves, x0, 3, seeds(0)[0]), lambda top: (column(top),))],
    'oracle.conditional': [(lambda s: conditional(PATHS, s, {0: 1}), one(2))],
    'oracle.index_of': [(lambda x: index_of(x, 128), one([[127, 126, 125]]))],
    'oracle.Q_between': [(lambda s, t: Q_between(uniform_Q(3, 2), s, t), pair(1, 3))],
    'oracle.reverse_matrix': [(lambda s, t: reverse_matrix(TINY, TINY_MODEL, 2, t, s), pair(1, 3))],
    'oracle.path_elbo': [(lambda x0: path_elbo(TINY, TINY_MODEL, uniform_Q(3, 2), x0), one([1, 0]))],
    'oracle.kl_elbo': [(lambda x0: kl_elbo(TINY, TINY_MODEL, uniform_Q(3, 2), x0), one([1, 0]))],
    'oracle.pick_rows': [(lambda x: pick_rows(wave(1, 1024, 4), x), lambda top: (row(top).clamp(max=3),))],
    'oracle.judge_counts': [(lambda x: judge_counts(x, torch.full((len(x),), 1 / len(x)), 'even'), lambda top: (below(top),))],
    'oracle.table_model': [(lambda x_t, t: table_model(2, 2, 1100)(x_t, t), lambda top: (torch.tensor([[1, 0]] * top), times(top)))],
    'multinomial.log_uniform_row': [(lambda x: log_uniform_row(x, torch.full((1, 1), 0.3), 1024), lambda top: (row(top),))],
    'multinomial.checked_step': [(lambda x, t: checked_step(UNIFORM, x, t, None, x), lambda top: (column(top), times(top)))],
    'multinomial.weighted_cross_entropy': [(lambda x, x_t: weighted_cross_entropy(UNIFORM, wave(*x.shape, 1024), x, x_t, 0.5), flipped)],
    'multinomial.log_sums': [(lambda x0, x_t: log_sums(wave(*x0.shape, 1024), torch.ones(1, 1), x0, x_t), flipped)],
    'multinomial.uniform_kl': [(lambda x0, x_t: uniform_kl(wave(*x0.shape, 1024), x0, x_t, torch.tensor(0.7).double(), torch.tensor(0.4).double()), flipped)],
    'multinomial.keep_or_redraw': [(lambda x, t: keep_or_redraw(UNIFORM, x, t, seeds(0)[0]), lambda top: (column(top), times(top)))],
    'multinomial.remove_self_likelihood': [(lambda x, t: remove_self_likelihood(UNIFORM, waves(x, t), x, t), lambda top: (column(top), times(top)))],
    'gaussian.to_levels': [(lambda x: to_levels(x, 1024), lambda top: (below(top),))],
    'gaussian.jump': [(lambda s, t: jump(LONG, s, t, 2), before)],
    'gaussian.posterior': [(lambda s, t: posterior(LONG, s, t, 2), before)],
    'gaussian.target_line': [(lambda t, p=p: target_line(LONG, p, t, 1), lambda top: (times(top),)) for p in PREDICT],
    'gaussian.predicted_x0': [(lambda t: predicted_x0(LEVELS, answers(t), floats(t), t), lambda top: (times(top),))],
    'gaussian.target_weight': [(lambda t: target_weight(LONG, 'eps', t, torch.ones(len(t))), lambda top: (times(top)[1:],))],
    'gaussian.simple_loss': [(lambda x, t: simple_loss(LEVELS, answers(t), x, floats(t), t), lambda top: (times(top), times(top)))],
    'gaussian.ddpm_loss': [(lambda x, t: ddpm_loss(LEVELS, answers(t), x, floats(t), t),
                            lambda top: (times(top), times(top)))],
    'gaussian.reverse_variance': [(lambda s, t, v=v: reverse_variance(LONG, v, s, t, floats(t)), before) for v in VARIANCE],
    'gaussian.decoder_variance': [(lambda t: decoder_variance(LONG, t, 2),
                                   lambda top: (times(top),))],
    'gaussian.decoder_nll': [(lambda x: decoder_nll(LEVELS, x, floats(x).double(), torch.ones(1)),
                              lambda top: (below(top),))],
    'gaussian.step_kl': [(lambda x, t: step_kl(LEVELS, x, floats(t).double(), torch.ones(1), t),
                          lambda top: (times(top), times(top)))],
    'oracle.level_posterior': [(lambda t: level_posterior(LEVELS, torch.ones(1024).double() / 1024,
                                                            floats(t), t),
                                  lambda top: (times(top),))],
    'gaussian.log_bin': [(lambda x: log_bin(x, 1024, torch.zeros(len(x)), torch.ones(len(x))), lambda top: (below(top),))],
    'gaussian.checked_levels': [(lambda s, t: checked_levels(LEVELS, floats(t), t, s, t), before)],
    'gaussian.reverse_step': [(lambda s: reverse_step(floats(s), floats(s) ** 2, s, floats(s), 9, seeds(0)[0]), lambda top: (times(top),))],
    'gaussian.ancestral_step': [(lambda s, t: ancestral_step(LEVELS, answers(t), floats(t), t, s, seeds(0)[0]), lambda top: (times(top)[:-1], times(top)[1:]))],
    'gaussian.level_loss': [(lambda x, t: level_loss(LEVELS, answers(t), x, floats(t), t), lambda top: (times(top), times(top)))],
    'oracle.path_log_weights': [(lambda x: path_log_weights(Gaussian(1024, linear_schedule(3)), lambda x_t, t: 0 * x_t[..., None], x, seeds(0)[0]),
                                   lambda top: (column(top),))],
    'oracle.bayes_network': [(lambda t: bayes_network(LEVELS, torch.full((1024,), 1 / 1024).double())(floats(t), t), lambda top: (times(top),))],
    'vae.hvae_tables': [(lambda x: hvae_tables(*HIERARCHY, x), one(k)) for k in (0, 1, 4)],
    'vae.hvae_elbo': [(lambda x: hvae_elbo(*HIERARCHY, x), one(k)) for k in (0, 1, 4)],
    'vae.vdm_terms': [(lambda x: vdm_terms(uniform_Q(3, 2), uniform_Q(3, 2), torch.tensor([0.5, 0.5]).double(), x), one(k)) for k in (0, 1)],
    'vae.random_time_bound': [(lambda x: random_time_bound(UNIFORM, waves, x, seeds(0)[0]), lambda top: (column(top),))],
    'vae.log_likelihood': [(lambda x: log_likelihood(wave(2, *x.shape, 1024), x), lambda top: (column(top),))],
    'vae.importance_bound': [(lambda x: importance_bound(AUTO, x, 3, seeds(0)[0]), lambda top: (column(top),))],
    'vae.VAE': [(lambda x: AUTO.elbo(x, seeds(0)[0]), lambda top: (column(top),)), (AUTO.encode, lambda top: (column(top),))],
    'vae.train_vae': [(lambda x: train_vae(x, 1024, steps=2, batch_size=9, hidden=4, latent=2).bias.data, lambda top: (column(top),))],
}
OTHERS = {'core': 'minibatch pixel_marginals '
                  'as_int64 checked check_keep check_logits check_finite sum_positions as_tuple class_remedy time_remedy '
                  'check_bound bound_terms check_known hidden',
          'oracle': 'normalize transition_density',
          'gaussian': 'log_normal to_classes inverse_mills_ratio prior_kl',
          'vae': 'log_prob_diagonal gaussian_path', 'multinomial': ''}


def test_every_public_function_of_classes_or_times_is_in_the_table():
    "The others take floats, or anything, or are reached through elbo."
    for module in (core, oracle, multinomial, gaussian, vae):
        short = module.__name__.split('.')[-1]
        for name in module.__all__:
            f = getattr(module, name)
            if not inspect.isfunction(f) or not set(inspect.signature(f).parameters) & set(INTEGER_NAMES): continue
            assert f'{short}.{name}' in CALLS or name in OTHERS[short].split(), f'{short}.{name}'


def same(a, b):
    "Are two results the same numbers of the same dtype, in tuples and dicts too?"
    if isinstance(a, dict): return all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)): return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.), b.nan_to_num(7.))
    return a == b or a != a and b != b


def cast(x, dtype): return tuple(part.to(dtype) for part in x) if isinstance(x, tuple) else x.to(dtype)


@pytest.mark.parametrize('dtype', INTEGERS, ids=str)
@pytest.mark.parametrize('name', CALLS)
def test_integers_of_every_dtype_give_the_numbers_of_int64(name, dtype):
    for f, make in CALLS[name]:
        numbers = make(min(torch.iinfo(dtype).max, 1023))
        assert same(f(*(x.to(dtype) for x in numbers)), f(*numbers))


def line(K): return torch.arange(K).float()[:, None]
def soft(K, T): return DiscretizedGaussian(K, linear_schedule(T, 0.05, 0.3))


ALL = {  # every process of the package, for K classes of data; a mask is one class more
    'multinomial': lambda K, T: Multinomial(K, cosine_schedule(T)),
    'dense': lambda K, T: Dense(uniform_Q(T, K), torch.full((K,), 1 / K).double()),
    'gaussian': lambda K, T: Gaussian(K, linear_schedule(T, 0.01, 0.5)),
    'gaussian v': lambda K, T: Gaussian(K, cosine_schedule(T), 'v', 'learned'),
    'clipped': lambda K, T: clipped(Gaussian(K, linear_schedule(T, 0.01, 0.5))),
    'absorbing': lambda K, T: Absorbing(K + 1, reciprocal_schedule(T)),
    'reweighted': lambda K, T: Reweighted(K + 1, reciprocal_schedule(T)),
    'remasking': lambda K, T: Remasking(K + 1, reciprocal_schedule(T), 0.7),
    'neighbour': lambda K, T: NearestNeighbour(line(K), cosine_schedule(T), min(2, K - 1)),
    'discretized': soft,
    'hybrid': lambda K, T: hybrid(soft(K, T), 0.1),
    'joint': lambda K, T: Joint(ALL['gaussian v'](K, T), ALL['multinomial'](K, T)),
}


def processes(*broken):
    "The names in ALL; of some it is known that they fail, until their chapter is repaired."
    return [pytest.param(name, marks=[pytest.mark.xfail] if name in broken else []) for name in ALL]


def halves(process): return getattr(process, 'halves', (process,))
def unpack(values): return tuple(values) if len(values) > 1 else values[0]


def example(process, classes, shape, t, g, scale=1., dtype=torch.float64):
    "x0, x_t and a network's answer, of a pair where the process is of pairs."
    x0 = unpack([classes(half).expand(shape) for half in halves(process)])
    x_t = process.q_sample(x0, t, g)
    out = unpack([scale * torch.randn(*x.shape, getattr(half, 'channels', half.K), generator=g).to(dtype) for half, x in zip(halves(process), as_tuple(x_t))])
    return x0, x_t, out


@pytest.mark.parametrize('dtype', INTEGERS, ids=str)
@pytest.mark.parametrize('name', ALL)
def test_every_method_of_every_process_takes_integers_of_every_dtype(name, dtype):
    top = min(torch.iinfo(dtype).max, 255)
    process = ALL[name](9 if name in ('dense', 'neighbour') else 256, 6)
    K, g = min(halves(process)[0].classes, top + 1), seeds(0)[0]
    t = torch.arange(K) % 6 + 1
    x0, x_t, out = example(process, lambda half: torch.arange(K)[:, None], (K, 1), t, g, 0.1)
    small = lambda x: unpack([part if part.is_floating_point() or part.max() > top else part.to(dtype) for part in as_tuple(x)])
    s = (t - 1) // 2 if name not in ('discretized', 'hybrid') else t - 1
    for f in (lambda x0, x_t, t, s: process.q_sample(x0, t, seeds(1)[0]), lambda x0, x_t, t, s: process.q_posterior(x0, x_t, t, s),
              lambda x0, x_t, t, s: process.p_posterior(out, x_t, t, s), lambda x0, x_t, t, s: process.L_t(out, x0, x_t, t),
              lambda x0, x_t, t, s: process.L_T(x0), lambda x0, x_t, t, s: process.loss(out, x0, x_t, t),
              lambda x0, x_t, t, s: process.step(out, x_t, t.clamp(min=2), None, seeds(2)[0])):
        assert same(f(*map(small, (x0, x_t, t, s))), f(x0, x_t, t, s)), name


def test_floats_and_booleans_are_refused_as_classes_and_times():
    process = Multinomial(2, cosine_schedule(4))
    for x0 in (torch.zeros(2, 3), torch.zeros(2, 3).bool(), torch.zeros(2, 3).half()):
        with pytest.raises(DtypeError): process.q_sample(x0, torch.tensor([1, 2]))
        with pytest.raises(DtypeError): process.q_sample(torch.zeros(2, 3).long(), x0[:, 0])


def test_decorated_functions_and_processes_stay_what_they_are():
    assert str(inspect.signature(gather_t)) == '(table: torch.Tensor, t: torch.Tensor, ndim: int) -> torch.Tensor'
    assert inspect.getsource(gather_t).startswith('@checked\ndef gather_t(') and gather_t.__doc__.startswith('table[t]')
    assert pickle.loads(pickle.dumps(gather_t)) is gather_t
    for name, make in ALL.items():
        process = make(5, 6)
        for other in (copy.copy(process), copy.deepcopy(process), pickle.loads(pickle.dumps(process))):
            t = torch.tensor([3, 4])
            x0, x_t, out = example(process, lambda half: torch.tensor([[0], [1]]), (2, 3), t, seeds(0)[0])
            assert torch.equal(other.L_t(out, x0, x_t, t), process.L_t(out, x0, x_t, t)), name
    class Own(Process):
        def q_sample(self, x0, t, generator=None): return x0, t
        def extra(self, x_s): return x_s
    assert Own().q_sample(torch.tensor([200]).byte(), torch.tensor([3]).char())[1].dtype == torch.int64
    assert Own().extra(torch.tensor([200]).byte()).dtype == torch.int64 and Own.extra.__name__ == 'extra'


# Numbers

@st.composite
def cases(draw, name):
    "A process of this name, x0, x_t, t and float32 logits; everything else follows from the seed."
    K, T, D, B = (draw(st.integers(low, high)) for low, high in ((2, 9), (1, 30), (1, 64), (1, 4)))
    process = ALL[name](K, T)
    g = torch.Generator().manual_seed(draw(st.integers(0, 2 ** 32)))
    t = torch.randint(1, T + 1, (B,), generator=g)
    classes = lambda half: torch.randint(half.classes, (B, D), generator=g)
    scale = draw(st.sampled_from([0., 1e-3, 1., 30., 1e4]))
    x0, x_t, out = example(process, classes, (B, D), t, g, scale, torch.float32)
    boost = draw(st.sampled_from([0., 12., 20.]))
    def sure(half, x, o): return o if hasattr(half, 'channels') else o.scatter_add(-1, x[..., None], torch.full((*x.shape, 1), boost))
    return process, x0, x_t, t, unpack([sure(*each) for each in zip(halves(process), as_tuple(x0), as_tuple(out))])


@pytest.mark.parametrize('name', processes())
def test_float32_answers_give_the_bound_of_float64_answers(name):
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(cases(name))
    def check(case):
        process, x0, x_t, t, out = case
        got = process.L_t(out, x0, x_t, t).double()
        want = process.L_t(unpack([part.double() for part in as_tuple(out)]), x0, x_t, t).double()
        close = (got - want).abs() <= torch.maximum(1e-3 * want.abs(), torch.tensor(1e-7))
        assert (close | (got == want)).all(), (got, want)
    check()


@st.composite
def schedules(draw):
    "Noise levels of which some steps do nothing, the first does something, and the end may be exactly 0."
    T = draw(st.integers(1, 6))
    beta = [0.] + [draw(st.sampled_from([0., 1e-8, 0.3, 0.9])) for _ in range(T)]
    beta[1] = beta[1] or 0.2
    if draw(st.booleans()): beta[T] = 1.
    return Schedule(beta)


def uniform_steps(schedule, K): return (1 - schedule.beta)[:, None, None] * torch.eye(K).double() + schedule.beta[:, None, None] / K


@settings(max_examples=60, deadline=None, derandomize=True)
@given(schedules(), st.integers(2, 5))
def test_limits_are_numbers(schedule, K):
    "From a time to itself nothing happens; a step without noise costs nothing; where nothing is left, the row is the prior."
    T = schedule.T
    every = torch.arange(T + 1)
    assert torch.equal(alpha_between(schedule, every, every, 1), torch.ones(T + 1).double())
    scale, var = jump(schedule, every, every, 1)
    assert torch.equal(scale, torch.ones(T + 1).double()) and torch.equal(var, torch.zeros(T + 1).double())
    for s, t in [(s, t) for t in range(1, T + 1) for s in range(t + 1)]:
        s_B, t_B = torch.tensor([s]), torch.tensor([t])
        w_0, w_t, var = (x.item() for x in posterior(schedule, s_B, t_B, 1))
        assert all(map(math.isfinite, (w_0, w_t, var))) and var >= 0
        if s == t: assert (w_0, w_t, var) == (0, 1, 0)
    process, dense = Multinomial(K, schedule), Dense(uniform_steps(schedule, K), torch.full((K,), 1 / K).double())
    x0 = torch.arange(K).repeat(T)[:, None]
    t = torch.arange(1, T + 1).repeat_interleave(K)
    x_t = process.q_sample(x0, t, seeds(0)[0])
    for strike in (False, True):  # the network may rule out the right class
        out = wave(len(t), 1, K)
        if strike: out = out.scatter(-1, x0[..., None], -math.inf)
        L, want = process.L_t(out, x0, x_t, t), dense.L_t(out, x0, x_t, t)
        torch.testing.assert_close(L, want, rtol=1e-6, atol=1e-12)
        still = (schedule.beta[t] == 0) & (t > 1)
        assert (L[still] == 0).all() or L[still].abs().max() < 1e-12
    assert process.L_T(x0).isfinite().all()


def test_certainty_costs_nothing_or_everything():
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    assert gaussian_kl(zero, zero, zero).item() == 0
    for gap, var_q, var_p in ((one, zero, zero), (zero, zero, one), (zero, one, zero)): assert gaussian_kl(gap, var_q, var_p).item() == math.inf
    assert posterior(Schedule([0., 0., 0.5]), torch.tensor([0]), torch.tensor([1]), 1)[0].item() == 1


# Shapes

@pytest.mark.parametrize('name', processes())
def test_examples_of_one_position_may_have_no_axis_for_it(name):
    "x0 of shape (B,) gives the numbers of (B, 1), in every method, in elbo and in generate."
    process, t = ALL[name](5, 6), torch.tensor([1, 3, 6])
    classes = lambda half: torch.tensor([0, 3, 2])
    x0, x_t, out = example(process, classes, (3,), t, seeds(0)[0])
    wide = lambda x: unpack([part.unsqueeze(1) for part in as_tuple(x)])
    def tensors(x): return [part for y in x for part in tensors(y)] if isinstance(x, tuple) else [x]
    def equal(a, b): assert all(torch.equal(p, q.reshape(p.shape)) for p, q in zip(tensors(a), tensors(b), strict=True)), name
    equal(process.q_sample(x0, t, seeds(0)[0]), process.q_sample(wide(x0), t, seeds(0)[0]))
    equal(process.q_posterior(x0, x_t, t), process.q_posterior(wide(x0), wide(x_t), t))
    equal(process.p_posterior(out, x_t, t), process.p_posterior(wide(out), wide(x_t), t))
    later = torch.tensor([2, 3, 6])
    equal(process.step(out, x_t, later, None, seeds(1)[0]), process.step(wide(out), wide(x_t), later, None, seeds(1)[0]))
    for f in (process.L_t, process.loss):
        assert f(out, x0, x_t, t).shape == (3,)
        torch.testing.assert_close(f(out, x0, x_t, t), f(wide(out), wide(x0), wide(x_t), t))
    assert process.L_T(x0).shape == (3,)
    torch.testing.assert_close(process.L_T(x0), process.L_T(wide(x0)))
    model = lambda x_t, t: unpack([0.1 * wave(*x.shape, getattr(half, 'channels', half.K)) for half, x in zip(halves(process), as_tuple(x_t))])
    found = elbo(process, model, x0, generator=seeds(2)[0])
    assert math.isclose(found['bits_per_dim'], found['total'] / len(as_tuple(x0)) / math.log(2))
    shape = unpack([(3,)] * len(as_tuple(x0)))
    equal(generate(process, model, shape, generator=seeds(3)[0]), generate(process, model, unpack([(3, 1)] * len(as_tuple(x0))), generator=seeds(3)[0]))


def test_the_decoder_of_a_vae_adds_up_each_example():
    x0, out = torch.tensor([0, 1, 2]), wave(2, 3, 4)
    torch.testing.assert_close(log_likelihood(out, x0), log_likelihood(out[:, :, None], x0[:, None]))
    net = VAE(4, (), latent=2, hidden=4).eval()
    assert net.elbo(x0, seeds(0)[0])['elbo'].shape == (3,)


def test_the_dense_process_takes_examples_of_any_shape_and_refuses_other_classes():
    process, t = PROCESSES['dense'](), torch.tensor([1, 4])
    x0, out = torch.arange(12).reshape(2, 2, 3) % 5, wave(2, 2, 3, 5)
    torch.testing.assert_close(process.L_t(out, x0, x0, t), process.L_t(out.flatten(1, 2), x0.flatten(1), x0.flatten(1), t))
    for bad in (x0 + 5, x0 - 1):
        with pytest.raises(ClassError): process.q_sample(bad, t)
    for bad in (t - 1, t + 3, -t):
        with pytest.raises(TimeError): process.q_sample(x0, bad)
    with pytest.raises(ShapeError): process.q_sample(x0, t[:1])


# Errors that fit, and what is not drawn

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 300), st.sampled_from(['0..1', '-1..1', 'whole', 'bool', 'scaled']), st.integers(0, 2 ** 32))
def test_the_advice_for_floats_keeps_the_picture(K, kind, seed):
    "The expression in the message is evaluated: its result passes the check, and is the picture."
    u = torch.cat([torch.rand(40, generator=seeds(seed)[0]), torch.tensor([0., 1.])])
    x0 = {'0..1': u, '-1..1': 2 * u - 1, 'whole': (u * (K - 1)).round(), 'bool': u > 0.5, 'scaled': 1.5 + u * (K + 1)}[kind]
    with pytest.raises(DtypeError) as caught: check_classes(x0, K)
    message = str(caught.value)
    assert ('x0.long()' in message) == (kind in ('whole', 'bool')), message
    if kind == 'scaled': return
    advice = re.search(r'((?:reduce_levels|to_classes)\(.*\)) of chapter|use (x0\.long\(\))', message)
    names = dict(x0=x0, torch=torch, reduce_levels=reduce_levels, to_classes=gaussian.to_classes)
    classes = eval(advice[1] or advice[2], names)
    check_classes(classes, K)
    assert torch.corrcoef(torch.stack([classes.float(), x0.float()]))[0, 1] > 0.8
    if kind in ('0..1', '-1..1'): assert len(classes.unique()) > min(K, 40) / 3


def test_the_advice_for_keep_fits():
    process, x = Multinomial(5, cosine_schedule(3)), torch.zeros(1, 4).long()
    cases = ((torch.tensor([[0., 0.3, 0.6, 1.]]), 'keep > 0.5'),
             (torch.tensor([[0, 1, 0, 1]]), 'use keep.bool()'), (torch.tensor([[0, 3, 2, 1]]), 'compare'))
    for keep, words in cases:
        with pytest.raises(DtypeError, match=re.escape(words)): overwrite_known(process, x, (x, keep), 1)


@pytest.mark.parametrize('name', ALL)
def test_entries_that_are_not_kept_may_be_anything(name):
    process = ALL[name](5, 6)
    keep, x0 = torch.arange(8).expand(2, 8) % 2 == 0, torch.arange(16).reshape(2, 8) % 4
    model = lambda x_t, t: unpack([0.1 * wave(*x.shape, getattr(half, 'channels', half.K)) for half, x in zip(halves(process), as_tuple(x_t))])
    n = len(halves(process))
    twice = lambda x: unpack([x] * n)
    def known(other): return twice(torch.where(keep, x0, other)), twice(keep)
    results = [generate(process, model, twice((2, 8)), known=known(other), generator=seeds(0)[0])
               for other in (0, 17, -3)]
    for result in results:
        for first, part in zip(as_tuple(results[0]), as_tuple(result)): assert torch.equal(first, part) and torch.equal(part[keep], x0[keep])
    with pytest.raises(ClassError): generate(process, model, twice((2, 8)), known=(twice(torch.where(keep, 17, x0)), twice(keep)))


def test_a_time_that_was_not_drawn_is_said_to_be_so():
    process = Multinomial(5, cosine_schedule(50))
    found = elbo(process, lambda x_t, t: torch.zeros(*x_t.shape, 5), torch.zeros(1, 3).long(), n_t=2, generator=seeds(1)[0])
    assert found['count'].sum() == 2 and found['count'][1] == 0 and found['L_0'] is None
    assert torch.equal(found['L_t'][1:].isnan(), found['count'][1:] == 0)
    every = elbo(process, lambda x_t, t: torch.zeros(*x_t.shape, 5), torch.zeros(1, 3).long())
    assert every['L_0'] == every['L_t'][1].item() and not every['L_t'].isnan().any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(0, 2 ** 32), st.floats(1e-9, 0.5))
def test_tables_that_contradict_each_other_are_refused(T, seed, off):
    g = seeds(seed)[0]
    beta = torch.cat([torch.zeros(1), 0.9 * torch.rand(T, generator=g)]).double()
    bar = (1 - beta).cumprod(0)
    Schedule(beta, bar)
    Schedule(Schedule.from_alpha_bar(bar).beta, bar)
    t = int(torch.randint(1, T + 1, (), generator=g))
    wrong = bar.clone()
    wrong[t] *= 1 - off
    with pytest.raises(ScheduleError, match=rf'alpha_bar\[{t}\]'): Schedule(beta, wrong)
    for bad in (bar[:-1], 0.5 * bar, bar * math.nan):
        with pytest.raises(ScheduleError): Schedule(beta, bad)


@pytest.mark.parametrize('T', [36_997, 40_985, 200_000])
def test_a_schedule_of_many_steps(T):
    "alpha_bar of the reciprocal schedule is what its beta leave, to the last step."
    schedule = core.reciprocal_schedule(T)
    torch.testing.assert_close(schedule.alpha_bar[-2].item(), 1 / T, rtol=1e-12, atol=0)
