element.addEventListener('click', (event) => {
  const cell = event.target.closest('button[data-head]');
  if (cell) trigger('select', { layer: +cell.dataset.layer, head: +cell.dataset.head });
});
