"""The page's look: theme, style sheet, and the small pieces of HTML that the tabs show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import gradio as gr

from ..console import duration
from .jobs import Update

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { max-width: min(1280px, 100vw) !important; margin: 0 auto !important; }
.gradio-container > .main { min-width: 0; max-width: 100%; padding: clamp(8px, 2.5vw, 32px) !important; }
.ac-title h1 { font-size: 1.55rem; letter-spacing: -.015em; margin: 0; }
.ac-title p { margin: .15rem 0 0; color: var(--body-text-color-subdued); }
.ac-status { min-height: 2.2rem; font-variant-numeric: tabular-nums; color: var(--body-text-color); }
.ac-status .ac-track { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
.ac-status .ac-track i { display: block; height: 100%; background: var(--color-accent); transition: width .25s linear; }
.ac-status span { display: block; margin-top: .35rem; font-size: .9rem; overflow-wrap: anywhere; }
.ac-note { margin: .3rem 0; padding: .5rem .75rem; border-left: 4px solid var(--color-accent); border-radius: 6px;
  background: var(--block-background-fill); font-size: .92rem; overflow-wrap: anywhere; }
.ac-note.error { border-color: #c62828; }
.ac-note.warning { border-color: #b26a00; }
.ac-note b { margin-right: .4em; }
.ac-gallery .grid-wrap { min-height: 0 !important; height: auto !important; max-height: none !important; }
.ac-gallery { min-height: 0 !important; }
.ac-gallery .grid-wrap { padding-top: 2.1rem; }
.ac-gallery .thumbnail-lg { aspect-ratio: auto; height: auto; background: none; }
.ac-gallery .thumbnail-lg img { aspect-ratio: 1; height: auto; border-radius: 6px; }
.ac-gallery .thumbnail-lg .caption-label { position: static; display: block; max-width: none; padding: .15rem .1rem 0;
  border: 0; background: none; text-align: left; font-size: .78rem; white-space: normal; line-height: 1.25; }
.ac-flush .html-container { padding: 0; }
.ac-table { overflow-x: auto; }
.ac-table table { border-collapse: separate; border-spacing: 2px; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
.ac-table caption { text-align: left; color: var(--body-text-color-subdued); padding-bottom: .3rem; }
.ac-table th { font-weight: 500; color: var(--body-text-color-subdued); padding: 0 .4rem; text-align: right;
  white-space: nowrap; }
.ac-table td { padding: .2rem .5rem; text-align: right; border-radius: 4px; }
footer { opacity: .75; }
@media (max-width: 640px) {
  .tab-container button { padding-left: 8px !important; padding-right: 8px !important; }
  .ac-row { flex-direction: column !important; }
  .ac-row > * { min-width: 100% !important; }
}
@media (prefers-reduced-motion: reduce) { .ac-status .ac-track i { transition: none; } }
"""


def theme() -> gr.themes.Base:
    """Calm paper and ink with one warm accent, in light and dark; system fonts, nothing fetched."""
    accent = gr.themes.Color(
        c50="#fdf4ef", c100="#fae5d8", c200="#f4c8ad", c300="#eba47c", c400="#e07c4b", c500="#c8572a", c600="#ad4520",
        c700="#8c371b", c800="#6f2d19", c900="#572516", c950="#30120a",
    )  # fmt: skip
    return gr.themes.Base(
        primary_hue=accent, secondary_hue=accent, neutral_hue="stone", font=FONT, font_mono=MONO,
        radius_size="md", spacing_size="md",
    ).set(
        body_background_fill="#fbfbfa", body_background_fill_dark="#161618",
        block_background_fill="#ffffff", block_background_fill_dark="#1f1f22",
        block_border_color="#e2e0dc", block_border_color_dark="#37363b",
        body_text_color="#1d1d1f", body_text_color_dark="#f2f1ef",
        body_text_color_subdued="#66666b", body_text_color_subdued_dark="#a3a2a8",
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500", button_primary_background_fill_hover_dark="*primary_400",
        button_primary_text_color="#ffffff", button_primary_text_color_dark="#161618",
        block_shadow="none", block_shadow_dark="none",
    )  # fmt: skip


def progress(update: Update) -> str:
    """A bar with what is done and the time left."""
    share = 100 * update.done / update.total if update.total else 0
    words = [escape(update.doing)] if update.doing else []
    if update.total:
        words.append(f"{update.done} of {update.total}")
    if update.left:
        words.append(f"{duration(max(1, update.left))} left")
    bar = f'<div class="ac-track"><i style="width:{share:.1f}%"></i></div>'
    return f'<div class="ac-status" role="status" aria-live="polite">{bar}<span>{" · ".join(words)}</span></div>'


def said(text: str = "", warnings: Sequence[str] = ()) -> str:
    """What came of it, with warnings."""
    notes = "".join(note(one, "warning") for one in warnings)
    return f'<div class="ac-status" role="status" aria-live="polite"><span>{escape(text)}</span>{notes}</div>'


def note(text: str, kind: str = "error") -> str:
    """A sentence that wants to be read."""
    names = {"error": "Not done.", "warning": "Note."}
    return f'<div class="ac-note {kind}" role="alert"><b>{names[kind]}</b>{escape(text)}</div>'
