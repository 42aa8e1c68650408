"""Formulas as MathML, which browsers draw by themselves: neither the build nor the reader needs a network or LaTeX."""

from __future__ import annotations

import re

from docutils.nodes import SkipNode
from docutils.utils.math import MathError, pick_math_environment, wrap_math_code
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

log = logging.getLogger(__name__)

#: TeX's sizes of brackets, which docutils does not know; in MathML brackets grow with what they hold.
SIZES = re.compile(r"\\[Bb]igg?[lrm]?(?![a-zA-Z])")


def formula(node, block: bool) -> str:
    """The MathML element of a math node; where docutils cannot translate it, the TeX source and a warning."""
    source = SIZES.sub("", node.astext())
    try:
        code = wrap_math_code(source, True) if block and pick_math_environment(source) != "equation*" else source
        return tex2mathml(code, as_block=block)
    except MathError as error:
        log.warning("no MathML for %r: %s", source, error, location=node)
        return f"<code>{source}</code>"


def inline(self, node) -> None:
    self.body.append(formula(node, False))
    raise SkipNode


def block(self, node) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(formula(node, True))
    self.body.append("</div>\n")
    raise SkipNode


def setup(app) -> dict:
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
