"Kernels of chapters 06 and 08 where a formula used to end: tails, narrow integers, limits, wrapped processes, randomness per example."
import copy
import math
import pickle

import mpmath
import pytest
import torch
from hypothesis import given, settings, strategies as st

from discdiff_nb.absorbing import (Reweighted, blind_constant, blind_kl, blind_posterior,
                                   bound_weight, masked_nll, nll_by_masks, order_nll)
from discdiff_nb.continuous import continuous_elbo, linear_alpha, unmasking_rate
from discdiff_nb.core import (INTEGERS, ClassError, DiscdiffError, Schedule, ScheduleError, ShapeError, TimeError,
                              cosine_schedule, kl_categorical, linear_schedule, reciprocal_schedule)
from discdiff_nb.d3pm import (Absorbing, Q_bar, absorbing_kl, absorbing_Q, check_reachable, hybrid,
                              hybrid_loss, log_mask_jump, log_q_path, log_reveal, matrix_elbo,
                              matrix_posterior, matrix_step, no_mask, reveal_probability,
                              uniform_Q)
from discdiff_nb.ordinal import (DiscretizedGaussian, NearestNeighbour, gaussian_Q, gaussian_steps,
                                 knn_graph)
from discdiff_nb.gaussian import Gaussian
from discdiff_nb.multinomial import Multinomial

mpmath.mp.dps = 40


def walk_rows(A, tau, start):
    "start e^(tau R) as a list of mpmath numbers: the series of R + c I on one row, along the edges."
    degree = A.sum(1)
    c, K = degree.max().item(), len(A)
    edges = [[(j, A[i, j].item()) for j in range(K) if A[i, j] > 0] + [(i, c - degree[i].item())] for i in range(K)]
    term = [mpmath.mpf(p) for p in start]
    total, n = list(term), 0
    while n < K or max(term) > mpmath.mpf(10) ** -30 * min(total):
        n += 1
        after = [mpmath.mpf(0)] * K
        for i in range(K):
            for j, a in edges[i]: after[j] += term[i] * a
        term = [x * tau / n for x in after]
        total = [a + b for a, b in zip(total, term)]
    return [x * mpmath.exp(-c * tau) for x in total]


def time_between(schedule, s, t):
    a, b = (mpmath.mpf(schedule.alpha_bar[u].item()) for u in (s, t))
    return mpmath.log(a / b)


def walk_term(process, A, logits, x0, x_t, t):
    "L_t of one position, in mpmath."
    K = process.K
    column = walk_rows(A, time_between(process.schedule, t - 1, t), [k == x_t for k in range(K)])
    guess = [mpmath.exp(mpmath.mpf(z)) for z in logits.tolist()]
    at_s = time_between(process.schedule, 0, t - 1)
    q, p = (walk_rows(A, at_s, start) for start in ([k == x0 for k in range(K)], [g / sum(guess) for g in guess]))
    q, p = ([a * b for a, b in zip(row, column)] for row in (q, p))
    q, p = ([x / sum(row) for x in row] for row in (q, p))
    return float(sum(a * mpmath.log(a / b) for a, b in zip(q, p) if a > 0))


STRETCHED = torch.arange(27.)[:, None] * (1 + 0.001 * torch.arange(27.)[:, None])
GRAPHS = {'stretched': (STRETCHED, 4), 'line of 100': (torch.arange(100.)[:, None], 2),
          'hub and line': (torch.cat([torch.arange(50.), torch.linspace(50, 50.01, 30)])[:, None], 2),
          'cloud of 100': (torch.randn(100, 3, generator=torch.Generator().manual_seed(0)), 4)}


@pytest.mark.parametrize('gap', [50, 30])
def test_a_far_guess_costs_what_it_must(gap):
    process, x = NearestNeighbour(STRETCHED, cosine_schedule(100), 4), torch.tensor([[25]])
    logits = torch.zeros(1, 1, 27).index_fill_(-1, torch.tensor(1), gap)
    want = walk_term(process, knn_graph(STRETCHED, 4), logits[0, 0], 25, 25, 72)
    assert process.L_t(logits, x, x, torch.tensor([72])).item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize('name', GRAPHS)
def test_rows_of_a_walk_to_their_last_entry(name):
    E, k = GRAPHS[name]
    process, A = NearestNeighbour(E, cosine_schedule(100), k), knn_graph(E, k)
    for s, t in [(0, 1), (0, 5), (0, 40), (0, 72), (71, 72), (0, 95), (98, 99), (10, 60)]:
        row = walk_rows(A, time_between(process.schedule, s, t), [i == 3 for i in range(process.K)])
        want = torch.tensor([float(mpmath.log(x)) for x in row], dtype=torch.float64)
        s, t, x = torch.tensor([s]), torch.tensor([t]), torch.tensor([[3]])
        for got in (process.log_row(x, s, t), process.log_column(x, s, t)):
            torch.testing.assert_close(got[0, 0], want, rtol=1e-9, atol=1e-8)


def log_matmul(a, b): return torch.logsumexp(a[..., :, :, None] + b, -2)


def log_walk(A, tau):
    "log e^(tau R), all in log space: series of a short time, then squares."
    c, K = A.sum(1).max(), len(A)
    log_P, eye = (A + torch.diag(c - A.sum(1))).log(), torch.eye(K).double().log()
    halvings = max(0, 2 + int(torch.log2(c * tau)))
    power = total = eye
    for n in range(1, K + 25):
        power = log_matmul(power, log_P) + torch.log(tau / 2 ** halvings / n)
        total = torch.logaddexp(total, power)
    total = total - c * tau / 2 ** halvings
    for _ in range(halvings): total = log_matmul(total, total)
    return total


def log_chain(log_steps):
    "Running products in log space, from t = 0."
    out = [torch.eye(log_steps.shape[-1]).double().log()]
    for step in log_steps: out.append(log_matmul(out[-1], step))
    return torch.stack(out)


def walk(draw, g):
    K, T = draw(st.integers(3, 20)), draw(st.integers(1, 6))
    k = draw(st.integers(2, K - 1))
    bend = draw(st.sampled_from([0.01, 0.3, 3.]))
    E = torch.arange(K)[:, None] + bend * torch.randn(K, 2, generator=g, dtype=torch.float64)
    beta = torch.rand(T, generator=g, dtype=torch.float64) * draw(st.sampled_from([1e-4, 0.05, 0.9])) + 1e-6
    schedule = Schedule(torch.cat([torch.zeros(1).double(), beta]))
    A = knn_graph(E, k)
    process = NearestNeighbour(E, schedule, k)
    return process, torch.stack([log_walk(A, -schedule.alpha[t].log()) for t in range(1, T + 1)])


def ordered(draw, g):
    K, T = draw(st.integers(2, 30)), draw(st.integers(1, 8))
    least = 4.1 / 700 / (K - 1) ** 2
    beta = least + (1 - least) * torch.rand(T, generator=g, dtype=torch.float64) * draw(st.sampled_from([1e-4, 1e-2, 0.5]))
    schedule = Schedule(torch.cat([torch.zeros(1).double(), beta]))
    log_jump, log_stay = gaussian_steps(schedule, K)
    i = torch.arange(K)
    log_Q = torch.where(i == i[:, None], log_stay[:, None], log_jump[:, (i - i[:, None]).abs()])
    return DiscretizedGaussian(K, schedule), log_Q[1:]


@pytest.mark.parametrize('kernel', [walk, ordered])
def test_tails_in_log_space(kernel):
    "Rows, columns, posteriors and terms of the bound for every pair of classes, every s and t, and logits up to 1e4."
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.data())
    def check(data):
        g = torch.Generator().manual_seed(data.draw(st.integers(0, 2 ** 32)))
        try: process, log_Q = kernel(data.draw, g)
        except ValueError as error:
            assert 'falls apart' in str(error)
            return
        K, T = process.K, process.T
        bar, close = log_chain(log_Q), dict(rtol=1e-9, atol=1e-8)
        x = torch.arange(K)[None]
        s = data.draw(st.integers(0, T - 1))
        for s, t in [(0, u) for u in range(1, T + 1)] + [(u - 1, u) for u in range(1, T + 1)] + [(s, T)]:
            want = log_chain(log_Q[s:t])[-1]
            s, t = torch.tensor([s]), torch.tensor([t])
            torch.testing.assert_close(process.log_row(x, s, t)[0], want, **close)
            torch.testing.assert_close(process.log_column(x, s, t)[0], want.T, **close)
            torch.testing.assert_close(process.log_row(x[:, :1], s, t)[0], want[:1], **close)
        scale = data.draw(st.sampled_from([0., 1., 50., 1e4]))
        x0, x_t = (torch.randint(K, (T, 3), generator=g) for _ in range(2))
        logits, t = scale * torch.randn(T, 3, K, generator=g), torch.arange(1, T + 1)
        got = process.L_t(logits, x0, x_t, t), process.q_posterior(x0, x_t, t), process.p_posterior(logits, x_t, t)
        log_p = logits.double().log_softmax(-1)
        column = torch.stack([log_Q[i].T[x_t[i]] for i in range(T)])
        q = (column + torch.stack([bar[i][x0[i]] for i in range(T)])).log_softmax(-1)
        p = (column + torch.stack([log_matmul(log_p[i], bar[i]) for i in range(T)])).log_softmax(-1)
        torch.testing.assert_close(got[1], q, **close)
        torch.testing.assert_close(got[2], p, **close)
        torch.testing.assert_close(got[0], kl_categorical(q, p).sum(-1), rtol=1e-6, atol=1e-9)
    check()


def test_ordered_classes_256_of_which_most_are_far():
    "The first 25 of 1000 steps at K = 256, against a chain in log space on two rows."
    process = DiscretizedGaussian(256, linear_schedule(1000))
    log_jump, log_stay = gaussian_steps(process.schedule, 256)
    i = torch.arange(256)
    rows = torch.tensor([[0, 100, 255]])
    want = torch.eye(256).double()[rows[0]].log()
    for t in range(1, 26):
        want = log_matmul(want, torch.where(i == i[:, None], log_stay[t][:, None], log_jump[t][(i - i[:, None]).abs()]))
        got = process.log_row(rows, torch.tensor([0]), torch.tensor([t]))[0]
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-9)


def process_of(name, K, T=4):
    line = lambda: torch.arange(K).double()[:, None]
    return {'uniform': lambda: Multinomial(K, cosine_schedule(T)), 'absorbing': lambda: Absorbing(K, reciprocal_schedule(T)),
            'reweighted': lambda: Reweighted(K, reciprocal_schedule(T)),
            'ordered': lambda: DiscretizedGaussian(K, linear_schedule(T, 0.05, 0.5)),
            'neighbour': lambda: NearestNeighbour(line(), cosine_schedule(T), K // 8 + 1)}[name]()


NAMES = ('uniform', 'absorbing', 'reweighted', 'ordered', 'neighbour')


def everything(process, x0, x_t, t, s, logits):
    "All that a process says of these, by name; x0 and x_t may be of any integer dtype."
    g = lambda: torch.Generator().manual_seed(0)
    mask = isinstance(process, Absorbing)
    out = dict(q_sample=process.q_sample(x0, t, g()), q=process.q_posterior(x0, x_t, t, s), p=process.p_posterior(logits, x_t, t, s),
               L_t=process.L_t(logits, x0, x_t, t), L_T=process.L_T(x0), loss=process.loss(logits, x0, x_t, t),
               step=process.step(logits, x_t, t, s, g()), row=process.log_row(x0, 0 * t, t), column=process.log_column(x_t, s, t),
               mix=process.log_mix(logits.double().log_softmax(-1), s), hybrid=hybrid_loss(process, logits, x0, x_t, t, 0.1))
    if mask:
        w = process.w(s, t, x_t.ndim)
        out |= dict(nll=masked_nll(logits, x0, x_t), blank=check_reachable(x0, x_t, process.mask_id),
                    jump=log_mask_jump(x0, x_t, torch.tensor(0.3).double(), process.mask_id),
                    kl=absorbing_kl(logits, x0, x_t.long() == process.mask_id, w.flatten()),
                    reveal=log_reveal(no_mask(logits).log_softmax(-1), x_t, w),
                    blind=blind_posterior(process, x0, t), blind_kl=blind_kl(process, logits, x0, x_t, t))
    return out


def same(a, b):
    for name in a: torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=True, msg=lambda m: f'{name}: {m}')


@pytest.mark.parametrize(('dtype', 'K'), [(torch.int8, 2), (torch.int8, 129), (torch.uint8, 256), (torch.uint8, 257),
                                          (torch.int16, 257), (torch.int16, 1024), (torch.int32, 20)])
def test_narrow_integers(dtype, K):
    "Every class that the dtype holds; x0 narrow, x_t narrow, times narrow: the numbers of int64."
    g, held = torch.Generator().manual_seed(K), min(K, torch.iinfo(dtype).max + 1)
    for name in NAMES:
        if K > 256 and name not in ('absorbing', 'uniform'): continue # the same code, and minutes
        process = process_of(name, K)
        x0 = torch.arange(min(held, process.classes)).repeat(2, 1)
        other = torch.randint(held, x0.shape, generator=g)
        x_t = torch.where(other % 2 == 0, x0, process.mask_id) if isinstance(process, Absorbing) else other
        t, s = torch.tensor([2, 4]), torch.tensor([1, 2])
        logits = torch.randn(*x0.shape, K, generator=g)
        want = everything(process, x0, x_t, t, s, logits)
        fits = x_t.to(dtype) if x_t.max() < held else x_t # the mask need not fit into the dtype
        same(everything(process, x0.to(dtype), fits, t.to(dtype), s.to(dtype), logits), want)
        if fits is x_t:
            clean = everything(process, x0, x0, t, s, logits)
            same(everything(process, x0.to(dtype), x0.to(dtype), t.to(dtype), s, logits), clean)


@pytest.mark.parametrize('dtype', INTEGERS)
def test_narrow_integers_in_the_functions_of_matrices_and_orders(dtype):
    Q, a, b = uniform_Q(cosine_schedule(3), 3), torch.tensor([0, 1]), torch.tensor([2, 0])
    as_int = lambda x: x.to(dtype)
    assert torch.equal(matrix_posterior(as_int(a), as_int(b), 2, Q), matrix_posterior(a, b, 2, Q))
    path = torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2]])
    assert torch.equal(log_q_path(as_int(path), Q), log_q_path(path, Q))
    steps = torch.stack([torch.full((3, 3), 1 / 3).double()] * 4)
    prior = torch.full((3,), 1 / 3).double()
    assert matrix_elbo(as_int(a[1]), steps, Q, prior) == matrix_elbo(a[1], steps, Q, prior)
    process = Absorbing(101, reciprocal_schedule(5))
    table = torch.randn(4, 101, 101, generator=torch.Generator().manual_seed(0))
    def network(x_t, t): return torch.stack([table[i, x_t[:, i]] for i in range(4)], 1) + t[:, None, None]
    x0 = torch.tensor([[0, 99, 3, 50], [7, 7, 98, 1]])
    for f in (lambda x: nll_by_masks(network, x, 100), lambda x: order_nll(network, x[0], 100),
              lambda x: torch.tensor(continuous_elbo(process, network, x, 2, torch.Generator().manual_seed(0))['total'])):
        assert torch.equal(f(as_int(x0)), f(x0))
    n = torch.tensor([0, 4])
    t = torch.tensor([1, 3])
    assert torch.equal(blind_constant(process.schedule, as_int(t), as_int(n)), blind_constant(process.schedule, t, n))


def test_a_step_that_reveals_nothing_costs_nothing():
    "0 times infinity: beta_t = 0 and -inf at the right class; float32 and float64, and finite gradients."
    process, x, t = Absorbing(4, Schedule([0, 0.5, 0, 1])), torch.tensor([[1, 2]]), torch.tensor([2])
    for dtype in (torch.float32, torch.float64):
        logits = torch.zeros(1, 2, 4, dtype=dtype).index_fill_(-1, torch.tensor(1), -math.inf).requires_grad_()
        L = process.L_t(logits, x, torch.full_like(x, 3), t)
        L.sum().backward()
        assert L.item() == 0 and (logits.grad == 0).all()
        assert process.L_t(logits, x, torch.full_like(x, 3), torch.tensor([3])).item() == math.inf
        assert hybrid(process, 0.).loss(logits, x, torch.full_like(x, 3), t).item() == 0


def test_limits_of_weights():
    one, half = torch.tensor(1.).double(), torch.tensor(0.5).double()
    assert reveal_probability(one, one) == 1 and reveal_probability(one, half) == 1 and reveal_probability(half, half) == 0
    faint = Schedule([0, 1e-18, 0.5, 1]) # alpha_bar[1] is 1 in float64
    assert faint.alpha_bar[1] == 1 and bound_weight(faint).isfinite().all()
    assert Reweighted(3, faint).factor.isfinite().all()
    process = Absorbing(3, faint)
    L = process.L_t(torch.zeros(1, 1, 3), torch.tensor([[1]]), torch.tensor([[2]]), torch.tensor([1]))
    assert L.item() == pytest.approx(math.log(2))
    t, n = torch.tensor([1, 2, 3]), torch.tensor([0, 0, 0])
    assert (blind_constant(Schedule([0, 0.5, 0, 1]), t, n) == 0).all()
    with pytest.raises(TimeError, match='0..1'): unmasking_rate(linear_alpha, torch.zeros(2).double())
    constant = lambda u: (1 - u) ** 40 * 0 + torch.where(u < 0.9, 1., 0.) * (1 - u * 1e-30) # nothing masked before 0.9
    x0 = torch.zeros(8, 2).long()
    def certain(x_t, t): return torch.zeros(*x_t.shape, 3)
    assert math.isfinite(continuous_elbo(Absorbing(3, reciprocal_schedule(5)), certain, x0, 4, torch.Generator().manual_seed(0), constant)['total'])


def test_matrix_bound_of_a_kernel_with_zeros():
    "The mask: pairs that cannot be met have no posterior, and no part in the bound; asked for, they are refused."
    Q = absorbing_Q(reciprocal_schedule(3), 3)
    answer = torch.tensor([[1., 0, 0], [0, 1, 0], [0.3, 0.7, 0]]).double()
    steps = torch.stack([Q[0]] + [matrix_step(answer, t, Q) for t in range(1, 4)])
    prior = torch.tensor([0., 0, 1]).double()
    assert matrix_elbo(torch.tensor(0), steps, Q, prior).item() == pytest.approx(-math.log(0.3) * (1 + 1 / 2 * 2 / 3 * 0 + 0), abs=1e9)
    process = Absorbing(3, reciprocal_schedule(3))
    x0 = torch.tensor([[0]])
    want = sum(Q_bar(Q)[t][0, 2] * process.L_t(answer[None, None, 2].log(), x0, x0 + 2, torch.tensor([t])) for t in range(1, 4)).item()
    assert matrix_elbo(torch.tensor(0), steps, Q, prior).item() == pytest.approx(want, rel=1e-12)
    with pytest.raises(ClassError, match='cannot come'): matrix_posterior(torch.tensor([0]), torch.tensor([1]), 2, Q)


def wrapped():
    "name: a wrapped process, its loss on the batch of `losses`."
    absorbing, reweighted = Absorbing(4, reciprocal_schedule(5)), Reweighted(4, reciprocal_schedule(5))
    return {'hybrid': (hybrid(absorbing, 0.5), 1, 0.5), 'hybrid of reweighted': (hybrid(reweighted, 0.5), reweighted.factor[3], 0.5),
            'hybrid twice': (hybrid(hybrid(absorbing, 0.5), 0.25), 1, 0.75), 'hybrid of nothing': (hybrid(absorbing, 0.), 1, 0.),
            'hybrid twice of reweighted': (hybrid(hybrid(reweighted, 0.5), 0.25), reweighted.factor[3], 0.75)}


@pytest.mark.parametrize('name', wrapped())
def test_a_wrapped_process_does_what_its_names_say(name):
    process, factor, weight = wrapped()[name]
    g = torch.Generator().manual_seed(0)
    x0, x_t, t = torch.tensor([[0, 1, 2]]), torch.tensor([[3, 1, 3]]), torch.tensor([3])
    logits = torch.randn(1, 3, 4, generator=g, dtype=torch.float64)
    ce = -logits[..., :3].log_softmax(-1).gather(-1, x0[..., None]).sum()
    L_t = Absorbing(4, reciprocal_schedule(5)).L_t(logits, x0, x_t, t)
    for other in (process, copy.copy(process), copy.deepcopy(process), pickle.loads(pickle.dumps(process))):
        assert other.loss(logits, x0, x_t, t).item() == pytest.approx((factor * L_t + weight * ce).item(), rel=1e-12)
        torch.testing.assert_close(other.L_t(logits, x0, x_t, t), L_t)
        other.L_t = lambda *args: 0 * L_t # what is changed on a copy counts
        changed = other.loss(logits, x0, x_t, t).item()
        assert changed == pytest.approx((weight * ce).item(), rel=1e-12)


def test_hybrid_is_for_classes():
    with pytest.raises(DiscdiffError, match='logits'): hybrid(Gaussian(5, linear_schedule(4)), 0.1)
    for weight in (-1., math.nan, math.inf):
        with pytest.raises(DiscdiffError, match='0 or above'): hybrid(Absorbing(4, reciprocal_schedule(5)), weight)


@pytest.mark.parametrize('name', NAMES)
def test_float32_says_what_float64_says(name):
    "1e-3 of the number or 1e-7 nats, or infinite in both; also with struck out classes, at both ends of 1000 steps."
    process = process_of(name, 6, 1000)
    g = torch.Generator().manual_seed(0)
    t = torch.tensor([1, 2, 3, 10, 500, 998, 999, 1000])
    x0 = torch.randint(process.classes, (8, 5), generator=g)
    x_t = process.q_sample(x0, t, g)
    for scale, struck in ((0., 0), (1., 0), (30., 0), (1e4, 0), (1., 0.3), (30., 0.3)):
        logits = scale * torch.randn(8, 5, 6, generator=g)
        logits[torch.rand(logits.shape, generator=g) < struck] = -math.inf
        logits[..., 2] = 0.
        for f in (lambda z: process.L_t(z, x0, x_t, t), lambda z: process.loss(z, x0, x_t, t), lambda z: process.p_posterior(z, x_t, t)):
            low, high = f(logits).double(), f(logits.double())
            inf = high.isinf()
            assert torch.equal(low[inf], high[inf]) and low[~inf].isfinite().all()
            assert ((low - high).abs()[~inf] <= (1e-3 * high[~inf].abs()).clamp(min=1e-7)).all()


@pytest.mark.parametrize('name', NAMES)
def test_a_generator_for_each_example(name):
    "Example i is the same in any batch."
    process = process_of(name, 6)
    one = lambda seeds: [torch.Generator().manual_seed(i) for i in seeds]
    x0, t = torch.tensor([[0, 3], [1, 1], [4, 2]]), torch.tensor([1, 3, 4])
    logits = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0))
    draws = {'prior': lambda i, g: process.prior((len(i), 2), g), 'q_sample': lambda i, g: process.q_sample(x0[i], t[i], g),
             'step': lambda i, g: process.step(logits[i], torch.where(x0 > 2, x0[:, :1], x0)[i], t[i], None, g)}
    for draw in draws.values():
        whole = draw([0, 1, 2], one([5, 6, 7]))
        for i in range(3): assert torch.equal(draw([i], one([5 + i]))[0], whole[i])
        assert torch.equal(draw([2, 0], one([7, 5])), whole[[2, 0]])
    with pytest.raises(ShapeError, match='generator'): process.q_sample(x0, t, one([1, 2]))


def test_continuous_bound_one_generator_for_each_and_evaluation_mode():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.table = torch.nn.Dropout(0.5), torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
        def forward(self, x_t, t): return self.drop(self.table[x_t])
    process, net = Absorbing(6, reciprocal_schedule(4)), Net().train()
    x0 = torch.tensor([[0, 3], [1, 1], [4, 2]])
    one = lambda: [torch.Generator().manual_seed(i) for i in range(3)]
    found = [continuous_elbo(process, model, x0, 4, one(), batch_size=size)['total'] for model, size in ((net, 3), (net.eval(), 1))]
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    net.train()
    a, b = nll_by_masks(net, x0, 5), nll_by_masks(net, x0, 5)
    assert torch.equal(a, b) and torch.equal(order_nll(net, x0[0], 5), order_nll(net, x0[0], 5)) and net.training and net.drop.training
    with pytest.raises(ShapeError, match='generator'): continuous_elbo(process, net, x0, 4, one()[:2])


@pytest.mark.parametrize('name', NAMES)
def test_one_position_per_example(name):
    "x0 of shape (B,) gives what (B, 1) gives."
    process, g = process_of(name, 6), torch.Generator().manual_seed(0)
    x0, t, s = torch.tensor([0, 3, 4]), torch.tensor([1, 3, 4]), torch.tensor([0, 2, 1])
    x_t = process.q_sample(x0, t, g)
    logits = torch.randn(3, 6, generator=g)
    flat, column = everything(process, x0, x_t, t, s, logits), everything(process, x0[:, None], x_t[:, None], t, s, logits[:, None])
    same({k: v.reshape(-1) for k, v in flat.items()}, {k: v.reshape(-1) for k, v in column.items()})


def test_variance_of_one_in_the_middle():
    "beta is a variance here: 1 is allowed anywhere; what is refused is refused as a variance."
    process = DiscretizedGaussian(6, Schedule([0, 1., 0.5, 1.]))
    torch.testing.assert_close(process.log_row(torch.arange(6)[None], torch.tensor([0]), torch.tensor([3]))[0].exp(), Q_bar(gaussian_Q(process.schedule, 6))[3])
    assert DiscretizedGaussian(6, linear_schedule(2000, 0.9, 1.)).L_T(torch.tensor([[3]])).item() == pytest.approx(0, abs=1e-9)
    with pytest.raises(ScheduleError, match='variance .* 1e-07 .* K = 6'): DiscretizedGaussian(6, Schedule([0, 1e-7, 0.5]))
    for make in (Multinomial, Absorbing, lambda K, s: NearestNeighbour(torch.arange(K).double()[:, None], s, 2), Gaussian):
        with pytest.raises(ScheduleError, match='alpha_bar'): make(6, Schedule([0, 1., 0.5, 1.]))
