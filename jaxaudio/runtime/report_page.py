"""The frame of a run's report: one page without anything from outside, its style and its script."""

import base64
import hashlib
import html

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --panel: #f5f6f8; --line: #dde1e6; --text: #1a1e23; --soft: #56606b;
  --one: #0b62c4; --two: #b34a12; --bad: #b42318; --picture: #fff }
@media (prefers-color-scheme: dark) { :root { --ground: #121518; --panel: #1b1f24; --line: #323940; --text: #e7eaed;
  --soft: #9fa9b3; --one: #6db1ff; --two: #f5a35c; --bad: #ff8b80; --picture: #d9dcdf } }
* { box-sizing: border-box }
html { scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--ground); color: var(--text); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
header, main, nav > ul, footer { max-width: 1160px; margin: 0 auto; padding: 0 20px }
header { padding-top: 28px; padding-bottom: 12px }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; font-weight: 650; letter-spacing: -.01em }
h2 { font-size: 1.25rem; margin: 44px 0 6px; font-weight: 650 }
h3 { font-size: 1rem; margin: 22px 0 8px; font-weight: 650 }
p { margin: 4px 0 12px; max-width: 80ch }
a { color: var(--one) }
.soft, small { color: var(--soft) }
small { font-size: .82rem; font-weight: 400 }
.bad { color: var(--bad) }
.chart .bad { margin: 0; font-size: .84rem }
code { font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
nav { position: sticky; top: 0; z-index: 2; background: var(--ground); border-bottom: 1px solid var(--line) }
nav > ul { display: flex; gap: 20px; list-style: none; padding-top: 9px; padding-bottom: 9px; overflow-x: auto }
nav a { color: var(--soft); text-decoration: none; white-space: nowrap }
nav a:hover { color: var(--one) }
:focus-visible { outline: 2px solid var(--one); outline-offset: 2px; border-radius: 4px }
figure { margin: 0; min-width: 0 }
figcaption { font-weight: 600; line-height: 1.3 }
.tiles, .charts, .players, .sheets { display: grid; gap: 14px }
.tiles { grid-template-columns: repeat(auto-fit, minmax(min(100%, 160px), 1fr)); margin-top: 16px }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)) }
.players { grid-template-columns: repeat(auto-fill, minmax(min(100%, 235px), 1fr)) }
.cards { columns: 330px; column-gap: 14px } .cards .card { break-inside: avoid; margin-bottom: 14px }
.sheets { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); margin-top: 18px }
.tile, .chart, .player, .card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px }
.tile { padding: 10px 14px }
.tile b { display: block; font-size: 1.3rem; font-weight: 600; line-height: 1.35; font-variant-numeric: tabular-nums }
.tile span { color: var(--soft); font-size: .84rem; display: block; line-height: 1.35; overflow-wrap: break-word }
.card { padding: 4px 14px 12px }
.card h3 { margin: 8px 0 4px }
.card.wide { margin-top: 14px }
dl { display: grid; grid-template-columns: minmax(30%, max-content) 1fr; gap: 2px 14px; margin: 0; font-size: .9rem }
dt { color: var(--soft) }
dd { margin: 0; font-variant-numeric: tabular-nums }
.chart { padding: 10px 12px 8px; display: flex; flex-direction: column }
.chart svg { display: block; width: 100%; height: auto; margin-top: auto; overflow: visible;
  touch-action: pan-y; cursor: crosshair }
.chart text { font-size: 10.5px; fill: var(--soft); font-variant-numeric: tabular-nums }
.chart .grid { stroke: var(--line); stroke-width: 1 }
.chart path { fill: none; stroke-width: 1.4; stroke-linejoin: round; stroke-linecap: round;
  vector-effect: non-scaling-stroke }
.chart .range { stroke-width: 1; opacity: .4 }
.chart .axis-line { stroke: var(--soft); stroke-width: 1 }
.chart .rule { stroke: var(--soft); stroke-width: 1; visibility: hidden }
.chart .at { visibility: hidden }
.one path { stroke: var(--one) } .one circle { fill: var(--one) }
.two path { stroke: var(--two) } .two circle { fill: var(--two) }
.key { display: inline-block; width: 12px; height: 3px; border-radius: 2px; margin: 0 5px 3px 0;
  vertical-align: middle }
.key.one { background: var(--one) } .key.two { background: var(--two) }
.legend, .readout { margin: 0; font-size: .84rem; color: var(--soft); font-variant-numeric: tabular-nums }
.legend { display: flex; gap: 14px; flex-wrap: wrap } .readout { min-height: 1.5em }
.player { padding: 8px 10px }
.player figcaption { display: flex; align-items: center; gap: 8px; margin-top: 6px; font-size: .9rem }
.player figcaption span { flex: 1; min-width: 0 }
.player output, .axis { color: var(--soft); font-size: .75rem; font-weight: 400; font-variant-numeric: tabular-nums }
.player audio { width: 100%; margin-top: 6px }
.script .player audio, .play, .all { display: none }
.script .play { display: block; flex: none; width: 30px; height: 30px; padding: 0; border: 0; border-radius: 50%;
  background: var(--one); cursor: pointer }
.play::before { content: ""; display: block; width: 12px; height: 12px; margin: auto; background: var(--ground);
  clip-path: polygon(15% 0, 100% 50%, 15% 100%) }
.playing .play::before { clip-path: polygon(8% 5%, 38% 5%, 38% 95%, 62% 95%, 62% 5%, 92% 5%, 92% 95%, 8% 95%) }
.script .all { display: inline-block; font: inherit; font-size: .84rem; font-weight: 400; color: var(--text);
  background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 2px 10px; margin-left: 8px;
  cursor: pointer }
.spectrum { display: grid; grid-template-columns: 42px 1fr; column-gap: 6px }
.axis { display: flex; justify-content: space-between; line-height: 1.2 }
.axis.kilohertz { flex-direction: column; text-align: right }
.axis.seconds { grid-column: 2; margin-top: 3px }
.view { position: relative; cursor: pointer; touch-action: pan-y; height: 96px; background: #000004; overflow: hidden }
.view img { display: block; width: 100%; height: 100%; user-select: none; pointer-events: none }
.cursor { position: absolute; top: 0; bottom: 0; left: 0; width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 0 1px #0008; visibility: hidden }
.scale { display: flex; align-items: center; gap: 8px; margin: 0 }
.scale i { width: 120px; height: 10px; border-radius: 2px }
.picture { background: var(--picture); display: block; width: 100%; height: auto; border-radius: 6px }
.zoom { display: block; width: 100%; padding: 6px; border: 1px solid var(--line); border-radius: 8px; cursor: zoom-in;
  background: var(--picture); margin-top: 6px }
.sheets .large { grid-column: 1 / -1 } .large .zoom { cursor: zoom-out }
.scroll { overflow-x: auto; margin-bottom: 12px }
table { border-collapse: collapse; font-size: .9rem; min-width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 5px 16px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal }
th { color: var(--soft); font-weight: 500; white-space: nowrap }
td.number, th.number { text-align: right; white-space: nowrap }
td.note { min-width: 160px; color: var(--soft) }
summary { cursor: pointer; color: var(--one); margin: 10px 0 }
footer { padding-top: 40px; padding-bottom: 28px; color: var(--soft); font-size: .84rem }
@media (max-width: 600px) { header, main, nav > ul, footer { padding-left: 14px; padding-right: 14px }
  nav > ul { gap: 12px; font-size: .88rem }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px } .tile { padding: 8px 10px } }
@media print { nav { position: static } .play, .all { display: none } .player, .chart { break-inside: avoid } }
"""

SCRIPT = """
"use strict";
document.documentElement.classList.add("script");
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
let queue = [];  // what "play all" still has to play

for (const player of all(".player")) {
  const audio = player.querySelector("audio"), button = player.querySelector(".play"), name = player.dataset.name;
  const view = player.querySelector(".view"), cursor = player.querySelector(".cursor");
  const seconds = Number(player.dataset.seconds), output = player.querySelector("output");
  audio.removeAttribute("controls");
  const show = () => {
    const at = Math.min(audio.currentTime, seconds);
    cursor.style.left = 100 * at / seconds + "%";
    cursor.style.visibility = at > 0 || !audio.paused ? "visible" : "hidden";
    output.textContent = at > 0 ? at.toFixed(2) + " s" : "";
    view.setAttribute("aria-valuenow", at.toFixed(2));
    view.setAttribute("aria-valuetext", at.toFixed(2) + " of " + seconds.toFixed(2) + " seconds");
    if (!audio.paused) requestAnimationFrame(show);
  };
  const state = () => {
    player.classList.toggle("playing", !audio.paused);
    button.setAttribute("aria-label", (audio.paused ? "Play " : "Pause ") + name);
    show();
  };
  const start = () => {
    for (const other of all("audio")) if (other !== audio) other.pause();
    audio.play().catch(problem => { if (problem.name !== "AbortError") output.textContent = "can't be played"; });
  };
  const seek = at => { audio.currentTime = Math.max(0, Math.min(at, seconds)); show(); };
  const point = event => {
    const box = view.getBoundingClientRect();
    seek((event.clientX - box.left) / box.width * seconds);
  };
  for (const event of ["play", "pause", "ended", "seeked"]) audio.addEventListener(event, state);
  audio.addEventListener("ended", () => { audio.currentTime = 0; if (queue.length) queue.shift()(); });
  button.addEventListener("click", () => { queue = []; audio.paused ? start() : audio.pause(); });
  view.addEventListener("pointerdown", event => view.setPointerCapture(event.pointerId));
  view.addEventListener("pointermove", event => { if (event.buttons) point(event); });
  view.addEventListener("click", event => { queue = []; point(event); start(); });
  view.addEventListener("keydown", event => {
    const jump = { ArrowLeft: -seconds / 20, ArrowRight: seconds / 20, Home: -seconds, End: seconds }[event.key];
    if (jump !== undefined) seek(audio.currentTime + jump);
    else if (event.key === " " || event.key === "Enter") button.click();
    else return;
    event.preventDefault();
  });
  player.start = () => { audio.currentTime = 0; start(); };
}

for (const button of all(".all")) button.addEventListener("click", () => {
  queue = all(".player", document.getElementById(button.dataset.of)).map(player => player.start);
  queue.shift()();
});

for (const button of all(".zoom")) button.addEventListener("click", () => {
  button.setAttribute("aria-expanded", button.closest("figure").classList.toggle("large"));
});

for (const chart of all(".chart[data-chart]")) {
  const { frame: [left, width, top, height], last, low, high, lines } = JSON.parse(chart.dataset.chart);
  const svg = chart.querySelector("svg"), rule = chart.querySelector(".rule"), dots = all(".at", chart);
  const readout = chart.querySelector(".readout"), rest = readout.textContent;
  const away = () => {
    for (const part of [rule, ...dots]) part.style.visibility = "hidden";
    readout.textContent = rest;
  };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const wanted = ((event.clientX - box.left) * scale - left) / width * last;
    const found = lines.map(({ steps }) => steps.reduce(
      (best, step, i) => Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? i : best, 0));
    const texts = lines.map(({ name, steps, values }, i) => {
      const step = steps[found[i]], value = values[found[i]], x = left + step / last * width;
      dots[i].setAttribute("cx", x);
      dots[i].setAttribute("cy", top + height * (high - value) / (high - low));
      dots[i].style.visibility = "visible";
      if (!i) { rule.setAttribute("x1", x); rule.setAttribute("x2", x); rule.style.visibility = "visible"; }
      return "step " + step.toLocaleString("en") + ": " + (lines.length > 1 ? name + " " : "") + value;
    });
    readout.textContent = texts.join(" \\u00b7 ");
  });
  svg.addEventListener("pointerleave", away);
  svg.addEventListener("pointercancel", away);
}
"""

# Whatever slipped through the escaping: the browser runs this one script and asks the network for nothing.
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; script-src 'sha256-{_DIGEST}'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def text(content: object) -> str:
    """What a user named, as text of the page: no markup in it, no character that a browser refuses."""
    clean = str(content).replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
    return html.escape(clean)


def number(value: float) -> str:
    """Four significant digits; whole thousands in groups of three."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def data_uri(content: bytes, kind: str) -> str:
    """The content itself, where an address is expected."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def page(title: str, head: str, sections: list[tuple[str, str]], foot: str) -> str:
    """The whole page; `sections` are (heading, HTML), and each gets its place in the table of contents."""
    names = [(heading, f"part-{i}") for i, (heading, _) in enumerate(sections)]
    contents = "".join(f'<li><a href="#{key}">{text(heading)}</a></li>' for heading, key in names)
    bodies = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{text(heading)}</h2>{body}</section>'
        for (heading, key), (_, body) in zip(names, sections, strict=True)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>"
        f'<body><header>{head}</header><nav aria-label="Contents"><ul>{contents}</ul></nav>'
        f"<main>{bodies}</main><footer>{foot}</footer><script>{SCRIPT}</script></body></html>\n"
    )
