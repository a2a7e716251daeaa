"Checks of the equations page and of the exercises: that they are in step, and that what can be missing is really missed."
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
import equations # noqa: E402
import exercises # noqa: E402

def run(tool, *args):
    return subprocess.run([sys.executable, ROOT / 'tools' / tool, *map(str, args)], capture_output=True, text=True)

@pytest.mark.parametrize('tool', ['exercises.py', 'equations.py'])
def test_generated_pages_are_in_step(tool):
    done = run(tool, '--check')
    assert done.returncode == 0, done.stderr

def test_every_derivation_chapter_has_four_exercises():
    for chapter in json.loads((ROOT / 'nbs' / 'ledger.json').read_text(encoding='utf-8'))['due']:
        path = next((ROOT / 'nbs' / 'exercises').glob(f'[0-9]*_{chapter}.ipynb'), None)
        assert path, f'chapter {chapter} has no exercises'
        judges = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if exercises.judged(c)]
        assert len(judges) >= 4, f'{path.name}: {len(judges)} judged exercises; at least four'

def test_every_chapter_with_exercises_leads_to_them():
    for path in sorted((ROOT / 'nbs' / 'solutions').glob('*.ipynb')):
        assert f'](exercises/{path.name})' in (ROOT / 'nbs' / path.name).read_text(encoding='utf-8'), f'{path.name} has no link exercises/{path.name}'

# a small repository in which nothing is missing, and ways to break it

def save(path, *cells):
    "A notebook of (kind, source) cells."
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(exercises.as_notebook(cells)), encoding='utf-8')

LEDGER = {'due': ['cats'], 'aliases': {'D1': 'K1'}, 'rows': [{'id': i, 'source': 'A paper (2020)', 'chapters': [c], 'what': f'${i}\\mid x$'}
                                                          for i, c in [('K1', 'cats'), ('K2', 'cats'), ('U1', 'later')]]}
MODULE = '"""Cats."""\n\ndef f(x):\n    "Both (Smith 2020; K1-K2). Raises ValueError."\n\nclass G:\n    "Nothing."\n    def h(self): "The pair (D1)."\n'
PROSE = '## The $x_0$: a "step" on `Q_t`\n\n$$x \\tag{K1, K2}$$'
CHECK = '#| hide\n# check K1, K2: words | that say what\nassert 1 == 1'

@pytest.fixture
def repo(tmp_path):
    (tmp_path / 'nbs').mkdir(), (tmp_path / 'discdiff_nb').mkdir()
    (tmp_path / 'nbs' / 'ledger.json').write_text(json.dumps(LEDGER))
    (tmp_path / 'discdiff_nb' / 'cats.py').write_text(MODULE)
    save(tmp_path / 'nbs' / '06_cats.ipynb', ('markdown', '# Cats\n\n> Line.'), ('markdown', PROSE), ('code', CHECK))
    assert run('equations.py', '--root', tmp_path).returncode == 0
    return tmp_path

def test_the_page_of_a_small_repository(repo):
    done = run('equations.py', '--root', repo, '--check')
    assert done.returncode == 0 and done.stdout == '3 rows, nothing missing\n', done.stderr
    page = ''.join(''.join(c['source']) for c in json.loads((repo / 'nbs' / '91_equations.ipynb').read_text())['cells'])
    link = '06_cats.ipynb#the-x_0-a-step-on-q_t'
    assert (f'### K1\n\n$K1\\mid x$\n\n- derived in [Cats]({link})\n- code in cats: `f`, `G.h`\n'
            f'- checked: [words | that say what]({link})\n\n### K2') in page
    assert page.endswith('### U1\n\n$U1\\mid x$\n\n- not derived yet; chapter later owes it') and '2 of the 2' in page

BREAKS = {
    'f: K7 is not in': (MODULE.replace('K1-K2', 'K1-K2, K7'), PROSE, CHECK),
    'K2 (cats): no exported function': (MODULE.replace('K1-K2', 'K1'), PROSE, CHECK),
    'K1 (cats): no exported function': (MODULE.replace('def f', 'def _f').replace('D1', 'none'), PROSE, CHECK),
    'K2 (cats): not in the prose': (MODULE, PROSE.replace(', K2', ''), CHECK),
    'K1 (cats): not in the prose': (MODULE, '| K1 | K2 |', CHECK),
    'K2 (cats): no check that runs': (MODULE, PROSE, CHECK.replace(', K2', '')),
    'K1 (cats): no check that runs': (MODULE, PROSE, '#| slow\n' + CHECK),
    'K2 (cats): no check that runs; remedy': (MODULE, PROSE, CHECK.replace('# check', 'x = 1 # check')),
    'asserts nothing': (MODULE, PROSE, CHECK.replace('assert 1 == 1', 'print("assert")')),
    'exported cell': (MODULE, PROSE, CHECK.replace('hide', 'export')),
    'needs an ID and words': (MODULE, PROSE, CHECK.replace(' words | that say what', '')),
    'K9 of the check': (MODULE, PROSE, CHECK.replace('K2:', 'K2, K9:')),
    '91_equations.ipynb is out of date': (MODULE, PROSE, CHECK.replace('words', 'other words')),
}
@pytest.mark.parametrize('said', BREAKS)
def test_what_is_missing_is_missed(repo, said):
    module, prose, check = BREAKS[said]
    (repo / 'discdiff_nb' / 'cats.py').write_text(module)
    save(repo / 'nbs' / '06_cats.ipynb', ('markdown', '# Cats\n\n> Line.'), ('markdown', prose), ('code', check))
    done = run('equations.py', '--root', repo, '--check')
    assert done.returncode == 1 and said in done.stderr, done.stderr

def test_a_helper_of_the_notebook_may_assert(repo):
    for helper, code in [('assert x', 0), ('return x', 1)]:
        cells = [('code', f'def same(x): {helper}'), ('code', CHECK.replace('assert 1 == 1', 'same(1)'))]
        save(repo / 'nbs' / '06_cats.ipynb', ('markdown', '# Cats\n\n> Line.'), ('markdown', PROSE), *cells)
        assert run('equations.py', '--root', repo, '--check').returncode == code

def test_a_missing_chapter_and_an_erratum_are_no_check(repo):
    (repo / 'nbs' / '06_cats.ipynb').rename(repo / 'nbs' / '90_errata.ipynb')
    done = run('equations.py', '--root', repo, '--check')
    assert done.returncode == 1 and 'K1 (cats): no check that runs' in done.stderr and 'K1 (cats): not in the prose' in done.stderr

def test_headings_have_the_anchors_of_pandoc():
    for heading, want in [('What is the network asked for?', 'what-is-the-network-asked-for'), ('K17, or D9', 'k17-or-d9'), ('1. Show it', 'show-it'),
                          ('Erratum: $T=D$ [here](a.ipynb)', 'erratum-td-here'), ('$2+2$', 'section'), ('Beta_t at t-1', 'beta_t-at-t-1')]:
        assert equations.anchor(heading) == want

BADGE = exercises.ADDRESS.badge('nbs/solutions/06_cats.ipynb')
ANSWER = '# solution\n@torch.no_grad()\ndef twice(\n    x: int, # a number\n) -> int: # twice\n    "Two x."\n    y = x + x\n    return y'
IMPORTS = 'import torch\nfrom discdiff_nb.oracle import judge_answer'
JUDGE = 'judge_answer(twice, lambda x: 2 * x, lambda generator: (torch.rand(3, generator=generator),))'
SOLUTIONS = [('markdown', '# Solutions: Cats\n\n> Line.'), ('markdown', BADGE), ('code', IMPORTS), ('markdown', '## 1. Twice'), ('code', ANSWER),
             ('code', JUDGE + '\nprint(twice(2))'), ('code', 'print(twice(3))'), ('markdown', '**Solution.** Add.')]

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    nbs = tmp_path_factory.mktemp('nbs')
    save(nbs / '06_cats.ipynb', ('markdown', '# Cats\n\n> Line.'))
    save(nbs / 'solutions' / '06_cats.ipynb', *SOLUTIONS)
    done = run('exercises.py', '--nbs', nbs)
    assert done.returncode == 0, done.stderr
    return nbs

@pytest.fixture
def nbs(made, tmp_path): return shutil.copytree(made, tmp_path / 'nbs')

def exercise_page(nbs): return json.loads((nbs / 'exercises' / '06_cats.ipynb').read_text(encoding='utf-8'))

def test_the_exercises_of_a_small_chapter(nbs):
    sources = [exercises.text(c) for c in exercise_page(nbs)['cells']]
    assert sources[0] == '# Exercises: Cats\n\n> Line.' and sources[1] == exercises.ADDRESS.badge('nbs/exercises/06_cats.ipynb')
    assert '(../06_cats.ipynb)' in sources[2] and '(../solutions/06_cats.ipynb)' in sources[2]
    assert ANSWER.replace('# solution', '# your turn').split('    y =')[0] + "    raise NotImplementedError('your turn')" in sources
    assert not any('Add.' in s or 'y = x + x' in s or 'twice(2)' in s or 'twice(3)' in s for s in sources)
    assert run('exercises.py', '--check', '--nbs', nbs).returncode == 0
    before = (nbs / 'exercises' / '06_cats.ipynb').read_bytes()
    run('exercises.py', '--nbs', nbs)
    assert (nbs / 'exercises' / '06_cats.ipynb').read_bytes() == before

def test_cleaning_leaves_the_exercises_alone(nbs):
    from execnb.nbio import nb2str, read_nb
    from nbdev.clean import clean_nb
    path = nbs / 'exercises' / '06_cats.ipynb'
    nb = read_nb(path)
    clean_nb(nb)
    assert nb2str(nb) == path.read_text(encoding='utf-8')

def change(i, old, new): return [(k, s.replace(old, new)) if n == i else (k, s) for n, (k, s) in enumerate(SOLUTIONS)]

WRONG = {
    'is out of date': change(3, 'Twice', 'Double'),
    'there is a hole': change(4, 'return y', 'raise NotImplementedError'),
    'one function': change(4, '# solution\n', '# solution\nz = 1\n'),
    'needs a docstring': change(4, '    "Two x."\n', ''),
    'the first cell must be': change(0, 'Solutions', 'Answers'),
    'the Colab badge': change(1, '06_cats', '07_cats'),
    'nothing here can be answered': change(5, 'judge_answer(', 'print('),
}

@pytest.mark.parametrize('said', WRONG)
def test_wrong_solutions_are_named(nbs, said):
    save(nbs / 'solutions' / '06_cats.ipynb', *WRONG[said])
    done = run('exercises.py', '--check', '--nbs', nbs)
    assert done.returncode == 1 and said in done.stderr and 'remedy' in done.stderr, done.stderr

def test_pages_that_were_edited_lost_or_not_run_are_named(nbs):
    path = nbs / 'exercises' / '06_cats.ipynb'
    page = exercise_page(nbs)
    for cell in page['cells']: cell |= {'outputs': []} if cell['cell_type'] == 'code' else {}
    path.write_text(json.dumps(page))
    assert 'was not run' in run('exercises.py', '--check', '--nbs', nbs).stderr
    path.rename(path.with_name('08_dogs.ipynb'))
    done = run('exercises.py', '--check', '--nbs', nbs)
    assert re.search(r'06_cats.ipynb: is not there', done.stderr) and re.search(r'08_dogs.ipynb: has no solutions', done.stderr)
