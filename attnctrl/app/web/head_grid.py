"""The map of a model's heads: buttons to choose them by, coloured by what an atlas found."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import gradio as gr
import torch

from ...embedded import MODELS, model_folder
from ...evals.heads.atlas import Atlas
from ...evals.heads.atlas_maps import digits, ends, signed
from ...evals.heads.drawing import Head, pool, text_of
from ...processors.attaching import host_of, known_hosts
from ...where import Where


@cache
def skeleton(model: str) -> SimpleNamespace:
    """What of a pipeline tells blocks and heads: its transformer without weights; LookupError if it is not here yet."""
    folder = model_folder(model) if model in MODELS else model
    try:
        known = {one.edge.transformer.__name__: one.edge.transformer for one in known_hosts()}
        loader: Any = next(iter(known.values()))
        config = loader.load_config(folder, subfolder="transformer", local_files_only=True)
        cls: Any = known[config["_class_name"]]
        with torch.device("meta"):
            return SimpleNamespace(transformer=cls.from_config(config))
    except (OSError, KeyError, ValueError) as fault:
        raise LookupError(model) from fault


def heads_in(text: str | None, model: str) -> list[Head]:
    """The heads that a text names, in order; ControlError or ValidationError for what the model has not."""
    if not (text or "").strip():
        return []
    where = Where(heads=text)
    try:
        return pool(skeleton(model), where)
    except LookupError:
        return []


def map_of(model: str, text: str | None = "", atlas: Atlas | None = None, objective: str = "") -> dict[str, Any]:
    """What the grid shows: rows of blocks, the chosen heads, and colours if an atlas of the model has the objective."""
    try:
        pipe = skeleton(model)
    except LookupError:
        return {"rows": [], "chosen": [], "key": None}
    sites = host_of(pipe).sites
    known = atlas if atlas and atlas.config.model == model and objective in atlas.plain else None
    rows: dict[int, dict[str, Any]] = {}
    for site in sites:
        row = rows.setdefault(site.index, {"name": f"L{site.index}", "stream": site.stream, "cells": []})
        row["cells"] += [_cell((site.index, head), known, objective) for head in range(len(row["cells"]), site.heads)]
    chosen = [text_of([head]) for head in heads_in(text, model)]
    return {"rows": list(rows.values()), "chosen": chosen, "key": known and _key(known, objective)}


def _cell(head: Head, atlas: Atlas | None, objective: str) -> dict[str, Any]:
    """A head's name, and its gain with the share of the colour scale."""
    cell: dict[str, Any] = {"at": text_of([head])}
    if atlas is None or head not in atlas.cells:
        return cell
    limit, gain = atlas.limit(objective), atlas.gain(head, objective)
    share = max(-1.0, min(1.0, gain / limit)) if limit else 0.0
    return cell | {"gain": signed(gain, digits(limit)), "share": round(share, 4)}


def _key(atlas: Atlas, objective: str) -> dict[str, str]:
    """The scale's ends and what the map was drawn with."""
    low, high = ends(atlas, objective)
    config = atlas.config
    about = f"“{config.prompt}”, seed {config.seed}, w {config.strength:g}, u {config.u:g}"
    return {"low": low, "high": high, "title": f"{objective}: guided − plain", "about": about}


def grid(value: dict[str, Any]) -> gr.HTML:
    """The component; its value is a map, and `input` comes when a visitor chooses."""
    return gr.HTML(
        value, elem_id="heads-grid", elem_classes="ac-flush", html_template='<div class="map"></div>',
        css_template=CSS, js_on_load=JS, apply_default_css=False,
    )  # fmt: skip


CHOSEN = "(map) => (map && map.chosen || []).join(' ')"

LIVE = """(live, text) => {
  clearTimeout(window.acHeadsLive);
  if (!live || !(text || '').trim()) return;
  let stopped = false;
  const press = () => {
    const run = document.querySelector('#heads-run'), cancel = document.querySelector('#heads-cancel');
    if (!run) return;
    if (!run.disabled) return run.click();
    if (!stopped && !cancel.disabled) { stopped = true; cancel.click(); }
    window.acHeadsLive = setTimeout(press, 150);
  };
  window.acHeadsLive = setTimeout(press, WAIT);
}"""
"""Press Draw after WAIT milliseconds, as soon as it can be pressed; what is being drawn is given up."""

FETCH = """() => setTimeout(() => {
  const found = document.querySelector('#heads-preset-file');
  const link = found && (found.closest('a[href]') || found.querySelector('a[href]'));
  (link || found) && (link || found).click();
}, 400)"""
"""Download what was just saved."""

CSS = """
--none: #eeece8; --more: #b45309; --less: #5434a0; --on: #fff; --ring: #1d1d1f; --paper: #fff;
.dark & { --none: #2c2c30; --more: #ff9d45; --less: #a98fff; --on: #161618; --ring: #f2f1ef; --paper: #1f1f22; }
border: 1px solid var(--block-border-color); border-radius: var(--block-radius); padding: 10px 12px;
background: var(--paper); color: var(--body-text-color); font-size: 13px; font-variant-numeric: tabular-nums;
.top { display: flex; align-items: center; gap: 10px; min-height: 30px; margin-bottom: 4px; }
.top b { font-weight: 500; flex: 1; }
.top button { padding: 3px 11px; border: 1px solid var(--border-color-primary); border-radius: 99px; }
.top button:disabled { visibility: hidden; }
.top button:hover { border-color: var(--ring); }
.scroll { overflow: auto; max-height: 27rem; padding: 4px; margin: 0 -4px; }
table { border-collapse: separate; border-spacing: 3px; width: 100%; margin: 0; padding: 0; }
th { padding: 0 5px 0 0; font-weight: 500; font-size: 12px; color: var(--body-text-color-subdued); white-space: nowrap;
  text-align: right; position: sticky; left: -4px; background: var(--paper); z-index: 2; width: 1%; }
th small { font-size: 11px; opacity: .85; }
thead th { position: sticky; top: -4px; z-index: 1; text-align: center; padding: 0; width: auto; }
thead td { position: sticky; top: -4px; left: -4px; z-index: 3; background: var(--paper); }
td { padding: 0; }
td button { --t: 0%; --end: var(--more); display: block; width: 100%; height: 30px; min-width: 44px; border-radius: 5px;
  font-size: 12px; color: inherit; cursor: pointer; background: color-mix(in oklab, var(--end) var(--t), var(--none)); }
td button.bare { color: var(--body-text-color-subdued); }
td button.less { --end: var(--less); }
td button.less.deep, td button.deepest { color: var(--on); }
.dark & td button.deep { color: var(--on); }
td button:hover { outline: 1.5px solid var(--body-text-color-subdued); outline-offset: 1px; }
td button[aria-pressed="true"] { outline: 2.5px solid var(--ring); outline-offset: 1px; font-weight: 650; }
td button.bare[aria-pressed="true"] { color: var(--ring); }
td button:focus-visible, .top button:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 1px; }
.tight table { border-spacing: 2px; width: auto; }
.tight td button { height: 16px; width: 14px; min-width: 14px; border-radius: 3px; font-size: 0; }
.tight td button[aria-pressed="true"] { outline-width: 2px; outline-offset: 0; }
.tight thead th { font-size: 9px; }
.tight th small { display: none; }
.key { margin-top: 10px; font-size: 12px; color: var(--body-text-color-subdued); }
.key i { display: block; height: 9px; border-radius: 5px; margin: 4px 0 2px;
  background: linear-gradient(in oklab to right, var(--less), var(--none), var(--more)); }
.key div { display: flex; justify-content: space-between; }
.key p { margin: 0; overflow-wrap: anywhere; }
.key p strong { color: var(--body-text-color); font-weight: 600; }
p { margin: 0; }
"""

JS = """
const root = element.querySelector('.map');
const make = (tag, options = {}, ...inside) => {
  const one = Object.assign(document.createElement(tag), options);
  one.append(...inside);
  return one;
};
const state = () => props.value || {rows: [], chosen: [], key: null};
let here = null;  // the head that the Tab key reaches
const names = () => state().rows.flatMap((row) => row.cells.map((cell) => cell.at));
const button = (at) => root.querySelector(`td button[data-at="${at}"]`);

function cell(one) {
  const share = one.share || 0, size = Math.abs(share), known = one.gain !== undefined;
  const label = known ? `${one.at}, gain ${one.gain}` : one.at;
  const made = make('button', {type: 'button', textContent: known ? one.gain : one.at, title: label});
  made.dataset.at = one.at;
  made.setAttribute('aria-label', label);
  made.style.setProperty('--t', `${(100 * size).toFixed(1)}%`);
  for (const [name, on] of [['bare', !known], ['less', share < 0], ['deep', size > 0.6], ['deepest', size > 0.8]])
    made.classList.toggle(name, on);
  return make('td', {}, made);
}

function table(rows, across) {
  const label = (head) => make('th', {scope: 'col', textContent: across > 8 ? head : `H${head}`});
  const heads = [...Array(across).keys()].map(label);
  const lines = rows.map((row) => {
    const name = make('th', {scope: 'row', textContent: `${row.name} `}, make('small', {textContent: row.stream}));
    return make('tr', {}, name, ...row.cells.map(cell));
  });
  return make('table', {}, make('thead', {}, make('tr', {}, make('td'), ...heads)), make('tbody', {}, ...lines));
}

function key(one) {
  const ends = make('div', {}, ...[one.low, '0', one.high].map((text) => make('span', {textContent: text})));
  const title = make('p', {}, make('strong', {textContent: one.title}), ` · ${one.about}`);
  return make('div', {className: 'key'}, title, make('i'), ends);
}

function draw() {
  const {rows, key: scale} = state(), focused = root.contains(document.activeElement);
  const scrolled = root.querySelector('.scroll'), old = scrolled ? [scrolled.scrollLeft, scrolled.scrollTop] : [0, 0];
  const across = Math.max(0, ...rows.map((row) => row.cells.length));
  if (!rows.length) {
    root.replaceChildren(make('p', {textContent: 'The heads show here once the model was loaded; type them below.'}));
    return;
  }
  const clear = make('button', {type: 'button', textContent: 'Clear', onclick: () => choose([])});
  const top = make('div', {className: 'top'}, make('b'), clear);
  const box = make('div', {className: 'scroll'}, table(rows, across));
  box.setAttribute('role', 'group');
  box.setAttribute('aria-label', 'Heads: rows are blocks, columns are heads');
  root.replaceChildren(top, box, ...(scale ? [key(scale)] : []));
  root.classList.toggle('tight', across > 8);
  box.scrollTo(...old);
  if (!names().includes(here)) here = names()[0];
  paint();
  if (focused && button(here)) button(here).focus({preventScroll: true});
}

function paint() {
  const chosen = new Set(state().chosen), count = chosen.size;
  for (const one of root.querySelectorAll('td button')) {
    one.setAttribute('aria-pressed', String(chosen.has(one.dataset.at)));
    one.tabIndex = one.dataset.at === here ? 0 : -1;
  }
  const said = count === 0 ? 'Choose heads' : count === 1 ? '1 head chosen' : `${count} heads chosen`;
  root.querySelector('.top b').textContent = said;
  root.querySelector('.top button').disabled = !count;
}

function choose(chosen) {
  const wanted = new Set(chosen);
  props.value = {...state(), chosen: names().filter((at) => wanted.has(at))};
  paint();
  trigger('input');
}

root.addEventListener('click', (event) => {
  const one = event.target.closest('td button');
  if (!one) return;
  here = one.dataset.at;
  const chosen = new Set(state().chosen);
  if (!chosen.delete(here)) chosen.add(here);
  choose(chosen);
});

root.addEventListener('keydown', (event) => {
  const one = event.target.closest('td button');
  if (!one) return;
  const {rows} = state(), row = rows.findIndex((each) => each.cells.some((cell) => cell.at === one.dataset.at));
  const column = rows[row].cells.findIndex((cell) => cell.at === one.dataset.at);
  const moves = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e9],
    End: [0, 1e9], PageUp: [-8, 0], PageDown: [8, 0]};
  if (!moves[event.key]) return;
  event.preventDefault();
  const within = (value, count) => Math.max(0, Math.min(count - 1, value));
  const cells = rows[within(row + moves[event.key][0], rows.length)].cells;
  here = cells[within(column + moves[event.key][1], cells.length)].at;
  paint();
  button(here).focus();
});

watch('value', draw);
draw();
"""
