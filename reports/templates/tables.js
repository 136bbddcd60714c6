'use strict';
// A click on a heading sorts each group of rows by that column; rows without a number there go last.
// Results are sorted best first, other tables ascending; the next click reverses the order.
document.querySelectorAll('th button').forEach(button => button.addEventListener('click', () => {
  const th = button.parentElement, table = th.closest('table'), column = th.cellIndex;
  const [first, second] = table.dataset.table ? ['descending', 'ascending'] : ['ascending', 'descending'];
  const order = th.getAttribute('aria-sort') === first ? second : first;
  table.querySelectorAll('thead th').forEach(other => other.removeAttribute('aria-sort'));
  th.setAttribute('aria-sort', order);
  const key = row => { const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.classList.contains('number') ? null : cell.textContent; };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const numbers = typeof a === 'number' && typeof b === 'number';
    const difference = numbers ? a - b : String(a).localeCompare(String(b), 'en', {numeric: true});
    return order === 'ascending' ? difference : -difference;
  };
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter(row => !row.classList.contains('group'));
    rows.sort((a, b) => compare(key(a), key(b))).forEach(row => body.append(row));
  }
}));
