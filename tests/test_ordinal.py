"Chapter 07's kernels to their last digits: each KL term of T = 1000 steps against float64 chains, huge logits, the series of a walk."
import math
import os
from fractions import Fraction
import pytest
import torch
import torch.nn.functional as F
from discdiff_nb.core import (DataError, Schedule, cosine_schedule, kl_categorical,
                              linear_schedule, reciprocal_schedule)
from discdiff_nb.d3pm import Absorbing, absorbing_Q, uniform_Q
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.oracle import states
from discdiff_nb.ordinal import (DiscretizedGaussian, DoublyStochastic, NearestNeighbour,
                                 first_terms, knn_graph)

def printed_gaussian(beta, K):
    i = torch.arange(K).double()
    g = torch.exp(-4 * (i - i[:, None]) ** 2 / ((K - 1) ** 2 * beta))
    Q = (g / (2 * g[0].sum() - 1)).fill_diagonal_(0)
    return Q + torch.diag(1 - Q.sum(1))


def positive_series(rows, A, tau, terms=80):
    "rows times e^(tau R)."
    c = A.sum(1).max()
    P = A + torch.diag(c - A.sum(1))
    term, total = rows, rows.clone()
    for n in range(1, terms):
        term = term @ P * (tau / n)
        total += term
    return total * torch.exp(-c * tau)

def by_matrix(one_step, schedule):
    "noise(rows, x, t): rows times Q_t, and the columns x of Q_t."
    def noise(rows, x, t):
        Q = one_step(schedule.beta[t].item())
        return rows @ Q, Q.T[x]
    return noise

def by_series(A, schedule):
    "The same for a walk on a graph."
    def noise(rows, x, t):
        both = torch.cat([rows, torch.eye(len(A)).double()[x]])
        if schedule.alpha[t] == 0: both = torch.full_like(both, 1 / len(A))
        else: both = positive_series(both, A, -schedule.alpha[t].log(), 20)
        return both.split([len(rows), len(x)])
    return noise

def four(K):
    "name: (make_process, noise), T = 1000 steps of K classes."
    E, k = torch.randn(K, 8, generator=torch.Generator().manual_seed(K)), min(6, K - 1)
    level = reciprocal_schedule(1000)
    variance = linear_schedule(1000, 1e-4, 0.02) if K > 2 else linear_schedule(1000, 0.02, 0.5)
    def uniform(beta): return uniform_Q(Schedule([0, beta]), K)[1]
    def absorbing(beta): return absorbing_Q(Schedule([0, beta]), K + 1)[1]
    def gaussian(beta): return printed_gaussian(beta, K)
    return {'uniform': (lambda: Multinomial(K, level), by_matrix(uniform, level)),
            'absorbing': (lambda: Absorbing(K + 1, level), by_matrix(absorbing, level)),
            'Gaussian': (lambda: DiscretizedGaussian(K, variance), by_matrix(gaussian, variance)),
            'nearest neighbour': (lambda: NearestNeighbour(E, level, k),
                                  by_series(knn_graph(E, k), level))}


def errors(process, noise, n):
    "Largest error of a KL term over every t and n positions, in nats and as a share."
    g, K, found = torch.Generator().manual_seed(0), process.K, []
    x0 = torch.randint(process.classes, (n, 1), generator=g)
    scale = torch.tensor([60., 8., 1., 30.])[:n, None, None] # 60: confident and wrong
    logits = scale * torch.randn(n, 1, K, generator=g)
    clean = torch.arange(K) < process.classes
    guess = logits[:, 0].double().where(clean, -math.inf).softmax(-1)
    rows = torch.cat([torch.eye(K).double()[x0[:, 0]], guess])
    for t in range(1, process.T + 1):
        times = torch.full((n,), t)
        x_t = process.q_sample(x0, times, g)
        got = process.L_t(logits, x0, x_t, times).double()
        after, column = noise(rows, x_t[:, 0], t)
        q, p = column * rows[:n], column * rows[n:]
        q, p = q / q.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)
        want = torch.where(q > 1e-100, q * (q / p).log(), 0.).sum(-1)
        rows, error = after, (got - want).abs()
        assert want.isfinite().all() and got.min() >= -1e-6
        assert (error <= (1e-3 * want).clamp(min=1e-7)).all()
        share = torch.where(want > 1e-4, error / want, 0.) # of terms above 1e-4 nats
        found.append(torch.stack([error, share]))
    return torch.stack(found).amax((0, 2)).tolist()

def survives(process, t):
    "x0, x_t, logits and float32 losses, if all is finite in every dtype."
    g = torch.Generator().manual_seed(0)
    x0 = torch.randint(process.classes, (len(t), 1), generator=g)
    logits = 1e4 * torch.randn(len(t), 1, process.K, generator=g)
    x_t = process.q_sample(x0, t, g)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
            L = process.L_t(leaf, x0, x_t, t)
        L.sum().backward()
        assert L.isfinite().all() and leaf.grad.isfinite().all() and L.min() >= -1e-6
        for log_p in (process.p_posterior(leaf, x_t, t), process.q_posterior(x0, x_t, t)):
            assert (log_p.exp().sum(-1) - 1).abs().max() < 1e-5
    return x0, x_t, logits, L.detach()


KERNELS = tuple(four(2))
FEW = torch.tensor([1, 2, 3, 5, 10, 30, 100, 300, 999, 1000])
long = pytest.mark.skipif(os.environ.get('DISCDIFF_SIZE') != 'full',
                          reason='6 minutes and 5 GB in all; DISCDIFF_SIZE=full runs it')


@pytest.mark.parametrize('K,name', [(K, name) for K in (2, 27, 256) for name in KERNELS
                                    if (K, name) != (256, 'nearest neighbour')])
def test_every_term_of_a_thousand_steps(K, name):
    "Float32 logits, confident and wrong ones too: 1e-3 of the term or 1e-7 nats (K19, D7)."
    make_process, noise = four(K)[name]
    nats, share = errors(make_process(), noise, 4)
    print(f'K = {K:4d}  {name:<18} largest error {nats:.0e} nats, {share:.0e} of the term')


@long
@pytest.mark.parametrize('K,name', [(256, 'nearest neighbour'), *((1024, name) for name in KERNELS)])
def test_every_term_of_large_kernels(K, name):
    "The same for K = 1024, where the Gaussian keeps 4 GB, and for the large graphs."
    make_process, noise = four(K)[name]
    if K == 1024: survives(make_process(), FEW)
    nats, share = errors(make_process(), noise, 4 if K == 256 else 2)
    print(f'K = {K:4d}  {name:<18} largest error {nats:.0e} nats, {share:.0e} of the term')


@pytest.mark.parametrize('K', (2, 27, 256))
@pytest.mark.parametrize('name', KERNELS)
def test_logits_of_ten_thousand(K, name):
    "fp16, bf16 and float32: losses and gradients are finite, none negative (K19)."
    make_process, _ = four(K)[name]
    survives(make_process(), FEW if K == 256 else torch.arange(1, 1001))


def test_first_steps_of_the_gaussian():
    "Logits of 1e4 against a chain in log space (K19)."
    make_process, _ = four(27)['Gaussian']
    process = make_process()
    x0, x_t, logits, L = survives(process, torch.arange(1, 41))
    log_p, log_bar = logits.double().log_softmax(-1), torch.eye(27).double().log()
    for i in range(40):
        log_Q = process.log_step(i + 1)
        column = log_Q.T[x_t[i]]
        log_q = (column + log_bar[x0[i]]).log_softmax(-1)
        mixed = (log_p[i, :, :, None] + log_bar).logsumexp(1)
        want = kl_categorical(log_q, (column + mixed).log_softmax(-1)).item()
        assert abs(L[i].item() - want) <= max(1e-7, 1e-3 * want)
        log_bar = (log_bar[:, :, None] + log_Q).logsumexp(1)


def fraction_power(P, n):
    "The n-th power of a matrix of fractions."
    K = len(P)
    out = [[Fraction(i == j) for j in range(K)] for i in range(K)]
    for _ in range(n):
        out = [[sum(row[k] * P[k][j] for k in range(K)) for j in range(K)] for row in out]
    return out


def test_first_terms_against_exact_fractions():
    "Powers of P in fractions; paths too long for float64 are refused (K19)."
    A = knn_graph(torch.tensor([0., 1, 2, 3, 4, 5, 3.5])[:, None], 2) # corners five edges apart
    c = A.sum(1).max()
    d, log_first, rho = first_terms(A, (1 / (4 * c)).item())
    P = [[Fraction(a) for a in row] for row in (A + torch.diag(c - A.sum(1))).tolist()]
    powers = [fraction_power(P, n) for n in range(int(d.max()) + len(rho) + 1)]
    for i, j in states(7, 2).tolist():
        near = int(d[i, j])
        first = powers[near][i][j]
        assert first > 0 and all(power[i][j] == 0 for power in powers[:near])
        want = math.log(first / math.factorial(near))
        assert abs(log_first[i, j].item() - want) <= 1e-12
        for m in range(1, len(rho) + 1):
            factorials = Fraction(math.factorial(near), math.factorial(near + m))
            want = float(powers[near + m][i][j] / first * factorials)
            assert abs(rho[m - 1, i, j].item() - want) <= 1e-12 * want
    weak = torch.diag(torch.full((59,), 1e-6).double(), 1)
    weak[0, 1] = 1. # one strong edge on a path of weak ones
    with pytest.raises(DataError, match='edges apart'): first_terms(weak + weak.T, 0.2)


def test_a_mix_of_rows_is_the_mix_by_matrices():
    "Its gradient too; rows sum to one (K19)."
    g = torch.Generator().manual_seed(0)
    process = NearestNeighbour(torch.randn(256, 4, generator=g), reciprocal_schedule(1000), 6)
    x, zero = torch.arange(256)[None], torch.tensor([0])
    s = torch.tensor([1, 10, 100, 600])
    for rows in (3, 20): # few and many
        p = torch.randn(4, rows, 256, generator=g, dtype=torch.float64).mul(4).softmax(-1)
        p.requires_grad_()
        by_rows, by_matrices = process.mix_probs(p, s), DoublyStochastic.mix_probs(process, p, s)
        torch.testing.assert_close(by_rows.log(), by_matrices.log(), rtol=0, atol=1e-11)
        weight = torch.rand(by_rows.shape, generator=g)
        grads = [torch.autograd.grad((weight * mix).sum(), p)[0] for mix in (by_rows, by_matrices)]
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-12)
    certain = F.one_hot(torch.zeros(1, 3, dtype=torch.long), 256).double() # of class 0: its row
    by_rows, row = process.mix_probs(certain, s[:1]), process.log_row(x[:, :1], zero, s[:1])
    torch.testing.assert_close(by_rows[0, 0].log(), row[0, 0], rtol=0, atol=1e-11)


def test_few_shortest_ways_and_many_longer_ones():
    "Rows of a walk sum to one where most of an entry comes from later terms (K19)."
    line = torch.linspace(-1, 1, 256)[:, None]
    process, x = NearestNeighbour(line, linear_schedule(20, 1e-4, 0.02), 64), torch.arange(256)[None]
    for t in (1, 10, 20):
        sums = process.log_row(x, torch.tensor([0]), torch.tensor([t])).exp().sum(-1)
        torch.testing.assert_close(sums, torch.ones(1, 256).double(), rtol=0, atol=1e-12)
    assert (process.tau[20] * process.rho[0]).max() > 1 # the second term is the larger one


def test_logs_of_Q_bar_tails_too():
    "The discretized Gaussian against a chain in log space (K19)."
    process = DiscretizedGaussian(27, linear_schedule(1000))
    n, x, zero = torch.arange(27), torch.arange(27)[None], torch.tensor([0])
    log_bar = torch.eye(27).double().log()
    for t in range(1, 26):
        log_g = -4 * n ** 2 / (26 ** 2 * process.schedule.beta[t])
        log_jump = log_g - torch.cat([log_g, log_g[1:]]).logsumexp(0)
        places = (n - n[:, None]).abs()
        log_Q = torch.where(places == 0, process.log_stay[t], log_jump[places])
        log_bar = (log_bar[:, :, None] + log_Q).logsumexp(1)
        found = process.log_row(x, zero, torch.tensor([t]))[0]
        torch.testing.assert_close(found, log_bar, rtol=1e-12, atol=1e-9)
        if t > 1:
            between = process.log_between(0, t)
            torch.testing.assert_close(between, log_bar, rtol=1e-12, atol=1e-9)


def kept_bytes(process): return sum(a.nbytes for a in vars(process).values() if torch.is_tensor(a))


def test_memory_of_a_thousand_steps():
    "On a graph no table per step, on a scale half of one."
    E = torch.randn(1024, 8, generator=torch.Generator().manual_seed(0))
    assert kept_bytes(NearestNeighbour(E, cosine_schedule(1000), 8)) < 30 * 8 * 1024 ** 2
    assert kept_bytes(DiscretizedGaussian(256, linear_schedule(1000))) < 280e6
