element.addEventListener('click', (event) => {
  const example = event.target.closest('button[data-index]');
  if (example) trigger('select', { index: +example.dataset.index });
});
