"The mutation run itself: each operator on toy source, what it leaves out, mutants in a toy tree."
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
import mutants # noqa: E402


def after(source, operator=None):
    "What the mutants of a cell make of it."
    found = mutants.mutants_of(mutants.Cell('nbs/00_toy.ipynb', 0, source), 'toy')
    return {m.source for m in found if operator in (None, m.operator)}

def of(line, operator):
    "What an operator makes of a line inside a function of s, t and x."
    head = 'def f(s, t, x):\n    '
    return {source.removeprefix(head) for source in after(head + line, operator)}

@pytest.mark.parametrize('operator, line, expected', [
    ('+ ↔ -, * ↔ /', 'return (x + s) * t', {'return (x - s) * t', 'return (x + s) / t'}),
    ('+ ↔ -, * ↔ /', "return 'é' + s // t", {"return 'é' + s / t"}),
    ('t - 1 → t', 'return x[t - 1]', {'return x[t]'}),
    ('t - 1 → t', 'return 1 - t', set()),
    ('< ↔ <=, == ↔ !=', 'return x < s', {'return x <= s'}),
    ('< ↔ <=, == ↔ !=', 'return (x) >= (s)', {'return (x) > (s)'}),
    ('< ↔ <=, == ↔ !=', 'return x == s', {'return x != s'}),
    ('< ↔ <=, == ↔ !=', 'return x is not s', {'return x is s'}),
    ('and ↔ or', 'return s and t or x', {'return s or t or x', 'return s and t and x'}),
    ('no not, no minus', 'return not s, -t', {'return  s, -t', 'return not s, t'}),
    ('no not, no minus', 'return x.sum(-1)', {'return x.sum(0)'}),
    ('k → k + 1', 'return 0, 1., -2', {'return 1, 1., -2', 'return 0, 2.0, -2'}),
    ('k → k + 1', 'return True', {'return False'}),
    ('log ↔ exp, min ↔ max', 'return torch.log(x).sum()',
     {'return torch.exp(x).sum()', 'return torch.log(x).mean()'}),
    ('log ↔ exp, min ↔ max', 'return max(s, t)', {'return min(s, t)'}),
    ('s ↔ t', 'return x[s]', {'return x[t]'}),
    ('cumsum flipped', 'return x.log().cumsum(0)', {'return x.log().flip(0).cumsum(0).flip(0)'}),
    ('no clamp, no detach', 'return (x - s).clamp(min=0)', {'return (x - s)'}),
    ('no clamp, no detach', 'return torch.sqrt(x)', set()),
    ('no keyword', 'return x.sum(0, keepdim=True)', {'return x.sum(0)'}),
    ('no keyword', 'return dict(s=s, t=(t))', {'return dict(t=(t))', 'return dict(s=s)'}),
    ('no keyword', "return ax.plot(x, color='red')", set()),
    ('arguments swapped', 'return torch.where(x > 0, s, t)', {'return torch.where(x > 0, t, s)'}),
    ('arguments swapped', 'return x.at(s, t)', {'return x.at(t, s)'}),
    ('arguments swapped', 'return max(s, t)', set()),
    ('arms swapped', 'return s if x else t', {'return t if x else s'}),
    ('no statement', 'x.zero_(); x += 1; y = 2', {'pass; x += 1; y = 2', 'x.zero_(); pass; y = 2'}),
    ('no statement', 'x[0] = 1', {'pass'}),
    ('no statement', "if s: raise ValueError(f'{s + 1}')", {'if s: pass'}),
])
def test_operator(operator, line, expected):
    assert of(line, operator) == expected

def test_each_operator_is_tested():
    tested = {case[0] for case in test_operator.pytestmark[0].args[1]}
    assert tested == {name for name, _, _ in mutants.OPERATORS}

@pytest.mark.parametrize('source', [
    '"a - b"', 'import a.b', 'def f(x: Tensor[1]) -> Tensor[2]:\n    "t - 1"\n    pass',
    'text = f"{a - 1}"', 'print(a - 1)', 'ax.plot(x, y - 1)', 'fig.axes[0].set_title(str(k - 1))',
    'if x.is_cuda: y = x - 1', 'for a in tqdm(b, leave=False): pass',
    'class A(B[1]):\n    k: int[2]', '@cached(1)\ndef f(): pass'])
def test_words_looks_and_gpu_are_left_out(source):
    assert not after(source)

@pytest.fixture(scope='module')
def every(): return mutants.all_mutants(ROOT)

def test_every_mutant_has_its_own_name(every):
    assert len({m.id for m in every}) == len(every) > 5000
    assert all(m.before != m.after for m in every)

def test_the_choice_is_by_statements_and_repeats(every):
    chosen = mutants.choose(every, 60, seed=1)
    assert [m.id for m in chosen] == [m.id for m in mutants.choose(every, 60, seed=1)]
    assert {m.id for m in chosen} != {m.id for m in mutants.choose(every, 60, seed=2)}
    assert {m.module for m in chosen} == {m.module for m in every}
    assert len({m.statement for m in chosen}) == len(chosen)
    assert 60 <= len(chosen) <= 60 + len({m.module for m in every})

def test_explanations_give_a_reason():
    explained = json.loads((ROOT / mutants.EXPLAINED).read_text(encoding='utf-8'))
    for name, why in explained.items():
        assert why.split(':')[0] in ('equivalent', 'by eye', 'not reached'), f'{name}: {why}'

@pytest.mark.parametrize('before, after, shown', [
    ('a = b - 1', 'a = b', 'a = b - 1 → a = b'),
    (f'{"x" * 40}+{"y" * 40}', f'{"x" * 40}-{"y" * 40}',
     f'…{"x" * 24}+{"y" * 24}… → …{"x" * 24}-{"y" * 24}…')])
def test_shown_change(before, after, shown):
    assert mutants.trimmed(before, after) == shown

@pytest.mark.parametrize('output, why', [
    ('E   AssertionError\nFAILED tests/test_a.py::b - 1\n1 failed', 'tests/test_a.py::b - 1'),
    ('While Executing Cell #3:\n  File "<ipython-input-2-a>", line 1, in <module>\n    f(0)\n'
     '  File "b.py", line 1, in f\n    raise x\n\x1b[31mDataError\x1b[0m: no\n',
     'cell #3: f(0): DataError: no'),
    ('killed', 'killed'), ('', '')])
def test_reason(output, why):
    assert mutants.reason(output) == why


def notebook(path, *sources):
    "Write a notebook of code cells."
    cells = [dict(cell_type='code', id=f'{i:08x}', metadata={}, outputs=[], execution_count=None,
                  source=source) for i, source in enumerate(sources)]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))

@pytest.fixture
def toy(tmp_path):
    "A tree with a function that its notebook checks, one that a test checks, one left unchecked."
    for folder in ('nbs', 'tests', 'toy'): (tmp_path / folder).mkdir()
    settings = (ROOT / 'settings.ini').read_text()
    for key in ('lib_path', 'lib_name'):
        settings = settings.replace(f'{key} = discdiff_nb', f'{key} = toy')
    (tmp_path / 'settings.ini').write_text(settings)
    functions = [f'#| export\ndef {name}(t): return t - 1' for name in ('seen', 'used', 'unseen')]
    sources = ['#| default_exp small', *functions, 'assert seen(3) == 2']
    notebook(tmp_path / 'nbs' / '00_small.ipynb', *sources)
    (tmp_path / 'toy' / '__init__.py').write_text('__version__ = "0.1.0"\n')
    for name, source in {
        'used': 'from toy.small import used\ndef test(): assert used(3) == 2\n',
        'other': 'def test(): pass\n',
        'broken': 'from toy.small import unseen\ndef test(): assert unseen(3) == 9\n',
    }.items(): (tmp_path / 'tests' / f'test_{name}.py').write_text(source)
    subprocess.run([mutants.BIN / 'nbdev_export'], cwd=tmp_path, check=True)
    subprocess.run(['git', 'init', '-q'], cwd=tmp_path, check=True)
    return tmp_path

def test_planted_mutants(toy, capsys):
    bench = mutants.Bench(toy)
    memory = mutants.Memory(toy / 'runs', bench)
    chosen = [m for m in mutants.all_mutants(toy) if m.operator == 't - 1 → t']
    def contents(): return {name: (toy / name).read_bytes() for name in bench.files}
    before = contents()
    mutants.run(bench, memory, chosen, 2)
    assert contents() == before, 'the tree was changed'
    seen, used, unseen = (memory.mutants[m.id] for m in chosen)
    assert (seen['verdict'], seen['by']) == ('killed', 'nbs/00_small.ipynb')
    assert seen['why'] == 'cell #5: assert seen(3) == 2: AssertionError'
    assert (used['verdict'], used['by']) == ('killed', 'tests/test_used.py')
    assert used['others'] == ['tests/test_used.py']  # test_other does not call it
    assert (unseen['verdict'], unseen['others']) == ('survived', [])
    assert 'assert 2 == 9' in memory.checks['tests/test_broken.py']['fails']
    again = mutants.Memory(toy / 'runs', bench)
    assert (again.mutants, again.checks) == (memory.mutants, memory.checks)
    assert mutants.report(bench, memory, chosen, {}) == 1
    said = capsys.readouterr().out
    assert 'SURVIVED' in said and 'left out: tests/test_broken.py' in said and '| small:' in said
    assert mutants.report(bench, memory, chosen, {chosen[2].id: 'equivalent: no'}) == 0

def test_out_of_time_ends_the_whole_group(toy):
    bench = mutants.Bench(toy)
    status, _, _ = bench.call(['sh', '-c', 'sleep 1000 & echo $! > child; wait'], toy, 2)
    child = (toy / 'child').read_text().strip()
    assert status is None and not bench.running
    for _ in range(300):  # a killed process may take a moment
        command = ['ps', '-o', 'stat=', '-p', child]
        state = subprocess.run(command, capture_output=True, text=True).stdout
        if state.strip()[:1] in ('', 'Z'): return
        time.sleep(0.1)
    raise AssertionError(f'process {child} is alive: {state}')
