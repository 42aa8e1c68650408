"""Links from shown source back to the interface, for files whose names are public by several paths.

sphinx.ext.viewcode takes one path for all names of a file, the first that it meets, so that its links to the others
lead nowhere.
"""

from __future__ import annotations

import re

LINK = re.compile(r'href="(?P<page>[^"#]*)#(?P<name>escnn_relax[\w.]*)"')


def mend(text: str, public: set[str]) -> str:
    """The body of a page with links to names that are there.

    Args:
        text: HTML of the page.
        public: full names of all that the interface documents.

    Returns:
        The text, in which each other name is the public one that ends alike: ``a.Report.plot`` is ``a.b.Report.plot``.
    """

    def replacement(match: re.Match[str]) -> str:
        name = match["name"]
        if name in public:
            return match[0]
        alike = [other for other in public if other.endswith(name.removeprefix("escnn_relax"))]
        return f'href="{match["page"]}#{min(alike, key=len)}"' if alike else match[0]

    return LINK.sub(replacement, text)


def page(app, pagename: str, template: str, context: dict, doctree) -> None:
    if pagename.startswith("_modules/") and "body" in context:
        context["body"] = mend(context["body"], set(app.env.domaindata["py"]["objects"]))


def setup(app) -> dict:
    app.connect("html-page-context", page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
