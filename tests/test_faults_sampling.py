"Faults of samplers and data, each with its whole kind: wrappers, dtypes, limits, integers, seeds."

import copy
import functools
import hashlib
import math
import pickle
import re
from fractions import Fraction
import pytest
import torch
from hypothesis import given, settings, strategies as st
from discdiff_nb import core, data
from discdiff_nb.core import (
    INTEGERS, DiscdiffError, NotFiniteError, cosine_schedule, elbo, generate, linear_schedule,
    reciprocal_schedule, sigmoid_schedule)
from discdiff_nb.d3pm import Absorbing
from discdiff_nb.gaussian import Gaussian, clipped, jump, posterior, target_line, to_classes
from discdiff_nb.joint import Joint, bayes_model
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.sampling import (Counted, Remasking, clean_logits, ddim, ddim_step,
                                  generate_by_confidence, generate_few_calls, generated_p, guided,
                                  inpaint, log_p_given_times, number_of_calls, perfect_gaussian,
                                  perfect_network, reveal_in_order, reveal_times, start_time,
                                  windowed, with_temperature, with_top_p)
from discdiff_nb.viz import pixels

few = settings(max_examples=40, deadline=None, derandomize=True)
seed = lambda n: torch.Generator().manual_seed(n)
SCHEDULES = reciprocal_schedule, cosine_schedule, sigmoid_schedule

# wrappers: any order, any two

WRAPPERS = {
    'clipped': clipped,
    'ddim': ddim,
    'half': lambda p: ddim(p, 0.5),
    'ancestral': lambda p: ddim(p, 1.0),
}
ETA = {'ddim': 0.0, 'half': 0.5, 'ancestral': 1.0}


def step_by_hand(process, out, x_t, t, s, eta, clip, generator):
    "One step of a Gaussian with the posterior's variance, in float64, from the formulas alone."
    u, w = target_line(process.schedule, process.predict, t, x_t.ndim)
    x0 = (out[..., 0].double() - w * x_t) / u
    if clip:
        x0 = x0.clamp(-1, 1)
    (scale_s, var_s), (scale_t, var_t) = (
        jump(process.schedule, 0 * r, r, x_t.ndim) for r in (s, t)
    )
    w_0, w_t, var = posterior(process.schedule, s, t, x_t.ndim)
    mean = w_0 * x0 + w_t * x_t
    if eta is not None:
        var = eta**2 * var
        mean = (
            scale_s * x0 + (var_s - var).clamp(min=0).sqrt() * (x_t - scale_t * x0) / var_t.sqrt()
        )
    if (s == 0).all():
        return to_classes(mean, process.K)
    return mean + var.sqrt() * torch.randn(x_t.shape, generator=generator)


@few
@given(
    st.lists(st.sampled_from(list(WRAPPERS)), min_size=1, max_size=3),
    st.sampled_from(['eps', 'x0', 'v']),
    st.integers(0, 7),
    st.integers(0, 99),
)
def test_wrappers_of_a_gaussian_commute(names, predict, time, n):
    process = plain = Gaussian(5, linear_schedule(8, 0.05, 0.4), predict)
    for name in names:
        process = WRAPPERS[name](process)
    eta = next((ETA[name] for name in names[::-1] if name in ETA), None)
    x_t, out = (
        3 * torch.randn(4, 3, generator=seed(n), dtype=torch.float64),
        3 * torch.randn(4, 3, 1, generator=seed(n + 1)),
    )
    t, s = torch.full((4,), 8), torch.full((4,), time)
    want = step_by_hand(plain, out, x_t, t, s, eta, 'clipped' in names, seed(n)).double()
    for same in (
        process,
        copy.copy(process),
        copy.deepcopy(process),
        pickle.loads(pickle.dumps(process)),
        Joint(process, process).halves[1],
    ):
        torch.testing.assert_close(
            same.step(out, x_t, t, s, seed(n)).double(), want, rtol=1e-9, atol=1e-9
        )
    x0 = torch.randint(5, (4, 3), generator=seed(n))
    bound = clipped(plain) if 'clipped' in names else plain
    torch.testing.assert_close(process.L_t(out, x0, x_t, t), bound.L_t(out, x0, x_t, t))


@pytest.mark.parametrize('wrap', [clipped, ddim])
def test_wrappers_refuse_what_they_cannot_change(wrap):
    gauss, uniform = Gaussian(3, linear_schedule(4)), Multinomial(3, cosine_schedule(4))

    class Own(Gaussian):
        def step(self, out, x_t, t, s=None, generator=None):
            return x_t

    for process in (uniform, Joint(gauss, uniform), None) + (
        (Own(3, linear_schedule(4)),) if wrap is ddim else ()
    ):
        with pytest.raises(DiscdiffError):
            wrap(process)


# float32 logits beside float64 logits


@few
@given(
    st.sampled_from(SCHEDULES),
    st.sampled_from([1, 2, 5, 50, 1000]),
    st.sampled_from([0.0, 0.3, 0.999, 1.0]),
    st.integers(2, 6),
    st.integers(0, 99),
)
def test_remasking_in_float32(make, T, share, K, n):
    process, g = Remasking(K, make(T), share), seed(n)
    t = torch.cat(
        [torch.randint(1, T + 1, (60,), generator=g), torch.tensor([1, T, (T + 1) // 2, min(2, T)])]
    )
    x0 = torch.randint(K - 1, (64, 2), generator=g)
    logits = 30 * torch.rand(64, 1, 1, generator=g) * torch.randn(64, 2, K, generator=g)
    x_t = process.q_sample(x0, t, g)
    agree(*(process.L_t(lg, x0, x_t, t).double() for lg in (logits, logits.double())))
    agree(*(process.p_posterior(lg, x_t, t).double() for lg in (logits, logits.double())))


def agree(got, want):
    "To 1e-3 relative or 1e-7 nats, or infinite in both."
    assert torch.equal(got.isinf(), want.isinf())
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-7)


def test_remasking_bound_in_float32():
    process, x0 = (
        Remasking(5, reciprocal_schedule(1000), 1.0),
        torch.randint(4, (10, 8), generator=seed(0)),
    )
    low, high = (
        elbo(process, lambda x_t, t: torch.zeros(*x_t.shape, 5, dtype=dtype), x0, 10, seed(0))[
            'total'
        ]
        for dtype in (torch.float32, torch.float64)
    )
    assert math.isfinite(high) and abs(low / high - 1) < 1e-3


def test_remasking_takes_back_all_that_is_allowed():
    "At share 1, where sigma is below 1, every blank is revealed: exactly, at every stride."
    for make in SCHEDULES:
        for T in (3, 40):
            process = Remasking(3, make(T), 1.0)
            for t in range(1, T + 1):
                for s in range(t):
                    a_s, a_t = process.schedule.alpha_bar[[s, t]]
                    x_t, tt, ss = torch.tensor([[2]]), torch.tensor([t]), torch.tensor([s])
                    stay = (
                        process.p_posterior(torch.zeros(1, 1, 3), x_t, tt, ss)[0, 0, 2]
                        .exp()
                        .double()
                    )
                    torch.testing.assert_close(
                        stay, ((1 - a_s - a_t) / (1 - a_t)).clamp(min=0), rtol=1e-9, atol=1e-15
                    )
                    if a_t >= 1 - a_s:
                        assert stay == 0


# guidance where a class is struck out

LOGIT = st.one_of(st.just(-math.inf), st.floats(-5, 5, width=32))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.integers(1, 5).flatmap(lambda K: st.tuples(*[st.lists(LOGIT, min_size=K, max_size=K)] * 2)),
    st.sampled_from([0.1, 0.5, 0.9, 1.1, 1.5, 3.0]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_guidance_has_its_limit(rows, w, dtype):
    "The answer is what networks give that say -M where these say -inf, M to infinity."
    u, c = (torch.tensor(row, dtype=dtype) for row in rows)
    if not ((u > -math.inf).any() and (c > -math.inf).any()):
        return  # no network's answer
    model = guided(
        lambda x_t, t, y: torch.where((y == 0)[:, None, None], c, u), torch.tensor([0, 1]), 1, w
    )
    ask = lambda: model(torch.zeros(2, 1, dtype=torch.long), torch.tensor([1, 1]))
    if w < 1 and not ((u > -math.inf) & (c > -math.inf)).any():
        with pytest.raises(NotFiniteError, match='weight'):
            ask()
        return
    near_u, near_c = (x.double().clamp(min=-1e4) for x in (u, c))
    got = ask().double().softmax(-1)
    torch.testing.assert_close(
        got[0, 0],
        (near_u + w * (near_c - near_u)).softmax(-1),
        rtol=0,
        atol=1e-5 if dtype == torch.float32 else 1e-9,
    )
    torch.testing.assert_close(got[1, 0], u.double().softmax(-1), rtol=0, atol=1e-6)


def test_guidance_names_what_is_no_answer():
    for bad in (math.inf, math.nan):
        model = guided(
            lambda x_t, t, y: torch.where(
                y[:, None, None] == 0, torch.tensor([0.0, bad]), torch.zeros(2)
            ),
            torch.zeros(3).long(),
            1,
            2.0,
        )
        with pytest.raises(NotFiniteError):
            model(torch.zeros(3, 1).long(), torch.ones(3).long())
    for w, u, c in (
        (2.0, -math.inf, 1.0),
        (0.5, -math.inf, math.inf),
        (0.5, 1.0, -math.inf),
    ):  # levels: there is no class to strike out
        model = guided(
            lambda x_t, t, y: torch.where(y[:, None, None] == 0, c, u) + torch.zeros(3, 1, 1),
            torch.zeros(3).long(),
            1,
            w,
        )
        with pytest.raises(NotFiniteError):
            model(torch.zeros(3, 1), torch.ones(3).long())


# shares of blanks beside 1 - alpha_bar


def first_time(schedule, share):
    "min{t : 1 - alpha_bar_t >= share}, in fractions; tables are right to 1e-12."
    return next(
        t
        for t in range(schedule.T + 1)
        if 1 - Fraction(schedule.alpha_bar[t].item()) >= share - Fraction(1, 10**12)
    )


@pytest.mark.parametrize('make', SCHEDULES)
@pytest.mark.parametrize('T', [1, 2, 6, 10, 48, 64])
def test_start_time_is_one_whatever_the_dtype(make, T):
    process = Absorbing(4, make(T))
    pairs = sorted({Fraction(k, D) for D in range(1, 34) for k in range(D + 1)})
    want = torch.tensor([first_time(process.schedule, h) for h in pairs])
    if make is reciprocal_schedule:
        assert want.tolist() == [math.ceil(h * T) for h in pairs]
    shares = torch.tensor([float(h) for h in pairs], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(start_time(process, shares.to(dtype)), want)
    got, gone = start_time(process, shares.half()), 1 - process.schedule.alpha_bar
    near = (gone - shares[:, None]).abs().amin(1)  # to a level that half precision may not tell apart
    same = (near < 1e-12) | (near > 2**-10)
    assert torch.equal(got[same], want[same]) and same.double().mean() > 0.5
    assert (got - want).abs().max() <= 1


def test_start_time_that_the_dtype_cannot_tell():
    process = Absorbing(4, reciprocal_schedule(10_000))
    assert (
        start_time(process, torch.tensor([2 / 3])).item()
        == start_time(process, torch.tensor([2 / 3]).double()).item()
        == 6667
    )
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(DiscdiffError, match='float64'):
            start_time(process, torch.tensor([2 / 3], dtype=dtype))
    assert start_time(process, torch.tensor([0, 1])).tolist() == [0, 10_000]


@few
@given(st.sampled_from(SCHEDULES), st.integers(1, 40), st.integers(1, 24), st.data())
def test_inpaint_starts_at_that_time(make, T, D, data):
    k, process, told = data.draw(st.integers(1, D)), Absorbing(4, make(T)), []

    def hears(x_t, t):
        told.append(t)
        return torch.zeros(*x_t.shape, 4)

    keep = torch.arange(D).expand(50, D) >= k
    inpaint(process, hears, torch.zeros(50, D).long(), keep, seed(0))
    first = torch.stack(told).amax()
    assert first <= first_time(process.schedule, Fraction(k, D))


# one generator for each example


def seeds(*numbers):
    return [seed(n) for n in numbers]


def lone(process):
    "A network whose answer for an example depends on this example and its time alone."

    def model(x_t, t):
        wave = torch.sin(
            3.0 * x_t.double()[..., None]
            + torch.arange(getattr(process, 'channels', process.K))
            + t.reshape(-1, *[1] * x_t.ndim)
        )
        return wave + wave.roll(1, 1)

    return model


MASK, UNIFORM, GAUSS = (
    Absorbing(5, cosine_schedule(12)),
    Multinomial(5, cosine_schedule(12)),
    Gaussian(5, linear_schedule(12, 0.05, 0.4)),
)
X0, KEEP = torch.randint(4, (5, 6), generator=seed(0)), torch.rand(5, 6, generator=seed(1)) < 0.4
windows = lambda B, g: generate(MASK, windowed(MASK, lone(MASK), (4,), 2), (B, 6), 7, g)
SAMPLERS = {
    'few calls': lambda B, g: generate_few_calls(MASK, lone(MASK), (B, 6), generator=g),
    'few calls, strides': lambda B, g: generate_few_calls(MASK, lone(MASK), (B, 6), 5, g),
    'few calls, uniform': lambda B, g: generate_few_calls(
        UNIFORM, lone(UNIFORM), (B, 6), generator=g
    ),
    'confidence, token': lambda B, g: generate_by_confidence(MASK, lone(MASK), (B, 6), 6, g),
    'confidence, position': lambda B, g: generate_by_confidence(
        MASK, lone(MASK), (B, 6), 6, g, by='position'
    ),
    'remasking': lambda B, g: generate(
        Remasking(5, cosine_schedule(12), 0.7), lone(MASK), (B, 6), generator=g
    ),
    'ddim': lambda B, g: generate(clipped(ddim(GAUSS, 0.5)), lone(GAUSS), (B, 6), generator=g),
    'ddim, no noise': lambda B, g: generate(ddim(GAUSS), lone(GAUSS), (B, 6), 4, g),
    'windows': windows,
    'temperature, top p': lambda B, g: generate(
        MASK, with_temperature(MASK, with_top_p(MASK, lone(MASK), 0.9), 0.7), (B, 6), generator=g
    ),
    'reveal times': lambda B, g: reveal_times(MASK, (B, 6), g),
}


@pytest.mark.parametrize('name', SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    draw = SAMPLERS[name]
    generators = seeds(5, 6, 7, 8, 9)
    together = draw(5, generators)
    for i in range(5):
        assert torch.equal(together[i : i + 1], draw(1, seed(5 + i))), name
    assert torch.equal(together[1:3], draw(2, tuple(seeds(6, 7))))
    assert len({tuple(row.tolist()) for row in together}) > 1
    after = torch.rand(1, generator=generators[0])
    generators = seeds(5)
    draw(1, generators)
    assert torch.equal(
        after, torch.rand(1, generator=generators[0])
    )  # others in the batch took nothing from it
    with pytest.raises(DiscdiffError):
        draw(5, seeds(5, 6))


def test_filled_holes_do_not_depend_on_the_batch():
    together = inpaint(MASK, lone(MASK), X0, KEEP, seeds(5, 6, 7, 8, 9))
    for i in range(5):
        assert torch.equal(
            together[i : i + 1],
            inpaint(MASK, lone(MASK), X0[i : i + 1], KEEP[i : i + 1], seed(5 + i)),
        )
    with pytest.raises(DiscdiffError):
        inpaint(MASK, lone(MASK), X0, KEEP, seeds(5, 6))


# networks that are inside others


class Noisy(torch.nn.Module):
    "Answers 0 in evaluation, and says so when it is asked in training."

    def __init__(self, K):
        super().__init__()
        self.K, self.drop, self.asked_in_training = K, torch.nn.Dropout(0.5), 0

    def forward(self, x_t, t, **cond):
        self.asked_in_training += self.drop.training
        return self.drop(torch.zeros(*x_t.shape, self.K))


@pytest.mark.parametrize('training', [True, False])
def test_every_sampler_asks_in_evaluation_mode(training):
    net = Noisy(5).train(training)
    net.drop.train(not training)
    models = [
        net,
        Counted(net),
        with_temperature(MASK, net, 0.5),
        with_top_p(MASK, Counted(net), 0.9),
        guided(net, torch.zeros(3).long(), 2, 2.0),
        windowed(MASK, with_temperature(MASK, net, 2.0), (3,), 1),
        functools.partial(net, y=None),
        net.forward,
        Counted(functools.partial(with_temperature(MASK, net, 1.0))),
    ]
    x0, keep, tau = (
        torch.zeros(3, 6).long(),
        torch.arange(6).expand(3, 6) < 3,
        torch.ones(3, 6).long(),
    )
    for model in models:
        generate(MASK, model, (3, 6), generator=seed(0))
        generate_few_calls(MASK, model, (3, 6), generator=seed(0))
        generate_by_confidence(MASK, model, (3, 6), generator=seed(0))
        inpaint(MASK, model, x0, keep, seed(0))
        log_p_given_times(MASK, model, x0, torch.full((3, 6), 4), tau)
        elbo(MASK, model, x0, 2, seed(0))
    assert net.asked_in_training == 0 and net.training == training and net.drop.training != training
    generated_p(MASK, with_temperature(MASK, net, 0.5), 2)
    assert net.asked_in_training == 0


# integers of every size


def fits(dtype, K):
    return min(K, torch.iinfo(dtype).max + 1)


@few
@given(
    st.sampled_from(INTEGERS[:-1]),
    st.sampled_from([3, 127, 128, 129, 255, 256, 257, 1024]),
    st.integers(0, 99),
)
def test_integers_of_every_size(dtype, K, n):
    g, T = seed(n), 6
    mask, uniform, back = (
        Absorbing(K, reciprocal_schedule(T)),
        Multinomial(K, cosine_schedule(T)),
        Remasking(K, reciprocal_schedule(T), 0.6),
    )
    gauss, x0 = (
        Gaussian(K, linear_schedule(T, 0.1, 0.4)),
        torch.randint(fits(dtype, K - 1), (4, 3), generator=g),
    )
    x0[0, 0] = fits(dtype, K - 1) - 1
    keep = torch.rand(4, 3, generator=g) < 0.5
    x_t = torch.where((torch.rand(4, 3, generator=g) < 0.5) & (fits(dtype, K) == K), K - 1, x0)
    t, tau = torch.arange(2, 6), torch.randint(1, T + 1, (4, 3), generator=g)
    out, levels = torch.randn(4, 3, K, generator=g), torch.randn(4, 3, generator=g)

    def model(x_t, t, **cond):
        assert x_t.dtype == t.dtype == torch.int64
        return out if 'y' not in cond else out * cond['y'][:, None, None]

    def mean(x_t, t):
        return levels[..., None]

    p_words, y = torch.ones(2**3) / 8, torch.randint(fits(dtype, K + 1), (4,), generator=g)
    small = Multinomial(2, cosine_schedule(T))
    calls = [
        lambda i: inpaint(mask, model, i(x0), keep, seed(0)),
        lambda i: reveal_in_order(uniform, model, i(x0), i(tau), seed(0)),
        lambda i: reveal_in_order(mask, model, i(x_t), i(torch.where(x_t == K - 1, tau, 0)), seed(0)),
        lambda i: log_p_given_times(uniform, model, i(x0), i(x0), i(tau)),
        lambda i: number_of_calls(i(tau)),
        lambda i: reveal_times(mask, (4, 3), seed(0), i(t)),
        lambda i: clean_logits(mask, out, i(x_t)),
        lambda i: back.q_posterior(i(x0), i(x_t), i(t)),
        lambda i: back.p_posterior(out, i(x_t), i(t), i(t - 2)),
        lambda i: back.L_t(out, i(x0), i(x_t), i(t)),
        lambda i: back.step(out, i(x_t), i(t), i(t - 1), seed(0)),
        lambda i: back.q_sample(i(x0), i(t), seed(0)),
        lambda i: ddim_step(gauss, levels[..., None], levels, i(t), i(t - 1), seed(0), 0.5),
        lambda i: clipped(ddim(gauss, 0.5)).step(
            levels[..., None], levels, i(t), i(t - 1), seed(0)
        ),
        lambda i: with_temperature(mask, model, 0.5)(i(x_t), i(t)),
        lambda i: with_top_p(mask, model, 0.5)(i(x_t), i(t)),
        lambda i: guided(model, i(y), K, 2.0)(i(x_t), i(t)),
        lambda i: windowed(mask, lambda x, t: out[:, :2], (2,), 1)(i(x_t), i(t)),
        lambda i: perfect_network(small, p_words, 3)(i(x0 % 2), i(t)),
        lambda i: perfect_gaussian(Gaussian(2, linear_schedule(T, 0.1, 0.4)), p_words, 3)(
            levels, i(t)
        ),
    ]
    for j, call in enumerate(calls):
        want, got = call(lambda x: x), call(lambda x: x.to(dtype))
        assert (
            got == want
            if isinstance(want, int)
            else torch.equal(got, want) and got.dtype == want.dtype
        ), j


# data and pictures


@few
@given(
    st.sampled_from(INTEGERS[:-1]),
    st.sampled_from([2, 27, 127, 128, 200, 256, 257, 1024]),
    st.integers(0, 99),
)
def test_data_in_integers_of_every_size(dtype, K, n):
    g, k = seed(n), fits(dtype, K)
    x = torch.randint(k, (20, 3, 4), generator=g)
    x[0, 0, 0], text, labels = k - 1, x.flatten(), torch.randint(min(10, k), (20,), generator=g)
    letters = torch.randint(28, (30,), generator=g)
    calls = [
        lambda i: data.reduce_levels(i(x), K, 2),
        lambda i: core.pixel_marginals(i(x), K),
        lambda i: core.pixel_marginals(i(labels), 10),
        lambda i: core.minibatch(i(x), 3, 4, 0).long(),
        lambda i: data.windows(i(text), 7),
        lambda i: data.crops(i(text), 7, 2, 5, 0),
        lambda i: data.ngram_bits(data.ngram_fit(i(text), 2, K), i(text)),
        lambda i: torch.tensor(list(data.decode(i(letters)).encode())),
        lambda i: torch.tensor(pixels(i(x), K)),
        lambda i: torch.tensor(pixels(i(x), K + 1, K)),
    ]
    if K <= 256:
        calls.append(
            lambda i: torch.tensor(
                list(data.baselines(data.Images('x', i(x), i(x), i(labels), i(labels), K)).values())
            )
        )
    for j, call in enumerate(calls):
        assert torch.equal(call(lambda x: x), call(lambda x: x.to(dtype))), j


FRACTIONS = torch.rand(40, generator=seed(0))


@pytest.mark.parametrize(
    'call',
    [
        lambda: core.minibatch(FRACTIONS[:, None], 0, 4, 0),
        lambda: core.pixel_marginals(FRACTIONS[:, None], 16),
        lambda: data.reduce_levels(FRACTIONS, 256, 16),
        lambda: pixels(FRACTIONS.view(1, 5, 8), 16),
        lambda: inpaint(MASK, lone(MASK), FRACTIONS[:30].view(5, 6), KEEP),
        lambda: data.windows(FRACTIONS, 5),
        lambda: data.crops(FRACTIONS, 5, 0, 4, 0),
        lambda: data.ngram_fit(FRACTIONS, 1),
        lambda: inpaint(MASK, lone(MASK), X0, FRACTIONS[:30].view(5, 6)),
    ],
)
def test_the_remedy_for_fractions_keeps_them(call):
    with pytest.raises(DiscdiffError) as caught:
        call()
    assert not re.search(r'use \w+\.(long|bool)\(\)', str(caught.value)), caught.value


def test_the_remedy_for_a_file_fits_the_file(tmp_path):
    words = 'a caf\u00e9 in the sun, ' * 50
    for name, content, fits, wrong in [
        ('latin1', words.encode('latin1'), 'iconv -f latin1', 'utf-16'),
        ('utf16', words.encode('utf-16'), 'iconv -f utf-16', 'latin1'),
        ('png', b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + bytes(range(256)) * 9, 'not a text', 'iconv'),
        ('zip', b'PK\x03\x04\x14\0\0\0\x08\0' + b'abc' * 99, 'not a text', 'iconv'),
        ('nul', b'abc\0' * 50, 'not a text', 'iconv'),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DiscdiffError) as caught:
            data.text_file(tmp_path / name)
        assert fits in str(caught.value) and wrong not in str(caught.value), caught.value


@pytest.mark.parametrize('content', ['', '[["a", 3', '{"a": 3}', '[["a", "b"]]', '[3]', '\0'])
def test_a_damaged_list_of_works(tmp_path, monkeypatch, content):
    (tmp_path / 'novels27').mkdir()
    (tmp_path / 'novels27' / 'novels27_to1930.txt').write_text('abc')
    (tmp_path / 'novels27' / 'novels_to1930_lengths.json').write_text(content)
    text, lengths = data._NOVELS
    whole = text._replace(sha256=hashlib.sha256(b'abc').hexdigest())
    monkeypatch.setattr(data, '_NOVELS', [whole, lengths])
    with pytest.raises(DiscdiffError, match='lengths.json'):
        data.novels27(tmp_path)


def test_pictures_of_another_shape():
    x = torch.zeros(2, 3, 4).long()
    for bad, remedy in (
        (x[0], 'x[None]'),
        (x[:, None], 'x[:, 0]'),
        (x[0, 0], 'x.view'),
        (x[None, None], 'x.view'),
    ):
        with pytest.raises(DiscdiffError, match=re.escape(remedy)):
            pixels(bad, 5)
    with pytest.raises(DiscdiffError, match='one channel'):
        pixels(x[:, None].expand(2, 3, 3, 4), 5)
    for mask_id in (0, 3, 5, -1):
        with pytest.raises(DiscdiffError, match='K - 1'):
            pixels(x, 5, mask_id)


def test_batches_of_what_is_none():
    for x in (torch.tensor(3), torch.zeros(0, 3).long()):
        with pytest.raises(DiscdiffError):
            core.minibatch(x, 0, 2, 0)
    for batch_size, step in ((2.5, 0), (2, 0.5), (True, 0), ('2', 0)):
        with pytest.raises(DiscdiffError):
            core.minibatch(torch.arange(9), step, batch_size, 0)
        with pytest.raises(DiscdiffError):
            data.crops(torch.arange(9), 3, step, batch_size, 0)


# temperature and top-p at their limits


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize('temperature', [5e-324, 1e-300, 1e-38, 1e-6])
def test_a_cold_model_answers_its_likeliest_class(dtype, temperature):
    logits = torch.tensor(
        [[[50.0, 49.0, -math.inf, 48.0, 1e4]], [[-3.0, -2.0, -math.inf, -5.0, 0.0]]], dtype=dtype
    )
    p = with_temperature(MASK, lambda x_t, t: logits, temperature)(
        torch.zeros(2, 1).long(), torch.tensor([1, 2])
    ).softmax(-1)
    assert torch.equal(
        p.double(), torch.tensor([[[1.0, 0, 0, 0, 0]], [[0.0, 1, 0, 0, 0]]], dtype=torch.float64)
    )


@few
@given(st.lists(st.integers(1, 40), min_size=2, max_size=8), st.integers(1, 8), st.integers(0, 99))
def test_top_p_keeps_the_same_classes_in_every_dtype(counts, n, shift):
    "top_p is a sum of fractions: the fewest classes that reach it are known without a float."
    K, total, n = len(counts), sum(counts), min(n, len(counts))
    ordered = sorted(range(K), key=lambda k: (-counts[k], k))
    goal = Fraction(sum(counts[k] for k in ordered[:n]), total)
    if goal == 1:
        return
    want = [k in ordered[:n] for k in range(K)]
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([math.log(c / total) + shift / 7 for c in counts], dtype=dtype)
        got = with_top_p(
            Multinomial(K, cosine_schedule(3)), lambda x_t, t: logits.expand(1, 1, K), float(goal)
        )(torch.zeros(1, 1).long(), torch.tensor([1]))
        assert (got[0, 0] > -math.inf).tolist() == want


def test_perfect_networks_of_float32_tables():
    p, x_t, t = (
        torch.rand(27, generator=seed(0)) + 0.01,
        torch.randint(3, (4, 3), generator=seed(1)),
        torch.tensor([1, 2, 5, 6]),
    )
    uniform, gauss = Multinomial(3, cosine_schedule(6)), Gaussian(3, linear_schedule(6, 0.1, 0.4))
    for make, process, x in (
        (perfect_network, uniform, x_t),
        (perfect_gaussian, gauss, torch.randn(4, 3, generator=seed(2))),
    ):
        low, high = (make(process, table, 3)(x, t) for table in (p, p.double()))
        torch.testing.assert_close(low, high, rtol=0, atol=1e-12)


@pytest.mark.parametrize('sampler', [generate_few_calls, generate_by_confidence, generate])
def test_examples_of_one_position_are_sampled_without_an_axis_for_it(sampler):
    "(B,) and (B, 1) are the same examples, drawn alike; holes are filled alike."
    process = Absorbing(4, reciprocal_schedule(6))
    def model(x_t, t): return torch.tensor([0.1, 2., -1., 5.]).expand(*x_t.shape, 4)
    def seed(): return torch.Generator().manual_seed(3)
    flat = sampler(process, model, (40,), generator=seed())
    assert flat.shape == (40,) and torch.equal(flat[:, None], sampler(process, model, (40, 1), generator=seed()))
    keep = torch.arange(40) % 2 == 0
    filled = inpaint(process, model, flat, keep, seed())
    assert torch.equal(filled[:, None], inpaint(process, model, flat[:, None], keep[:, None], seed()))
    assert torch.equal(filled[keep], flat[keep]) and (filled < 3).all()


# what the chapter leaves to tests


@pytest.mark.parametrize('s, u, t', [(0, 1, 2), (1, 3, 8), (2, 4, 7)])
def test_two_jumps_of_the_gaussian_posterior_are_one(s, u, t):
    "From t to u and from u to s: the coefficients of x_0 and x_t, and the variance, of t to s."
    def stride(s, t): return posterior(cosine_schedule(9), torch.tensor([s]), torch.tensor([t]), 1)
    a, b, v = stride(s, u)
    c, d, w = stride(u, t)
    for got, want in zip((a + b * c, b * d, v + b**2 * w), stride(s, t)):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize('eta', [0.25, 0.5, 1.0])
def test_ddim_spreads_by_eta(eta):
    "From one x_t, the spread of the step is eta times the posterior's; at eta = 0 there is none."
    gauss, n = Gaussian(2, cosine_schedule(16), predict='x0'), 40_000
    x_t, out = torch.full((n, 1), 0.3).double(), torch.ones(n, 1, 1)
    t, s = torch.full((n,), 9), torch.full((n,), 4)
    std = posterior(gauss.schedule, s[:1], t[:1], 1)[2].sqrt()
    spread = ddim(gauss, eta).step(out, x_t, t, s, seed(0)).std() / (eta * std)
    assert abs(spread - 1) < 4 / (2 * n) ** 0.5
    still = [ddim(gauss).step(out, x_t, t, s, seed(i)) for i in (0, 1)]
    assert torch.equal(*still) and still[0].unique().numel() == 1


@pytest.mark.parametrize('B', [1, 64])
def test_a_thousand_steps_take_no_more_calls_than_positions(B):
    process = Absorbing(5, reciprocal_schedule(1000))
    def idle(x_t, t): return torch.zeros(*x_t.shape, 5)
    few, every = Counted(idle), Counted(idle)
    generate_few_calls(process, few, (B, 256), generator=seed(0))
    assert 150 < few.calls <= 256
    generate(process, every, (1, 4), generator=seed(0))
    assert every.calls == 1000


@pytest.mark.parametrize('schedule', [reciprocal_schedule(64), cosine_schedule(64), reciprocal_schedule(10)])
def test_no_hole_is_filled_at_a_later_time_than_its_start(schedule):
    "1 - alpha_bar reaches the share unknown at t_0 and not before; each example starts at its own."
    process, gone, h = Absorbing(3, schedule), 1 - schedule.alpha_bar, torch.arange(0, 11) / 10
    t_0 = start_time(process, h)
    assert (gone[t_0] >= h - 1e-6).all() and (gone[t_0 - 1] < h)[1:].all()
    assert t_0[0] == 0 and t_0[-1] == schedule.T
    asked, keep = [], torch.rand(500, 8, generator=seed(0)) < 0.6
    def network(x_t, t):
        asked.append(t)
        return torch.zeros(*x_t.shape, 3)
    inpaint(process, network, torch.zeros(500, 8).long(), keep, seed(0))
    first = start_time(process, (~keep).double().mean(1))
    assert (torch.stack(asked).amax(0) <= first.clamp(min=1)).all()


def test_a_pair_is_guided_in_both_halves():
    "One pixel of three levels and one letter: the label's own law at weight 1, exaggerated at 3."
    linear = linear_schedule(8, 0.1, 0.6)
    pair = Joint(Gaussian(3, linear, predict='x0'), Multinomial(2, linear))
    tables = torch.tensor([[[0.4, 0.1], [0.2, 0.1], [0.1, 0.1]], [[0.05, 0.1], [0.1, 0.2], [0.1, 0.45]]]).double()
    experts = [bayes_model(pair, p) for p in (*tables, sum(tables) / 2)]  # label 0, label 1, no label
    def one_label(z_t, t, y): return experts[int(y[0])](z_t, t)
    labels, right, level_2 = torch.ones(2000).long(), tables[1].sum(1)[2], {}
    for w in (1.0, 3.0):
        x, letter = generate(pair, guided(one_label, labels, 2, w), ((2000, 1), (2000, 1)), generator=seed(0))
        level_2[w] = (x == 2).double().mean()
        assert w == 1 or (letter == 1).double().mean() > tables[1].sum(0)[1] + 0.05
    assert abs(level_2[1.0] - right) < 0.06  # eight Gaussian steps are not exact
    assert level_2[3.0] > right + 0.05
