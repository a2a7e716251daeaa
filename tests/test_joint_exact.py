"""Chapter 10 against exact numbers that its page does not show: more positions, bounds by quadrature, replacement, partial masks."""
import math

import pytest
import torch

from discdiff_nb.core import Schedule, cosine_schedule, elbo, generate, linear_schedule, reciprocal_schedule, sample_categorical, step_times
from discdiff_nb.gaussian import Gaussian, to_levels
from discdiff_nb.joint import (Joint, bayes_model, clean_mix, given_x, given_y, log_multivariate_normal, nc_log_density, nc_log_posterior,
                               nc_sample, variance_constant, weighted_given_y)
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.oracle import judge_counts, states

P = torch.tensor([[25, 2, 1], [10, 12, 3], [2, 15, 5], [1, 4, 20]]).double() / 100
close = torch.testing.assert_close


def tiny(T, K=3, layout=None):
    return Joint(Gaussian(4, cosine_schedule(T), predict='x0'), layout or Multinomial(K, cosine_schedule(T)))


def share(table): return table / table.sum()
def total_variation(p, q): return ((p - q).abs().sum() / 2).item()
def information(p): return (p * (p / p.sum(1, keepdim=True) / p.sum(0)).log2()).nansum().item()
def log_normal(x, mu, var): return -(x - mu) ** 2 / (2 * var) - (2 * math.pi * torch.as_tensor(var)).log() / 2
def seeded(n=0): return torch.Generator().manual_seed(n)


def overwrite(f, process, t, x, known):
    "The density f (n, K**M) after the known parts were drawn anew at time t; known = {'x': level, 0: class, ...}."
    x_half, y_half = process.halves
    K = y_half.K
    M = round(math.log(f.shape[1], K))
    if 'x' in known:
        alpha_bar = x_half.schedule.alpha_bar[t]
        q_x = log_normal(x, alpha_bar.sqrt() * (2 * known['x'] / 3 - 1), 1 - alpha_bar).exp()
        f = f.sum(0) * (x[1] - x[0]) * q_x[:, None]
    f = f.reshape(len(x), *[K] * M)
    for i in known.keys() - {'x'}:
        q_y = y_half.log_row(*(torch.tensor([v]) for v in (known[i], 0, t))).exp()[0]
        f = f.sum(i + 1, keepdim=True) * q_y.reshape(-1, *[1] * (M - 1 - i))
    return f.reshape(len(x), -1)


def generated(process, model, S=3, known={}, n=301, steps=None):
    "The exact distribution (4, S) of what generate returns on a tiny pair."
    K = process.y.K
    x, y = torch.linspace(-5, 5, n, dtype=torch.float64), states(K, round(math.log(S, K)))
    h, z = x[1] - x[0], (x.repeat_interleave(S)[:, None], y.repeat(n, 1))
    f = overwrite(log_normal(x, 0, 1).exp()[:, None].expand(n, S) / S, process, process.T, x, known)
    times = step_times(process.T, steps)
    for t, s in zip(times, times[1:]):
        t_B, s_B = torch.full((n * S,), t), torch.full((n * S,), s)
        (mean, var), log_y = process.p_posterior(model(z, t_B), z, t_B, s_B)
        flow = f.reshape(-1, 1) * h * log_y[:, torch.arange(y.shape[1]), y].sum(-1).exp()
        if s: f = overwrite(log_normal(x, mean, var).exp().T @ flow, process, s, x, known)
    level = ((mean[:, 0] + 1) * 1.5).round().clamp(0, 3).long()
    return torch.zeros(4, S, dtype=torch.float64).index_add(0, level, flow)


def test_nine_ridges_in_the_plane():
    "K20 at N = M = 2, K = 3: the integral, each position's marginal, and the product when all rows are one."
    g = seeded()
    A, mu = torch.randn(9, 2, 2, generator=g).double(), torch.randn(9, 2, generator=g).double()
    Sigma, Theta = A @ A.mT + 0.2 * torch.eye(2), torch.rand(2, 3, generator=g).double().softmax(-1)
    side = torch.linspace(-20, 20, 201, dtype=torch.float64)
    plane = torch.cartesian_prod(side, side)
    p = nc_log_density(plane[:, None], states(3, 2), mu, Sigma, Theta).exp().sum(0) * 0.2 ** 2
    close(p.sum(), torch.tensor(1.).double(), rtol=0, atol=1e-9)
    for axis in (0, 1): close(p.reshape(3, 3).sum(1 - axis), Theta[axis], rtol=0, atol=1e-9)
    tables = mu[:1].expand(9, 2), Sigma[:1].expand(9, 2, 2), Theta
    log_C = Theta.log()[torch.arange(2), states(3, 2)].sum(-1)
    log_N = log_multivariate_normal(plane[:50], mu[0], Sigma[0])
    close(nc_log_density(plane[:50, None], states(3, 2), *tables), log_N[:, None] + log_C, rtol=1e-12, atol=0)
    close(nc_log_posterior(plane[:50], *tables), log_C.expand(50, 9), rtol=1e-9, atol=0)


def test_tables_that_make_no_density_are_refused_with_the_remedy():
    mu, Sigma, Theta = torch.zeros(9, 2), torch.eye(2).expand(9, 2, 2), torch.full((2, 3), 1 / 3)
    x, y = torch.zeros(1, 2), torch.zeros(1, 2).long()
    from discdiff_nb.core import DataError, ShapeError
    with pytest.raises(ShapeError, match=r'3\^2 = 9'): nc_log_density(x, y, mu[:8], Sigma[:8], Theta)
    with pytest.raises(DataError, match='positive definite'): nc_log_density(x, y, mu, -Sigma, Theta)
    with pytest.raises(DataError, match='divide it by its sum'): nc_log_density(x, y, mu, Sigma, 2 * Theta)
    with pytest.raises(DataError, match='divide it by its sum'): nc_sample(5, mu, Sigma, 2 * Theta, seeded())


def test_the_sampler_fills_the_bins():
    "K20: the histogram of nc_sample against exact probabilities, at 4 standard errors."
    mu, sigma = torch.tensor([[-2.], [-0.5], [1.], [2.5]]).double(), torch.tensor([0.3, 0.8, 0.4, 1.0]).double()
    Theta = torch.tensor([[0.35, 0.3, 0.25, 0.1]], dtype=torch.float64)
    x, y = nc_sample(200_000, mu, sigma.square()[:, None, None], Theta, seeded())
    infinity = torch.tensor([math.inf])
    edges = torch.cat([-infinity, torch.linspace(-3, 5, 39), infinity]).double()
    p = (Theta[0] * torch.distributions.Normal(mu[:, 0], sigma).cdf(edges[:, None]).diff(dim=0)).T
    judge_counts(y[:, 0] * 40 + torch.bucketize(x[:, 0], edges[1:-1]), p.reshape(-1), 'nc_sample')


def test_what_the_constant_adds_up_to():
    "The page says 0.3 to 0.5 bits per coordinate at T = 1000 (K22)."
    found = []
    for make in (linear_schedule, cosine_schedule, reciprocal_schedule):
        gone = 1 - make(1000).alpha_bar
        C = variance_constant(gone[1:-1] / gone[2:], torch.ones(999).double())
        found.append(C.sum().item() / math.log(2))
    assert 0.3 <= min(found) and max(found) <= 0.5


def test_on_uniform_data_the_bound_is_the_entropy():
    "K22: bits per dimension divide by N + M; counting K as well would go below the entropy."
    uniform = Joint(Multinomial(16, cosine_schedule(50)), Multinomial(4, linear_schedule(50, 0.01, 0.3)))
    def flat(z_t, t): return tuple(torch.zeros(*half.shape, K).double() for half, K in zip(z_t, (16, 4)))
    g = seeded()
    bound = elbo(uniform, flat, (torch.randint(16, (2000, 6), generator=g), torch.randint(4, (2000, 2), generator=g)), generator=g)
    entropy = (6 * 4 + 2 * 2) / 8
    assert abs(bound['bits_per_dim'] - entropy) < 4 * bound['bits_per_dim_se'] + 1e-3
    assert bound['total'] / math.log(2) / (6 + 2 * 4) < entropy - 1


def exact_bound(short, network, pairs):
    "{(i, k): (bound, log p)} of a pair of two steps: an integral over x_1, x_2 and a sum over y_1, y_2."
    x, h = torch.linspace(-6, 6, 241, dtype=torch.float64), 0.05
    grid = x.repeat_interleave(3)[:, None], torch.arange(3).repeat(241)[:, None]

    def on_grid(t):
        t_B = torch.full((len(grid[0]),), t)
        (mean, var), log_y = short.p_posterior(network(grid, t_B), grid, t_B)
        return mean.double(), var.double().expand_as(mean), log_y[:, 0].double()

    mean, var, log_y = on_grid(2)
    log_p2 = log_normal(grid[0], 0, 1)[:, 0].double() - math.log(3)
    log_p1 = log_normal(grid[0][:, 0], mean, var) + log_y[:, grid[1][:, 0]] # row z_2, column z_1
    p_z1 = h * (log_p2[:, None] + log_p1).exp().sum(0) * h
    mean, var, log_y = on_grid(1)
    infinity = torch.tensor([math.inf])
    edges = torch.cat([-infinity, torch.linspace(-1, 1, 7)[1::2], infinity]).double()
    log_bins = torch.special.ndtr((edges - mean) / var.sqrt()).diff().log()
    log_p0 = log_bins[:, :, None] + log_y[:, None] # (z_1, x_0, y_0)
    log_p = (p_z1 @ log_p0.exp().flatten(1)).log().reshape(4, 3)
    close(log_p.exp().sum(), torch.tensor(1.).double(), rtol=0, atol=1e-4)

    def log_q(z, z_from, t):
        beta_x, beta_y = (half.schedule.beta[t] for half in short.halves)
        log_x = log_normal(z[0], (1 - beta_x).sqrt() * z_from[0], beta_x)
        return log_x + ((1 - beta_y) * (z[1] == z_from[1]) + beta_y / 3).log()

    log_q2, found = log_q(grid, [half.T for half in grid], 2), {}
    for i, k in pairs:
        log_path = log_q(grid, (torch.tensor(2 * i / 3 - 1), torch.tensor(k)), 1)[:, 0] + log_q2
        terms = log_path.exp() * (log_path - log_p2[:, None] - log_p1 - log_p0[:, i, k])
        found[i, k] = (terms[log_path.exp() > 0].sum() * h ** 2).item(), log_p[i, k].item()
    return found


def test_the_bound_of_a_tiny_pair_against_its_path_form():
    "K22: elbo against the integral over x_1, x_2 and the sum over y_1, y_2 (4 standard errors), and the exact -log p."
    short = Joint(Gaussian(4, Schedule([0, 0.3, 0.6]), predict='x0'), Multinomial(3, Schedule([0, 0.2, 0.7])))
    network = bayes_model(short, P)
    for (i, k), (want, log_p) in exact_bound(short, network, [(0, 0), (1, 2), (3, 1)]).items():
        got = elbo(short, network, (torch.full((20_000, 1), i), torch.full((20_000, 1), k)), generator=seeded(i))
        assert abs(got['total'] - want) < 4 * got['total_se'] and want > -log_p


def test_the_loss_of_a_product_in_one_step_falls_faster_than_1_over_T():
    "K21: mutual information of (x_s, y_s) given z_t = (0, 1) at t = T/2: the true step is no product."
    def lost(T):
        x_half, y_half = tiny(T).halves
        t, x_t, y_t = torch.tensor([T // 2]), torch.zeros(4, 1).double(), torch.tensor([[1]])
        alpha_bar, x = x_half.schedule.alpha_bar[T // 2], torch.linspace(-5, 5, 4001, dtype=torch.float64)
        q_x = log_normal(0, alpha_bar.sqrt() * torch.linspace(-1, 1, 4).double(), 1 - alpha_bar).exp()
        weight = P * q_x[:, None] * y_half.log_column(y_t, 0 * t, t)[0].exp() # of each example that could have led to z_t
        mean, var = x_half.q_posterior(torch.arange(4)[:, None], x_t, t.expand(4))
        C = y_half.q_posterior(torch.arange(3)[:, None], y_t.expand(3, 1), t.expand(3))[:, 0].exp()
        N = log_normal(x[:, None], mean[:, 0], var.flatten()[0]).exp()
        return information(share(N @ weight @ C))
    bits = [lost(T) for T in (4, 8, 16, 32)]
    assert bits[0] > 2 * bits[1] > 4 * bits[2] > 8 * bits[3] > 0


def replacement_error(process, half):
    "Mean TV of replacement to the exact conditionals; half 0 is known x, 1 known y."
    model, total = bayes_model(process, P), 0
    for k in range(P.shape[half]):
        drawn, true = generated(process, model, known={'x' if half == 0 else 0: k}).sum(half), P.select(half, k)
        total += true.sum() * total_variation(share(drawn), share(true))
    return total.item()


def test_the_floor_of_replacement_depends_on_the_schedules():
    "K23: a class that is noised late helps x given y and harms y given x; noised early it is the other way round."
    x_first, y_first = (replacement_error(tiny(24), half) for half in (1, 0))
    u = torch.arange(25).double() / 24
    for late, alpha_bar in ((True, 1 - u ** 6), (False, (1 - u) ** 6)):
        process = tiny(24, layout=Multinomial(3, Schedule.from_alpha_bar(alpha_bar)))
        assert (replacement_error(process, 1) < x_first) == late and (replacement_error(process, 0) > y_first) == late


def test_replacement_through_generate():
    "K23: generate(known=...) against the quadrature (4 standard errors); at T = 100 the error is still there."
    def replaced(process, y0, g):
        keep = torch.zeros_like(y0).bool(), torch.ones_like(y0).bool()
        return generate(process, bayes_model(process, P), (y0.shape, y0.shape), generator=g, known=((0 * y0, y0), keep))
    g = seeded()
    x, y = replaced(tiny(12), torch.zeros(20_000, 1).long(), g)
    exact = generated(tiny(12), bayes_model(tiny(12), P), known={0: 0}, n=1201).sum(1)
    judge_counts(x[:, 0], share(exact), 'replacement')
    assert (y == 0).all()
    y0 = sample_categorical(P.sum(0).log().expand(20_000, 1, 3), g)
    x, _ = replaced(tiny(100), y0, g)
    drawn = torch.bincount((3 * x + y0)[:, 0], minlength=12).reshape(4, 3) / len(x)
    assert total_variation(drawn, P) > 0.15


def test_a_partial_mask():
    "K23: one of two classes is known: replacement keeps its error, weights reach the model's own law (4 standard errors)."
    p = torch.tensor([[20, 5, 3, 2], [5, 12, 3, 5], [2, 3, 14, 4], [1, 2, 4, 15]]).double() / 100
    process, n = tiny(12, K=2), 40_000
    model = bayes_model(process, p)
    def given_first(table): return share(table[:, 2:]) # layouts (1, 0) and (1, 1)
    exact = given_first(generated(process, model, S=4, n=1201))
    held = given_first(generated(process, model, S=4, known={0: 1}))
    y0, keep = torch.tensor([[1, 0]]).expand(n, 2), torch.tensor([[True, False]]).expand(n, 2)
    (x, y), log_w = weighted_given_y(process, model, (n, 1), y0, keep, seeded())
    w, cell = log_w.exp() / log_w.exp().mean(), 2 * x[:, 0] + y[:, 1]
    got = torch.zeros(8).double().index_add(0, cell, w) / n
    off = w[:, None] * ((cell[:, None] == torch.arange(8)).double() - exact.reshape(-1))
    assert ((got - exact.reshape(-1)).abs() < 4 * off.std(0) / n ** 0.5).all() and (y[:, 0] == 1).all()
    assert total_variation(held, given_first(p)) > 2 * total_variation(exact, given_first(p))


@pytest.mark.parametrize('flat', [True, False])
def test_a_label_is_one_class_with_or_without_an_axis(flat):
    "y of shape (B,) and (B, 1) are the same chain, in training, in bounds and in draws (K21, K23)."
    process, g = Joint(Gaussian(4, cosine_schedule(6), predict='x0'), Multinomial(3, cosine_schedule(6))), seeded()
    x0, y0, t = torch.randint(4, (40, 2), generator=g), torch.randint(3, (40, 1), generator=g), torch.randint(1, 7, (40,), generator=g)
    def model(z_t, times):
        x_t, y_t = z_t
        mean = torch.tanh(x_t + y_t.reshape(-1, 1))[..., None]
        return mean, (x_t[:, :1] * torch.arange(3.)).reshape(*y_t.shape, 3)
    shape = (lambda y: y[:, 0]) if flat else (lambda y: y)
    (x_t, y_t), times = clean_mix(process, (x0, shape(y0)), t, seeded(1))
    (x_1, y_1), times_1 = clean_mix(process, (x0, y0), t, seeded(1))
    assert torch.equal(x_t, x_1) and torch.equal(y_t, shape(y_1)) and torch.equal(times, times_1)
    each = [elbo(process, model, (x0, y), generator=seeded())['each'] for y in (shape(y0), y0)]
    close(*each)
    pair = [generate(process, model, ((40, 2), tuple(y.shape)), generator=seeded()) for y in (shape(y0), y0)]
    assert torch.equal(pair[0][0], pair[1][0]) and torch.equal(pair[0][1], shape(pair[1][1]))
    known = [generate(process.y, given_x(model, to_levels(x0, 4)), tuple(y.shape), generator=seeded()) for y in (shape(y0), y0)]
    assert torch.equal(known[0], shape(known[1]))
    image = [generate(process.x, given_y(model, y), (40, 2), generator=seeded()) for y in (shape(y0), y0)]
    assert torch.equal(*image)
