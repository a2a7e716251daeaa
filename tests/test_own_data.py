"""A user's own text and pictures on the command line: each process, resume, other data, bad input in one line."""
import json

import pytest
from commands import call
from PIL import Image

from discdiff_nb import cli
from discdiff_nb.data import clean_text

SOME = dict(T=100, steps=2, batch_size=4, held_out=3)
TEXT = cli.OWN['text'] | SOME | dict(net_args=dict(width=8, depth=1, heads=2, local=3, rope=True, dropout=0.))
PICTURES = cli.OWN['images'] | SOME | dict(size=8, net_args=dict(channels=8, multipliers=[1]))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(cli.OWN, 'text', TEXT)
    monkeypatch.setitem(cli.OWN, 'images', PICTURES)
    monkeypatch.setattr(cli, 'SHEET', 2)


def refused(capsys, *words, said):
    "Status 2 and one line that says why."
    status, _, err = call(capsys, *words)
    assert status == 2 and 'Traceback' not in err, err
    line = err.strip().split('\r')[-1].splitlines()[-1]
    assert line.startswith('discdiff') and said in line, line
    return line


def write_text(path, n=3000):
    path.write_text(('The quick brown Fox jumps over 13 lazy dogs; once upon a time. ' * 200)[:n], encoding='utf-8')
    return path


def write_pictures(folder, n=12, size=(20, 12), mode='RGB'):
    "Each of another grey."
    folder.mkdir()
    for i in range(n): Image.new(mode, size, 20 * i if mode == 'L' else (20 * i,) * len(mode)).save(folder / f'{i:02}.png')
    return folder


def trained(capsys, data, tmp_path, *more):
    run = tmp_path / 'run'
    status, out, err = call(capsys, 'train', data, '--device', 'cpu', '--out', run, *more)
    assert status == 0, err
    return run, out, err


# ---- text ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('process', cli.PROCESSES)
def test_text(process, capsys, tmp_path):
    run, out, _ = trained(capsys, write_text(tmp_path / 'my.txt'), tmp_path, '--process', process)
    assert 'bits per character on 2 held-out windows of 64 letters of my.txt' in out
    assert f'{process} diffusion (at most)' in out and all(word in out for word in ('3 letters before', 'bz2', 'xz', 'K = 27'))
    lines = (run / 'samples.txt').read_text().splitlines()
    assert len(lines) == 2 and all(len(line) == 64 and set(line) <= set('abcdefghijklmnopqrstuvwxyz ') for line in lines)
    assert not (run / 'samples.png').exists()
    assert call(capsys, 'eval', run, '--n-t', 32)[0] == 0
    same = [json.loads((run / name).read_text())['bits_per_dim'] for name in ('metrics.json', 'eval-nt32-seed0.json')]
    assert same[0] == same[1]
    status, out, _ = call(capsys, 'sample', run, '--n', 3, '--steps', 5)
    assert status == 0 and 'samples-3-steps5-seed0.txt' in out
    assert len((run / 'samples-3-steps5-seed0.txt').read_text().splitlines()) == 3


def test_the_baselines_of_a_text_are_those_of_its_windows(tmp_path, capsys):
    "What the compressor packs is what the model is measured on."
    import bz2
    path = write_text(tmp_path / 'my.txt')
    run, _, _ = trained(capsys, path, tmp_path)
    letters = clean_text(path.read_text())
    test = letters[-(len(letters) // 20):][:128]
    order = {c: i for i, c in enumerate('abcdefghijklmnopqrstuvwxyz ')}
    packed = 8 * len(bz2.compress(bytes(order[c] for c in test))) / len(test)
    assert json.loads((run / 'metrics.json').read_text())['baselines']['bz2'] == pytest.approx(packed)


def test_text_resumes_only_with_its_own_data(capsys, tmp_path, monkeypatch):
    path = write_text(tmp_path / 'my.txt')
    run, _, _ = trained(capsys, path, tmp_path)
    other = write_text(tmp_path / 'other.txt')
    assert call(capsys, 'train', path, '--resume', run)[0] == 0 # the whole run again: nothing is left to do
    refused(capsys, 'train', other, '--resume', run, said='--data')
    refused(capsys, 'train', 'digits', '--resume', run, said='--data')
    kept = path.read_text()
    path.write_text(kept.replace('lazy', 'hazy'))
    for words in (['train', '--resume', run], ['eval', run], ['sample', run]): refused(capsys, *words, said='other data')
    path.unlink()
    for words in (['train', '--resume', run], ['eval', run], ['sample', run]): refused(capsys, *words, said='my.txt')
    path.write_text(kept)
    assert call(capsys, 'eval', run, '--n-t', 3)[0] == 0


@pytest.mark.parametrize('content, said', [
    (b'', 'is empty'), (b'a few words', 'at least'), (b'a b ' * 300, '1,280'), (bytes(range(256)) * 20, 'not UTF-8'),
    (('text in UTF-16 ' * 300).encode('utf-16'), 'not UTF-8'), (('text in UTF-16 ' * 300).encode('utf-16-le'), 'zeros'),
    (('Привет, мир. ' * 300).encode(), 'is empty')], ids=str)
def test_text_that_is_none(content, said, capsys, tmp_path):
    path = tmp_path / 'my.txt'
    path.write_bytes(content)
    refused(capsys, 'train', path, '--out', tmp_path / 'run', said=said)
    assert not (tmp_path / 'run').exists()


def test_a_picture_is_no_text(capsys, tmp_path):
    Image.new('L', (9, 9)).save(tmp_path / 'a.png')
    refused(capsys, 'train', tmp_path / 'a.png', said='not UTF-8')


def test_options_of_the_other_kind(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_text(tmp_path / 'my.txt')
    refused(capsys, 'train', path, '--levels', 16, said='--levels')
    refused(capsys, 'train', path, '--size', 16, said='--size')
    refused(capsys, 'train', 'digits', '--size', 16, said='--size')
    for size in (0, 7, 9, 132, 'x', '', '9' * 5000, '³'): refused(capsys, 'train', tmp_path, f'--size={size}', said='--size')
    refused(capsys, 'train', tmp_path / 'absent.txt', said='absent.txt')
    assert [p.name for p in tmp_path.iterdir()] == ['my.txt']


@pytest.mark.parametrize('key', ['path', 'digest', 'levels'])
def test_config_of_a_text_with_wrong_values(key, capsys, tmp_path):
    run, _, _ = trained(capsys, write_text(tmp_path / 'my.txt'), tmp_path)
    config = json.loads((run / 'config.json').read_text())
    for value in (None, 3, [], {}, 'a\0b', True):
        (run / 'config.json').write_text(json.dumps(config | {key: value}))
        for words in (['eval', run], ['sample', run], ['train', '--resume', run]): refused(capsys, *words, said=key)
    del config[key]
    (run / 'config.json').write_text(json.dumps(config))
    refused(capsys, 'eval', run, said=key)


# ---- pictures --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('process', cli.PROCESSES)
def test_pictures(process, capsys, tmp_path):
    data = write_pictures(tmp_path / 'mine', n=21)
    run, out, err = trained(capsys, data, tmp_path, '--process', process, '--size', 12, '--levels', 5)
    assert 'bits per pixel on 2 held-out images of mine' in out and 'K = 5' in out and 'skipped' not in err
    assert '19 images to train on' in out
    assert {'samples.png', 'generation.gif'} < {p.name for p in run.iterdir()}
    assert call(capsys, 'eval', run, '--n-t', 3)[0] == 0 and call(capsys, 'sample', run, '--n', 1, '--steps', 2)[0] == 0
    assert call(capsys, 'train', '--resume', run)[0] == 0
    (data / '03.png').unlink()
    for words in (['train', '--resume', run], ['eval', run], ['sample', run]): refused(capsys, *words, said='other data')


def test_what_is_skipped_is_counted_and_named(capsys, tmp_path):
    data = write_pictures(tmp_path / 'mine', n=11)
    (data / 'notes.txt').write_text('no picture')
    (data / '.hidden').write_text('not even looked at')
    Image.effect_noise((40, 40), 90).save(data / '00.png')
    whole = (data / '00.png').read_bytes()
    (data / 'sub').mkdir()
    (data / 'sub' / 'cut.png').write_bytes(whole[:len(whole) // 2])
    Image.new('L', (1, 1)).save(data / 'dot.png')
    _, out, err = trained(capsys, data, tmp_path)
    line, = [line for line in err.splitlines() if 'skipped' in line]
    assert 'skipped 3 of 14 files' in line and 'notes.txt is no picture' in line and 'sub/cut.png cannot be read' in line
    assert 'dot.png is 1 x 1, smaller than 8 x 8' in line and '10 images to train on' in out


def test_many_that_are_skipped_are_not_all_named(capsys, tmp_path):
    data = write_pictures(tmp_path / 'mine', n=10)
    for i in range(8): (data / f'no{i}').write_text('')
    _, _, err = trained(capsys, data, tmp_path)
    assert 'skipped 8 of 18' in err and 'no4' in err and 'no5' not in err and 'and 3 more' in err


def test_folders_without_enough_pictures(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'damaged').mkdir()
    for i in range(12): (tmp_path / 'damaged' / f'{i}.png').write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(30))
    write_pictures(tmp_path / 'one', n=1, size=(1, 1))
    write_pictures(tmp_path / 'nine', n=9)
    write_pictures(tmp_path / 'small', n=12, size=(30, 7))
    for name in ('empty', 'damaged', 'one', 'nine', 'small'):
        line = refused(capsys, 'train', name, said='at least 10')
        assert name in line
    assert not (tmp_path / 'runs').exists()


def test_a_picture_is_upright_grey_on_white_and_its_middle(tmp_path):
    path = tmp_path / 'a.png'
    wide = Image.new('L', (30, 10), 255)
    wide.paste(100, (10, 0, 20, 10)) # the middle third
    wide.save(path)
    assert (cli.resized(cli.open_picture(path), 8) == 100).all()
    Image.new('RGBA', (9, 9), (0, 0, 0, 0)).save(path)
    assert (cli.resized(cli.open_picture(path), 8) == 255).all()
    Image.new('I;16', (9, 9), 65535).save(path)
    assert (cli.resized(cli.open_picture(path), 8) == 255).all()
    Image.new('I;16', (9, 9), 128 * 256).save(path)
    assert (cli.resized(cli.open_picture(path), 8) == 128).all()
    for mode, colour in (('RGB', (90, 90, 90)), ('P', 0), ('1', 0), ('LA', (90, 255)), ('CMYK', (0, 0, 0, 165))):
        name = tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png')
        Image.new(mode, (9, 9), colour).save(name)
        assert cli.resized(cli.open_picture(name), 8).float().std() == 0
    exif = Image.Exif()
    exif[0x0112] = 6 # lies on its side
    sideways = Image.new('L', (20, 20), 0)
    sideways.paste(255, (0, 0, 10, 20)) # its left half is white: upright, the upper half
    sideways.save(tmp_path / 'b.png', exif=exif)
    x = cli.resized(cli.open_picture(tmp_path / 'b.png'), 20)
    assert (x[:10] == 255).all() and (x[10:] == 0).all()


def test_config_of_pictures_with_wrong_sizes(capsys, tmp_path):
    run, _, _ = trained(capsys, write_pictures(tmp_path / 'mine'), tmp_path)
    config = json.loads((run / 'config.json').read_text())
    for value in (None, 0, 7, 8.0, '8', [], True, 10 ** 30):
        (run / 'config.json').write_text(json.dumps(config | dict(size=value)))
        refused(capsys, 'eval', run, said='size')


# ---- what is known is kept -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('process', cli.PROCESSES)
def test_prompt(process, capsys, tmp_path):
    run, _, _ = trained(capsys, write_text(tmp_path / 'my.txt'), tmp_path, '--process', process)
    status, out, err = call(capsys, 'sample', run, '--prompt', 'Once _pon a ____', '--n', 5, '--steps', 5)
    assert status == 0, err
    lines = (run / 'filled-5-seed0.txt').read_text().splitlines()
    assert len(lines) == 5 and out.count('|once ') == 4
    for line in lines: assert len(line) == 16 and line[:5] == 'once ' and line[6:12] == 'pon a ' and '_' not in line
    assert len(set(lines)) > 1


def test_prompts_that_are_none(capsys, tmp_path):
    run, _, _ = trained(capsys, write_text(tmp_path / 'my.txt'), tmp_path)
    for prompt, said in [('', 'no blank'), ('once', 'no blank'), ('a, _', "','"), ('é_', "'é'"), ('_' * 65, '65 letters')]:
        refused(capsys, 'sample', run, '--prompt', prompt, said=said)
    assert call(capsys, 'sample', run, '--prompt', '_' * 64, '--n', 1)[0] == 0
    refused(capsys, 'sample', run, '--keep', tmp_path / 'my.txt', '--mask', tmp_path / 'my.txt', said='for a run of images')


@pytest.mark.parametrize('process', cli.PROCESSES)
def test_keep_and_mask(process, capsys, tmp_path):
    "What is black in the mask stays, what is white is drawn, whatever the noise."
    run, _, _ = trained(capsys, write_pictures(tmp_path / 'mine'), tmp_path, '--process', process, '--levels', 4)
    Image.new('RGB', (16, 16), (100, 100, 100)).save(tmp_path / 'keep.png') # level 1 of 4
    mask = Image.new('L', (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    mask.save(tmp_path / 'mask.png')
    words = ['sample', run, '--keep', tmp_path / 'keep.png', '--mask', tmp_path / 'mask.png', '--n', 3, '--steps', 5]
    seen = []
    save = cli.fill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, 'fill', lambda *args: seen.append(save(*args)) or seen[-1])
        status, out, err = call(capsys, *words)
    assert status == 0 and (run / 'filled-3-seed0.png').is_file(), err
    assert seen[0].shape == (3, 8, 8) and (seen[0][:, :, 4:] == 1).all() and not (seen[0][:, :, :4] == 1).all()


def test_pictures_that_cannot_be_filled(capsys, tmp_path):
    run, _, _ = trained(capsys, write_pictures(tmp_path / 'mine'), tmp_path)
    good, black, small, wide = (tmp_path / f'{name}.png' for name in ('good', 'black', 'small', 'wide'))
    for path, size, level in ((good, (9, 9), 255), (black, (9, 9), 0), (small, (3, 3), 255), (wide, (20, 9), 255)):
        Image.new('L', size, level).save(path)
    (tmp_path / 'damaged.png').write_bytes(good.read_bytes()[:40])
    for keep, mask, said in [(good, black, 'is black'), (small, small, 'smaller than 8 x 8'), (good, wide, 'size of the picture'),
                             (tmp_path / 'damaged.png', good, 'damaged.png'), (good, tmp_path / 'absent.png', 'absent.png'), (tmp_path, good, 'Is a directory')]:  # noqa: E501
        refused(capsys, 'sample', run, '--keep', keep, '--mask', mask, said=said)
    refused(capsys, 'sample', run, '--keep', good, said='give both')
    refused(capsys, 'sample', run, '--mask', good, said='give both')
    refused(capsys, 'sample', run, '--prompt', 'a_', said='for a run of text')
