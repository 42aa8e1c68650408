"""What prints as a table is one in a notebook; figures take ``ax`` and hold few layers as well as many."""

import math
from html.parser import HTMLParser

import matplotlib
import pytest
from escnn import gspaces
from nonempty import each
from torch import nn

from escnn_relax import Evidence, History, subgroup, subgroups, survivors
from escnn_relax.diagnosis.result import PathwayTest, SymmetryTest
from escnn_relax.errors import ArgumentError
from escnn_relax.evidence.terms import EvidenceTerms
from escnn_relax.morphism import HardenedLayer, HardeningReport
from escnn_relax.nn.measured.certificate import Certificate
from escnn_relax.nn.measured.certificate_chain import Chain
from escnn_relax.report import LayerReport, PathwayReport, Report
from escnn_relax.search.evolution.individual import Individual
from escnn_relax.search.evolution.results import EvolutionResult
from escnn_relax.search.gradient.result import GradientSearchResult
from escnn_relax.search.gradient.shares_history import SharesHistory
from escnn_relax.symmetry.decision import Decision, Decisions
from escnn_relax.symmetry.equivariance.error_record import EquivarianceError
from escnn_relax.symmetry.equivariance.operator_norm import Norm
from escnn_relax.symmetry.html_table import html_table
from escnn_relax.training.history import EpochRecord

matplotlib.use("Agg")
SPACE = gspaces.rot2dOnR2(4)
C4, C2 = subgroup(SPACE, 4), subgroup(SPACE, 2)
PATHWAYS = ("equivariant", "irrep_1", "irrep_2")


def layer_names(count):
    return [f"features.stage{n // 10}.block{n % 10}.<conv>" for n in range(count)]


def report(count):
    def pathway(name):
        return PathwayReport(name, name != "equivariant", 9, 2.0, 3.0, 0.3, 0.1, 0.4, closed=name == "irrep_2")

    pathways = tuple(map(pathway, PATHWAYS))
    layers = (LayerReport(n, "C4", pathways, 0.1, 0.01, "C2", 12.5, "C2", 3.0) for n in layer_names(count))
    return Report(tuple(layers), {"norm.weight": "a <batch> norm"}, note="nothing & more")


def symmetry_test(count):
    def test(layer, pathway):
        numbers = (9, 1.0, 7.5, 2.0, 0.1, 0.01, 0.01, 3.0, 1.0, 1.0)
        return PathwayTest(layer, pathway, None, None, *numbers, pathway == "irrep_1", "why < not", True, True)

    tests = tuple(test(layer, pathway) for layer in layer_names(count) for pathway in PATHWAYS[1:])
    subgroups = {layer: C2 for layer in layer_names(count)}
    return SymmetryTest(tests, subgroups, C2, "C4", 4, 100, 50, 0, 0.0, 0.05, ("a note & another",))


def shares(count):
    moved = {layer: ((0.5, 0.5), (0.9, 0.1)) for layer in layer_names(count)}
    return SharesHistory({layer: ("C4", "C1") for layer in layer_names(count)}, (0, 5), moved, ())


def evolution(count):
    genomes = [("C4", "C2") * (count // 2) + ("C4",), ("C2", "C1") * (count // 2) + ("C1",)]
    first = Individual(0, None, 0, genomes[0], "", 90, 0.4, 0.8, math.nan, True)
    second = Individual(1, 0, 1, genomes[1], "1: C4 → C2", 120, 0.3, 0.9, math.nan, True, "<odd>")
    return EvolutionResult(nn.Identity(), second, (first, second), (1,), tuple(layer_names(count)), "score")


def history(count):
    terms = EvidenceTerms(-40.0, 12.0, 8.0, 100)
    records = [EpochRecord(n, 0.5, terms, note=f"opened {name}") for n, name in enumerate(layer_names(count))]
    return History(Evidence(nn.Sequential(nn.Linear(3, 2)), relaxed_only=False), records)


def decisions(count):
    return Decisions(tuple(Decision(n, C2, C2, "evidence", ("5 < 6 nats",)) for n in layer_names(count)))


def surviving(count):
    from test_report import net

    return survivors(net())


def search_result(count):
    return GradientSearchResult(nn.Identity(), nn.Identity(), dict.fromkeys(layer_names(count), "C2"), shares(count))


def hardened(count):
    made = (HardenedLayer(n, ("irrep_1",), (), 1e-3, "R2Conv", "C2", ("a < b",), 0.1) for n in layer_names(count))
    return HardeningReport((*made, HardenedLayer("", (), (), 0.0, "Linear")))


def lattice(count):
    return subgroups(gspaces.flipRot2dOnR2(-1))


def errors(count):
    elements = tuple(SPACE.fibergroup.elements)
    return EquivarianceError(elements, (0.0, 0.1, 0.2, 0.3), False, SPACE, (("a.<conv>", "1 of 9 pixels"),))


def chain(count):
    norm = Norm(0.9, 1.1)
    layers = (Certificate(n, (), (), Norm(0.1, 0.2), norm, False) for n in layer_names(count))
    return Chain(tuple(layers), 0.4, 1.3, "the <pool>: unknown")


TABLES = {
    "hardened": hardened,
    "lattice": lattice,
    "errors": errors,
    "chain": chain,
    "report": report,
    "symmetry test": symmetry_test,
    "shares": shares,
    "gradient search": search_result,
    "evolution": evolution,
    "history": history,
    "decisions": decisions,
    "survivors": surviving,
}


#: Words that make a sentence of what stands in cells.
PROSE = {
    "decisions": ("keeps", "by", "the"),
    "hardened": ("of", "without", "the", "energy", "removed"),
    "lattice": ("id", "order", ">"),
}


class Table(HTMLParser):
    """The cells of a table, and whether its tags are closed."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.notes, self.open, self.styles = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.styles += [value for name, value in attributes if name == "style"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "p":
            self.notes.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open[-1] == "p":
            self.notes[-1] += data


def words(text):
    return [word for word in text.replace(",", " ").split() if set(word) - {"-"}]


@pytest.mark.parametrize("kind", TABLES)
def test_what_prints_as_a_table_is_one_in_a_notebook(kind):
    """All that is printed is in it, in cells or in the paragraphs below, in the notebook's own colours."""
    found = TABLES[kind](3)
    table = Table(found._repr_html_())
    assert not table.open and len(table.rows) > 1 and all(len(row) <= len(table.rows[0]) for row in table.rows)
    shown = " ".join([*(cell for row in table.rows for cell in row), *table.notes])
    for word in each(words(str(found))):
        assert word.strip("():;*W") in shown or word.strip("()") in PROSE.get(kind, ()), word
    colours = ";".join(table.styles).replace("currentColor", "").replace("transparent", "")
    assert "inherit" in colours and not any(sign in colours for sign in ("#", "rgb(", "white", "black", "gray"))


def test_what_is_not_escaped_would_be_seen():
    table = Table(html_table(["<b>"], [["<script>1</script>"]], ["a < b"]))
    assert table.rows == [["<b>"], ["<script>1</script>"]] and table.notes == ["a < b"]
    with pytest.raises(AssertionError):
        Table("<table><tr></table>")


def overlapping(labels):
    """Pairs of labels of a drawn figure that lie on each other."""
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    pairs = [(a, b) for n, a in enumerate(boxes) for b in boxes[n + 1 :]]
    return [pair for pair in pairs if pair[0].shrunk(0.98, 0.9).overlaps(pair[1].shrunk(0.98, 0.9))]


FIGURES = {"report": report, "symmetry test": symmetry_test, "shares": shares, "evolution": evolution}


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("kind", FIGURES)
def test_figures_hold_few_layers_and_many(kind, count):
    drawn = FIGURES[kind](count).plot()
    axes = [drawn] if hasattr(drawn, "figure") else list(drawn)
    wide, high = axes[0].figure.get_size_inches()
    assert wide < 25 and high < 16
    axes[0].figure.canvas.draw()
    for panel in each(axes):
        for labels in (panel.get_yticklabels(), panel.get_xticklabels(), panel.texts):
            assert not labels or not overlapping(labels)
    if kind in ("report", "symmetry test"):
        assert len(axes[0].get_yticklabels()) == count and axes[0].images[0].get_cmap().name == "cividis"
    if kind == "shares":
        assert len(axes) == count
    matplotlib.pyplot.close(axes[0].figure)


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_are_drawn_where_they_are_asked_for(kind):
    needed = {"report": 1, "symmetry test": 1, "shares": 3, "evolution": 2}[kind]
    figure, axes = matplotlib.pyplot.subplots(1, needed)
    found = FIGURES[kind](3)
    drawn = found.plot(ax=axes)
    given = [axes] if needed == 1 else list(axes)
    assert ([drawn] if needed == 1 else list(drawn)) == given and all(a.has_data() or a.texts for a in given)
    if kind != "symmetry test":
        with pytest.warns(DeprecationWarning, match=r"plot\(axes=\) is an old spelling"):
            found.plot(axes=axes)
    matplotlib.pyplot.close(figure)


def test_too_few_axes_are_refused():
    figure, ax = matplotlib.pyplot.subplots()
    with pytest.raises(ArgumentError, match="expected 3 axes, got 1; leave ax out"):
        shares(3).plot(ax)
    matplotlib.pyplot.close(figure)
