// tools/run_style.h
//
// How the page of a run looks: CSS. Colours are named once for light and once for dark; everything
// is one column, and tables scroll by themselves where they are wider than it.

#ifndef SLUICE_TOOLS_RUN_STYLE_H_
#define SLUICE_TOOLS_RUN_STYLE_H_

namespace sluice::tools {

inline constexpr const char* kRunStyle = R"css(
:root { color-scheme: light dark; --back: #fff; --text: #1d2127; --soft: #5c6570; --line: #dfe3e8;
  --panel: #f5f6f8; --c0: #2f6db5; --c1: #b8661a; --c2: #2c8560; --c3: #8651ad; --c4: #b23a4c;
  --rest: #cdd3da; --on: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --back: #15181c; --text: #e4e7eb; --soft: #9ba5b1; --line: #313841; --panel: #1d2227;
    --c0: #74aaeb; --c1: #dfa05c; --c2: #6cc39b; --c3: #bd96e0; --c4: #ee8493; --rest: #434b55;
    --on: #111; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.125rem; margin: 2.5rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 44rem; }
.note, .soft { color: var(--soft); font-size: .875rem; font-weight: normal; }
.lead { font-size: 1.0625rem; margin-top: .75rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem;
  margin: 1rem 0; padding: 0; }
.tiles div { background: var(--panel); border-radius: .5rem; padding: .625rem .875rem; }
.tiles dt { color: var(--soft); font-size: .875rem; }
.tiles dd { margin: 0; font-size: 1.375rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles small { display: block; color: var(--soft); font-size: .8125rem; font-weight: normal; }
.advice { padding-left: 1.5rem; } .advice li { margin: 0 0 .75rem; max-width: 44rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .9375rem; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 600; } thead th { color: var(--soft); font-weight: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; }
.scroll th:first-child { min-width: 8rem; }
td:last-child, th:last-child { padding-right: 0; }
.bar { display: flex; gap: 1px; height: 1.125rem; background: var(--panel); border-radius: .25rem;
  overflow: hidden; margin: .25rem 0 .375rem; }
.bar span { display: block; min-width: 0; }
.k0 { background: var(--c0); } .k1 { background: var(--c1); } .k2 { background: var(--c2); }
.k3 { background: var(--c3); } .k4 { background: var(--c4); } .kr { background: var(--rest); }
.legend { display: flex; flex-wrap: wrap; gap: .125rem 1.25rem; margin: 0 0 .75rem; padding: 0;
  list-style: none; font-size: .9375rem; }
.legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: .125rem;
  margin-right: .4rem; }
.row { display: grid; grid-template-columns: 14rem 1fr; gap: 0 1rem; align-items: center; }
.row .bar { margin: .25rem 0; }
.row .under { grid-column: 2; } .row .legend { margin-bottom: .5rem; font-size: .875rem; }
.steps { display: block; width: 100%; height: 7rem; } .steps rect { fill: var(--c0); }
.steps .floor { fill: var(--c1); }
.track { margin: .5rem 0; }
.area { display: block; width: 100%; height: 2rem; background: var(--panel); }
.area path { fill: var(--c0); }
.blocks { position: relative; height: 2rem; background: var(--panel); overflow: hidden; }
.block { position: absolute; top: 0; bottom: 0; min-width: 1px; overflow: hidden; color: var(--on);
  font-size: .8125rem; line-height: 2rem; padding-left: .375rem; white-space: nowrap;
  box-shadow: inset 1px 0 var(--back); }
.block:empty { padding: 0; }
.n0 { background: var(--c0); } .n1 { background: var(--c2); } .n2 { background: var(--c1); }
.n3 { background: var(--c3); }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: .8125rem;
  font-variant-numeric: tabular-nums; }
details { margin-top: 1rem; } summary { cursor: pointer; }
.all td { white-space: normal; } .all td:first-child { width: 40%; }
@media (max-width: 36rem) {
  .row { grid-template-columns: 1fr; } .row .under { grid-column: 1; }
  .row .name { margin-top: .375rem; } .tiles dd { font-size: 1.2rem; } }
@media print { details > * { display: block; } }
)css";

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_RUN_STYLE_H_
