"""Render the site into _docs and check every link in it: `python tools/docs.py`; exits 1 when a link is broken.

With Quarto on the PATH this is nbdev_docs; without, smalldocs renders the same _quarto.yml in pure Python.
"""
import argparse
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
DOCS, PROC = ROOT / '_docs', ROOT / '_proc'
LOADED = {'script': 'src', 'img': 'src', 'link': 'href', 'video': 'src', 'source': 'src', 'iframe': 'src'}
NOT_LOADED = {'canonical', 'alternate'}  # link rels that only name an address


class Page(HTMLParser):
    "The ids of a page, what it links to, and what it loads."
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ('id', 'name') if attrs.get(key)}
        if tag == 'a' and attrs.get('href'): self.links.append(attrs['href'])
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
    return sorted(set(found))


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
    broken = broken_links(DOCS)
    print('\n'.join(broken), end='\n' * bool(broken))
    print(f'{renderer} wrote {len(list(DOCS.rglob("*.html")))} pages: file://{DOCS / "index.html"}; {len(broken)} broken links')
    return 1 if broken else 0


if __name__ == '__main__': sys.exit(main())
