"""Write README.md from nbs/index.ipynb without Quarto: `python tools/readme.py`; `--check` only says whether it is up to date.

Markdown cells stand as they are, code cells as fenced code with the text they printed; `#| hide` cells are left out.
Links to files beside the notebook get their path from the repository's root.
"""
import argparse
import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK, README = ROOT / 'nbs' / 'index.ipynb', ROOT / 'README.md'
NOTE = '<!-- Generated from nbs/index.ipynb by tools/readme.py: edit the notebook, then run `make readme`. -->'
LINK = re.compile(r'(\]\(<?|\b(?:src|href)=")([^)\s>"]+)')
CODE = re.compile(r'(```.*?```|`[^`\n]*`)', re.S)


def from_root(link, folder='nbs'):
    "A link as the notebook has it, relative to nbs/, as it must be in the README at the root."
    if re.match(r'[a-zA-Z][\w+.-]*:|#|/', link): return link
    return posixpath.normpath(posixpath.join(folder, link)) + ('/' if link.endswith('/') else '')


def markdown(source):
    "A markdown cell with its links moved; what stands in code stays."
    parts = CODE.split(source.strip())
    return ''.join(part if i % 2 else LINK.sub(lambda m: m[1] + from_root(m[2]), part) for i, part in enumerate(parts))


def code(source, outputs):
    "A code cell and the text it printed; '' for a hidden one. An image must be a file in nbs/, shown by a markdown cell."
    options = dict(re.findall(r'^#\|\s*([\w-]+):?\s*(.*?)\s*$', source, re.M))
    if 'hide' in options or options.get('include') == 'false': return ''
    body = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
    text = []
    for output in outputs if options.get('output') != 'false' else []:
        data = output.get('data', {})
        if any(kind.startswith('image/') for kind in data):
            sys.exit('tools/readme.py: nbs/index.ipynb has a figure as output; remedy: keep it as a file in nbs/ and show it in a markdown cell')
        text.append(''.join(output.get('text', data.get('text/plain', ''))).strip('\n'))
    shown = [f'```python\n{body}\n```'] if body and options.get('echo') != 'false' else []
    return '\n\n'.join(shown + ['```\n' + '\n'.join(text) + '\n```'] * bool(text))


def readme(notebook):
    "The README's text."
    cells = [markdown(''.join(c['source'])) if c['cell_type'] == 'markdown' else code(''.join(c['source']), c['outputs'])
             for c in notebook['cells'] if c['cell_type'] in ('markdown', 'code')]
    return '\n\n'.join([NOTE] + [cell for cell in cells if cell]) + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 when README.md is out of date')
    check = parser.parse_args().check
    text = readme(json.loads(NOTEBOOK.read_text(encoding='utf-8')))
    if not check: README.write_text(text, encoding='utf-8')
    elif not README.exists() or README.read_text(encoding='utf-8') != text:
        sys.exit('README.md is out of date with nbs/index.ipynb; remedy: python tools/readme.py')


if __name__ == '__main__': main()
