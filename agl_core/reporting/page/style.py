"""The page's style sheet: light and dark, screen and paper, wide and narrow.

The colours of curves are those of Okabe and Ito, made darker or lighter until each has a contrast of 3 to 1 at least
against the page; dark text has 4.5 to 1.
"""

_LIGHT = """
--page:#ffffff;--ink:#1b1f24;--soft:#57606a;--line:#d5dae0;--grid:#e9ecf0;--panel:#f6f7f9;--accent:#0067a8;
--k0:#0072b2;--k1:#c65300;--k2:#00805e;--k3:#a8457e;--k4:#8a6d00;--k5:#3d7fa8;--k6:#444b53;--k7:#7a5c3e;
--good:#00704f;--bad:#b3400a;--wait:#6a5300;
--training:#0072b2;--data:#8cc4e8;--validation:#2aa17f;--checkpoint:#9adcc6;--start:#e6a117;--lost:#d0500f;
--ending:#c07aa5;--queue:#c9ced6;--down:#5c636c;--stopped:#eceff2;--other:#b9a77f;--shade:#ffffff;--edge:#ffffff
"""
_DARK = """
--page:#14171b;--ink:#e8eaed;--soft:#a3abb5;--line:#3a414a;--grid:#262b32;--panel:#1c2026;--accent:#6cb8f0;
--k0:#58aeea;--k1:#f2854a;--k2:#3fc39b;--k3:#dd93bd;--k4:#d9b53b;--k5:#9cd0f0;--k6:#b9c0c9;--k7:#c7a585;
--good:#4fcf9f;--bad:#ff9463;--wait:#e3c14d;
--training:#3a94d4;--data:#a9d6f5;--validation:#2f9c7c;--checkpoint:#8fdcc2;--start:#dfa22a;--lost:#ea6a2c;
--ending:#c985b1;--queue:#5a626c;--down:#98a0aa;--stopped:#2a2f36;--other:#9b8a62;--shade:#14171b;--edge:#14171b
"""

_BASE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","Noto Sans",Arial,sans-serif;font-variant-numeric:tabular-nums;overflow-wrap:break-word}
main,header.top,footer{max-width:1120px;margin:0 auto;padding:0 24px}
header.top{padding-top:36px}
.kind{color:var(--soft);font-size:14px;margin:0}
h1{font-size:32px;line-height:1.2;font-weight:650;margin:2px 0 10px;letter-spacing:-.01em}
h2{font-size:22px;line-height:1.3;font-weight:650;margin:56px 0 6px;letter-spacing:-.005em;scroll-margin-top:16px}
h3{font-size:16px;font-weight:650;margin:28px 0 8px}
p{margin:8px 0;max-width:74ch}
p.lead{font-size:18px;line-height:1.5;margin:12px 0}
p.note,p.about{color:var(--soft);font-size:14px}
p.about{margin:0 0 16px}
a{color:var(--accent)}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{background:var(--panel);padding:1px 5px;border-radius:4px}
pre{background:var(--panel);padding:12px 14px;border-radius:6px;overflow-x:auto;white-space:pre-wrap;max-height:420px}
nav{margin:22px 0 0;padding:10px 0;border-top:1px solid var(--line);border-bottom:1px solid var(--line);font-size:14px}
nav a{display:inline-block;margin:2px 18px 2px 0;text-decoration:none}
nav a:hover,nav a:focus{text-decoration:underline}
.pill{display:inline-block;font-size:14px;font-weight:600;line-height:1;padding:6px 11px;border-radius:99px;
border:1.5px solid currentColor;vertical-align:6px;margin-left:12px;white-space:nowrap;letter-spacing:0}
.pill.good{color:var(--good)}.pill.bad{color:var(--bad)}.pill.wait{color:var(--wait)}.pill.live{color:var(--accent)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));margin:24px 0 0;
border:1px solid var(--line);border-radius:8px;overflow:hidden}
.figures>div{padding:14px 14px 13px;box-shadow:0 0 0 .5px var(--line)}
.figures dt{color:var(--soft);font-size:13px}
.figures dd{margin:2px 0 0;font-size:21px;font-weight:620;line-height:1.25;letter-spacing:-.01em}
.figures dd+dd{font-size:13px;font-weight:400;color:var(--soft);line-height:1.4;letter-spacing:0}
.bad{color:var(--bad)}.good{color:var(--good)}
.alarm{border-left:4px solid var(--bad);background:var(--panel);padding:10px 16px;margin:18px 0;
border-radius:0 6px 6px 0}
.alarm p{margin:4px 0}
.charts{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:26px 32px;margin-top:26px}
.charts.three{grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:26px 24px}
figure{margin:18px 0 0;position:relative;min-width:0}
.charts figure{margin:8px 0 0}
figcaption{font-weight:620;font-size:15px;margin-bottom:4px}
figure p.note{margin:4px 0 0;font-size:13px;line-height:1.45}
svg{display:block;width:100%;height:auto;overflow:visible}
svg.narrow{display:none}
.three svg.narrow{display:block}
svg.defs{position:absolute;width:0;height:0}
svg text{font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans",Arial,sans-serif;
fill:var(--soft)}
svg text.end{text-anchor:end}svg text.middle{text-anchor:middle}
svg text.label{fill:var(--ink)}
svg text.stagename{fill:var(--ink);font-weight:600}
svg text.bestname{fill:var(--ink);font-weight:600;paint-order:stroke;stroke:var(--page);stroke-width:4px;
stroke-linejoin:round}
.grid{stroke:var(--grid)}.zero{stroke:var(--soft);stroke-dasharray:1 3}.base{stroke:var(--soft)}
.stage{stroke:var(--soft);stroke-dasharray:4 3}
.restart{fill:var(--soft)}
.line{fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}
.line.dashed{stroke-dasharray:5 3.5;stroke-width:1.5}
.band{stroke:none;opacity:.24}
.leader{fill:none;stroke-width:.8;opacity:.55}
.mark{stroke:var(--page);stroke-width:1.2}
.best{fill:none;stroke:var(--ink);stroke-width:1.8}
.hair{stroke:var(--soft);stroke-width:1;pointer-events:none}
.tip{position:absolute;z-index:2;pointer-events:none;background:var(--page);border:1px solid var(--line);
border-radius:6px;padding:6px 10px;font-size:13px;line-height:1.45;box-shadow:0 3px 14px rgba(0,0,0,.18);
white-space:nowrap;display:none}
.tip b{display:block;font-weight:600}
.tip span{display:block}
.advice{margin-top:14px}.advice p{margin:2px 0;max-width:none}
.scroll{overflow-x:auto;margin:12px 0;max-width:100%}
table{border-collapse:collapse;font-size:14px;line-height:1.4}
th,td{text-align:left;padding:6px 16px 6px 0;vertical-align:top;border-bottom:1px solid var(--grid)}
th{color:var(--soft);font-weight:500;font-size:13px;border-bottom:1px solid var(--line);vertical-align:bottom}
th:last-child,td:last-child{padding-right:4px}
td.n,th.n{text-align:right;white-space:nowrap}
tr.total td{font-weight:650;border-top:1px solid var(--line);border-bottom:0}
tr.differs td:first-child{font-weight:600}
td .pill{margin:0;vertical-align:1px;font-size:13px;padding:4px 9px}
td svg.key{width:22px;height:12px;display:inline-block;vertical-align:-1px;margin-right:8px}
table.wide{width:100%}
table.lives{min-width:860px}
.lives td:nth-child(2){white-space:nowrap}.lives th.n{white-space:normal}
.lives{font-size:13px}.lives td,.lives th{padding-right:12px}.lives td:nth-child(11){min-width:20ch}
.whole{white-space:nowrap}
td code{overflow-wrap:anywhere}
td:has(code){min-width:15ch;max-width:64ch}
dl.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(46%,210px),1fr));gap:10px 24px;margin:12px 0}
dl.facts dt{color:var(--soft);font-size:13px}
dl.facts dd{margin:0;font-size:15px;overflow-wrap:anywhere}
.text{min-width:20ch;max-width:46ch}
details{margin:14px 0}
summary{cursor:pointer;color:var(--accent);font-size:15px;padding:3px 0}
summary:focus-visible,a:focus-visible,.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
details.run{border-top:1px solid var(--line);margin:0;padding:14px 0}
details.run>summary{font-size:20px;font-weight:650;color:var(--ink)}
.tiles{display:grid;grid-template-columns:1fr;gap:22px}
.tiles figure{margin:0}
.tiles img,.bars img{display:block;width:100%;height:auto;border-radius:3px;background:#fff}
.four{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:4px 8px}
.four span,.ticks{color:var(--soft);font-size:13px}
.bars{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:8px 32px;margin:12px 0 4px}
.bars p{margin:0 0 4px;font-size:14px}
.bars img{height:14px}
.ticks{display:flex;justify-content:space-between}
.tiles figcaption{font-size:14px;font-weight:400;margin:0 0 5px}
.tiles figcaption b{font-weight:620}
.keys{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:13px;color:var(--soft);margin:8px 0 0;padding:0}
.keys span{white-space:nowrap}
.keys svg{width:22px;height:12px;display:inline-block;vertical-align:-1px;margin-right:6px}
.item{stroke:var(--edge);stroke-width:.6}
.row{stroke:var(--grid)}
svg text.in{fill:#fff;font-weight:600}
footer{color:var(--soft);font-size:13px;margin-top:64px;padding-bottom:40px}
footer p{border-top:1px solid var(--line);padding-top:14px;max-width:none}
"""

_NARROW = """
@media screen and (max-width:880px){
.charts{grid-template-columns:minmax(0,1fr)}
.charts svg.wide{max-width:560px}
}
@media screen and (max-width:700px){
main,header.top,footer{padding-left:16px;padding-right:16px}
header.top{padding-top:22px}
h1{font-size:26px}h2{margin-top:42px}
p.lead{font-size:16px}
.figures{grid-template-columns:repeat(2,1fr)}
.figures>div{padding:11px 12px}
.figures dd{font-size:20px}
svg.wide{display:none}svg.narrow{display:block;max-width:480px}
.pill{margin-left:8px;vertical-align:4px}
.four{grid-template-columns:repeat(2,minmax(0,1fr))}
}
"""

_PRINT = """
@media print{
@page{margin:14mm 13mm}
body{font-size:10.5pt;print-color-adjust:exact;-webkit-print-color-adjust:exact}
main,header.top,footer{max-width:none;padding-left:0;padding-right:0}
nav,.tip,.hair{display:none}
details::details-content{content-visibility:visible;display:block;height:auto;block-size:auto}
summary{color:var(--ink);font-weight:600;list-style:none;break-after:avoid}
p.note,p.about,figure p.note{font-size:9pt}p.lead{font-size:12.5pt}
h2{margin-top:28px;break-after:avoid}h3,figcaption{break-after:avoid}
figure,tr,.figures,.alarm{break-inside:avoid}
.charts{grid-template-columns:repeat(2,minmax(0,1fr));gap:14px 20px}
.charts.three{grid-template-columns:repeat(3,minmax(0,1fr))}
.scroll{overflow:visible}
table{font-size:9pt}th,td{padding-right:10px}table.lives{min-width:0}
th.n{white-space:normal}
.text{min-width:0}td:has(code){min-width:0}
.text,.lives td:nth-child(5){overflow-wrap:anywhere}.lives td:nth-child(5){min-width:10ch}
.lives td:nth-child(11){min-width:17ch}
table.lives{font-size:7pt}.lives td,.lives th{padding-right:6px}
pre{max-height:none}
thead{display:table-header-group}
}
"""


def _rules() -> str:
    """The rules that are the same for each colour or item."""
    kinds = "".join(
        f".line.k{n},.leader.k{n}{{stroke:var(--k{n})}}.mark.k{n},.dot.k{n},.band.k{n}{{fill:var(--k{n})}}"
        for n in range(8)
    )
    items = "".join(f".item.{name}{{fill:{fill}}}" for name, fill in FILLS.items())
    return (
        f"{kinds}\n{items}\n.shade{{stroke:var(--shade);stroke-width:1.7}}.shade.ink{{stroke:var(--ink);opacity:.55}}"
    )


FILLS = {
    "training": "var(--training)",
    "data": "url(#data)",
    "validation": "var(--validation)",
    "checkpoint": "url(#checkpoint)",
    "start": "var(--start)",
    "lost": "url(#lost)",
    "ending": "var(--ending)",
    "queue": "var(--queue)",
    "down": "url(#down)",
    "stopped": "url(#stopped)",
    "other": "var(--other)",
}
"""What the items of time are filled with; a name in `url` is a pattern of `agl_core.reporting.page.items`."""


def style() -> str:
    """The whole style sheet."""
    light, dark = _LIGHT.replace("\n", ""), _DARK.replace("\n", "")
    return "\n".join(
        [
            f":root{{color-scheme:light dark;{light}}}",
            f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}",
            _BASE.strip(),
            _rules(),
            _NARROW.strip(),
            _PRINT.strip(),
            "",
        ]
    )
