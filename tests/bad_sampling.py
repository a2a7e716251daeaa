"""Bad calls of discdiff_nb.sampling: `bad_sampling(generator)` yields (function, args, kwargs), each of which must raise a DiscdiffError."""
import math
import torch
from discdiff_nb.core import cosine_schedule, generate, linear_schedule, reciprocal_schedule
from discdiff_nb.d3pm import Absorbing
from discdiff_nb.gaussian import Gaussian
from discdiff_nb.joint import Joint
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.sampling import (Remasking, checked_shape, clean_logits, ddim, ddim_step,
                                  generate_by_confidence, generate_few_calls, generated_p, guided,
                                  inpaint, log_p_given_times, most_remasking, number_of_calls,
                                  perfect_gaussian, perfect_network, reveal_in_order, reveal_times,
                                  start_time, total_variation, window_starts, windowed,
                                  with_temperature, with_top_p)


def bad_sampling(generator):
    "About 120 bad calls of random sizes."
    pick = lambda *choices: choices[int(torch.randint(len(choices), (), generator=generator))]
    size = lambda low, high: int(torch.randint(low, high + 1, (), generator=generator))
    rand = lambda *shape: torch.rand(*shape, generator=generator)
    K, T, B, D = size(3, 6), size(2, 9), size(2, 4), size(2, 5)
    mask, uniform, gauss = Absorbing(K, reciprocal_schedule(T)), Multinomial(K, cosine_schedule(T)), Gaussian(K, cosine_schedule(T), predict='x0')
    both, back = Joint(gauss, uniform), Remasking(K, reciprocal_schedule(T), 0.5)
    model = lambda x_t, t, **cond: torch.zeros(*x_t.shape, K)
    nan_model = lambda x_t, t, **cond: torch.full((*x_t.shape, K), math.nan)
    thin = lambda x_t, t, **cond: torch.zeros(*x_t.shape, K + pick(-1, 1))
    ints = lambda x_t, t, **cond: torch.zeros(*x_t.shape, K).long()
    p = (rand((K - 1) ** 2) + 0.1).double()
    blank, tau = torch.full((B, D), K - 1), torch.randint(1, T + 1, (B, D), generator=generator)
    x0 = torch.randint(K - 1, (B, D), generator=generator)
    keep, t = rand(B, D) < 0.5, torch.randint(1, T + 1, (B,), generator=generator)
    keep[0, 0] = True
    noisy = rand(B, D)
    out = rand(B, D, 1)
    yield total_variation, (p, p[:-1]), {}
    for process in (gauss, both, None, 'mask'):
        yield perfect_network, (process, p, 2), {}
        yield generated_p, (process, model, 2), {}
        yield reveal_times, (process, (B, D)), {}
        yield reveal_in_order, (process, model, blank, tau), {}
        yield generate_few_calls, (process, model, (B, D)), {}
        yield log_p_given_times, (process, model, x0, blank, tau), {}
        yield generate_by_confidence, (process, model, (B, D)), {}
        yield with_temperature, (process, model, 1.), {}
        yield with_top_p, (process, model, 0.9), {}
        yield windowed, (process, model, (2,), 1), {}
        yield inpaint, (process, model, x0, keep), {}
        yield start_time, (process, rand(B)), {}
    yield ddim, (pick(mask, uniform, both, None),), {}
    yield perfect_gaussian, (pick(mask, uniform, both), p, 2), {}
    yield perfect_gaussian, (Gaussian(K, cosine_schedule(T), predict='x0', variance='learned'), p, 2), {}
    yield generate_few_calls, (back, model, (B, D)), {}
    for q in (p[:-1], p[None], torch.where(torch.arange(len(p)) == size(0, len(p) - 1), pick(0., -1., math.nan), p)):
        yield perfect_network, (mask, q, 2), {}
        yield perfect_network, (uniform, q, 2), {}
        yield perfect_gaussian, (gauss, q, 2), {}
    yield perfect_network, (mask, p, pick(1, 3, 0, -1, 2.5)), {}
    for steps in (0, -size(1, 9), T + size(1, 99)):
        yield generated_p, (mask, model, 2), dict(steps=steps)
        yield generate_few_calls, (mask, model, (B, D), steps), {}
        yield generate_by_confidence, (mask, model, (B, D), steps), {}
    yield generated_p, (mask, model, pick(0, -1, 99, 1.5)), {}
    for spoiled in (nan_model, thin, ints):
        yield generated_p, (mask, spoiled, 2), {}
        yield generate_few_calls, (pick(mask, uniform), spoiled, (B, D)), {}
        yield generate_by_confidence, (mask, spoiled, (B, D)), {}
        yield inpaint, (mask, spoiled, x0, keep & False), {}
        yield generate, (pick(back, mask), pick(with_temperature, with_top_p)(mask, spoiled, 0.9), (B, D)), {}
        yield generate, (mask, windowed(mask, spoiled, (2,), 1), (B, D)), {}
        yield generate, (mask, guided(spoiled, torch.zeros(B).long(), 2, 1.5), (B, D)), {}
    for eta in (-0.1, 1.5, math.nan, math.inf, '0', None):
        yield ddim, (gauss, eta), {}
        yield ddim_step, (gauss, out, noisy, t), dict(eta=eta)
    yield ddim_step, (gauss, out * math.nan, noisy, t), {}
    yield ddim_step, (gauss, out, noisy, t + T), {}
    yield ddim_step, (gauss, out, noisy, t, t), {}
    yield ddim_step, (gauss, out[:, 1:], noisy, t), {}
    yield ddim_step, (gauss, out, x0, t), {}
    for shape in ((-B,), (0,), (), (B, 0), (0, D), (B, -D), [B, D], B, (B, 2.5), None):
        yield checked_shape, (shape,), {}
        yield reveal_times, (mask, shape), {}
        yield generate_few_calls, (uniform, model, shape), {}
        yield generate_by_confidence, (mask, model, shape), {}
    yield reveal_times, (mask, (B, D)), dict(start=t[:-1])
    yield reveal_times, (mask, (B, D)), dict(start=t + T)
    yield reveal_times, (mask, (B, D)), dict(start=t.float())
    yield number_of_calls, (t[0],), {}
    yield clean_logits, (mask, rand(B, D, K + 1), x0), {}
    yield reveal_in_order, (mask, model, blank, tau + T), {}
    yield reveal_in_order, (mask, model, blank, tau.float()), {}
    yield reveal_in_order, (mask, model, blank, tau[:, 1:]), {}
    yield reveal_in_order, (mask, model, blank + 1, tau), {}
    yield reveal_in_order, (mask, model, blank.float(), tau), {}
    yield reveal_in_order, (mask, model, blank, 0 * tau), {}
    yield reveal_in_order, (mask, model, x0, tau), {}
    yield reveal_in_order, (mask, model, blank.flatten()[0], tau.flatten()[0]), {}
    yield log_p_given_times, (mask, model, blank, blank, tau), {}
    yield log_p_given_times, (mask, model, x0[:, 1:], blank, tau), {}
    for share in (-0.1, 1.1, math.nan, None, True): yield Remasking, (K, reciprocal_schedule(T), share), {}
    yield Remasking, (pick(1, 0, 2.5), reciprocal_schedule(T), 0.5), {}
    yield Remasking, (K, linear_schedule(T), 0.5), {}
    yield most_remasking, (torch.tensor(0.3), torch.tensor(0.5)), {}
    yield most_remasking, (torch.tensor(1.3), torch.tensor(pick(0.5, -0.5, math.nan))), {}
    yield back.p_posterior, (rand(B, D, K), blank, t + T), {}
    yield back.q_posterior, (x0, (x0 + 1) % (K - 1), t), {}
    yield generate_by_confidence, (mask, model, (B, D)), dict(by=pick('letter', None, 0))
    for x in (0, -1., math.nan, math.inf, '1', None):
        yield with_temperature, (mask, model, x), {}
        yield with_top_p, (uniform, model, x), {}
    yield with_top_p, (mask, model, 1 + rand(()).item()), {}
    for weight in (-0.5, math.nan, math.inf, None): yield guided, (model, torch.zeros(B).long(), 2, weight), {}
    yield guided, (model, torch.full((B,), 3), 2, 1.), {}
    yield guided, (model, torch.zeros(B), 2, 1.), {}
    yield guided, (model, torch.zeros(B, 1).long(), 2, 1.), {}
    yield guided, (model, torch.zeros(0).long(), 2, 1.), {}
    yield guided, (model, torch.zeros(B).long(), pick(0, -1, 1.5), 1.), {}
    yield guided(model, torch.zeros(B + 1).long(), 2, 2.), (x0, t), {}
    for h in (torch.tensor([1.5]), torch.tensor([-0.1]), torch.tensor([math.nan]), torch.tensor(0.5)): yield start_time, (mask, h), {}
    yield inpaint, (mask, model, x0, keep.long()), {}
    yield inpaint, (mask, model, x0, keep[:, 1:]), {}
    yield inpaint, (mask, model, x0.flatten()[0], keep.flatten()[0]), {}
    yield inpaint, (mask, model, x0.float(), keep), {}
    yield inpaint, (mask, model, torch.where(keep, K - 1, x0), keep), {}
    yield window_starts, (D, D + size(1, 3), 1), {}
    yield window_starts, (D, 2, pick(0, 3, -1, 1.5)), {}
    yield windowed, (mask, model, pick((), 2, [2], (2.5,), (0,)), 1), {}
    yield windowed, (mask, model, (2,), pick(0, 3, -1)), {}
    yield windowed(mask, model, (2, 2), 1), (x0, t), {}
    yield windowed(mask, model, (D + 1,), 1), (x0, t), {}


