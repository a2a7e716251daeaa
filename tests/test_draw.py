"Chapter 24: wrong inputs end in named errors, and the fast parser is the naive one on a thousand random images."
import itertools
import sys
import pytest
import torch
from discdiff_nb import draw
from discdiff_nb.core import ClassError, DataError, DtypeError, ShapeError, elbo

BANK = draw.with_blank(torch.randint(1, 9, (5, 2, 2), generator=torch.Generator().manual_seed(0)))
X = torch.randint(9, (3, 6, 6), generator=torch.Generator().manual_seed(1))
Z = torch.tensor([[[1, 0, 1], [1, 8, 5]]])


def bank_of(size, K=4, seed=0, high=9):
    return draw.with_blank(torch.randint(high, (K, size, size), generator=torch.Generator().manual_seed(seed)))


def net(bank=BANK, shape=(6, 6)): return draw.PartsNet(9, shape, bank, 8)
def bound(bank=BANK, cells=(3, 3)): return draw.PartsBound(9, bank, torch.zeros(*cells, len(bank)).log_softmax(-1), 1.)


WRONG = {
    'an image smaller than a patch': (lambda: draw.grid_parse(X[:, :1], BANK), ShapeError, 'smaller than a patch of 2 x 2'),
    'greedily too': (lambda: draw.parse(X[:, :, :1], BANK, 2, 1), ShapeError, 'smaller than a patch'),
    'patches from such an image': (lambda: draw.random_patches(X, 7, 1, torch.Generator()), ShapeError, 'smaller than a patch'),
    'cells that do not cover it': (lambda: draw.grid_parse(X[:, :5], BANK), ShapeError, 'do not cover 5 pixels'),
    'a stride that does not cover it': (lambda: draw.places_of((6, 5), 2, 2), ShapeError, 'another stride'),
    'a network of such an image': (lambda: net(shape=(6, 1)), ShapeError, 'smaller than a patch'),
    'a bank of another patch size, painting': (lambda: draw.painted(Z, bank_of(3), (6, 6), 2), ShapeError, 'do not cover'),
    'and where its places are fewer': (lambda: draw.painted(Z, bank_of(3), (6, 6), 3), ClassError, 'z_loc'),
    'and in the objective': (lambda: elbo(bound(bank_of(3, 5)), net(), X), ShapeError, 'one bank'),
    'and in the network': (lambda: elbo(bound(), net(bank_of(3, 5)), X), ShapeError, 'one bank'),
    'a bank of another size': (lambda: draw.PartsBound(9, bank_of(2, 7), bound().log_prior, 1.), ShapeError, '8'),
    'a bank that is no bank': (lambda: draw.grid_parse(X, BANK[0]), ShapeError, '(2, 2)'),
    'patches that are not square': (lambda: draw.grid_parse(X, BANK[:, :1]), ShapeError, 'square'),
    'one patch': (lambda: draw.grid_parse(X, BANK[:1]), ShapeError, 'at least 2'),
    'means for patches': (lambda: draw.painted(Z, BANK / 2, (6, 6), 2), DtypeError, 'round'),
    'no blank patch': (lambda: draw.parse(X, BANK[1:], 2, 1), DataError, 'with_blank'),
    'real numbers for an image': (lambda: draw.parse(X / 8, BANK, 2, 1), DtypeError, 'integer levels'),
    'one image without its batch': (lambda: draw.parse(X[0], BANK, 2, 1), DtypeError, '(6, 6)'),
    'z_is outside its table': (lambda: draw.painted(Z + torch.tensor([1, 0, 0]), BANK, (6, 6), 2), ClassError, 'z_is spans 2..2, allowed is 0..1'),
    'z_loc outside its table': (lambda: draw.painted(Z + torch.tensor([0, 1, 0]), BANK, (6, 6), 2), ClassError, 'z_loc spans 1..9, allowed is 0..8'),
    'z_id outside its table': (lambda: draw.painted(Z + torch.tensor([0, 0, 1]), BANK, (6, 6), 2), ClassError, 'z_id spans 2..6, allowed is 0..5'),
    'a negative z_id': (lambda: draw.painted(Z * torch.tensor([1, 1, -1]), BANK, (6, 6), 2), ClassError, 'z_id'),
    'z of pairs': (lambda: draw.painted(Z[..., :2], BANK, (6, 6), 2), ShapeError, '(B, n, 3)'),
    'z of real numbers': (lambda: draw.painted(Z.float(), BANK, (6, 6), 2), DtypeError, 'z_is'),
    'a grid outside of the bank': (lambda: draw.grid_painted(torch.full((1, 3, 3), 6), BANK), ClassError, 'z_id'),
    'an order outside of the places': (lambda: draw.canonical_order(Z, draw.places_of((4, 4), 2, 2)), ClassError, 'z_loc'),
    'tables larger than the classes': (lambda: draw.PartsTransformer(6, 5, (2, 3), (2, 9, 6), width=8, depth=1), ShapeError, 'tables'),
    'two tables for three': (lambda: draw.PartsTransformer(9, 5, (2, 3), (2, 9), width=8, depth=1), ShapeError, 'tables'),
    'more medoids than patches': (lambda: draw.medoids(BANK, 6), DataError, '6 medoids of 6'),
    'nothing but blank images': (lambda: draw.random_patches(0 * X, 2, 3, torch.Generator()), DataError, 'not blank'),
    'a hint without width': (lambda: draw.soft_parse(X, BANK, 0.), DataError, 'tau'),
    'an image of another size, encoded': (lambda: draw.encoded(net(), X[:, :4], torch.Generator()), ShapeError, 'this network reads'),
    'levels that the network does not have': (lambda: draw.encoded(net(), X + 1, torch.Generator()), ClassError, '9'),
    'a canvas of other levels': (lambda: draw.decoded(net(), X + 1), ClassError, 'canvas'),
    'a prior that draws what is not in the bank': (lambda: draw.prior_hole(X, X + 1, 9), ClassError, 'drawn'),
    'grids of two sizes': (lambda: draw.prior_hole(X, X[:, :4], 9), ShapeError, 'grids'),
}


@pytest.mark.parametrize('what', WRONG)
def test_wrong_inputs_are_named(what):
    call, error, words = WRONG[what]
    with pytest.raises(error) as caught: call()
    assert words in str(caught.value), str(caught.value)


def test_without_kmedoids_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'kmedoids', None)
    with pytest.raises(DataError, match='pip install kmedoids'): draw.medoids(BANK, 2)


SIZES = [((6, 6), 2, 1, 6), ((5, 8), 3, 1, 4), ((8, 8), 4, 2, 5), ((6, 9), 3, 3, 3)]  # canvas, patch, stride, patches


@pytest.mark.parametrize('shape, size, stride, K', SIZES)
def test_the_parse_is_the_naive_one_on_1000_images(shape, size, stride, K):
    "250 images each; few levels, so that ties are many, and a third of the pixels black."
    bank, g = bank_of(size, K, seed=size, high=3), torch.Generator().manual_seed(0)
    x = torch.randint(3, (250, *shape), generator=g) * (torch.rand(250, *shape, generator=g) < 0.67)
    fast = draw.parse(x, bank, 4, stride)
    assert torch.equal(fast, torch.stack([draw.parse_naive(image, bank, 4, stride) for image in x]))
    drawn = fast[..., 0]
    assert (drawn.diff(dim=1) <= 0).all() and 0 < (drawn == 0).sum()  # once nothing helps, nothing more is drawn


@pytest.mark.parametrize('levels', [16, 256])
def test_distances_are_exact(levels):
    g = torch.Generator().manual_seed(0)
    x, bank = torch.randint(levels, (20, 12, 12), generator=g), bank_of(4, 30, high=levels)
    windows = draw.windows_of(x, 4, 2).reshape(20, -1, 1, 16)
    want = (windows - bank.flatten(1)).square().sum(-1)
    assert torch.equal(draw.distances(x, bank, 2).long(), want)


def test_orders_that_paint_the_same_have_one_canonical_order():
    "Against all permutations of four parts: two of them have one canonical order if parts that overlap keep theirs."
    places, g = draw.places_of((4, 4), 2, 1), torch.Generator().manual_seed(0)
    orders = list(itertools.permutations(range(4)))
    for _ in range(20):
        z = torch.stack([torch.ones(4).long(), torch.randperm(9, generator=g)[:4], torch.randint(6, (4,), generator=g)], -1)
        covers = [set(places[i].tolist()) for i in z[:, 1]]
        meets = [(i, j) for i, j in itertools.combinations(range(4), 2) if covers[i] & covers[j]]
        signs = [tuple(order.index(i) < order.index(j) for i, j in meets) for order in orders]
        found = draw.canonical_order(z[torch.tensor(orders)], places)
        canvases = draw.painted(z[torch.tensor(orders)], BANK, (4, 4), 1)
        assert torch.equal(draw.painted(found, BANK, (4, 4), 1), canvases)
        for a, b in itertools.combinations(range(24), 2):
            assert torch.equal(found[a], found[b]) == (signs[a] == signs[b])


def test_parts_that_are_not_drawn_come_last():
    z = torch.tensor([[[0, 0, 0], [1, 8, 1], [0, 0, 0], [1, 2, 2]]])
    assert draw.canonical_order(z, draw.places_of((4, 4), 2, 1)).tolist() == [[[1, 2, 2], [1, 8, 1], [0, 0, 0], [0, 0, 0]]]


def test_the_gradient_of_a_hard_choice_is_the_softmaxs():
    logits, weight = torch.tensor([[0.3, 1.2, -0.5]], requires_grad=True), torch.tensor([2., -1., 0.5])
    noise = torch.tensor([[0., -0.5, 1.5]])
    drawn = draw.draw_through(logits, noise)
    drawn.mul(weight).sum().backward()
    want, = torch.autograd.grad(((logits + noise).softmax(-1) * weight).sum(), logits)
    assert torch.allclose(logits.grad, want) and torch.allclose(drawn, torch.tensor([[0., 0., 1.]]))


def test_the_weight_counts_in_training_only():
    g = torch.Generator().manual_seed(0)
    light, heavy, network, t = bound(), bound(), net(), torch.ones(3).long()
    heavy.weight = 50.
    x_t = light.q_sample(X, t, g)
    out = network(x_t)
    assert torch.equal(light.L_t(out, X, x_t, t), heavy.L_t(out, X, x_t, t))
    terms = light.terms(out, X)
    assert torch.allclose(heavy.loss(out, X, x_t, t) - light.loss(out, X, x_t, t), 49 * terms.kl_parse)


def test_the_hint_is_a_gaussian_of_width_tau():
    "The ratio of two patches is exp of the difference of their squared distances over 2 tau^2."
    distance = draw.distances(X, BANK, 2).view(3, 3, 3, -1)
    for tau in (0.7, 3.):
        log_h = draw.soft_parse(X, BANK, tau)
        want = (distance[..., :1] - distance) / (2 * tau ** 2)
        assert torch.allclose(log_h - log_h[..., :1], want, atol=1e-4)
        assert torch.allclose(log_h.exp().sum(-1), torch.ones(3, 3, 3), atol=1e-5)


def test_draws_of_the_encoder_follow_q_and_the_decoder_rounds_its_mean():
    network, g = net(), torch.Generator().manual_seed(0)
    with torch.no_grad(): q = network.encode(X[:1]).softmax(-1)
    drawn = draw.encoded(network, X[:1].expand(4000, 6, 6), g)
    shares = torch.nn.functional.one_hot(drawn, 6).float().mean(0)
    assert (shares - q[0]).abs().max() < 5 * (0.25 / 4000) ** 0.5
    canvas = draw.grid_painted(drawn[:5], BANK)
    network.decoder.last.bias.data = torch.arange(9.)  # with zero weights: the same logits everywhere
    level = (torch.arange(9.).softmax(0) * torch.arange(9)).sum().round()
    assert (draw.decoded(network, canvas) == level).all()


def test_the_source_schedule_is_a_straight_line_up_to_its_cap():
    beta = draw.source_schedule(1000).beta
    assert beta[0] == 0 and beta[1] == 0.02 and beta[-1] == 0.5
    line = 0.02 + 0.98 * torch.arange(1000, dtype=torch.float64) / 999
    assert torch.allclose(beta[1:][line < 0.5], line[line < 0.5], atol=1e-12) and (beta[1:][line >= 0.5] == 0.5).all()


@pytest.mark.parametrize('a', [1., 0.6, 0.02])
def test_information_left_against_the_table_of_pairs(a):
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    pairs = p[:, None] * (a * torch.eye(3).double() + (1 - a) / 3)
    information = torch.xlogy(pairs, pairs / (pairs.sum(1, keepdim=True) * pairs.sum(0))).sum()
    found = draw.information_left(torch.tensor([a]).double(), p)[0]
    assert torch.allclose(found, information / -torch.xlogy(p, p).sum(), atol=1e-12)


def test_the_hole_of_two_small_sets_by_hand():
    z, drawn = torch.tensor([[[0, 1]], [[1, 1]]]), torch.tensor([[[0, 0]], [[0, 1]]])
    found = draw.prior_hole(z, drawn, 2)  # cells (1/2, 1/2), (0, 1) against (1, 0), (1/2, 1/2); pairs 01 11 against 00 01
    assert found == dict(marginals=0.5, pairs=0.5)
