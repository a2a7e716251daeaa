"Wrong inputs of core: which error, and what it says."
import math
import pytest
import torch
from discdiff_nb.core import (ClassError, DataError, DtypeError, NotFiniteError, Process, Schedule,
                              ScheduleError, ShapeError, TimeError, check_classes, check_finite,
                              check_keep, check_logits, check_t, cosine_schedule, device_of, elbo,
                              evaluating, minibatch, overwrite_known, pixel_marginals, rand,
                              sample_categorical, step_times)

GRAY = torch.tensor([[0., 0.2, 1.]])
LEVELS = torch.randint(3, (50, 2, 2), generator=torch.Generator().manual_seed(0))
PLACES = torch.arange(10)


class Toy(Process):
    T = 100
    def q_sample(self, x0, t, generator=None): return tuple(x + t[:, None] for x in x0)


def two_generators(): return [torch.Generator().manual_seed(n) for n in (4, 5)]
def schedule(*tables): return lambda: Schedule(*tables)
def times(*values): return lambda: check_t(torch.tensor(*values), 10)
def classes(x0): return lambda: check_classes(x0, 5)
def batch(*args): return lambda: minibatch(*args)
def bound(**options): return lambda: elbo(Toy(), None, torch.ones(2, 3), **options)
def marginals(x): return lambda: pixel_marginals(x, 3)


PARTS = torch.full((2, 3), -5.), torch.full((2, 1), 9.)
KEEP = torch.tensor([[True, False, False]] * 2), torch.ones(2, 1).bool()
def overwritten(*keep): return lambda: overwrite_known(Toy(), PARTS, (PARTS, keep), 0)


CALLS = {
    'time 0': (times([0]), TimeError, 'allowed is 1..10'),
    'time T + 1': (times([11]), TimeError, '1..10'),
    'time as a float': (times([1.]), DtypeError, 't.long()'),
    'a share of the way': (times([0.5]), DtypeError, '(1 + 10 * t).long()'),
    'a fraction': (times([2.5]), DtypeError, 't.round()'),
    'a boolean time': (times([True]), DtypeError, 'no times'),
    'one time for all': (times(3), ShapeError, '(B,)'),
    'class K': (classes(torch.tensor([[5]])), ClassError, '0..4'),
    'no classes': (classes(torch.zeros(0, 4).long()), DataError, 'empty'),
    'gray values': (classes(GRAY), DtypeError, 'reduce_levels((255 * x0).round().long(), 256, 5)'),
    'levels within -1..1': (classes(2 * GRAY - 1), DtypeError, 'to_classes(x0, 5)'),
    'other floats': (classes(4 * GRAY), DtypeError, 'scale them to 0..4'),
    'whole floats': (classes(GRAY.round()), DtypeError, 'use x0.long()'),
    'boolean classes': (classes(GRAY > 0), DtypeError, 'False and True'),
    'classes of NaN': (classes(GRAY / 0), DtypeError, 'NaN'),
    'keep of floats': (lambda: check_keep(GRAY), DtypeError, 'keep > 0.5'),
    'keep of integers': (lambda: check_keep(GRAY.round().int()), DtypeError, 'use keep.bool()'),
    'classes first': (lambda: check_logits(torch.zeros(2, 5, 3), torch.zeros(2, 3).long(), 5),
                      ShapeError, 'the classes come last'),
    'a NaN': (lambda: check_finite(torch.tensor([1., math.nan]), 'the loss'),
              NotFiniteError, '1 NaN of 2'),
    'no clean entry': (schedule(torch.tensor([0.1, 0.2])), ScheduleError, 'prepend'),
    'beta above 1': (schedule(torch.tensor([0., 1.2])), ScheduleError, '0..1'),
    'beta of NaN': (schedule(torch.tensor([0., math.nan])), ScheduleError, 'allowed is 0..1'),
    'two stories': (schedule([0., 0.5, 0.5], [1., 0.5, 0.2]), ScheduleError,
                    'alpha_bar[2] is 0.2, but alpha_bar[1] (1 - beta[2]) is 0.25'),
    'two lengths': (schedule([0., 0.5], [1., 0.5, 0.2]), ScheduleError, 'T+1 numbers each'),
    'alpha_bar[0]': (schedule([0., 0.5], [0.9, 0.45]), ScheduleError, 'must be 1'),
    'no steps': (lambda: cosine_schedule(0), ScheduleError, 'at least 1'),
    'rising alpha_bar': (lambda: Schedule.from_alpha_bar([1., 0.5, 0.6]), ScheduleError, 'never'),
    'unclean alpha_bar': (lambda: Schedule.from_alpha_bar([0.9, 0.5]), ScheduleError, 'T+1'),
    'early alpha_bar': (lambda: Schedule.from_alpha_bar([1., 0., 0.]), ScheduleError, 'before t'),
    'too few generators': (lambda: rand((3, 2), two_generators(), None, torch.float32),
                           ShapeError, '2 for 3 examples'),
    'no generators': (lambda: device_of([]), ShapeError, 'empty'),
    'all impossible': (lambda: sample_categorical(torch.full((2, 3), -math.inf)),
                       NotFiniteError, 'NaN'),
    'log p of NaN': (lambda: sample_categorical(torch.tensor([0., math.nan])),
                     NotFiniteError, 'NaN'),
    'log p of infinity': (lambda: sample_categorical(torch.tensor([0., math.inf])),
                          NotFiniteError, 'NaN'),
    'a batch of floats': (batch(PLACES / 2, 0, 2, 0), DtypeError, 'integers'),
    'a batch of nothing': (batch(PLACES[:0], 0, 2, 0), DataError, 'empty'),
    'a batch of size 0': (batch(PLACES, 0, 0, 0), ShapeError, '1 and more'),
    'a batch of step -1': (batch(PLACES, -1, 2, 0), DataError, 'from 0 on'),
    'marginals of floats': (marginals(LEVELS / 2), DtypeError, 'integers'),
    'marginals of class K': (marginals(LEVELS + 3), ClassError, '0..2'),
    'marginals of nothing': (marginals(LEVELS[:0]), DataError, 'empty'),
    'a bound of nothing': (lambda: elbo(Toy(), None, PARTS[0][:0]), DataError, 'empty'),
    'more strips than times': (bound(n_t=101), TimeError, '1..100'),
    'a fraction of a strip': (bound(n_t=2.5), TimeError, '2.5'),
    'more steps than T': (lambda: step_times(7, 8), TimeError, '1..7'),
    'keep of one part as integers': (overwritten(KEEP[0].int(), KEEP[1]), DtypeError, 'keep.bool()'),
    'keep of another shape': (overwritten(KEEP[1], KEEP[1]), ShapeError, 'one shape'),
}


@pytest.mark.parametrize('name', CALLS)
def test_a_wrong_input_is_told_what_to_do(name):
    call, error, words = CALLS[name]
    with pytest.raises(error) as caught: call()
    assert words in str(caught.value)


def test_a_schedule_without_alpha_bar_has_no_other_attribute_either():
    with pytest.raises(AttributeError): Schedule([0., 1., 0.5]).gamma


def test_evaluating_gives_back_each_mode_and_passes_functions_through():
    net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Dropout(0.5))
    net[1].eval()
    with evaluating(net): assert torch.equal(net(torch.ones(9)), torch.ones(9))
    assert [module.training for module in net.modules()] == [True, True, False]
    class Wrapper: model = net
    with pytest.raises(KeyError, match='False'), evaluating(Wrapper()): raise KeyError(net.training)
    assert net.training
    with evaluating(print) as f: assert f is print
