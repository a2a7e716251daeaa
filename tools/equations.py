"""Write nbs/91_equations.ipynb, the page of all equations: `python tools/equations.py`; `--check` only says what is missing.

nbs/ledger.json holds what is owed. An exported function or class names the rows that it implements in brackets in its
docstring, `(K14, K15)`; a cell that checks rows starts with `# check K14, K15: words that say against what`.
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
GENERATED = ('91_equations.ipynb', '92_api.ipynb')
ID = re.compile(r'\b(?:[AKDUV]\d+|[DU]-[a-z]+)\b')
RANGE = re.compile(r'\b([AKDUV])(\d+)[-–]\1?(\d+)\b')
LABEL = re.compile(r'(?:#\|.*\n|\s*\n)*# check ([^:\n]*):[ \t]*(.*)')
CHECKS = re.compile(r'compare_lines|test_\w+|judge\w*|assert_\w+|gradcheck')
SKIPPED = re.compile(r'^#\|\s*(eval:\s*false|slow\b|cuda\b|notest\b)', re.M)


def text(cell): return ''.join(cell['source'])


def ids_in(words):
    "The IDs in some words, ranges such as K14-K18 spelled out, in their order."
    spelled = RANGE.sub(lambda m: ', '.join(f'{m[1]}{n}' for n in range(int(m[2]), int(m[3]) + 1)), words)
    return list(dict.fromkeys(ID.findall(spelled)))


def in_brackets(docstring):
    "What stands in brackets, a bracket inside included."
    return ' '.join(re.findall(r'\(((?:[^()]|\([^()]*\))*)\)', docstring))


def definitions(body, prefix=''):
    "The public functions, classes and methods of a module, with their docstrings."
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith('_'): continue
        yield prefix + node.name, ast.get_docstring(node) or ''
        if isinstance(node, ast.ClassDef): yield from definitions(node.body, f'{node.name}.')


def functions(package):
    "(module, name, ids) of everything exported whose docstring names a row."
    for path in sorted(package.glob('[!_]*.py')):
        for name, doc in definitions(ast.parse(path.read_text(encoding='utf-8')).body):
            if found := ids_in(in_brackets(doc)): yield path.stem, name, found


def parsed(source):
    "The syntax tree of a cell, without IPython's lines."
    return ast.parse(re.sub(r'^(\s*)[!%].*$', r'\1pass', source, flags=re.M))


def asserts(tree, helpers=()):
    "Is there an assert in it, or a call of something that asserts (by its name, or because it is one of the helpers)?"
    names = [getattr(n.func, 'attr', getattr(n.func, 'id', '')) for n in ast.walk(tree) if isinstance(n, ast.Call)]
    return any(isinstance(n, ast.Assert) for n in ast.walk(tree)) or any(CHECKS.fullmatch(n) or n in helpers for n in names)


def asserting_helpers(sources):
    "The names of a notebook's own functions that assert."
    trees = [parsed(source) for source in sources if not source.startswith('%%')]
    return {n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and asserts(n)}


def anchor(heading):
    "A heading's id as Pandoc makes it (Quarto and smalldocs both follow it)."
    plain = re.sub(r'\[([^\]]*)\]\([^)]*\)|[`*$]', r'\1', heading)
    kept = '-'.join(''.join(c.lower() for c in plain if c.isalnum() or c.isspace() or c in '_-.').split())
    return re.sub(r'^[^a-z]*', '', kept) or 'section'


class Chapter:
    "A notebook read for this page: where each row stands in its prose, and its labelled checks."
    def __init__(self, path):
        self.name, self.number, self.stem = path.name, int(re.match(r'\d+', path.stem)[0]), re.sub(r'^\d+_', '', path.stem)
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        self.title = re.match(r'# (.*)', text(cells[0]))[1]
        self.tagged, self.named, self.checks, self.problems, self.link, taken = {}, {}, [], [], path.name, []
        self.helpers = asserting_helpers([text(c) for c in cells if c['cell_type'] == 'code'])
        for cell in cells:
            if cell['cell_type'] == 'markdown': self.read_prose(text(cell), taken)
            elif label := LABEL.match(text(cell)): self.read_check(text(cell), ids_in(label[1]), label[1], label[2].strip())

    def read_prose(self, source, taken):
        for part in re.split(r'(^#{2,6} .*$)', re.sub(r'^```.*?^```', '', source, flags=re.M | re.S), flags=re.M):
            if heading := re.match(r'#{2,6} (.*)', part):
                slug = anchor(heading[1])
                self.link = f'{self.name}#{slug}' + (f'-{taken.count(slug)}' if slug in taken else '')
                taken.append(slug)
            for tag in re.findall(r'\\tag\{([^}]*)\}', part): self.tagged |= {i: self.link for i in ids_in(tag) if i not in self.tagged}
            prose = re.sub(r'^\|.*$', '', part, flags=re.M) # the card lists rows without saying them
            self.named |= {i: self.link for i in ids_in(prose) if i not in self.named}

    def read_check(self, source, found, listed, words):
        if not found or not words: self.problems.append(f'{self.name}: `# check {listed}: {words}` needs an ID and words')
        if re.search(r'^#\|\s*export', source, re.M): self.problems.append(f'{self.name}: the check "{words}" stands in an exported cell')
        elif not asserts(parsed(source), self.helpers): self.problems.append(f'{self.name}: the check "{words}" asserts nothing')
        self.checks.append((found, words, self.link, not SKIPPED.search(source)))


class Ledger:
    "nbs/ledger.json with what the package and the notebooks say of each row."
    def __init__(self, root):
        ledger = json.loads((root / 'nbs' / 'ledger.json').read_text(encoding='utf-8'))
        self.rows, self.due, self.aliases = ledger['rows'], ledger['due'], ledger['aliases']
        self.ids = {row['id'] for row in self.rows}
        paths = [p for p in sorted((root / 'nbs').glob('[0-9]*.ipynb')) if p.name not in GENERATED]
        self.chapters, self.problems, self.functions = [Chapter(p) for p in paths], [], {}
        for module, name, found in functions(root / 'discdiff_nb'):
            for i in self.known(found, f'discdiff_nb.{module}.{name}'): self.functions.setdefault(i, []).append((module, name))

    def known(self, found, where):
        "The rows meant by some IDs; an unknown one is a problem."
        found = [self.aliases.get(i, i) for i in found]
        self.problems += [f'{where}: {i} is not in nbs/ledger.json' for i in found if i not in self.ids]
        return [i for i in dict.fromkeys(found) if i in self.ids]

    def checks(self, row):
        "(chapter, words, link, runs in the tests) of every check of a row."
        return [(c, words, link, runs) for c in self.chapters for found, words, link, runs in c.checks
                if row in [self.aliases.get(i, i) for i in found]]

    def checked(self, row):
        "Has a row a check in a chapter, and one that the tests run?"
        return any(runs and chapter.number < 90 for chapter, _, _, runs in self.checks(row))

    def place(self, row):
        "(chapter, link to the heading) where a row is stated: a tagged equation first, then a mention; None when nowhere."
        homes = [c for name in row['chapters'] for c in self.chapters if c.stem == name]
        for where in ('tagged', 'named'):
            for chapter in homes:
                if row['id'] in getattr(chapter, where): return chapter, getattr(chapter, where)[row['id']]


def missing(ledger):
    "One line for each thing that is owed and not there."
    out = list(ledger.problems)
    for chapter in ledger.chapters:
        out += chapter.problems
        for found, words, _, _ in chapter.checks: out += [f'{chapter.name}: {i} of the check "{words}" is not in nbs/ledger.json'
                                                          for i in found if ledger.aliases.get(i, i) not in ledger.ids]
    for row in ledger.rows:
        if row['chapters'][0] not in ledger.due: continue
        owes = f'{row["id"]} ({", ".join(row["chapters"])})'
        if not ledger.place(row): out.append(f'{owes}: not in the prose of its chapter; remedy: \\tag{{{row["id"]}}}')
        if row['id'] not in ledger.functions: out.append(f'{owes}: no exported function; remedy: ({row["id"]}) at the end of its docstring')
        if not ledger.checked(row['id']):
            out.append(f'{owes}: no check that runs; remedy: `# check {row["id"]}: words` in a cell of a chapter')
    return out


def escaped(words):
    "Words as the text of a link."
    return re.sub(r'([\[\]*<])', r'\\\1', words)


def entry(ledger, row):
    "What the page says of one row: no table, no fold, so that every renderer keeps every link."
    place, checks = ledger.place(row), ledger.checks(row['id'])
    code = {}
    for module, name in ledger.functions.get(row['id'], []): code.setdefault(module, []).append(f'`{name}`')
    stated = f'derived in [{place[0].title}]({place[1]})' if place else f'not derived yet; chapter {row["chapters"][0]} owes it'
    yield f'### {row["id"]}\n\n{row["what"]}\n\n- {stated}'
    for module, names in code.items(): yield f'- code in {module}: {", ".join(names)}'
    for _, words, link, runs in checks: yield f'- checked: [{escaped(words)}]({link})' + ' (slow)' * (not runs)


def markdown(ledger):
    "The page, one string per cell."
    yield ('# Equations\n\n> Every equation of the sources: what it says, where it is derived, which function is it, and which cell checks it.')
    yield Address().badge('nbs/91_equations.ipynb')
    due = [row for row in ledger.rows if row['chapters'][0] in ledger.due]
    done = [row for row in due if row['id'] in ledger.functions and ledger.checked(row['id'])]
    yield (f'{len(ledger.rows)} rows, {len(done)} of the {len(due)} of the derivation chapters with a function and a check that runs. This page is made by '
           '`tools/equations.py` from [the ledger](ledger.json), the docstrings of the package and the '
           'labels of the check cells; the tests fail when a row of a derivation chapter has no function, no check or no place in the prose. '
           'What a source prints wrongly is collected in [Errata](90_errata.ipynb).')
    groups = {}
    for row in ledger.rows: groups.setdefault(row['source'].partition(';')[0], []).append(row)
    for source, rows in groups.items():
        entries = ['\n'.join(entry(ledger, row)) for row in rows]
        yield f'## {source}\n\n' + '\n\n'.join(entries)


def page(ledger):
    "The notebook's text."
    cells = [{'cell_type': 'markdown', 'id': hashlib.sha256(f'equations {i}'.encode()).hexdigest()[:8], 'metadata': {}, 'source': s.splitlines(keepends=True)}
             for i, s in enumerate(markdown(ledger))]
    kernel = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
    notebook = {'cells': cells, 'metadata': {'kernelspec': kernel}, 'nbformat': 4, 'nbformat_minor': 5}
    return json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 when a row is not served or the page is out of date')
    parser.add_argument('--root', type=Path, default=ROOT, help='the repository')
    args = parser.parse_args()
    ledger, path = Ledger(args.root), args.root / 'nbs' / '91_equations.ipynb'
    problems, new = missing(ledger), page(ledger)
    if not args.check: path.write_text(new, encoding='utf-8')
    elif not path.exists() or path.read_text(encoding='utf-8') != new:
        problems.append('nbs/91_equations.ipynb is out of date; remedy: python tools/equations.py')
    print('\n'.join(problems) or f'{len(ledger.rows)} rows, nothing missing', file=sys.stderr if problems else sys.stdout)
    if args.check and problems: sys.exit(1)


if __name__ == '__main__': main()
