"""Render the site into _docs and check every link in it: `python tools/docs.py`; exits 1 when a link is broken or lost.

A link is lost when a notebook has it and its page has not, whatever the renderer made of the Markdown around it.
With Quarto on the PATH this is nbdev_docs; without, smalldocs renders the same _quarto.yml in pure Python.
"""
import argparse
import json
import posixpath
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
DOCS, PROC = ROOT / '_docs', ROOT / '_proc'
LOADED = {'script': 'src', 'img': 'src', 'link': 'href', 'video': 'src', 'source': 'src', 'iframe': 'src'}
NETWORK = re.compile(r'(?:@import\s+|url\(\s*)["\']?(?:https?:)?//[^"\')\s]*')
CODE = re.compile(r'^ {0,3}(```|~~~).*?^ {0,3}\1|(`+).*?\2', re.M | re.S)
IMAGE = re.compile(r'!\[[^\]]*\]\([^)]*\)')
LINK = re.compile(r'\]\(<?([^)\s>]+)')
HTML_LINK = re.compile(r'<a\b[^>]*\bhref="([^"]+)"')
NOT_LOADED = {'canonical', 'alternate'}  # link rels that only name an address


class Page(HTMLParser):
    "The ids of a page, what it links to, the links of its main part, and what it loads."
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.main, self.loads, self.inside = set(), [], [], [], False
        self.feed(text)

    def handle_endtag(self, tag): self.inside &= tag != 'main'

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ('id', 'name') if attrs.get(key)}
        self.inside |= tag == 'main'
        if tag == 'a' and attrs.get('href'):
            self.links.append(attrs['href'])
            if self.inside: self.main.append(attrs['href'])
        if LOADED.get(tag) in attrs and attrs.get('rel') not in NOT_LOADED: self.loads.append((tag, attrs[LOADED[tag]]))


def broken_links(site):
    "One line for each link to a page, file or heading that is not there, and for each thing loaded from elsewhere."
    site = site.resolve()
    pages = {path: Page(path.read_text(encoding='utf-8')) for path in sorted(site.rglob('*.html'))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        for tag, address in [('a', link) for link in page.links] + page.loads:
            url = urlsplit(address)
            if url.scheme or url.netloc:  # a badge may be an image elsewhere; a page without its scripts and styles is broken
                if tag not in ('a', 'img') and url.scheme != 'data': found.append(f'{name}: loads {address} from the network')
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if target.is_dir(): target /= 'index.html'
            if not target.exists() or site not in target.parents: found.append(f'{name}: {address} is not there')
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
                found.append(f'{name}: {address}: that page has no such heading')
    for path in sorted(site.rglob('*.css')):
        for address in NETWORK.findall(path.read_text(encoding='utf-8')):
            found.append(f'{path.relative_to(site)}: loads {address} from the network')
    return sorted(set(found))


def without_number(path):
    "A page's path without the number of its notebook, which Quarto's pages lack and smalldocs' have."
    return posixpath.join(posixpath.dirname(path), re.sub(r'^\d+[a-zA-Z0-9]*_', '', posixpath.basename(path)))


def place(link, folder):
    "Where a link in a page of this folder leads: an address elsewhere, or a path from the site's root and a heading."
    url = urlsplit(link)
    if url.scheme or url.netloc: return link
    path = posixpath.normpath(posixpath.join(folder, unquote(url.path))) if url.path else ''
    return without_number(re.sub(r'\.(ipynb|md|qmd)$', '.html', path)) + (f'#{unquote(url.fragment)}' if url.fragment else '')


def source_links(notebook):
    "The links in a notebook's Markdown cells, the same one as often as it stands there."
    for cell in notebook['cells']:
        if cell['cell_type'] != 'markdown': continue
        words = CODE.sub('', ''.join(cell['source']))
        words = IMAGE.sub('', words)
        yield from LINK.findall(words) + HTML_LINK.findall(words)


def lost_links(site, nbs):
    "One line for each link that a notebook has and its page in the site has not, or not as often."
    pages = {without_number(path.relative_to(site).as_posix()): path for path in site.rglob('*.html')}
    found = []
    for source in sorted(nbs.rglob('*.ipynb')):
        name = source.relative_to(nbs).as_posix()
        if any(part[0] in '._' for part in name.split('/')): continue
        folder, page = posixpath.dirname(name), pages.get(without_number(name.replace('.ipynb', '.html')))
        if page is None:
            found.append(f'{name}: has no page')
            continue
        want = Counter(place(link, folder) for link in source_links(json.loads(source.read_text(encoding='utf-8'))))
        have = Counter(place(link, folder) for link in Page(page.read_text(encoding='utf-8')).main)
        lost = want - have
        found += [f'{name}: {n} of its {want[link]} links to {link} are not on its page' for link, n in sorted(lost.items())]
    return found


def render():
    "Write the site into _docs and return the renderer's name."
    shutil.rmtree(PROC, ignore_errors=True)
    if shutil.which('quarto'):
        subprocess.run([sys.executable, ROOT / 'tools' / 'readme.py'], check=True)  # newer than index.ipynb: nbdev_docs then leaves it alone
        subprocess.run([Path(sys.executable).parent / 'nbdev_docs'], check=True, cwd=ROOT)
        return 'Quarto'
    try:
        from smalldocs.site import build
    except ImportError: sys.exit('tools/docs.py: neither Quarto nor smalldocs is here; remedy: Python 3.11 or newer, then python3 go.py setup')
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    site = build(proc_nbs(n_workers=2), quiet=True)
    shutil.rmtree(DOCS, ignore_errors=True)
    shutil.move(site.out, DOCS)
    return 'smalldocs'


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    renderer = render()
    broken = broken_links(DOCS) + lost_links(DOCS, ROOT / 'nbs')
    print('\n'.join(broken), end='\n' * bool(broken))
    print(f'{renderer} wrote {len(list(DOCS.rglob("*.html")))} pages: file://{DOCS / "index.html"}; {len(broken)} broken or lost links')
    return 1 if broken else 0


if __name__ == '__main__': sys.exit(main())
