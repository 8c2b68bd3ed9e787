"""The place of each chart on the page, and what is to be known of it; `page.js` draws them."""

from __future__ import annotations

from html import escape

from mlrun.report import annealed_figure, charts, figure, layers, tables
from mlrun.report.compare import Group

CHARTED = 6  # groups with charts, as many as have figures
# The kinds of charts, in the order of the page.
TITLES = {
    "annealed": "What annealing at each budget reaches",
    "curves": "Curves",
    "rates": "Learning rates",
    "symmetry": "Symmetry of the copies",
    "health": "Layers",
}


def chart(group: Group, kind: str) -> str:
    """Return the place of one chart, with what is to be known of it."""
    hint = {
        "annealed": _annealed_hint,
        "curves": _curves_hint,
        "rates": lambda _: RATES_HINT,
        "symmetry": lambda _: SYMMETRY_HINT,
        "health": lambda _: layers.HINT,
    }[kind](group)
    return (
        f'<h3 class="drawn">{TITLES[kind]}</h3><figure class="chart" data-kind="{kind}" data-group="{group.number}">'
        f"<figcaption>{escape(hint)}</figcaption></figure>"
    )


HANDS = (
    '<p class="hint hands">In every chart: point at a mark to read it, or press the arrow keys; drag to zoom, '
    "double-click or press Escape for the whole range; press a name to hide it.</p>"
)
RATES_HINT = (
    "The final loss at each learning rate: a dot a seed, a line through the means. Where a seed failed there is no "
    "point."
)
SYMMETRY_HINT = (
    "How alike the units still are that began as copies of one coarse unit: the mean cosine between them, 1 for "
    "mirrored ones, which learn the same. A line a run after its return to a finer level, of each method's first seed."
)


def _annealed_hint(group: Group) -> str:
    """Return what is drawn of the annealed losses, and nothing that is not."""
    every = annealed_figure.sides(group)
    alone, other = annealed_figure.alone(group), annealed_figure.otherwise(group)
    told = ["Each diamond is the loss of a run that ends there.", TARGET]
    told += ["Arrows are savings at that loss."] if annealed_figure.arrows(every) else []
    told += ["Bars are the standard deviation over seeds."] if any(any(one.deviations) for one in every + alone) else []
    told += ["The grey line is a smaller model alone, from scratch."] if alone else []
    told += ["The dashed line is from scratch with other settings."] if other else []
    told += ["What sources cost is in them."] if any(run.source for run in group.runs) else []
    return " ".join(told)


TARGET = "The dotted line is L*, the loss at which the baseline ends."


def _curves_hint(group: Group) -> str:
    """Return how the curves are to be read, and what of them is left out."""
    told = [] if group.loss.mean is None else [TARGET]
    told += _marks_hint(group)
    if any(len(charts.thinned(run.evaluations)) < len(run.evaluations) for run in group.runs):
        told.append(f"Runs with more than {charts.POINTS} evaluations are thinned to about as many.")
    methods = len({row.method for row in group.rows})
    if methods > len(figure.COLOURS) or len({run.seed for run in group.runs}) > charts.SEEDS:
        told.append(
            f"Drawn are the baseline and, of {tables.count(methods, 'method')}, up to {len(figure.COLOURS)} with the "
            f"lowest final losses, each at its best rate, with up to {charts.SEEDS} seeds."
        )
    if any(run.source for run in group.runs):
        told.append("What a source cost is in the savings, and not in these curves.")
    return " ".join(told)


def _marks_hint(group: Group) -> list[str]:
    """Return what each kind of mark is that the curves of a group have."""
    curves = figure.chosen(group)
    told = []
    if any(point.level > 1 for curve in curves for seed in curve.seeds for point in seed):
        told.append(
            "The strips on top are the stages of each first seed. Pale in them and dashed in the curve is a smaller "
            "model on the way (a coarser level); a triangle is the change to another level, where the loss jumps."
        )
    if figure.saving(curves, "flops"):
        told.append("A dot is the first crossing: from there on a curve stays at or below L*, un-annealed.")
    if any(curve.endings for curve in curves):
        told.append(
            "Diamonds are losses of runs that end there, with their own decay of the learning rate, joined by a fine "
            "line; before its decay a run's loss stands higher."
        )
    return told
