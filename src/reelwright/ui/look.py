"""How the page looks: a plain theme of the system's own fonts, and the style of what is not Gradio's."""

from __future__ import annotations

import gradio as gr

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
MONO = ["ui-monospace", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    """Light and dark by the system's setting; no font is fetched."""
    blue = gr.themes.Color(
        c50="#eff5ff", c100="#dbe8fe", c200="#bfd5fd", c300="#93b8fb", c400="#6096f6", c500="#2f6fe4", c600="#2660cb",
        c700="#1f4fa8", c800="#1e4387", c900="#1d3a6d", c950="#152446", name="reel-blue",
    )  # fmt: skip
    grey = gr.themes.Color(
        c50="#f6f7f9", c100="#eceff3", c200="#e1e5ec", c300="#cdd3dd", c400="#98a2b3", c500="#667085", c600="#475467",
        c700="#2b313c", c800="#191d25", c900="#15181f", c950="#11141a", name="reel-grey",
    )  # fmt: skip
    return gr.themes.Base(
        primary_hue=blue, secondary_hue=blue, neutral_hue=grey, font=FONT, font_mono=MONO,
        radius_size=gr.themes.sizes.radius_md, text_size=gr.themes.sizes.text_md,
    ).set(
        body_background_fill="#f6f7f9", body_background_fill_dark="#11141a",
        body_text_color="#1b1f27", body_text_color_dark="#e8ebf1",
        block_background_fill="#ffffff", block_background_fill_dark="#191d25",
        block_border_width="0px", block_border_width_dark="0px", block_shadow="none", block_shadow_dark="none",
        block_label_text_color="#475467", block_title_text_color="#475467", block_title_text_weight="500",
        block_title_text_size="13px", block_info_text_color="#667085", block_info_text_size="12px",
        input_background_fill="#ffffff", input_background_fill_dark="#11141a",
        input_border_color="#cdd3dd", input_border_color_dark="#2b313c", input_border_width="1px",
        input_shadow="none", input_shadow_focus="0 0 0 3px #2f6fe433",
        button_primary_background_fill="#2f6fe4", button_primary_background_fill_hover="#2660cb",
        button_primary_background_fill_dark="#2f6fe4", button_primary_background_fill_hover_dark="#4a83ea",
        button_primary_text_color="#ffffff", button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#eceff3", button_secondary_background_fill_hover="#e1e5ec",
        button_secondary_background_fill_dark="#2b313c", button_secondary_background_fill_hover_dark="#3a4250",
        slider_color="#2f6fe4", slider_color_dark="#7aa8ff",
    )  # fmt: skip


STYLE = """
.gradio-container { --rw-card: #ffffff; --rw-line: #e1e5ec; --rw-faint: #667085; --rw-ink: #1b1f27;
  --rw-soft: #f6f7f9;
  --rw-accent: #2f6fe4; --rw-good: #17834f; --rw-bad: #c4392f; max-width: 1320px !important;
  width: 100% !important; margin: 0 auto !important;
  padding: 20px 24px 60px !important; }
.dark .gradio-container, .gradio-container.dark { --rw-card: #191d25; --rw-line: #2b313c; --rw-faint: #98a2b3;
  --rw-ink: #e8ebf1; --rw-soft: #11141a; --rw-accent: #7aa8ff; --rw-good: #4cc38a; --rw-bad: #ff7a70; }
footer { display: none !important; }
.gradio-container > .main { width: 100%; padding: 0 !important; }
.gradio-container .block.hide-container:has(.prose:empty) { display: none; }
.rw-panel { background: var(--rw-card); border: 1px solid var(--rw-line); border-radius: 12px;
  padding: 16px !important; }
.rw-head { display: flex; align-items: baseline; gap: 14px; flex-wrap: wrap; }
.rw-head h1 { font-size: 24px; letter-spacing: -0.02em; margin: 0; font-weight: 680; }
.rw-head span { color: var(--rw-faint); font-size: 13px; overflow-wrap: anywhere; }
.rw-title { font-size: 15px; font-weight: 620; margin: 0; }
.rw-notice { border-left: 3px solid var(--rw-accent); background: var(--rw-soft); padding: 9px 14px;
  border-radius: 6px;
  font-size: 14px; white-space: pre-line; overflow-wrap: anywhere; }
.rw-notice.good { border-left-color: var(--rw-good); animation: rw-away 1s ease-in 12s forwards; }
@keyframes rw-away { to { opacity: 0; visibility: hidden; } }
 .rw-notice.bad { border-left-color: var(--rw-bad); }
.rw-facts, .rw-faint { color: var(--rw-faint); font-size: 12.5px; margin: 4px 0 0; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
.rw-subject, .rw-prompt { margin: 0; font-size: 14px; line-height: 1.4; overflow-wrap: anywhere;
  white-space: pre-line; }
.rw-subject { display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow: hidden; }
.rw-error { color: var(--rw-faint); font-size: 13px; margin: 6px 0 0; white-space: pre-line; overflow-wrap: anywhere;
  max-height: 12em; overflow-y: auto; }
.rw-jobs { display: grid; gap: 8px; max-height: 74vh; overflow-y: auto; }
.rw-job { border: 1px solid var(--rw-line); border-radius: 10px; padding: 10px 12px; background: var(--rw-card); }
.rw-job-top { display: flex; align-items: center; gap: 8px; margin-bottom: 4px; font-size: 13px; }
.rw-state { font-size: 11.5px; padding: 1px 8px; border-radius: 99px; background: var(--rw-soft);
  color: var(--rw-faint);
  border: 1px solid var(--rw-line); }
.rw-job.running .rw-state { color: var(--rw-accent); border-color: currentColor; }
.rw-job.done .rw-state { color: var(--rw-good); } .rw-job.failed :is(.rw-state, .rw-error) { color: var(--rw-bad); }
.rw-job-top .rw-button { margin-left: auto; }
.rw-button { font: inherit; font-size: 12px; line-height: 1.3; padding: 4px 8px; border-radius: 7px;
  cursor: pointer;
  border: 1px solid var(--rw-line); background: var(--rw-soft); color: var(--rw-ink); }
.rw-button:hover { border-color: var(--rw-accent); color: var(--rw-accent); }
.rw-button:focus-visible { outline: 2px solid var(--rw-accent); outline-offset: 1px; }
.gradio-container .rw-buttons .rw-button { margin: 0; }
.rw-buttons { display: flex; gap: 6px; flex-wrap: wrap; margin-top: 8px; }
.rw-bar { height: 6px; border-radius: 99px; background: var(--rw-line); overflow: hidden; margin: 8px 0 4px; }
.rw-bar i { display: block; height: 100%; background: var(--rw-accent); border-radius: 99px; transition: width .4s; }
.rw-bar.unknown i { width: 30% !important; animation: rw-slide 1.6s ease-in-out infinite alternate; }
@keyframes rw-slide { to { margin-left: 70%; } }
@media (prefers-reduced-motion: reduce) { .rw-bar.unknown i { animation: none; } }
.rw-grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 14px; }
.rw-stage .rw-grid { grid-template-columns: repeat(auto-fit, minmax(220px, 340px)); }
.rw-card { margin: 0; border: 1px solid var(--rw-line); border-radius: 10px; overflow: hidden;
  background: var(--rw-card); }
.rw-card video, .rw-card img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #0d0f14;
  margin: 0; image-rendering: pixelated; }
.rw-card figcaption { padding: 10px 12px 12px; }
.rw-card details { margin-top: 6px; font-size: 12.5px; } .rw-card summary { cursor: pointer; color: var(--rw-faint); }
pre.rw-code, .rw-card pre { margin: 6px 0 0; padding: 10px 12px; background: var(--rw-soft); border-radius: 8px;
  overflow: auto;
  font: 12px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 420px; }
.rw-empty { border: 1px dashed var(--rw-line); border-radius: 12px; padding: 18px 20px; color: var(--rw-faint);
  font-size: 14px; }
.rw-empty b { color: var(--rw-ink); } .rw-empty ol { margin: 8px 0 0; padding-left: 20px; list-style: decimal; }
.rw-empty li { margin: 6px 0; }
.rw-empty code { display: block; width: fit-content; max-width: 100%; margin-top: 3px; padding: 3px 9px;
  background: var(--rw-soft);
  border: 1px solid var(--rw-line); border-radius: 6px; color: var(--rw-ink); overflow-wrap: anywhere;
  white-space: pre-wrap;
  font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
.rw-curve { overflow-x: auto; } .rw-curve svg { display: block; width: 100%; min-width: 560px; height: auto;
  color: var(--rw-ink); }
.rw-table { overflow: auto; max-height: 420px; border: 1px solid var(--rw-line); border-radius: 8px; margin-top: 10px; }
.gradio-container .rw-table table { margin: 0; width: 100%; font-size: 12.5px; border-collapse: collapse;
  font-variant-numeric: tabular-nums; }
.gradio-container .rw-table :is(td, th) { padding: 4px 10px; text-align: left; border: 0;
  border-bottom: 1px solid var(--rw-line); white-space: nowrap; }
.gradio-container .rw-table :is(table, tbody, tr) { border: 0; }
.gradio-container .rw-table td:nth-child(-n+3) { white-space: normal; min-width: 96px; }
.rw-table th { position: sticky; top: 0; background: var(--rw-soft); color: var(--rw-faint); font-weight: 600; }
.rw-report { width: 100%; height: 76vh; border: 1px solid var(--rw-line); border-radius: 12px;
  background: var(--rw-card); }
.rw-form .form, .rw-form .block { border: 0; }
.rw-fields .form { display: grid !important; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr));
  min-width: 0 !important;
  background: none; }
.rw-panel { gap: 10px !important; } .gradio-container .hide-container .html-container { padding: 0; }
.gradio-container .wrap input { text-overflow: ellipsis; }
.rw-title + .rw-grid, .rw-title + .rw-stage, .rw-stage .rw-grid, .rw-title + iframe { margin-top: 10px; }
.rw-end { align-items: end !important; } .rw-end button { margin-bottom: 10px; }
#run-samples .rw-grid, #run-now .rw-grid { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
@media (max-width: 640px) {
  .gradio-container { padding: 12px 10px 40px !important; } .rw-panel { padding: 12px !important; }
  .rw-grid { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; } .rw-jobs { max-height: 56vh; }
  .rw-curve { max-width: calc(100vw - 52px); } .rw-form .row { gap: 4px; } }
"""
