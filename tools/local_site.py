"""Make a rendered site complete in itself; Quarto and smalldocs run this after rendering (post-render in _quarto.yml).

KaTeX comes from the site's own katex/ folder on every page, however deep, and nothing else from the network: jquery and
require.js, which Quarto adds to a page with HTML outputs, and the themes' web fonts are taken out. nbdev's links from a
name in backticks to the published site become links inside this one: to where the code of that name stands, for a method
to its class. In the search, exercises and solutions come after the chapters.
"""
import json
import os
import re
import sys
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
    `names` maps the published name of a page (core.html) to its name here (smalldocs: 00_core.html), `ids` that to its anchors."""
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


def search_index(entries):
    """The entries of search.json with the exercises and solutions last, each page whole: a match in a short section or
    in its heading, as in the chapters and in the index of names, then comes first. The page for lost readers is left out."""
    pages, kept = {}, []
    for entry in entries:
        page = entry['href'].partition('#')[0]
        if page == '404.html': continue
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
        entries = search_index(json.loads(search.read_text(encoding='utf-8')))
        search.write_text(json.dumps(entries, ensure_ascii=False), encoding='utf-8')


if __name__ == '__main__': main()
