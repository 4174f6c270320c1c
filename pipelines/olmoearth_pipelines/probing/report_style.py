"""The style sheet of the HTML pages: light, dark and paper from one set of named colours."""

from __future__ import annotations

_LIGHT = (
    "--page:#fff;--card:#f5f6f8;--ink:#1c2330;--muted:#5d6778;--line:#d9dde4;--own:#1f5fa8;--on:#fff;--other:#a9b4c4;"
    "--bar:#e3e8ef;--right:#0b7a53;--alert:#fff4dc;--alert-line:#c98a00;--demo:#a32020"
)
_DARK = (
    "--page:#12161d;--card:#1b212b;--ink:#e6e9ee;--muted:#9aa5b5;--line:#333c4a;--own:#79b0f0;--on:#0d1420;"
    "--other:#56627a;--bar:#2c3544;--right:#4fd3a1;--alert:#352a10;--alert-line:#e0a93a;--demo:#b83a3a"
)

STYLE = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
@media print{{:root{{color-scheme:light;{_LIGHT}}}}}
*{{box-sizing:border-box;-webkit-print-color-adjust:exact;print-color-adjust:exact}}
body{{margin:0 auto;max-width:1180px;padding:24px 28px 48px;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}}
h1{{font-size:1.45rem;margin:0 0 4px}}
h2{{font-size:1.08rem;margin:34px 0 10px;padding-top:12px;border-top:1px solid var(--line)}}
p{{margin:6px 0;max-width:75ch}}
.muted{{color:var(--muted)}}
.banner{{background:var(--demo);color:#fff;padding:12px 16px;border-radius:6px;margin:0 0 18px;font-weight:600}}
.headline{{display:flex;flex-wrap:wrap;gap:16px 40px;align-items:flex-end;background:var(--card);border-radius:8px;
padding:18px 22px;margin:16px 0}}
.headline b{{display:block;font-size:2.9rem;line-height:1.05;font-weight:650;font-variant-numeric:tabular-nums}}
.headline dl{{display:flex;flex-wrap:wrap;gap:6px 26px;margin:0}}
dt{{color:var(--muted);font-size:.82rem}}
dd{{margin:0;font-variant-numeric:tabular-nums}}
.alert{{background:var(--alert);border-left:4px solid var(--alert-line);border-radius:4px;padding:8px 16px;
margin:14px 0}}
ul{{margin:6px 0;padding-left:20px}}
li,td,pre{{overflow-wrap:anywhere}}
.scroll{{overflow-x:auto}}
table{{border-collapse:collapse;width:100%;font-size:.9rem}}
th{{text-align:left;color:var(--muted);font-weight:500;border-bottom:1px solid var(--line);padding:4px 8px}}
td{{border-bottom:1px solid var(--line);padding:3px 8px;vertical-align:top}}
tr{{break-inside:avoid}}
th.n,td.n{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;width:11%}}
td.bar{{padding-bottom:9px;background:linear-gradient(to right,var(--own) var(--v),var(--bar) 0)
left bottom -6px/100% 4px no-repeat content-box padding-box}}
td.name{{min-width:9em}}
table.facts td:first-child{{color:var(--muted);width:24%}}
.chip{{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.5em;border:1px solid var(--line)}}
.maps{{display:flex;flex-wrap:wrap;gap:20px}}
figure{{margin:0;flex:1 1 300px;max-width:480px;break-inside:avoid}}
figcaption{{color:var(--muted);font-size:.85rem;margin-top:4px}}
.samples{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(var(--w),100%),1fr));gap:20px}}
.panes{{display:grid;grid-template-columns:repeat(auto-fit,minmax(80px,1fr));gap:6px;max-width:480px}}
.panes span{{color:var(--muted);font-size:.82rem}}
.legend{{display:flex;flex-wrap:wrap;gap:2px 18px;margin-top:10px;font-size:.88rem}}
pre{{background:var(--card);border-radius:6px;padding:12px 14px;white-space:pre-wrap;font-size:.86rem;margin:8px 0}}
svg{{display:block;max-width:100%;height:auto}}
svg text{{fill:var(--ink)}}
svg.map{{width:100%;border:1px solid var(--line);image-rendering:pixelated}}
svg .muted,svg tspan.muted{{fill:var(--muted)}}
svg .mid{{text-anchor:middle}}
svg .end{{text-anchor:end}}
svg .strong{{font-weight:650}}
svg .own{{fill:var(--own)}}
svg .other{{fill:var(--other)}}
svg .on{{fill:var(--on)}}
svg .grid,svg .frame{{stroke:var(--line);fill:none}}
svg .right{{stroke:var(--right);stroke-width:1.2;fill:none}}
svg .whisker{{stroke:var(--ink);stroke-width:1.6;fill:none}}
svg .equal{{stroke:var(--muted);stroke-dasharray:5 4}}
svg .dots{{stroke:var(--own);stroke-opacity:.55;stroke-width:6;stroke-linecap:round}}
svg .line{{stroke-width:1.8;stroke-linejoin:round;fill:none}}
svg .kept{{stroke-width:3}}
svg .dashed{{stroke-dasharray:5 4}}
svg .label{{stroke-linecap:round;fill:none}}
svg.figure{{font-size:13px}}
@media print{{body{{padding:0;font-size:12px}}h2{{break-after:avoid}}svg{{min-width:0!important;break-inside:avoid}}}}
""".strip()
"""CSS; no font, picture or sheet is fetched."""
