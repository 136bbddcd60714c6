const stage = () => element.querySelector('.stage');
const clamp = (value) => Math.min(1, Math.max(0, value));
let start = null, cross = [0.5, 0.5], still = null;

const place = (event) => {
  const box = stage().getBoundingClientRect();
  return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
};
const region = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
// A click is a small region around it: a single pixel belongs to one cell of the model's grid.
const around = (p) => region([clamp(p[0] - 0.03), clamp(p[1] - 0.03)], [clamp(p[0] + 0.03), clamp(p[1] + 0.03)]);
const draw = (box) => {
  const drawn = element.querySelector('.drawn');
  drawn.hidden = false;
  drawn.style.left = box[0] * 100 + '%';
  drawn.style.top = box[1] * 100 + '%';
  drawn.style.width = (box[2] - box[0]) * 100 + '%';
  drawn.style.height = (box[3] - box[1]) * 100 + '%';
};
const isolate = (index) => {
  stage().classList.toggle('one', index !== null);
  element.querySelectorAll('.layer').forEach((layer) => layer.classList.toggle('on', layer.dataset.layer === index));
};

element.addEventListener('pointerdown', (event) => {
  if (!event.target.closest('.stage') || !props.value.src) return;
  start = place(event);
  stage().setPointerCapture(event.pointerId);
});
element.addEventListener('pointermove', (event) => { if (start) draw(region(start, place(event))); });
element.addEventListener('pointerup', (event) => {
  if (!start) return;
  const end = place(event);
  const far = Math.abs(end[0] - start[0]) > 0.02 || Math.abs(end[1] - start[1]) > 0.02;
  const box = far ? region(start, end) : around(end);
  start = null;
  draw(box);
  trigger('select', { region: box });
});
element.addEventListener('pointercancel', () => { start = null; });
element.addEventListener('keydown', (event) => {
  if (event.target !== stage() || !props.value.src) return;
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (step) {
    cross = [clamp(cross[0] + step[0] * 0.03), clamp(cross[1] + step[1] * 0.03)];
    const mark = element.querySelector('.cross');
    mark.hidden = false;
    mark.style.left = cross[0] * 100 + '%';
    mark.style.top = cross[1] * 100 + '%';
    event.preventDefault();
  } else if (event.key === 'Enter' || event.key === ' ') {
    draw(around(cross));
    trigger('select', { region: around(cross) });
    event.preventDefault();
  }
});
// One mask alone: while its key is pointed at or focused, and until the next click where it was clicked.
const keyOf = (event) => event.target.closest('.key');
element.addEventListener('click', (event) => {
  const key = keyOf(event);
  if (!key) return;
  still = still === key.dataset.layer ? null : key.dataset.layer;
  isolate(still);
});
element.addEventListener('pointerover', (event) => { if (keyOf(event)) isolate(keyOf(event).dataset.layer); });
element.addEventListener('pointerout', (event) => { if (keyOf(event)) isolate(still); });
element.addEventListener('focusin', (event) => { if (keyOf(event)) isolate(keyOf(event).dataset.layer); });
element.addEventListener('focusout', (event) => { if (keyOf(event)) isolate(still); });
watch('value', () => { still = null; });
