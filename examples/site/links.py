"""Whether every link of the built site leads somewhere: to a page, a file, a place on a page.

    python examples/site/links.py examples/output/site

Addresses outside are counted, and listed with ``--external``; make links has Sphinx ask for them.
"""

from __future__ import annotations

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Attributes that hold an address.
ATTRIBUTES = ("href", "src")


class Page(HTMLParser):
    """The addresses that a page names, and the places on it that have a name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attributes if value}
        self.links += [found[name] for name in ATTRIBUTES if name in found and tag != "link"]
        self.names |= {found[name] for name in ("id", "name") if name in found}


def check(site: Path) -> tuple[list[str], dict[str, set[str]]]:
    """All links of a site.

    Args:
        site: folder of the built pages.

    Returns:
        What leads nowhere, each with the page that names it; and the addresses outside, each with its pages.
    """
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    broken, outside = [], {}
    for path, page in pages.items():
        where = path.relative_to(site).as_posix()
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if parts.scheme != "data":
                    outside.setdefault(link, set()).add(where)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            name = unquote(parts.fragment)
            if not target.exists() or (name and target in pages and name not in pages[target].names):
                broken.append(f"{where}: {link}")
    return broken, outside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--external", action="store_true", help="list the addresses outside, too")
    arguments = parser.parse_args()
    broken, outside = check(arguments.site.resolve())
    if arguments.external:
        print("\n".join(f"{link}  ({', '.join(sorted(pages)[:3])})" for link, pages in sorted(outside.items())))
    print(f"{len(outside)} addresses outside; {len(broken)} links lead nowhere", *broken, sep="\n")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
