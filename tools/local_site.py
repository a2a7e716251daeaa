"""Make a rendered site complete in itself; Quarto and smalldocs run this after rendering (post-render in _quarto.yml).

KaTeX comes from the site's own katex/ folder on every page, however deep, and nothing else from the network: jquery and
require.js, which Quarto adds to a page with HTML outputs, and the themes' web fonts are taken out. nbdev's links from a
name in backticks to the published site become links inside this one: to where the code of that name stands, for a method
to its class. In the search, each equation and each name of the reference pages is an entry of its own, which Quarto makes
of headings of the second level only, and exercises and solutions come after the chapters.
"""
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

KATEX = re.compile(r'(\b(?:src|href)=")(?:https://cdn\.jsdelivr\.net/npm/katex@[^/"]+/dist/|katex/)')

DEFINITION = re.compile(r'(<span[^>]*>(?:def|class)</span>\s+)(?=(?:<span[^>]*>)?(\w+))')


def anchored(page):
    "The page with an anchor, as nbdev names it, at the first definition of each name in its code."
    seen = set(re.findall(r'\bid="([^"]+)"', page))
    def anchor(match):
        name = match[2].lower()
        if name in seen: return match[0]
        seen.add(name)
        return f'{match[1]}<a id="{name}"></a>'
    return DEFINITION.sub(anchor, page)


def localize(page, up, site_url, names, ids):
    """The page's HTML with its own KaTeX and links; `up` leads from the page to the site's root ('' or '../').
    `names` maps the published name of a page (core.html) to its name here (smalldocs: 01_core.html), `ids` that to its anchors."""
    def link(match):
        name = names.get(match[2], match[2] or 'index.html')
        anchor = next((a for a in (match[3], match[3].rpartition('.')[0]) if a in ids.get(name, ())), '')
        return match[1] + up + name + (f'#{anchor}' if anchor else '') + '"'
    page = KATEX.sub(rf'\g<1>{up}katex/', page)
    return re.sub(rf'(<a\b[^>]*?\bhref="){re.escape(site_url)}/([^"#]*)#?([^"]*)"', link, page)


LIBRARY = re.compile(r'<script\b[^>]*\bsrc="https?://[^"]*/(?:require|jquery)(?:\.min)?\.js"[^>]*>\s*</script>\s*')
GLUE = re.compile(r"""<script\b[^>]*>\s*define\(\s*['"]jquery['"]\s*,\s*\[\]\s*,\s*function\s*\(\)\s*\{\s*"""
                  r"""return window\.jQuery;?\s*\}\s*\);?\s*</script>\s*""")
INLINE = re.compile(r'<script\b(?![^>]*\bsrc=)([^>]*)>(.*?)</script>', re.S)
CALLED = re.compile(r'(?<![\w.$])(require|requirejs|define|jQuery|\$)(?=\s*\(|\.\w+\()')
WEB_FONT = re.compile(r'@import\s+(?:url\(\s*["\']?https?:[^)]*\)|"https?:[^"]*"|\'https?:[^\']*\')[^;}]*;?')


class NeedsLibrary(Exception): "A page whose own scripts call what would be taken out."


def without_libraries(page):
    "The page without the network's jquery and require.js; NeedsLibrary when one of its scripts calls them."
    bare = GLUE.sub('', LIBRARY.sub('', page))
    if bare == page: return page
    for attributes, script in INLINE.findall(bare):
        if 'jupyter.widget' in attributes: raise NeedsLibrary('a Jupyter widget')
        if 'json' not in attributes and (call := CALLED.search(script)):
            raise NeedsLibrary(f'a script that calls {call[1]}')
    return bare


REFERENCE = re.compile(r'(?:\d+_)?(?:equations|api)\.html')  # pages of which every heading is looked up


class Sections(HTMLParser):
    "The sections of a page's second and third level: id, heading, the words up to the next one."
    def __init__(self, page):
        super().__init__()
        self.found, self.open, self.part = [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == 'section':
            self.open.append(attrs.get('class') or '')
            if re.search(r'\blevel[23]\b', self.open[-1]): self.found.append([attrs.get('id', ''), '', ''])
        if re.fullmatch('h[1-6]', tag): self.part = 1
        if tag in ('script', 'style', 'button'): self.part = None

    def handle_endtag(self, tag):
        if tag == 'section': self.open.pop()
        if re.fullmatch('h[1-6]|script|style|button', tag): self.part = 2
        if self.found and tag in ('p', 'pre', 'li', 'div'): self.found[-1][2] += ' '

    def handle_data(self, data):
        if self.found and self.open and self.part: self.found[-1][self.part] += data


def reference_entries(whole, page):
    "An entry of search.json for each heading of a reference page, like the entry of the whole page."
    for anchor, heading, words in Sections(page).found:
        href = f'{whole["href"]}#{anchor}'
        yield whole | dict(objectID=href, href=href, section=heading.strip(), text=' '.join(words.split()))


def search_index(entries, pages_html=None):
    """The entries of search.json, given the pages, with the exercises and solutions last, each page whole: a match in a short section or
    in its heading, as in the chapters and in the index of names, then comes first. The page for lost readers is left out."""
    pages, kept = {}, []
    for entry in entries:
        page, _, anchor = entry['href'].partition('#')
        if page == '404.html' or (anchor and REFERENCE.fullmatch(page)): continue
        if REFERENCE.fullmatch(page): kept += reference_entries(entry, pages_html[page])
        if not page.startswith(('exercises/', 'solutions/')): kept.append(entry)
        elif page in pages: pages[page]['text'] += f' {entry["section"]} {entry["text"]}'
        else: pages[page] = entry | {'objectID': page, 'href': page, 'section': ''}
    return kept + list(pages.values())


def main():
    root = Path(os.environ.get('QUARTO_PROJECT_DIR', '.'))
    out = root / os.environ['QUARTO_PROJECT_OUTPUT_DIR']
    site_url = re.search(r'site-url: "([^"]+)"', (root / 'nbdev.yml').read_text(encoding='utf-8'))[1].rstrip('/')
    pages = {path.relative_to(out).as_posix(): anchored(path.read_text(encoding='utf-8')) for path in out.rglob('*.html')}
    names = {re.sub(r'^\d+[a-zA-Z0-9]*_', '', name): name for name in pages}  # as nbdev names pages
    ids = {name: set(re.findall(r'\bid="([^"]+)"', page)) for name, page in pages.items()}
    for name, page in pages.items():
        page = localize(page, '../' * name.count('/'), site_url, names, ids)
        try: page = without_libraries(page)
        except NeedsLibrary as e:
            sys.exit(f'tools/local_site.py: {name} holds {e}, and the site loads nothing from the network; '
                     'remedy: show a figure or plain HTML there')
        if name == '404.html':  # shown at any depth
            page = page.replace('<head>', f'<head><base href="{re.sub(r"^https?://[^/]*", "", site_url)}/">', 1)
        (out / name).write_text(page, encoding='utf-8')
    for path in out.rglob('*.css'):
        sheet = path.read_text(encoding='utf-8')
        if (local := WEB_FONT.sub('', sheet)) != sheet: path.write_text(local, encoding='utf-8')
    search = out / 'search.json'
    if search.exists():
        entries = search_index(json.loads(search.read_text(encoding='utf-8')), pages)
        search.write_text(json.dumps(entries, ensure_ascii=False), encoding='utf-8')


if __name__ == '__main__': main()
