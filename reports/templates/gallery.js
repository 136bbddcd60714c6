document.querySelectorAll('.stack').forEach(stack => stack.addEventListener('click', () => {
  if (stack.querySelector('.over')) stack.classList.toggle('bare');
}));
const all = document.getElementById('all');
if (all) all.addEventListener('change', () => {
  document.querySelector('main').classList.toggle('bare', !all.checked);
  document.querySelectorAll('.stack.bare').forEach(stack => stack.classList.remove('bare'));
});
