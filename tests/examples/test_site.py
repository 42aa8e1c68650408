"""What is written by hand for the site: its check of links, and links from shown source back to the interface."""

import importlib.util
import re
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "examples" / "site"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(tmp_path):
    """Two pages whose links all lead somewhere."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "picture one.png").write_bytes(b"")
    (tmp_path / "index.html").write_text(
        '<a href="sub/page.html#place">a</a> <a href="sub/">b</a> <a href="#here">c</a> <p id="here">'
        '<img src="picture%20one.png"> <a href="https://example.org/a#b">d</a> <a href="">e</a>'
    )
    (tmp_path / "sub" / "page.html").write_text('<a href="../index.html?q=1#here">a</a><h1 id="place">')
    (tmp_path / "sub" / "index.html").write_text("")
    return tmp_path


def test_links_that_lead_somewhere(site):
    broken, outside = script("links").check(site)
    assert broken == [] and outside == {"https://example.org/a#b": {"index.html"}}


@pytest.mark.parametrize("link", ["sub/other.html", "#nowhere", "sub/page.html#here", "picture.png", "../index.html"])
def test_links_that_lead_nowhere(site, link):
    page = site / "index.html"
    page.write_text(page.read_text() + f'<a href="{link}">f</a>')
    assert script("links").check(site)[0] == [f"index.html: {link}"]


def test_shown_source_links_to_the_public_name():
    public = {"escnn_relax.RelaxError", "escnn_relax.errors.DataError", "escnn_relax.report.Report.plot"}
    mend = lambda name: re.findall('#([^"]*)"', script("back_links").mend(f'<a href="../e.html#{name}">', public))
    assert mend("escnn_relax.RelaxError") == ["escnn_relax.RelaxError"]
    assert mend("escnn_relax.DataError") == ["escnn_relax.errors.DataError"]
    assert mend("escnn_relax.Report.plot") == ["escnn_relax.report.Report.plot"]
    assert mend("escnn_relax.Other") == ["escnn_relax.Other"]


def test_menus_are_found_where_the_theme_has_them():
    """The names that the script and the style sheet look for; pages without them would work by pointer alone."""
    furo = pytest.importorskip("furo", reason="furo is not installed: make docs installs it")
    page = (Path(furo.__file__).parent / "theme" / "furo" / "page.html").read_text()
    for name in ('id="__navigation"', 'id="__toc"', 'for="__toc"', "sidebar-drawer", "toc-drawer", "theme-toggle"):
        assert name in page
