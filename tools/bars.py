"""How the book reads, as one table: `python tools/bars.py [NOTEBOOK ...]`

Lines, cells and words of the notebooks and of what is exported from them, beside what is asked.
Exit status 1 if a bar is missed."""
import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
DERIVATIONS = range(3, 11)
REFERENCE = (90, 91, 92)  # generated, or lists: length is no fault there


def number(path): return int(path.stem[:2])
def source(cell): return ''.join(cell['source'])
def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


def chapters():
    "The numbered notebooks."
    return sorted(path for path in NBS.glob('[0-9][0-9]_*.ipynb'))


def python(cell):
    "A code cell without directives and without IPython's own lines."
    lines = source(cell).split('\n')
    return '\n'.join('' if re.match(r'\s*(#\||[!%?])', line) else line for line in lines)


def code(path): return [python(c) for c in cells(path) if c['cell_type'] == 'code']
def exported(path):
    found = [c for c in cells(path) if c['cell_type'] == 'code']
    return [python(c) for c in found if re.match(r'#\|\s*exporti?\b', source(c))]


def prose(path):
    "The words of a chapter: markdown without formulas, code and links' addresses."
    text = '\n'.join(source(c) for c in cells(path) if c['cell_type'] == 'markdown')
    text = re.sub(r'\$\$.*?\$\$|\$[^$\n]*\$', ' ', text, flags=re.S)
    return re.sub(r'```.*?```|`[^`]*`|\]\([^)]*\)', ' ', text, flags=re.S)


def wide(lines): return sum(len(line) > 100 for line in lines)


def packed(text):
    "Statements that hold more than one thought: `;`, a walrus inside a call, a tuple of calls."
    try: tree = ast.parse(text)
    except SyntaxError: return 0
    found = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            parts = [*node.args, *(k.value for k in node.keywords)]
            found += sum(isinstance(n, ast.NamedExpr) for part in parts for n in ast.walk(part))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple): found += 1
        for body in (getattr(node, field, None) for field in ('body', 'orelse', 'finalbody')):
            if not isinstance(body, list): continue
            ends = [(a.end_lineno, b.lineno) for a, b in zip(body, body[1:])]
            found += sum(end == begin for end, begin in ends)
    return found


def nouns(text):
    "Ledger IDs that stand in a sentence as words, outside brackets and tables."
    lines = [line for line in text.split('\n') if not line.lstrip().startswith(('|', '#'))]
    bare = re.sub(r'\([^()]*\)', ' ', '\n'.join(lines))
    return len(re.findall(r'(?<![\w/\[])[AKDUV]\d{1,2}(?![\w\]])', bare))


def long_functions(path):
    "Exported functions and methods over 25 lines."
    found = []
    for text in exported(path):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 25:
                found.append(node.name)
    return found


def captions(path):
    "(figures, figures with a visible caption): an image output, and fig-cap or a caption below."
    figures = captioned = 0
    found = cells(path)
    for i, cell in enumerate(found):
        outputs = cell.get('outputs', [])
        if not any('image/png' in o.get('data', {}) for o in outputs): continue
        figures += 1
        below = source(found[i + 1]) if i + 1 < len(found) else ''
        captioned += bool(re.match(r'\*?\*?Figure\b|\*[A-Z]', below.lstrip()))
    return figures, captioned


def first_sample():
    "Cells before the first generated sample of 00_start."
    path = NBS / '00_start.ipynb'
    if not path.is_file(): return None
    shown = enumerate(map(source, cells(path)))
    marks = [i for i, text in shown if 'fig-alt' in text and 'generat' in text]
    return marks[0] if marks else None


def measure(paths):
    "name -> (measured, asked, whether it holds)"
    books = [p for p in paths if number(p) not in REFERENCE]
    lines = [line for p in paths for text in exported(p) for line in text.split('\n')]
    every = [line for p in paths for text in code(p) for line in text.split('\n')]
    length = {p.stem: (len(cells(p)), len(prose(p).split())) for p in books}
    derive = {stem: n for stem, n in length.items() if int(stem[:2]) in DERIVATIONS}
    rows, too_long = {}, [name for p in paths for name in long_functions(p)]
    def row(name, measured, asked, holds): rows[name] = (str(measured), asked, holds)

    first = first_sample()
    holds = first is not None and first <= 25
    row('cells before the first generated sample', first, '<= 25', holds)
    n = wide(lines)
    row(f'exported lines over 100 columns, of {len(lines):,}', n, '0', n == 0)
    n = wide(every)
    row(f'notebook lines over 100 columns, of {len(every):,}', n, '0', n == 0)
    n = sum(packed(text) for p in paths for text in code(p))
    row('`;`, walrus inside a call, tuple statements', n, '0', n == 0)
    for name, part, most in (('chapter', length, (75, 1800)), ('derivation', derive, (70, 1600))):
        if not part: continue
        for what, i in (('cells', 0), ('words', 1)):
            stem = max(part, key=lambda s: part[s][i])
            n = part[stem][i]
            row(f'longest {name}, {what}', f'{n} ({stem})', f'<= {most[i]}', n <= most[i])
    n = sum(nouns(prose(p)) for p in books)
    row('ledger IDs as words of a sentence', n, '0', n == 0)
    figures, captioned = map(sum, zip(*(captions(p) for p in books)))
    row(f'figures with a visible caption, of {figures}', captioned, 'all', captioned == figures)
    n = len(too_long)
    row('exported functions over 25 lines', f'{n} {" ".join(too_long)}', '<= 5', n <= 5)
    return rows


def main():
    named = [Path(arg).resolve() for arg in sys.argv[1:]]
    rows = measure(named or chapters())
    width = max(map(len, rows))
    for name, (measured, asked, holds) in rows.items():
        print(f'{name:<{width}}  {measured:<40} asked {asked:<8} {"" if holds else "missed"}')
    return int(not all(holds for *_, holds in rows.values()))


if __name__ == '__main__': sys.exit(main())
