"""Style and script of the HTML page, apart from the code that fills it."""

from __future__ import annotations

STYLE = """
:root { --ink: #1b1b1b; --paper: #fdfdfc; --soft: #f0efec; --line: #d8d6d0; --link: #0b5c8c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e7e2; --paper: #16171a; --soft: #222428; --line: #3a3d43; --link: #7cc0ea; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.25rem; }
nav { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; margin-top: .8rem; padding: .5rem 0;
  border-block: 1px solid var(--line); }
a { color: var(--link); } .switch { margin-left: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--soft); white-space: nowrap; } td.number { text-align: right; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
.note { opacity: .8; font-size: .92rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--least)), 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; background: var(--soft); }
.stack { position: relative; } .stack img { display: block; width: 100%; height: auto; }
.stack .over { position: absolute; inset: 0; height: 100%; transition: opacity .15s; }
.stack:has(.over) { cursor: pointer; } .bare .over, .stack.bare .over { opacity: 0; }
figcaption { padding: .5rem .7rem; font-size: .92rem; overflow-wrap: anywhere; }
pre { margin: .4rem 0 0; padding: .5rem; background: var(--paper); border: 1px solid var(--line); border-radius: 4px;
  font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; }
"""

SCRIPT = """
document.querySelectorAll('th button').forEach(button => button.addEventListener('click', () => {
  const th = button.parentElement, table = th.closest('table'), body = table.tBodies[0];
  const column = th.cellIndex, down = th.getAttribute('aria-sort') === 'ascending';
  table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
  th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const key = row => { const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value); };
  const compare = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b
    : String(a).localeCompare(String(b), 'en', {numeric: true});
  [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(key(a), key(b))).forEach(row => body.append(row));
}));
document.querySelectorAll('.stack').forEach(stack => stack.addEventListener('click', () => {
  if (stack.querySelector('.over')) stack.classList.toggle('bare');
}));
const all = document.getElementById('all');
if (all) all.addEventListener('change', () => {
  document.querySelector('main').classList.toggle('bare', !all.checked);
  document.querySelectorAll('.stack.bare').forEach(stack => stack.classList.remove('bare'));
});
"""
