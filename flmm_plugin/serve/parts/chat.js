element.addEventListener('click', (event) => {
  const word = event.target.closest('button[data-word]');
  if (word) trigger('select', { turn: +word.dataset.turn, part: word.dataset.part, word: +word.dataset.word });
});
watch('value', () => {
  const turns = element.querySelector('.turns');
  turns.scrollTop = turns.scrollHeight;
});
