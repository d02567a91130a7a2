"""check_site.py <folder of HTML>   the site works from the file system: links between pages lead somewhere, nothing is
loaded from elsewhere, the search has its index. Counts the links that lead outside."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.update(filter(None, (given.get("id"), given.get("name") if tag == "a" else None)))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get(LOADS.get(tag)) and given.get("rel") not in ("next", "prev", "canonical"):
            self.loads.append(given[LOADS[tag]])


def faults(site):
    """Sentences about what is wrong, and the links that lead outside."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    wrong, outside = [], set()
    for path, page in pages.items():
        name = path.relative_to(site)
        wrong += [f"{name} loads {load}" for load in page.loads if urlsplit(load).netloc]
        outside.update(link for link in page.links if urlsplit(link).scheme in ("http", "https"))
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                wrong.append(f"{name} links to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                wrong.append(f"{name} links to {link}, but there is no such heading")
    wrong += [
        f"{css.relative_to(site)} loads from elsewhere" for css in site.rglob("*.css") if "url(http" in css.read_text()
    ]
    if not (site / "searchindex.js").exists():
        wrong.append("there is no searchindex.js")
    return wrong, outside, len(pages)


if __name__ == "__main__":
    found, others, count = faults(Path(sys.argv[1]).resolve())
    print(f"site: {count} pages, {len(found)} broken links, {len(others)} addresses outside (make links asks them)")
    sys.exit("\n".join(found) or None)
