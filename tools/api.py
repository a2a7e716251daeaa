"""Write nbs/92_api.ipynb, the index of names, and what programs read: `python tools/api.py`; `--check` only says what differs.

The index lists every public function, class and method of the exported modules with its signature, whose comments give
the shapes, and the first paragraph of its docstring. nbs/llms.txt is the site's table of contents for a language model,
CITATION.cff says how to cite the project. All of it comes from settings.ini, the notebooks' titles and the modules.
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
EXP = re.compile(r'^#\|\s*default_exp\s+(\w+)', re.M)


def text(cell): return ''.join(cell['source'])


class Chapter:
    "A notebook's name, title, line under the title, and the module that it exports ('' when none)."
    def __init__(self, path, nbs):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        head = re.match(r'# (.*)\n+> (.*)', text(cells[0]))
        self.name, self.title, self.line = path.relative_to(nbs).as_posix(), head[1], head[2]
        code = '\n'.join(text(c) for c in cells if c['cell_type'] == 'code')
        self.module = (EXP.findall(code) or [''])[0]


def chapters(root):
    "The chapters in their order; the index of names, which is made from them, is not one."
    paths = sorted((root / 'nbs').glob('[0-9]*.ipynb'))
    return [Chapter(path, root / 'nbs') for path in paths if path.name != '92_api.ipynb']


def signature(node, lines):
    "The lines of a definition without its body: decorators, signature with its comments, the fields of a class."
    start, first = node.lineno, node.body[0]
    shown = lines[start - 1:first.lineno - 1] or [lines[start - 1].encode()[:first.col_offset].decode()]
    while not shown[-1].strip() or shown[-1].strip().startswith('#'): shown = shown[:-1]  # what stands above the body
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.AnnAssign): shown = shown + lines[part.lineno - 1:part.end_lineno]
            if getattr(part, 'name', '') == '__init__':
                shown = shown + [' ' * part.col_offset + line for line in signature(part, lines).splitlines()]
    indent = len(shown[0]) - len(shown[0].lstrip())
    marks = [f'@{ast.unparse(d)}' for d in node.decorator_list if ast.unparse(d).partition('(')[0] in MARKS]
    return '\n'.join([*marks, *(line[indent:].rstrip() for line in shown)])


MARKS = {'property', 'staticmethod', 'classmethod', 'dataclass'}


def first_paragraph(node):
    "The first paragraph of a docstring on one line."
    return ' '.join((ast.get_docstring(node) or '').split('\n\n')[0].split())


def definitions(body, lines, prefix=''):
    "(name, signature, first paragraph) of every public function, class and method, in the order of the module."
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
        if node.name.startswith('_'): continue  # __init__ stands with its class
        yield prefix + node.name, signature(node, lines), first_paragraph(node)
        if isinstance(node, ast.ClassDef): yield from definitions(node.body, lines, f'{node.name}.')


def markdown_words(words):
    "A docstring as Markdown: names in backticks are code, and all else stays as it is written."
    parts = re.split(r'(`[^`]+`)', words)
    return ''.join(part if i % 2 else re.sub(r'([\\`*_\[\]<>$#~^|])', r'\\\1', part) for i, part in enumerate(parts))


def entry(chapter, name, signature, words):
    "The lines of the index for one name."
    link = f'[{chapter.name.removesuffix(".ipynb")}]({chapter.name}#{name.partition(".")[0].lower()})'
    return f'### {name}\n\n```python\n{signature}\n```\n\n' + ' '.join(filter(None, [markdown_words(words), link]))


def pages(root):
    "The cells of the index, as Markdown."
    found = [chapter for chapter in chapters(root) if chapter.module]
    names = {}
    for chapter in found:
        source = (root / 'discdiff_nb' / f'{chapter.module}.py').read_text(encoding='utf-8')
        names[chapter.module] = list(definitions(ast.parse(source).body, source.splitlines()))
    total = sum(map(len, names.values()))
    yield '# Index of names\n\n> Every public function, class and method: its signature with shapes, what it does, the chapter that has it.\n- toc-depth: 2'
    yield Address(root).badge('nbs/92_api.ipynb')
    yield (f'{total} names of {len(found)} modules. In a shape, B is the batch, D and D1 are places, K classes, T steps; `*D` means any number of axes. '
           'The brackets at the end of a line name [equations](91_equations.ipynb). This page is made by `tools/api.py` from the modules.')
    for chapter in found:
        head = f'## {chapter.module}\n\n`discdiff_nb.{chapter.module}`, from [{chapter.title}]({chapter.name}). {chapter.line}'
        yield '\n\n'.join([head, *(entry(chapter, *one) for one in names[chapter.module])])


def notebook(root):
    "The text of nbs/92_api.ipynb."
    cells = [{'cell_type': 'markdown', 'id': hashlib.sha256(f'api {i}'.encode()).hexdigest()[:8], 'metadata': {},
              'source': source.splitlines(keepends=True)} for i, source in enumerate(pages(root))]
    kernel = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
    whole = {'cells': cells, 'metadata': {'kernelspec': kernel}, 'nbformat': 4, 'nbformat_minor': 5}
    return json.dumps(whole, sort_keys=True, indent=1, ensure_ascii=False) + '\n'


def llms(root):
    "The text of nbs/llms.txt, in the form of llmstxt.org."
    address, found = Address(root), chapters(root)
    yield f'# {address.settings["title"]}\n\n> {address.settings["description"]}\n'
    yield 'Each chapter is a Jupyter notebook; the modules are exported from the notebooks and hold the same code without prose.\n'
    yield f'Install: `pip install {address.pip}`\n'
    yield '## Chapters\n'
    for chapter in found: yield f'- [{chapter.title}]({address.raw("nbs/" + chapter.name)}): {chapter.line}'
    yield '\n## Modules\n'
    for chapter in found:
        if chapter.module: yield f'- [{address.lib}.{chapter.module}]({address.raw(f"{address.lib}/{chapter.module}.py")}): {chapter.title}'
    yield '\n## Optional\n'
    yield f'- [Index of names]({address.raw("nbs/92_api.ipynb")}): signatures with shapes'
    yield f'- [Ledger]({address.raw("nbs/ledger.json")}): the equations by number'
    yield f'- [The rendered chapters]({address.site}): with figures'


def citation(root):
    "The text of CITATION.cff."
    settings, address = Address(root).settings, Address(root)
    def quoted(words): return json.dumps(words, ensure_ascii=False) # also a string of YAML
    yield '# Written by tools/api.py from settings.ini.'
    yield 'cff-version: 1.2.0'
    yield 'message: "If this project is of use in your work, please cite it, and the papers that the chapter in question names."'
    yield f'title: {quoted(settings["title"])}\ntype: software\nversion: {quoted(settings["version"])}\nlicense: Apache-2.0'
    yield f'abstract: {quoted(settings["description"])}'
    yield f'authors:\n  - name: {quoted(settings["author"])}'
    yield f'repository-code: {quoted(address.url)}\nurl: {quoted(address.site)}'
    yield f'keywords: [{", ".join(quoted(word) for word in settings["keywords"].split())}]'


def wanted(root):
    "path -> text of every file that is made here."
    return {root / 'nbs' / '92_api.ipynb': notebook(root), root / 'nbs' / 'llms.txt': '\n'.join(llms(root)) + '\n',
            root / 'CITATION.cff': '\n'.join(citation(root)) + '\n'}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 and name what differs')
    parser.add_argument('--root', type=Path, default=ROOT, help='the repository')
    args = parser.parse_args()
    found = {path: new for path, new in wanted(args.root).items() if not path.exists() or path.read_text(encoding='utf-8') != new}
    if args.check: sys.exit('\n'.join(f'{path.relative_to(args.root)} is out of date; remedy: make pages' for path in found) or 0)
    for path, new in found.items(): path.write_text(new, encoding='utf-8')
    print(f'{len(found)} files written')


if __name__ == '__main__': main()
