"""The report of the evidence as a picture: what each policy was worth, tenant by tenant, and its gains."""

from matplotlib.figure import Figure

from somabrain_dagster.operations.enhancement_report import EnhancementReport

_COLORS = {"baseline": "#bb5566", "candidate": "#004488", "reference": "#888888"}
_MARKERS = ("o", "s", "D", "^", "v")
_BASELINES = ("#bb5566", "#ddaa33", "#44aa99", "#aa4499", "#332288")


def draw(report: EnhancementReport) -> Figure:
    """Top-1 by policy, a point for each tenant; and the differences to each baseline with their intervals."""
    figure = Figure(figsize=(11, 0.55 * len(report.policies) + 1.4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(report.policies)
    for row, (name, policy) in enumerate(report.policies.items()):
        of_tenants = [tenant.policies[name].top1 for tenant in report.tenants]
        color = _COLORS[policy.kind]
        left.plot(of_tenants, [row] * len(of_tenants), "|", color=color, alpha=0.45, markersize=11)
        left.plot(policy.top1, row, "o", color=color, markersize=8)
        left.annotate(f"{policy.top1:.1%}", (1.02, row), color=color, va="center", annotation_clip=False)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlim(0, 1)
    left.set_xlabel(f"right memory first, of {next(iter(report.policies.values())).queries:,} questions")
    left.set_title("top-1: all tenants (dot), each tenant (line)", fontsize=10)

    baselines = report.baselines()
    for place, baseline in enumerate(baselines):
        found = [report.difference(candidate, baseline) for candidate in report.candidates()]
        rows = [names.index(one.candidate) + 0.16 * (place - (len(baselines) - 1) / 2) for one in found]
        deltas = [one.delta for one in found]
        right.errorbar(
            deltas,
            rows,
            xerr=[
                [max(one.delta - one.low, 0.0) for one in found],
                [max(one.high - one.delta, 0.0) for one in found],
            ],
            fmt=_MARKERS[place % len(_MARKERS)],
            color=_BASELINES[place % len(_BASELINES)],
            markersize=4,
            linewidth=1.3,
            label=f"against {baseline}",
        )
    right.axvline(0, color="#555555", linewidth=1)
    right.set_xlabel("difference in top-1, 95% interval (tenants × questions)")
    right.set_title("what candidates gain", fontsize=10)
    right.legend(frameon=False, fontsize=8, loc="upper left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#eaeaea", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure
