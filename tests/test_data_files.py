"What the loaders of `data` say of files that are wrong, absent or elsewhere; wrong inputs of its functions."
import gzip
import hashlib
import json
import lzma
import math
import threading
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pydoc_data.topics import topics
from unittest.mock import patch
import pytest
import torch
from fastcore.test import test_close as close
from discdiff_nb import checkpoints, data
from discdiff_nb.checkpoints import asset
from discdiff_nb.core import ClassError, DataError, DtypeError, ShapeError, minibatch
from discdiff_nb.data import (Images, baselines, clean_text, crops, data_root, decode, digits,
                              encode, fashion_mnist, ngram_bits, ngram_fit, novels27,
                              reduce_levels, text8, text_file, windows)

FILES = [file.name for file in data._MNIST]
IMAGES, LABELS, TEST_IMAGES, _ = FILES
SHAPES = dict(zip(FILES, [(3, 4, 4), (3,), (2, 4, 4), (2,)]))
TEXT = ('the loaders read what people wrote and say so if it is not whole ' * 40)[:2000]


def idx_bytes(x):
    lengths = b''.join(n.to_bytes(4, 'big') for n in x.shape)
    return bytes([0, 0, 8, x.ndim]) + lengths + x.numpy().tobytes()


def tiny_files(raw, mirror='http://127.0.0.1:9/'):
    "A data set of five images with its own checksums; nobody answers at port 9."
    sums = [hashlib.sha256(content).hexdigest() for content in raw.values()]
    return data._idx_files('tiny', 'FashionMNIST/raw', mirror, sums)


def tiny_images(raw, root, K=256, download=False, mirror='http://127.0.0.1:9/'):
    return data._idx_images('tiny', tiny_files(raw, mirror), K, root, download)


@pytest.fixture
def tiny():
    "Five images: {file: tensor}, {file: bytes}."
    g = torch.Generator().manual_seed(0)
    want = {f: torch.randint(256, shape, generator=g).to(torch.uint8) for f, shape in SHAPES.items()}
    return want, {f: idx_bytes(x) for f, x in want.items()}


def put(folder, raw, packed):
    "Write the five images into a folder."
    folder.mkdir(parents=True, exist_ok=True)
    for f, b in raw.items():
        (folder / (f'{f}.gz' if packed else f)).write_bytes(gzip.compress(b) if packed else b)
    return folder


def refusal(f, *args, **kwargs):
    "The message of the DataError that a call raises."
    with pytest.raises(DataError) as caught: f(*args, **kwargs)
    return str(caught.value)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@contextmanager
def serve(folder):
    "Serve the files of a folder on this machine; yields the address."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}/'
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize('folder', ['tiny', 'FashionMNIST/raw'])
def test_both_layouts_packed_or_not(tiny, tmp_path, folder, packed):
    want, raw = tiny
    put(tmp_path / folder, raw, packed)
    got = tiny_images(raw, tmp_path)
    for x, f in zip((got.train, got.train_labels, got.test, got.test_labels), FILES):
        assert torch.equal(x, want[f].long())
    coarse = tiny_images(raw, tmp_path, K=4)
    assert torch.equal(coarse.test, want[TEST_IMAGES].long() // 64)


def test_a_damaged_file_is_named_and_refused(tiny, tmp_path):
    want, raw = tiny
    file = put(tmp_path / 'tiny', raw, packed=True) / f'{IMAGES}.gz'
    good, page = raw[IMAGES], b'<html>404 Not Found</html>'
    other = bytes([*good[:-1], good[-1] ^ 1]) # one pixel was changed
    cases = [(gzip.compress(good, mtime=0)[:40], 'cannot be read'),
             (gzip.compress(good[:-5]), f'{len(good) - 5} bytes'),
             (page, 'cannot be read'),
             (gzip.compress(page), f'{len(page)} bytes'),
             (gzip.compress(raw[LABELS]), f'{len(raw[LABELS])} bytes'),
             (gzip.compress(other), 'SHA-256')]
    for content, said in cases:
        file.write_bytes(content)
        message = refusal(tiny_images, raw, tmp_path)
        for part in (said, 'train-images', 'expected', 'delete it and fetch'): assert part in message
    file.write_bytes(gzip.compress(good))
    assert torch.equal(tiny_images(raw, tmp_path).train, want[IMAGES].long())


def test_a_missing_root_or_file_is_named(tiny, tmp_path, monkeypatch):
    (put(tmp_path / 'tiny', tiny[1], packed=True) / f'{IMAGES}.gz').unlink()
    assert 'correct the argument root' in refusal(data_root, tmp_path / 'typo')
    message = refusal(tiny_images, tiny[1], tmp_path)
    assert f'{IMAGES} not found' in message and 'labels' not in message
    monkeypatch.setenv('DISCDIFF_DATA', str(tmp_path / 'typo'))
    assert 'correct DISCDIFF_DATA' in refusal(data_root)


def test_no_network_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    nowhere = [file._replace(url=f'http://127.0.0.1:9/{file.name}.gz') for file in data._FASHION_MNIST]
    with patch.object(data, '_FASHION_MNIST', nowhere): # where nobody answers
        message = refusal(fashion_mnist, root=tmp_path)
    parts = (*FILES, 'the download failed', 'http://127.0.0.1:9/',
             f'{tmp_path}/fashion-mnist', 'DISCDIFF_DATA')
    for part in parts: assert part in message


def test_a_download_that_breaks_off_leaves_nothing(tmp_path):
    "A connection that closes early looks like the end of the file."
    class Early(BytesIO):
        headers = {'Content-Length': '10'}
    with patch.object(data, 'urlopen', lambda url, timeout: Early(b'half')):
        assert '4 of 10 bytes' in data.fetch('http://example.org/x', tmp_path / 'new/x')
    assert not list((tmp_path / 'new').iterdir())


def test_the_addresses_are_torchvisions():
    "Whatever moves, torchvision knows first."
    from torchvision.datasets import MNIST, FashionMNIST
    for files, kind in ((data._MNIST, MNIST), (data._FASHION_MNIST, FashionMNIST)):
        assert [f.url for f in files] == [kind.mirrors[0] + name for name, _ in kind.resources]
        assert {f.folders[1] for f in files} == {f'{kind.__name__}/raw'}


def test_images_come_from_a_mirror(tiny, tmp_path, monkeypatch):
    want, raw = tiny
    monkeypatch.setenv('no_proxy', '*')
    mirror = put(tmp_path / 'mirror', raw, packed=True)
    (tmp_path / 'home').mkdir()
    with serve(mirror) as url:
        refusal(tiny_images, raw, tmp_path / 'home', download=False, mirror=url)
        assert not list((tmp_path / 'home').iterdir()) # nobody asked for a download
        (mirror / f'{IMAGES}.gz').rename(mirror / 'hidden')
        message = refusal(tiny_images, raw, tmp_path / 'home', download=True, mirror=url)
        assert 'the download failed' in message and f'{IMAGES}, {LABELS}' in message
        (mirror / 'hidden').rename(mirror / f'{IMAGES}.gz')
        got = tiny_images(raw, tmp_path / 'home', download=True, mirror=url)
    assert torch.equal(got.train, want[IMAGES].long())
    assert torch.equal(tiny_images(raw, tmp_path / 'home').test, got.test)


def standin(files, *contents, url=None):
    "The same files with other contents."
    return [file._replace(sha256=hashlib.sha256(content).hexdigest(), url=url)
            for file, content in zip(files, contents, strict=True)]


def test_novels_are_split_by_whole_work(tmp_path):
    works = [(f'work{i}', clean_text(f'{i} ' * (i + 1))) for i in range(40)]
    body = ' '.join(text for _, text in works).encode()
    (tmp_path / 'novels27').mkdir()
    (tmp_path / 'novels27/novels27_to1930.txt.xz').write_bytes(lzma.compress(body))
    lengths = tmp_path / 'novels27/novels_to1930_lengths.json'
    table = json.dumps([(name, len(text)) for name, text in works])
    lengths.write_text(table)
    with patch.object(data, '_NOVELS', standin(data._NOVELS, body, table.encode())):
        got = novels27(tmp_path)
        lengths.write_text('[["work0", 5]]')
        assert '14 bytes' in refusal(novels27, tmp_path)
        lengths.unlink()
        message = refusal(novels27, tmp_path)
    assert f'{lengths.name} not found' in message and 'no download' in message
    assert (got.valid_names, got.test_names) == (('work4', 'work24'), ('work14', 'work34'))
    assert decode(got.test) == ' '.join(works[i][1] for i in (14, 34)) + ' '
    rest = ''.join(text + ' ' for i, (_, text) in enumerate(works) if i % 10 != 4)
    assert decode(got.train) == rest


def zipped(body):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('text8', body)
    return buffer.getvalue()


def test_text8_is_fetched_checked_and_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    body = TEXT.encode()
    for folder in ('site', 'home', 'plain'): (tmp_path / folder).mkdir()
    (tmp_path / 'site/text8.zip').write_bytes(zipped(body))
    (tmp_path / 'plain/text8').write_bytes(body)
    with (serve(tmp_path / 'site') as url,
          patch.object(data, '_TEXT8', standin(data._TEXT8, body, url=f'{url}text8.zip'))):
        got = text8(tmp_path / 'home')
        for again in (text8(tmp_path / 'home', download=False), text8(tmp_path / 'plain')):
            assert torch.equal(again.train, got.train)
        cases = [(zipped(body)[:100], 'zip'), (b'<html>404</html>', 'zip'),
                 (zipped(body[::-1]), '2000'), (zipped(body[:-1]), '1999')]
        for content, said in cases:
            (tmp_path / 'home/text8/text8.zip').write_bytes(content)
            assert said in refusal(text8, tmp_path / 'home')
    assert [len(x) for x in got[1:4]] == [1800, 100, 100]
    assert decode(torch.cat(got[1:4])) == TEXT and got.train.dtype == torch.uint8


def test_text8_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    with patch.object(data, '_TEXT8', standin(data._TEXT8, b'', url='http://127.0.0.1:9/text8.zip')):
        message = refusal(text8, tmp_path)
    parts = ('text8.zip', 'the download failed', '127.0.0.1:9', f'{tmp_path}/text8',
             'DISCDIFF_DATA')
    for part in parts: assert part in message


def test_a_text_of_ones_own(tmp_path):
    own = tmp_path / 'own.txt'
    cases = [(b'\xffcaf\xe9', 'UTF-8'), ('abc'.encode('utf-16-le'), 'UTF-16'),
             (b'Too short.', 'at least 20'), (b'...', '0 characters')]
    for content, said in cases:
        own.write_bytes(content)
        assert said in refusal(text_file, own)
    assert 'typo' in refusal(text_file, tmp_path / 'typo.txt')
    own.write_text('Call me Ishmael. ' * 50)
    assert decode(text_file(own).train)[:20] == 'call me ishmael call'


def test_kept_files_are_fetched_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv('DISCDIFF_DATA', str(tmp_path))
    there = tmp_path / 'raw/main/nbs/assets' # a repository
    there.mkdir(parents=True)
    line = there / 'line.json'
    line.write_text('[1]')
    home = {'git_url': tmp_path.as_uri(), 'branch': 'main'}
    with (patch.dict(checkpoints.ASSETS, {'line.json': checkpoints._sum(line)}),
          patch.dict('discdiff_nb._modidx.d', settings=home)):
        path = asset('line.json')
        assert (path.read_text(), path.parent) == ('[1]', tmp_path / 'assets')
        path.write_text('[2]')
        assert asset('line.json').read_text() == '[1]' # damaged: fetched again
        line.unlink()
        assert asset('line.json') == path # here already: no net
        path.unlink()
        assert 'clone the repository' in refusal(asset, 'line.json')
        line.write_text('[3]')
        assert 'another version' in refusal(asset, 'line.json')
        assert not path.exists()
        assert asset('line.json', there) == line # one's own: taken as it is
    assert 'none.json' in refusal(asset, 'none.json')


def test_images_keep_their_labels():
    "Batches taken with the same step and seed belong together."
    small = digits()
    where = minibatch(torch.arange(1442), 17, 128, seed=0)
    assert torch.equal(minibatch(small.train, 17, 128, seed=0), small.train[where])
    assert torch.equal(minibatch(small.train_labels, 17, 128, seed=0), small.train_labels[where])


def test_marginals_of_training_images():
    "Smoothing costs a little; a level that training never showed costs log2(N + K) bits."
    small = digits()
    count = torch.nn.functional.one_hot(small.train, 17).sum(0) / 1442
    entropy = -torch.special.xlogy(count, count).sum(-1).mean().item() / math.log(2)
    on_train = baselines(small._replace(test=small.train))['marginals']
    assert entropy < on_train < entropy + 0.05
    unseen = made(torch.zeros(14, 1, 1).long(), torch.full((1, 1, 1), 1), 2)
    close(baselines(unseen)['marginals'], 4, eps=1e-12)


def test_grams_are_a_distribution():
    "Sums over the next character; order 0 by letter frequencies; no order beats noise."
    g = torch.Generator().manual_seed(0)
    own = data.cut_text('help', encode(clean_text(' '.join(topics.values()))))
    model = ngram_fit(own.train, 6)
    context = torch.cat([torch.randint(27, (200, 6), generator=g), windows(own.test, 6)[:200]])
    next_letter = torch.arange(27).repeat(400)[:, None]
    p = 2**-ngram_bits(model, torch.cat([context.repeat_interleave(27, 0), next_letter], 1))
    close(p.reshape(7, 400, 27).sum(-1), torch.ones(7, 400).double(), eps=1e-9)
    N = len(own.train) - 6
    f = own.train[6:].bincount().double() / N
    entropy = -torch.special.xlogy(f, f).sum() / math.log(2)
    excess = ngram_bits(model, own.train)[0].mean() - entropy
    assert 0 < excess < math.log2(1 + 27 / N)
    bits = ngram_bits(model, torch.randint(27, (50000,), generator=g)).mean(1)
    assert bits[0] > math.log2(27) and (bits.diff() > 0).all()


def made(train, test, K): return Images('made', train, test, None, None, K)
def noise(n, K): return torch.randint(K, (n, 8, 8), generator=torch.Generator().manual_seed(n))
ROW, LETTERS_4 = torch.arange(100), torch.randint(27, (400,), generator=torch.Generator().manual_seed(0))
MODEL = ngram_fit(LETTERS_4, 6)
WRONG = [
    (reduce_levels, (torch.tensor([3]), 17, 18), ClassError),
    (reduce_levels, (torch.tensor([3]), 17, 1), ClassError),
    (reduce_levels, (torch.tensor([17]), 17, 4), ClassError),
    (reduce_levels, (torch.tensor([-1]), 17, 4), ClassError),
    (reduce_levels, (torch.tensor([0.5]), 17, 4), DtypeError),
    (baselines, (made(noise(2, 4), noise(2, 4), 257),), ClassError),
    (baselines, (made(noise(2, 4), noise(2, 4) + 4, 4),), ClassError),
    (baselines, (made(noise(2, 4), noise(0, 4), 4),), DataError),
    (baselines, (made(noise(0, 4), noise(2, 4), 4),), DataError),
    (baselines, (made(noise(2, 4), noise(2, 4)[:, 1:], 4),), ShapeError),
    (baselines, (made(noise(2, 4) / 2, noise(2, 4), 4),), DtypeError),
    (encode, ('no Capital',), ClassError),
    (encode, ('_',), ClassError),
    (encode, ('',), DataError),
    (encode, (b'abc',), DtypeError),
    (decode, (torch.tensor([28]),), ClassError),
    (decode, (torch.tensor([-1]),), ClassError),
    (decode, (torch.tensor([0.5]),), DtypeError),
    (decode, (torch.tensor([[0]]),), ShapeError),
    (decode, (torch.tensor([]),), DtypeError),
    *((cut, (*args, *more), error) for cut, more in ((windows, ()), (crops, (0, 4, 0)))
      for args, error in (((ROW, 101), ShapeError), ((ROW, 0), ShapeError),
                          ((ROW / 2, 5), DtypeError), ((ROW.view(10, 10), 5), ShapeError))),
    (crops, (ROW, 10, -1, 4, 0), DataError),
    (crops, (ROW, 10, 0, 0, 0), ShapeError),
    (ngram_fit, (LETTERS_4, 13), ShapeError),
    (ngram_fit, (LETTERS_4, -1), ShapeError),
    (ngram_fit, (LETTERS_4[:3], 3), ShapeError),
    (ngram_fit, (LETTERS_4, 2, 20), ClassError),
    (ngram_fit, (LETTERS_4 / 2, 2), DtypeError),
    (ngram_fit, (LETTERS_4[:0], 2), DataError),
    (ngram_bits, (MODEL, LETTERS_4[:6]), ShapeError),
    (ngram_bits, (MODEL, LETTERS_4 + 1), ClassError),
]


@pytest.mark.parametrize('f, args, error', WRONG)
def test_wrong_inputs_end_in_named_errors(f, args, error):
    with pytest.raises(error): f(*args)
