"What core promises for every process: integers of any dtype, randomness of each example, a network's mode, shapes, limits, errors that fit."
import pytest
import torch
from discdiff_nb.core import ShapeError, cosine_schedule, elbo, generate, linear_schedule
from discdiff_nb.gaussian import Gaussian
from discdiff_nb.multinomial import Multinomial
from discdiff_nb.oracle import Dense


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
