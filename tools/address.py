"""Write the repository's address wherever a reader meets it: `python tools/address.py`; `--check` only says what differs.

settings.ini alone holds it (git_url, branch, doc_host, doc_baseurl). From there come the Colab badge and the install cell
of every notebook, the links to the issue form and to CONTRIBUTING.md, and the site's address in the issue templates.
The package reads it as discdiff_nb._modidx.d['settings'], which nbdev_export writes from the same file.
"""
import argparse
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLAB = 'https://colab.research.google.com/'
IMAGE = COLAB + 'assets/colab-badge.svg'
ELSEWHERE = ('91_equations.ipynb', '92_api.ipynb')  # written whole by tools/equations.py and tools/api.py
BADGES = [  # a badge as it may stand in a notebook, with the path of the notebook that it opens
    re.compile(rf'\[!\[[^\]]*\]\({re.escape(IMAGE)}\)\]\({COLAB}github/[^)]*?/(nbs/[^)]*\.ipynb)\)'),
    re.compile(rf'<a href="{COLAB}github/[^"]*?/(nbs/[^"]*\.ipynb)"><img[^>]*></a>'),
]
INSTALL = '''#| hide
#| eval: false
from importlib import invalidate_caches, util
def absent(): return getattr(util.find_spec('{lib}'), 'origin', None) is None
if absent():
    %pip install -q git+{url}@{branch}
    invalidate_caches()
if absent():
    raise ImportError('pip could not install from the address above; remedy: copy the repository '
                      'to this machine another way, and run `%pip install FOLDER` on its folder')'''
ADDRESS = r'https?://[^\s()"\'<>]+?'
ISSUES = re.compile(ADDRESS + r'(?=/issues/new\b)')
PIP = re.compile(r'git\+https?://[^\s`\'")]+')
BLOB = re.compile(ADDRESS + r'/blob/[^\s()"\'<>]+?(?=/CONTRIBUTING\.md)')


class Address:
    "What settings.ini says of where the repository and its site are."
    def __init__(self, root=ROOT):
        config = ConfigParser(delimiters=['='], interpolation=None)
        config.read(Path(root) / 'settings.ini', encoding='utf-8')
        self.settings = config['DEFAULT']
        self.lib, self.branch = self.settings['lib_name'], self.settings['branch']
        self.url = self.settings['git_url'].rstrip('/')
        self.site = self.settings['doc_host'].rstrip('/') + self.settings['doc_baseurl'].rstrip('/')
        self.pip = f'git+{self.url}@{self.branch}'

    def colab(self, path):
        "The address that opens a notebook, named from the root, in Colab; it opens what is on GitHub."
        where = re.fullmatch(r'https?://github\.com/([^/]+/[^/]+)', self.url)
        if not where: sys.exit(f'settings.ini: git_url = {self.url}, and Colab opens https://github.com/OWNER/REPOSITORY only')
        return f'{COLAB}github/{where[1]}/blob/{self.branch}/{path}'

    def badge(self, path):
        "The badge of a notebook. It is HTML because Quarto makes a figure without alt text of a Markdown image in a link."
        name = path.removeprefix('nbs/').removesuffix('.ipynb')
        return f'<a href="{self.colab(path)}"><img src="{IMAGE}" alt="Open {name} in Colab"></a>'

    def install(self):
        "The cell that installs the package where it is absent."
        return INSTALL.format(lib=self.lib, url=self.url, branch=self.branch)

    def blob(self, path): return f'{self.url}/blob/{self.branch}/{path}'

    def raw(self, path): return f'{self.url}/raw/{self.branch}/{path}'

    def links(self, words):
        "Some text with the repository's address in its links."
        return PIP.sub(self.pip, ISSUES.sub(self.url, BLOB.sub(f'{self.url}/blob/{self.branch}', words)))


def text(cell): return ''.join(cell['source'])


def installs(source):
    "Is this an install cell, of whatever form and address?"
    return 'eval: false' in source and re.search(r'[!%]pip install\b.*\bgit\+', source) is not None


def rewritten(notebook, path, address):
    "The sources of a notebook's cells as they should be; `path` is its own, from the root."
    for cell in notebook['cells']:
        source = text(cell)
        if cell['cell_type'] == 'code': yield address.install() if installs(source) else source
        elif any(badge.fullmatch(source.strip()) for badge in BADGES): yield address.badge(path)
        elif cell['cell_type'] == 'markdown':
            for badge in BADGES: source = badge.sub(lambda m: address.badge(m[1]), source)
            yield address.links(source)
        else: yield source


def notebooks(root):
    "The notebooks that people write, with their paths from the root."
    for path in sorted((root / 'nbs').rglob('*.ipynb')):
        parts = path.relative_to(root / 'nbs').parts
        if parts[0] == 'exercises' or parts[0] in ELSEWHERE or any(part[0] in '._' for part in parts): continue
        yield path, path.relative_to(root).as_posix()


def wanted(root):
    "(path, text it should have) of every file with the address in it."
    address = Address(root)
    for path, name in notebooks(root):
        before = path.read_text(encoding='utf-8')
        notebook = json.loads(before)
        sources = list(rewritten(notebook, name, address))
        if sources == [text(c) for c in notebook['cells']]: continue
        for cell, source in zip(notebook['cells'], sources): cell['source'] = source.splitlines(keepends=True)
        yield path, json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'
    texts = {}
    for name, pattern, new in [
            ('_quarto.yml', r'(?<=href: )\S+(?=\s+text: Source)', address.url),
            ('.github/ISSUE_TEMPLATE/config.yml', r'(?<=    url: )\S+', address.site),
            ('CONTRIBUTING.md', ISSUES, address.url),
            ('nbs/nbdev.yml', r'(?<=site-url: ")[^"]+', address.site),  # as nbdev writes it from settings.ini
            ('nbs/nbdev.yml', r'(?<=repo-url: ")[^"]+', address.url),
            ('nbs/nbdev.yml', r'(?<=repo-branch: )\S+', address.branch)]:
        texts[name] = re.sub(pattern, new, texts.get(name) or (root / name).read_text(encoding='utf-8'))
    yield from ((root / name, new) for name, new in texts.items())


def differing(root):
    "Those of them that are not as they should be."
    return {path: new for path, new in wanted(root) if path.read_text(encoding='utf-8') != new}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 and name what differs')
    parser.add_argument('--root', type=Path, default=ROOT, help='the repository')
    args = parser.parse_args()
    found = differing(args.root)
    if args.check:
        sys.exit('\n'.join(f'{path.relative_to(args.root)}: not the address of settings.ini; remedy: make pages' for path in found) or 0)
    for path, new in found.items(): path.write_text(new, encoding='utf-8')
    print(f'{len(found)} files written')


if __name__ == '__main__': main()
