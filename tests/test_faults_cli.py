"""What a user can do wrong on the command line, and what the machine can do to the command line, one line each."""
import errno
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import call
from hypothesis import given, settings
from hypothesis import strategies as st

from discdiff_nb import cli, runs

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ('torch', 'matplotlib', 'numpy', 'sklearn', 'accelerate')
TINY = dict(cli.RECIPES['digits'], T=10, steps=2, batch_size=8, held_out=4,
            net_args=dict(channels=8, multipliers=[1]))
PICTURES = ['elbo.png', 'generation.gif', 'loss.png', 'samples.png']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "The folder of a tiny run."
    run = tmp_path_factory.mktemp('trained') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cli.RECIPES, 'digits', TINY)
        patch.setattr(cli, 'SHEET', 1)
        assert cli.main(['train', '--device', 'cpu', '--out', str(run)]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path):
    "A copy that a test may damage."
    return Path(shutil.copytree(trained, tmp_path / 'run'))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(cli.RECIPES, 'digits', TINY)
    monkeypatch.setattr(cli, 'SHEET', 1)


def last_line(text): return text.strip().split('\r')[-1].strip().splitlines()[-1]


def python(*words, **kwargs):
    "Another Python, in the repository."
    env = dict(os.environ, PYTHONPATH=str(ROOT), **kwargs.pop('env', {}))
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=env, **kwargs)


def refused(capsys, *words, said=''):
    "Status 2 and one line, for whatever the words are."
    status, _, err = call(capsys, *words)
    assert status == 2, (words, err)
    assert 'Traceback' not in err and said in last_line(err), err
    assert last_line(err).startswith('discdiff'), err
    return last_line(err)


# ---- wrong arguments -------------------------------------------------------------------------------------------------

HUGE = [str(2 ** 64), str(2 ** 63), '-1', '9' * 5000, '1e3', '', ' ', 'nan', '0x10', '\0']


@pytest.mark.parametrize('value', HUGE)
@pytest.mark.parametrize('option', ['--seed', '--steps', '--levels'])
def test_absurd_number_to_train(option, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, 'train', 'digits', f'{option}={value}')
    assert len(line) < 300 and option in line
    assert not list(tmp_path.iterdir()), 'a wrong argument left files behind'


@pytest.mark.parametrize('value', HUGE)
@pytest.mark.parametrize('command, option', [('eval', '--seed'), ('eval', '--n-t'), ('sample', '--seed'), ('sample', '--n'),
                                             ('sample', '--steps')])
def test_absurd_number_to_a_run(command, option, value, capsys, run):
    refused(capsys, command, run, f'{option}={value}')


def test_the_largest_numbers_work(capsys, run):
    assert call(capsys, 'eval', run, '--seed', 2 ** 63 - 1, '--n-t', 8)[0] == 0
    assert call(capsys, 'sample', run, '--seed', 2 ** 63 - 1, '--n', 1, '--steps', 1)[0] == 0


BAD_PATHS = ['', ' ', 'a\0b', 'n' * 300, 'd/' * 3000, 'FILE', 'FILE/run']


@pytest.mark.parametrize('path', BAD_PATHS)
@pytest.mark.parametrize('words', [['train', '--out'], ['train', '--resume'], ['eval'], ['sample']], ids=' '.join)
def test_absurd_path(words, path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('')
    refused(capsys, *words, path.replace('FILE', str(tmp_path / 'file')))
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_a_name_that_is_not_utf8(tmp_path):
    "Bytes that no encoding explains are a folder's name like any other."
    done = python('-m', 'discdiff_nb.cli', 'eval', os.fsdecode(b'\xff'), cwd=tmp_path)
    assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr


def test_no_gpu_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    refused(capsys, 'train', '--device', 'cuda', '--out', tmp_path / 'run', said='cpu')
    assert not (tmp_path / 'run').exists()


# ---- damaged runs ----------------------------------------------------------------------------------------------------

def with_config(run, **changes):
    "Change the config of a run."
    path = run / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


WRONG = [None, '', 'x', -1, 0, 2 ** 64, 10 ** 30, 1.5, float('inf'), float('nan'), [], {}, [1], {'a': 1}, True]


@pytest.mark.parametrize('key', ['data', 'process', 'levels', 'T', 'net', 'net_args', 'steps', 'batch_size', 'lr', 'held_out', 'seed'])
def test_config_with_wrong_values(key, capsys, run):
    for value in WRONG:
        if (key, value) in (('seed', 0), ('lr', 1.5), ('net_args', {})) and value is not True: continue # allowed
        with_config(run, **{key: value})
        for words in (['eval', run], ['sample', run], ['train', '--resume', run]): refused(capsys, *words, said=key)


@pytest.mark.parametrize('net_args', [dict(channels=0), dict(channels='8'), dict(channels=10 ** 12), dict(multipliers=[]), dict(multipliers=5),
                                      dict(channels=8, T=3), dict(width=3), dict(channels=8, multipliers=['a'])])
def test_config_with_a_wrong_network(net_args, capsys, run):
    with_config(run, net_args=net_args)
    refused(capsys, 'eval', run, said='net_args')


@pytest.mark.parametrize('content', [b'', b'[]', b'3', b'\xff\xfe', b'{"data": "digits"}', b'[' * 100_000, b'{"seed": 1e999}', b'\0' * 100])
def test_config_that_is_none(content, capsys, run):
    (run / 'config.json').write_bytes(content)
    for words in (['eval', run], ['sample', run], ['train', '--resume', run]): refused(capsys, *words, said='config')


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from([*TINY, 'data', 'process', 'seed', 'device']),
                       st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3)))
def test_check_config_knows_every_value(changes):
    "What it lets through can be built; all else is a named error."
    config = dict(TINY, data='digits', process='absorbing', seed=0, device='cpu') | changes
    try: cli.check_config(config)
    except cli_error() as e: assert str(e)
    else:
        if config['net_args'] == TINY['net_args'] and config['levels'] <= 17: cli.build(config)


def cli_error():
    from discdiff_nb.core import DiscdiffError
    return DiscdiffError


def test_run_without_a_network(capsys, run):
    (run / 'model.safetensors').unlink()
    refused(capsys, 'eval', run, said='model.safetensors')
    (run / 'model.safetensors').mkdir()
    refused(capsys, 'eval', run, said='model.safetensors')


def test_network_of_another_kind(capsys, run):
    from discdiff_nb.checkpoints import save_tensors
    for meta in ([], 'x', 3, {}): # none is the config of a run
        save_tensors(run / 'model.safetensors', {'a': torch.zeros(3)}, meta)
        refused(capsys, 'eval', run, said='model.safetensors')
    shutil.copy(run / 'checkpoint.safetensors', run / 'model.safetensors')
    refused(capsys, 'eval', run, said='model.safetensors')


def test_folders_where_files_are_expected(capsys, run):
    for name in ('config.json', 'checkpoint.safetensors', 'log.csv'):
        shutil.copytree(run, other := run.with_name(f'no {name}'))
        (other / name).unlink()
        (other / name).mkdir()
        status, _, err = call(capsys, 'train', '--resume', other)
        assert status in (0, 2) and 'Traceback' not in err, err # a side file may be set aside


# ---- numbers first, then files ---------------------------------------------------------------------------------------

def full_disk(*args, **kwargs): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize('writer, lost', [('viz.save_gif', ['generation.gif']), ('viz.save_png', ['samples.png']),
                                          ('viz.save_figure', ['loss.png', 'elbo.png']), ('viz.plot_loss', ['loss.png'])])
def test_full_disk_at_the_pictures(writer, lost, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(f'discdiff_nb.{writer}', full_disk)
    status, out, err = call(capsys, 'train', '--device', 'cpu', '--out', tmp_path / 'run')
    assert status == 3 and 'absorbing diffusion (at most)' in out
    lines = [line for line in err.replace('\r', '\n').splitlines() if line.startswith('discdiff: ')]
    assert len(lines) == len(lost) and all(name in line and 'No space' in line for name, line in zip(lost, lines)), lines
    there = {p.name for p in (tmp_path / 'run').iterdir()}
    assert there & set(PICTURES) == set(PICTURES) - set(lost) and 'metrics.json' in there


def test_full_disk_after_the_training(capsys, tmp_path, monkeypatch):
    "Neither weights nor metrics can be written: the table is on the screen all the same."
    import discdiff_nb.checkpoints
    write = discdiff_nb.checkpoints.write_whole
    monkeypatch.setattr(discdiff_nb.checkpoints, 'write_whole', lambda path, content: write(path, content) if path.name in (
        'config.json', 'checkpoint.safetensors') else full_disk())
    status, out, err = call(capsys, 'train', '--device', 'cpu', '--out', tmp_path / 'run')
    assert status == 3 and 'absorbing diffusion (at most)' in out and 'model.safetensors' in err and 'metrics.json' in err


def test_eval_that_cannot_write(capsys, run):
    (run / 'eval-nt8-seed0.json').mkdir()
    status, out, err = call(capsys, 'eval', run, '--n-t', 8)
    assert status == 3 and 'absorbing diffusion (at most)' in out and 'eval-nt8-seed0.json' in last_line(err)


def test_sample_that_cannot_write(capsys, run):
    (run / 'samples-1-steps2-seed0.gif').mkdir()
    status, out, err = call(capsys, 'sample', run, '--n', 1, '--steps', 2)
    assert status == 3 and 'samples-1-steps2-seed0.gif' in last_line(err) and 'samples-1-steps2-seed0.png' in out
    assert 'gif' not in out and (run / 'samples-1-steps2-seed0.png').is_file()


@pytest.mark.parametrize('backend', ['module://nonsense', 'nonsense'])
def test_backend_of_a_notebook(backend, tmp_path):
    words = ['train', '--device', 'cpu', '--out', tmp_path / 'run']
    code = f'import sys; from discdiff_nb import cli; cli.RECIPES["digits"], cli.SHEET = {TINY!r}, 1; sys.exit(cli.main(sys.argv[1:]))'
    done = python('-c', code, *words, env=dict(MPLBACKEND=backend))
    assert done.returncode == 0 and 'absorbing diffusion (at most)' in done.stdout, done.stderr
    assert set(PICTURES) < {p.name for p in (tmp_path / 'run').iterdir()}


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
@pytest.mark.parametrize('where', ['/dev/full', 'closed pipe'])
def test_output_that_nobody_takes(where, run):
    "The numbers still reach the file, and the status says that they did not reach the screen."
    if where == 'closed pipe':
        read, write = os.pipe()
        os.close(read)
        stdout = os.fdopen(write, 'w')
    else: stdout = open(where, 'w')
    with stdout:
        done = subprocess.run([sys.executable, '-m', 'discdiff_nb.cli', 'eval', str(run), '--n-t', '8'], stdout=stdout,
                              stderr=subprocess.PIPE, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.returncode == 3 and 'table' in done.stderr and 'Traceback' not in done.stderr and 'Exception' not in done.stderr, done.stderr
    assert json.loads((run / 'eval-nt8-seed0.json').read_text())['n_t'] == 8


# ---- light, and by each of its names ---------------------------------------------------------------------------------

LIGHT = [['--help'], ['--version'], ['train', '--help'], ['eval', '--help'], ['sample', '-h'], [], ['dream'], ['train', 'digit'],
         ['train', '--seed', 'x'], ['train', '--out', ''], ['eval'], ['sample', 'run', '--n', '0'], ['train', '--device', 'tpu']]


@pytest.mark.parametrize('words', LIGHT, ids=' '.join)
def test_answers_without_torch(words):
    code = ('import sys\nfrom discdiff_nb.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit as e: status = e.code\n'
            f'print("heavy:", *[m for m in {HEAVY} if m in sys.modules])\nsys.exit(status)')
    done = python('-c', code, *words)
    assert done.returncode == (0 if {'--help', '-h', '--version'} & set(words) else 2), done.stderr
    assert done.stdout.splitlines()[-1] == 'heavy:'


def test_answers_without_any_package():
    "go.py asks the parser before anything is installed: the standard library must do."
    done = python('-I', '-S', '-c', f'import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom discdiff_nb.cli import main\nmain(["--version"])')
    assert done.returncode == 0 and done.stdout.startswith('discdiff_nb '), done.stderr


@pytest.mark.parametrize('words', [['-m', 'discdiff_nb'], ['-m', 'discdiff_nb.cli']], ids=' '.join)
def test_both_names(words):
    import discdiff_nb
    done = python(*words, '--version')
    assert done.returncode == 0 and done.stdout.split() == ['discdiff_nb', discdiff_nb.__version__], done.stderr
    done = python(*words, 'dream')
    assert done.returncode == 2 and 'usage: discdiff ' in done.stderr and 'Traceback' not in done.stderr


def test_main_is_imported_without_running():
    assert python('-c', 'import discdiff_nb.__main__').returncode == 0


def test_help_has_examples_and_statuses(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my_text.txt').write_text('')
    (tmp_path / 'my_pictures').mkdir()
    assert call(capsys, '--help')[0] == 0
    cli.parser().print_help()
    text = capsys.readouterr().out
    examples = [shlex.split(line, comments=True) for line in text.splitlines() if line.strip().startswith('discdiff ')]
    assert {words[1] for words in examples} == {'train', 'sample', 'eval'}
    for words in examples: cli.parser().parse_args(words[1:]) # the parser takes its own examples
    assert all(f'\n  {n} ' in text for n in (0, 1, 2, 3, 130))


def test_the_tables_name_the_same_data_sets():
    from discdiff_nb.data import DATASETS
    assert set(DATASETS) == set(cli.RECIPES)


# ---- a process that is trained on its bound --------------------------------------------------------------------------

def test_on_the_bound_holds_no_other_process():
    import copy
    from discdiff_nb.core import linear_schedule
    from discdiff_nb.gaussian import Gaussian, clipped
    from discdiff_nb.sampling import ddim
    g = torch.Generator().manual_seed(0)
    plain = Gaussian(9, linear_schedule(20, 0.01, 0.3))
    x0, t = torch.randint(9, (6, 5), generator=g), torch.tensor([1, 2, 5, 10, 15, 20])
    x_t, out = plain.q_sample(x0, t, g), 9 * torch.randn(6, 5, 1, generator=g)
    bound = runs.on_the_bound(plain)
    assert not torch.equal(plain.loss(out, x0, x_t, t), plain.L_t(out, x0, x_t, t)) # and it stays what it was
    for make in (clipped, ddim):
        for both in (runs.on_the_bound(make(plain)), make(bound)):
            for process in (both, copy.copy(both), copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
                torch.testing.assert_close(process.loss(out, x0, x_t, t), process.L_t(out, x0, x_t, t))
                torch.testing.assert_close(process.L_t(out, x0, x_t, t), make(plain).L_t(out, x0, x_t, t))


# ---- notebooks that are opened alone, on any machine -----------------------------------------------------------------

NBS = ROOT / 'nbs'
STUDIES = sorted(p for p in NBS.glob('2*.ipynb') if p.stem != '27_cli') # which trains when it is called


def code_cells(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


@pytest.mark.parametrize('path', STUDIES, ids=lambda p: p.stem)
def test_long_work_asks_first(path, capsys, monkeypatch, tmp_path):
    "Run All, where the mark `slow` means nothing, starts none of it."
    monkeypatch.delenv('DISCDIFF_SIZE', raising=False)
    monkeypatch.chdir(tmp_path) # where nothing is kept
    slow = [source for source in code_cells(path) if '#| slow' in source]
    assert slow
    for source in slow:
        from discdiff_nb.runs import asked
        names = dict(asked=asked, Path=Path, device=lambda: 'cpu') # anything else that it would do is a NameError
        exec(source, names)
        said = capsys.readouterr().out
        assert re.search('DISCDIFF_SIZE=(small|kept|full)', said)
        assert 'minutes' in said and 'CPU' in said


def test_kept_files_have_current_sums():
    done = python(ROOT / 'tools' / 'assets.py', '--check')
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('path', sorted(NBS.glob('[0-8]*.ipynb')), ids=lambda p: p.stem)
def test_kept_files_are_read_through_asset(path):
    "A notebook alone has no folder of assets."
    for source in code_cells(path):
        for line in source.splitlines():
            assert not re.search(r"Path\(f?'assets\b.*(read_text|load_|stat\()", line), line


def test_no_check_looks_at_a_clock():
    "An assertion that a duration is short is an assertion that the machine is idle."
    clock = re.compile(r'assert [^#]*(time\(\)|perf_counter|monotonic|seconds|minutes|elapsed)[^#]*[<>]|test_close\(.*(perf_counter|time\(\))')
    sources = {p.name: p.read_text() for p in sorted((ROOT / 'tests').glob('*.py'))}
    sources |= {str(p.relative_to(NBS)): '\n'.join(code_cells(p)) for p in sorted(NBS.rglob('*.ipynb')) if '_' != p.parent.name[0]}
    found = [f'{name}: {line}' for name, source in sources.items() for line in source.splitlines() if clock.search(line)]
    assert not found, '\n'.join(found)


# ---- go.py -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def clone(tmp_path):
    "go.py and the package in a folder of their own."
    for name in ('go.py', 'settings.ini', 'setup.py', 'discdiff_nb'):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    return tmp_path


def go(clone, *words):
    return subprocess.run([sys.executable, 'go.py', *words], cwd=clone, capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH='', PIP_NO_INDEX='1')) # should it install after all, it fails at once


@pytest.mark.parametrize('words', [['foo'], ['train', 'foo'], ['train', '--seed', 'x'], ['eval'], ['setup', 'x'], ['test', 'nowhere.ipynb'],
                                   ['--wrong'], ['']], ids=' '.join)
def test_go_refuses_before_it_installs(words, clone):
    done = go(clone, *words)
    assert done.returncode == 2 and 'Traceback' not in done.stderr and done.stderr.strip(), done.stderr
    assert not (clone / '.venv').exists() and 'installing' not in done.stdout


@pytest.mark.parametrize('words', [[], ['--help'], ['--version'], ['train', '--help']], ids=' '.join)
def test_go_answers_before_it_installs(words, clone):
    done = go(clone, *words)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert not (clone / '.venv').exists()


@pytest.mark.parametrize('notebooks', [0, 1])
@pytest.mark.parametrize('pytest_status', [0, 1])
def test_go_runs_both_parts_and_reports_both(notebooks, pytest_status, clone):
    bin = clone / 'bin'
    bin.mkdir()
    for name, status, says in (('nbdev_test', notebooks, 'notebooks ran'), ('python', pytest_status, '41 passed in 2 s')):
        (bin / name).write_text(f'#!/bin/sh\necho "{says}"\nexit {status}\n')
        (bin / name).chmod(0o755)
    code = (f'import sys, pathlib; sys.path.insert(0, {str(ROOT)!r}); import go; go.BIN = pathlib.Path({str(bin)!r})\n'
            'go.PYTHON, go.ensure = go.BIN / "python", lambda extra: None\nsys.exit(go.main(["test"]))')
    done = subprocess.run([sys.executable, '-c', code], cwd=clone, capture_output=True, text=True)
    assert bool(done.returncode) == bool(notebooks or pytest_status)
    lines = done.stdout.splitlines()
    assert lines[-2] == '41 passed in 2 s' and 'notebooks ran' in lines, done.stdout
    word = {0: 'passed', 1: 'FAILED'}
    assert lines[-1] == f'go.py test: notebooks {word[notebooks]}, pytest {word[pytest_status]}'
