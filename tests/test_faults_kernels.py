"Kernels of chapters 07 and 08 where a formula used to end: tails, narrow integers, limits, wrapped processes, randomness per example."
import mpmath
import pytest
import torch
from hypothesis import given, settings, strategies as st

from discdiff_nb.core import Schedule, cosine_schedule, kl_categorical, linear_schedule, reciprocal_schedule
from discdiff_nb.d3pm import DiscretizedGaussian, NearestNeighbour, gaussian_Q, gaussian_steps, knn_graph

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
