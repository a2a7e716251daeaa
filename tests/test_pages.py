"""The tasks of tools/pages.py: in order, of files that nobody else makes, waiting for each other, and begun once."""

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / 'tools'
sys.path.insert(0, str(TOOLS))
import pages  # noqa: E402


@pytest.mark.parametrize('size', ['tiny', 'kept'])
def test_order(size):
    tasks = pages.tasks_of(size)
    names, made = [task.name for task in tasks], [file for task in tasks for file in task.makes]
    assert len(set(names)) == len(names) and len(set(made)) == len(made)
    for i, task in enumerate(tasks):
        assert set(task.needs) <= set(names)
        compile(task.code, task.name, 'exec')
    if size == 'kept': assert {task.page for task in tasks} == {'20', '21', '23', '25', '28', '30'}


def test_definitions(tmp_path):
    "Constants, functions and dicts; nothing that runs."
    page = tmp_path / 'page.ipynb'
    cells = ["import math\nsmall = dict(a=1)\nBIG = small['a'] + 1\nfound = 1 / 0", "def f(x): return x + BIG\nf(1)\nBAD = missing",
             "class Count: pass\ndef up(self): return 7\nCount.up = up", '%pip install x']
    page.write_text(pages.json.dumps(dict(cells=[dict(cell_type='code', source=[cell]) for cell in cells])))
    space = pages.definitions(page)
    assert space['f'](1) == 3 and space['Count']().up() == 7 and 'found' not in space and 'BAD' not in space


def run(out, capsys, *words):
    pages.main(['run', str(out), '--size', 'tiny', '--minutes', '5', '--workers', '2', *words])
    return capsys.readouterr().out


def test_run(tmp_path, capsys):
    "A prior begins after the encoder; the second time nothing begins."
    wanted = '--match', '^digits, (w50|autoregressive)$'
    said = run(tmp_path, capsys, *wanted)
    assert said.index('w50: done') < said.index('autoregressive: begins') < said.index('autoregressive: done')
    made = {file: file.stat().st_mtime_ns for folder in ('assets', 'runs') for file in (tmp_path / folder).iterdir()}
    assert {'diffusedraw_tiny_digits_w50.safetensors', 'diffusedraw_tiny_digits_autoregressive.safetensors'} <= {file.name for file in made}
    assert run(tmp_path, capsys, *wanted) == ''
    assert made == {file: file.stat().st_mtime_ns for file in made}


def test_what_is_kept_is_not_made_again(tmp_path):
    "It lies in OUT/assets before the first task; a file of OUT's own stays as it is."
    (tmp_path / 'assets').mkdir()
    mine = tmp_path / 'assets' / 'layouts_kept.json'
    mine.write_text('{}')
    pages.furnish(tmp_path)
    assert mine.read_text() == '{}'
    there = {file.name for file in (tmp_path / 'assets').iterdir()}
    assert there == {file.name for file in (pages.ROOT / 'nbs' / 'assets').iterdir()}


def test_failure_ends(tmp_path, capsys, monkeypatch):
    "What waits for a task that failed is not begun, and the run ends."
    bad = [pages.Task('bad', '20', 'raise ValueError', makes=('x',)), pages.Task('next', '20', '', ('bad',))]
    monkeypatch.setattr(pages, 'tasks_of', lambda size: bad)
    monkeypatch.setattr(pages, 'begin', lambda task, args, out: pages.subprocess.Popen([sys.executable, '-c', 'raise SystemExit(1)']))
    said = run(tmp_path, capsys)
    assert 'bad: failed' in said and 'next: not begun' in said


def test_unknown(tmp_path):
    with pytest.raises(SystemExit, match="no task 'nothing'"): pages.main(['one', 'nothing', str(tmp_path)])
