"""What a run is made of: what differs from its recipe, all its settings, and where and with what it ran."""

from collections.abc import Sequence

from agl_core.reporting.page.head import count
from agl_core.reporting.page.markup import NOTHING, Markup, Row, el, join, table
from agl_core.reporting.report import MACHINE, Report, Setting

MACHINE_NAMES = {
    "host": "host",
    "world_size": "processes",
    "device": "device",
    "device_name": "device name",
    "precision": "precision",
    "torch": "torch",
    "cuda": "CUDA",
    "driver": "driver",
    "python": "python",
    "project": "project",
    "optimizer": "optimiser",
    "threads": "threads",
    "parameters": "parameters",
    "tiles": "tiles",
    "validation_tiles": "held-out tiles",
}
MOST_WARNINGS = 40


def settings_section(report: Report) -> Markup:
    """Settings, those that differ from the recipe first."""
    parts: list[Markup] = []
    if report.facts:
        parts.append(el("dl", *(el("div", el("dt", n), el("dd", v)) for n, v in report.facts.items()), class_="facts"))
    if report.settings:
        parts += [el("h3", "What differs from the recipe"), _differing(report.settings)]
        parts.append(el("details", el("summary", f"All {len(report.settings)} settings"), _all(report.settings)))
    if report.cluster:
        rows = [[key, el("code", value)] for key, value in report.cluster.items()]
        listed = table(["key", "value"], rows, (0, 1))
        parts.append(el("details", el("summary", "Cluster configuration of the last start"), listed))
    return join(parts)


def _differing(settings: Sequence[Setting]) -> Markup:
    found = [setting for setting in settings if setting.differs]
    if not found:
        return el("p", "Nothing does.", class_="note")
    rows = [
        [setting.key, el("code", setting.value), el("code", setting.usual), _counts(setting)]
        for setting in sorted(found, key=lambda setting: not setting.identity)
    ]
    return table(["key", "here", "recipe", ""], rows, (0, 1, 2, 3))


def _counts(setting: Setting) -> str:
    return "" if setting.identity else "may change while the run goes on"


def _all(settings: Sequence[Setting]) -> Markup:
    rows = [
        (Row([s.key, el("code", s.value)], "differs") if s.differs else [s.key, el("code", s.value)]) for s in settings
    ]
    return table(["key", "value"], rows, (0, 1))


def _thousands(value: str) -> str:
    return count(int(value)) if value.isdecimal() and 4 < len(value) < 16 else value


def machine_section(report: Report) -> Markup:
    """Where every stage ran and with what, and what it warned of."""
    parts: list[Markup] = []
    known = [(stage.name, machine) for stage in report.stages for machine in stage.machines]
    names = [name for name in MACHINE if any(name in machine for _, machine in known)]
    if known:
        differing = [name for name in names if len({machine.get(name, "") for _, machine in known}) > 1]
        same = [(MACHINE_NAMES[name], _thousands(known[0][1][name])) for name in names if name not in differing]
        stages = ", ".join(dict.fromkeys(stage for stage, _ in known))
        facts = [el("div", el("dt", name), el("dd", value)) for name, value in [("stages", stages), *same]]
        parts.append(el("dl", *facts, class_="facts"))
        if differing:
            rows = [[stage, *(_thousands(machine.get(name, "")) for name in differing)] for stage, machine in known]
            head = ["stage", *(MACHINE_NAMES[name] for name in differing)]
            parts += [el("h3", "What was not always the same"), table(head, rows, range(len(head)))]
    warned = [(stage.name, step, text) for stage in report.stages for step, text in stage.warnings]
    if warned:
        shown = [[stage, str(step), el("div", text, class_="text")] for stage, step, text in warned[-MOST_WARNINGS:]]
        title = f"{len(warned)} warnings" if len(warned) > 1 else "1 warning"
        title += f", the last {MOST_WARNINGS}" if len(warned) > MOST_WARNINGS else ""
        listed = table(["stage", "step", "warning"], shown, (0, 2))
        parts.append(el("details", el("summary", title), listed))
    return join(parts) if parts else NOTHING
