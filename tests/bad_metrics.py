"Bad calls of the public functions of discdiff_nb.metrics, with random sizes and random faults."
import math
import tempfile
from pathlib import Path
import torch
from discdiff_nb import metrics as m

INF = (math.nan, math.inf, -math.inf)

def bad_metrics(generator, n=200):
    "Yield (function, args, kwargs), each of which must raise an error of discdiff_nb.core."
    def size(low, high): return int(torch.randint(low, high + 1, (), generator=generator))
    def pick(*options): return options[size(0, len(options) - 1)]
    def good(N, d): return torch.randn(N, d, generator=generator)
    def spoiled(x):
        x = x.clone()
        x.view(-1)[size(0, x.numel() - 1)] = pick(*INF)
        return x
    def bad_matrix(N, d):
        x = good(N, d)
        return pick(spoiled(x), x[0], x[..., None], x > 0, x.numpy(), x.tolist(), None, x[:0], torch.complex(x, x), x[:, :0], 'features')
    def bad_int(*more): return pick(0, -1, -size(2, 99), 1.5, '3', None, True, math.nan, *more)
    def images(N=6, H=8, K=5): return torch.randint(K, (N, H, H), generator=generator)
    def bad_images(K=5):
        x = images(K=K)
        return pick(x + K, x - 1, x.float(), x[0], x[:0], x[:, None], x.numpy(), None, x > 0, x.flatten(1))
    net = m.FeatureNet(5, 3, 4).eval()
    empty = tempfile.mkdtemp()
    broken = Path(tempfile.mkdtemp())
    (broken / 'inception').mkdir()
    (broken / 'inception' / m.INCEPTION['name']).write_bytes(b'not the weights')

    def two(f, N=60, d=4):
        real, fake = good(N, d), good(N, d)
        yield f, pick((bad_matrix(N, d), fake), (real, bad_matrix(N, d)), (real, good(N, d + 1)), (real.flatten(), fake)), {}
    def checks():
        yield m.check_count, (bad_int(10, 99), 1, 9, 'n', 'a test'), {}
        yield m.check_numbers, (pick(spoiled(good(3, 2)), good(3, 2) > 0, None, [1.], torch.complex(good(2, 2), good(2, 2))), 'x'), {}
        yield m.mean_se, (pick(good(1, 2), torch.tensor(1.), spoiled(good(4, 1)), None, good(0, 2)),), {}
        yield m.check_images, (bad_images(), 5), {}
        yield m.check_images, (images(), bad_int(1)), {}
        yield m.check_maps, (bad_images() if size(0, 1) else images(), bad_int(1, 4), None, 'x'), {}
        yield from two(m.check_features)
        yield m.check_moments, (good(1, 3)[0], pick(-torch.eye(3), good(3, 3), torch.eye(4), spoiled(torch.eye(3)), None), 'x'), {}
    def likelihood():
        a, b = good(9, 1)[:, 0], good(9, 1)[:, 0]
        yield m.paired, (a, b, bad_int()), {}
        yield m.paired, pick((a, b[:-1], 3), (spoiled(a), b, 3), (a[:1], b[:1], 3), (a[None], b[None], 3), (None, b, 3), (a, b > 0, 3), (a[0], b[0], 3)), {}
    def distances():
        mu, cov = good(1, 3)[0], torch.eye(3)
        yield from two(m.frechet_distance)
        d = size(2, 9)
        yield m.frechet_distance, (good(d, d), good(50, d)), {}
        yield m.frechet_gaussians, pick((mu, -cov, mu, cov), (mu, cov, mu[:2], cov[:2, :2]), (mu, good(3, 3), mu, cov), (mu, cov, spoiled(mu), cov),
                                        (mu, cov[:2], mu, cov), (None, cov, mu, cov), (cov, cov, mu, cov)), {}
        yield from two(m.frechet_infinity)
        yield m.frechet_infinity, (good(19, 4), good(80, 4)), {}
        yield m.frechet_infinity, (good(40, 4), good(40, 4)), dict(repeats=bad_int())
        yield from two(m.kid)
        yield m.kid, (good(9, 2), good(9, 2)), dict(block=bad_int())
        yield m.kid, (good(1, 2), good(9, 2)), {}
        yield m.scores, (good(4, 4), good(30, 4)), {}
        yield m.scores, (good(30, 4), good(30, 4), bad_int(30)), {}
    def manifolds():
        x, y = good(12, 3), good(10, 3)
        yield from two(m.prdc)
        yield m.prdc, (x, y), dict(k=bad_int(10, 11, 99))
        yield m.prdc, (x, y), dict(block=bad_int())
        yield m.radii, (bad_matrix(12, 3),), {}
        yield m.radii, (x,), dict(k=bad_int(12, 13))
        yield m.nearest, pick((bad_matrix(12, 3), y), (x, bad_matrix(10, 3)), (x, good(5, 4))), {}
        yield m.nearest, (x, y), dict(k=bad_int(11))
        yield m.copying, pick((bad_matrix(12, 3), x, y), (x, bad_matrix(12, 3), y), (x, y, bad_matrix(12, 3)), (x, y, good(3, 9))), {}
        yield m.perfect_coverage, pick((bad_int(1), 5, 1), (5, bad_int(), 1), (5, 5, bad_int(5, 6))), {}
        yield lambda *a: list(m.distances(*a)), pick((x, bad_matrix(4, 3)), (x, y, bad_int())), {}
    def others():
        p = good(6, 4).softmax(1)
        yield m.spread, (m.kid, pick((), None, 'ab', (1, 2), (torch.tensor(1.),))), {}
        yield m.spread, (m.kid, (good(9, 2), good(9, 2))), dict(n=bad_int(1, 5, 10))
        yield m.spread, (m.kid, (good(1, 2), good(9, 2))), {}
        yield m.inception_score, (pick(p - 1, 2 * p, p[0], p[:0], spoiled(p), None, p > 0, p.numpy(), -p),), {}
        yield m.confusion, (images(), images(5), 5), {}
        yield m.confusion, pick((bad_images(), images(), 5), (images(), bad_images(), 5), (images(), images(), bad_int(1))), {}
        yield m.miou, (images(), images().fill_(9), 5), dict(ignore=9)
        yield m.miou, (images(), images(), 5), dict(ignore=pick(1.5, '2', True, math.nan))
        yield m.iou, (pick(torch.ones(3), torch.ones(3, 2), -torch.ones(2, 2), spoiled(torch.ones(2, 2)), None, torch.ones(0, 0)),), {}
        yield m.class_shares, (bad_images() if size(0, 1) else images().fill_(9), 5), {}
        yield m.class_shares, (torch.cat([images(), images(1).fill_(9)]), 5), dict(ignore=9)
        yield m.fsd, pick((images(4), images(30), 5), (bad_images(), images(30), 5), (images(30), images(30), bad_int(1))), {}
    def networks():
        labels = torch.randint(3, (6,), generator=generator)
        yield m.train_features, (bad_images(), labels, 5, 3, 4, 2), {}
        yield m.train_features, (images(), pick(labels + 3, labels - 1, labels[:-1], labels.float(), labels[:0], labels[:, None]), 5, 3, 4, 2), {}
        yield m.train_features, (images(), labels, 5), dict(classes=3) | {pick('classes', 'd', 'steps'): bad_int()}
        yield m.train_features, (images(1), labels[:1], 5, 3, 4, 2), {}
        yield m.features_of, pick((net, bad_images()), (None, images()), (torch.nn.Linear(2, 2), images()), (net, images(), bad_int())), {}
        rgb = torch.randint(256, (2, 3, 8, 8), generator=generator).to(torch.uint8)
        yield m.inception_features, (pick(rgb.float(), rgb[0], rgb[:, :1], rgb[:0], None, rgb.numpy()),), dict(root=empty, download=False)
        yield m.inception_features, (rgb,), dict(root=pick(empty, str(broken), '/no/such/folder'), download=False)
        yield m.inception_features, (rgb,), dict(batch_size=bad_int(), root=empty, download=False)
        yield m.inception_weights, (pick(empty, broken, '/no/such/folder'), False), {}
    groups, count = [checks, likelihood, distances, manifolds, others, networks], 0
    while True:
        for group in groups:
            for call in group():
                if count == n: return
                count += 1
                yield call
