"""Write nbs/exercises/NAME.ipynb from nbs/solutions/NAME.ipynb: `python tools/exercises.py`; `--check` only says what differs.

A cell that starts with `# solution` keeps its signature and docstring, and its body becomes a hole. Left out are the cells
that start with `**Solution.**`, and all code after the last judge of an exercise, which shows what only the answer can show.
Pages whose code changed are run, so that they show 'not answered yet'; the others keep their outputs.
"""
import argparse
import ast
import hashlib
import json
import re
import sys
from pathlib import Path

from address import Address

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = Address()
HOLE = "raise NotImplementedError('your turn')"
REMEDY = 'remedy: python tools/exercises.py'


class FormatError(Exception): "A solutions notebook that is not in the agreed form."


def text(cell): return ''.join(cell['source'])


def with_hole(source):
    "A solution cell with the body of its function replaced; FormatError unless it is one function with a docstring."
    body = ast.parse(source).body
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef): raise FormatError(f'a solution cell must hold one function:\n{source}')
    first = body[0].body[0]
    if ast.get_docstring(body[0]) is None or len(body[0].body) < 2 or first.lineno == body[0].lineno:
        raise FormatError(f'a solution needs a docstring on a line of its own, and a body below it:\n{source}')
    lines = source.splitlines()
    return '\n'.join(['# your turn', *lines[1:first.end_lineno], ' ' * first.col_offset + HOLE])


def judged(cell): return cell['cell_type'] == 'code' and 'judge_answer(' in text(cell)


def up_to_judge(source):
    "A cell without what follows its last call of the judge."
    calls = [n for n in ast.parse(source).body if 'judge_answer(' in ast.unparse(n)]
    return '\n'.join(source.splitlines()[:calls[-1].end_lineno])


def sections(cells):
    "The cells before the first heading, then those of each `## ` heading."
    out = [[]]
    for cell in cells:
        if cell['cell_type'] == 'markdown' and text(cell).startswith('## '): out.append([])
        out[-1].append(cell)
    return out


def holed(section):
    "The (kind, source) pairs of one exercise that a reader is given."
    last = max((i for i, cell in enumerate(section) if judged(cell)), default=len(section))
    for i, cell in enumerate(section):
        source, kind = text(cell), cell['cell_type']
        if kind == 'markdown' and not source.startswith('**Solution.**'): yield kind, source
        elif kind == 'code' and source.startswith('# solution\n'): yield kind, with_hole(source)
        elif kind == 'code' and i <= last: yield kind, up_to_judge(source) if i == last else source


def exercises(name, notebook, chapter_title):
    "The exercises as (kind, source) pairs, from the notebook with the solutions."
    cells = notebook['cells']
    title = re.fullmatch(r'# Solutions: (\S.*)\n+> (\S.*)\n*', text(cells[0]))
    if not title: raise FormatError('the first cell must be `# Solutions: chapter title` and `> one line`')
    if any('NotImplementedError' in text(c) for c in cells): raise FormatError('there is a hole (NotImplementedError) in the solutions')
    if f'"{ADDRESS.colab(f"nbs/solutions/{name}.ipynb")}"' not in text(cells[1]): raise FormatError('the second cell must be the Colab badge of this notebook')
    if not any(judged(c) for c in cells): raise FormatError('no judge_answer: nothing here can be answered')
    links = f'Chapter: [{chapter_title}](../{name}.ipynb). Solutions: [here](../solutions/{name}.ipynb), when you have tried.'
    yield 'markdown', f'# Exercises: {title[1]}\n\n> {title[2]}'
    yield 'markdown', ADDRESS.badge(f'nbs/exercises/{name}.ipynb')
    yield 'markdown', links
    for section in sections(cells[2:]): yield from holed(section)


def as_notebook(pairs):
    "A clean notebook without outputs; the id of a cell depends on its text alone (and on how often that text came before)."
    cells, seen = [], {}
    for kind, source in pairs:
        seen[source] = seen.get(source, 0) + 1
        cell = {'cell_type': kind, 'id': hashlib.sha256(f'{seen[source]}{source}'.encode()).hexdigest()[:8], 'metadata': {},
                'source': source.splitlines(keepends=True)}
        cells.append(cell | ({'execution_count': None, 'outputs': []} if kind == 'code' else {}))
    kernel = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
    return {'cells': cells, 'metadata': {'kernelspec': kernel}, 'nbformat': 4, 'nbformat_minor': 5}


def title_of(path):
    "The title of a notebook, or FormatError."
    if not path.exists(): raise FormatError(f'there is no chapter {path.name}')
    return re.match(r'# (.*)', text(json.loads(path.read_text(encoding='utf-8'))['cells'][0]))[1]


def want(nbs, solution):
    "The notebook that shall stand in nbs/exercises, without outputs. Raises FormatError."
    notebook = json.loads(solution.read_text(encoding='utf-8'))
    return as_notebook(exercises(solution.stem, notebook, title_of(nbs / solution.name)))


def run_code(cell):
    "The code of a cell that is run when the page is; None for all other cells."
    return text(cell) if cell['cell_type'] == 'code' and '#| eval: false' not in text(cell) else None


def keep_outputs(path, notebook):
    "Give the notebook the outputs of the file, if the file has the same code to run; was that so?"
    if not path.exists(): return False
    there = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if run_code(c) is not None]
    new = [c for c in notebook['cells'] if run_code(c) is not None]
    if [run_code(c) for c in there] != [run_code(c) for c in new]: return False
    for old, cell in zip(there, new): cell |= {key: old[key] for key in ('outputs', 'execution_count')}
    return True


def differs(path, notebook):
    "Why the file is not this notebook (outputs aside), or has not been run; '' when all is well."
    if not path.exists(): return 'is not there'
    there = json.loads(path.read_text(encoding='utf-8'))
    bare = [c | {'outputs': []} if c['cell_type'] == 'code' else c for c in there['cells']]
    if there | {'cells': bare} != notebook: return 'is out of date'
    for cell in there['cells']:
        if judged(cell) and 'not answered yet' not in json.dumps(cell['outputs']): return "does not show 'not answered yet' under each judge: it was not run"
    return ''


def stale(nbs):
    "Every page that is not as it should be: path -> (why, notebook to write or None)."
    solutions, found = sorted((nbs / 'solutions').glob('*.ipynb')), {}
    for path in sorted((nbs / 'exercises').glob('*.ipynb')):
        if path.name not in {s.name for s in solutions}: found[path] = 'has no solutions; remedy: delete it', None
    for solution in solutions:
        path = nbs / 'exercises' / solution.name
        try: notebook = want(nbs, solution)
        except FormatError as e: found[solution] = f'{e}; remedy: mend it there', None
        else:
            if why := differs(path, notebook): found[path] = why, notebook
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 and name what differs')
    parser.add_argument('--nbs', type=Path, default=ROOT / 'nbs', help='the folder with the notebooks')
    args = parser.parse_args()
    found = stale(args.nbs.resolve())
    if not args.check:
        from run_nb import run_notebook
        sys.path.insert(0, str(ROOT))
        for path, (why, notebook) in found.items():
            if notebook is None: continue
            path.parent.mkdir(exist_ok=True)
            kept = why == 'is out of date' and keep_outputs(path, notebook)
            path.write_text(json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
            if kept:
                print(f'exercises/{path.name}: the same code, its outputs stay', flush=True)
                continue
            try: print(f'exercises/{path.name}: {run_notebook(path):.1f} s', flush=True)
            except Exception as e: print(f'exercises/{path.name} does not run with its holes: {type(e).__name__}: {e}', file=sys.stderr)
        found = stale(args.nbs.resolve())
    sys.exit('\n'.join(f'{p.parent.name}/{p.name}: {why}' + f'; {REMEDY}' * (nb is not None) for p, (why, nb) in found.items()) or 0)


if __name__ == '__main__': main()
