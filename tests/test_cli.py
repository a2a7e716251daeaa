"""The console script as a user meets it: a process of its own, exit codes, no traceback."""
import json
import signal
import subprocess
import sys

import pytest

DISCDIFF = [sys.executable, '-m', 'discdiff_nb.cli']


def discdiff(*words, **kwargs):
    "Run the command line to its end."
    return subprocess.run([*DISCDIFF, *map(str, words)], capture_output=True, text=True, **kwargs)


def test_help_names_the_commands():
    done = discdiff('--help')
    assert done.returncode == 0 and all(word in done.stdout for word in ('train', 'sample', 'eval'))


@pytest.mark.parametrize('words, said', [
    (['train', 'digit'], "'digit'"), (['train', '--process', 'gauss'], "'gauss'"), (['train', '--steps', '-3'], "'-3'"),
    (['train', '--levels', '999'], "'999'"), (['train', '--device', 'tpu'], "'tpu'"), (['eval', 'nowhere'], 'nowhere'), (['dream'], "'dream'")])
def test_wrong_argument(words, said, tmp_path):
    done = discdiff(*words, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir()), 'a wrong argument left files behind'


def test_absent_data(tmp_path):
    done = discdiff('train', '--data', 'fashion_mnist', cwd=tmp_path, env={'DISCDIFF_DATA': str(tmp_path / 'no'), 'PATH': ''})
    assert done.returncode == 2 and 'DISCDIFF_DATA' in done.stderr and 'Traceback' not in done.stderr, done.stderr


@pytest.mark.skipif(sys.platform == 'win32', reason='SIGINT')
def test_interrupt_saves_and_resume_goes_on(tmp_path):
    run = tmp_path / 'run'
    child = subprocess.Popen([*DISCDIFF, 'train', 'digits', '--steps', '30', '--out', str(run), '--device', 'cpu'],
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seen = ''
    while '/30 [' not in seen or ' 0/30' in seen[-60:]:
        seen += child.stderr.read(1)
        assert child.poll() is None, seen
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()
    assert child.wait() == 130 and 'saved in' in rest and '--resume' in rest and 'Traceback' not in rest, rest
    assert (run / 'checkpoint.safetensors').exists()
    done = discdiff('train', '--resume', run)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / 'metrics.json').read_text())['steps'] == 30
