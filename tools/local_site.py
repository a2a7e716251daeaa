"""Make a rendered site complete in itself; Quarto and smalldocs run this after rendering (post-render in _quarto.yml).

KaTeX comes from the site's own katex/ folder on every page, however deep. nbdev's links from a name in backticks to the
published site become links inside this one: to where the code of that name stands, for a method to its class.
"""
import os
import re
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


def main():
    root = Path(os.environ.get('QUARTO_PROJECT_DIR', '.'))
    out = root / os.environ['QUARTO_PROJECT_OUTPUT_DIR']
    site_url = re.search(r'site-url: "([^"]+)"', (root / 'nbdev.yml').read_text(encoding='utf-8'))[1].rstrip('/')
    pages = {path.relative_to(out).as_posix(): anchored(path.read_text(encoding='utf-8')) for path in out.rglob('*.html')}
    names = {re.sub(r'^\d+[a-zA-Z0-9]*_', '', name): name for name in pages}  # as nbdev names pages
    ids = {name: set(re.findall(r'\bid="([^"]+)"', page)) for name, page in pages.items()}
    for name, page in pages.items():
        (out / name).write_text(localize(page, '../' * name.count('/'), site_url, names, ids), encoding='utf-8')


if __name__ == '__main__': main()
