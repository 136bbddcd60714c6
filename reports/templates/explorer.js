// COCO's compressed run lengths are decoded here: characters of six bits, the lowest five of them payload, the sixth "more
// follows"; from the third run on a value is the difference to the run before the last. Runs go down columns.
const data = JSON.parse(document.getElementById('data').textContent);
const byId = name => document.getElementById(name);
const COLOURS = [[230,159,0],[86,180,233],[0,158,115],[240,228,66],[0,114,178],[213,94,0],[204,121,167]];
const PAGE = 48;
const make = (tag, kind, text) => { const node = document.createElement(tag);
  if (kind) node.className = kind; if (text !== undefined) node.textContent = text; return node; };
function decode(mask) {
  const [height, width, counts] = mask, out = new Uint8Array(height * width), runs = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const code = counts.charCodeAt(at++) - 48;
      value |= (code & 31) << (5 * shift); more = (code & 32) !== 0; shift++;
      if (!more && (code & 16)) value |= -1 << (5 * shift);
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  let place = 0, on = false;
  for (const run of runs) {
    if (on) for (let i = place; i < place + run; i++) out[(i % height) * width + Math.floor(i / height)] = 1;
    place += run; on = !on;
  }
  return out;
}
function paint(canvas, sample) {
  const first = sample[9].map(p => p[3] || p[4]).find(Boolean);
  if (!first) return;
  const [height, width] = first, thick = Math.max(1, Math.round(Math.max(height, width) / 250));
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext('2d'), pixels = context.createImageData(width, height);
  const put = (i, colour, alpha) => { pixels.data.set([...colour, alpha], 4 * i); };
  let painted = 0;
  sample[9].forEach((phrase, n) => {
    const colour = COLOURS[n % COLOURS.length];
    if (byId('predicted').checked && phrase[3]) {
      const on = decode(phrase[3]);
      for (let i = 0; i < on.length; i++) if (on[i]) { put(i, colour, 115); painted++; }
    }
    if (byId('target').checked && phrase[4]) {
      const on = decode(phrase[4]);
      const at = (y, x) => y >= 0 && x >= 0 && y < height && x < width && on[y * width + x];
      for (let y = 0; y < height; y++) for (let x = 0; x < width; x++)
        if (on[y * width + x] && !(at(y - thick, x) && at(y + thick, x) && at(y, x - thick) && at(y, x + thick)))
          put(y * width + x, colour, 255);
    }
  });
  context.putImageData(pixels, 0, 0);
  canvas.dataset.painted = painted;
}
const near = new IntersectionObserver(entries => entries.forEach(entry => {
  const stack = entry.target, image = stack.querySelector('img'), canvas = stack.querySelector('canvas');
  if (entry.isIntersecting) {
    if (image && !image.src) image.src = 'data:image/jpeg;base64,' + byId('p' + image.dataset.place).textContent;
    if (canvas) paint(canvas, stack.sample);
  } else {
    if (image) image.removeAttribute('src');
    if (canvas) { canvas.width = canvas.height = 1; delete canvas.dataset.painted; }
  }
}), {rootMargin: '600px'});
const WHY = {'-1': '', '-2': 'the picture could not be read when this page was written',
  '-3': 'the picture was left out to keep this page small'};
function card(sample) {
  const [model, task, doc, question, target, answer, stock, place, value, phrases, error] = sample;
  const figure = make('figure', 'card'), stack = make('div', 'stack'), words = make('figcaption', 'words');
  figure.dataset.doc = doc; figure.dataset.task = data.tasks[task];
  stack.sample = sample;
  const size = phrases.map(p => p[3] || p[4]).find(Boolean);
  if (place >= 0) { const image = make('img'); image.alt = ''; image.dataset.place = place;
    if (size) image.style.aspectRatio = size[1] + ' / ' + size[0]; stack.append(image); }
  if (size) { const canvas = make('canvas'); canvas.style.aspectRatio = size[1] + ' / ' + size[0]; stack.append(canvas);
    stack.classList.toggle('alone', place < 0); }
  if (WHY[place]) { const why = make('p', 'where', WHY[place]); words.append(why); }
  if (stack.children.length) { figure.append(stack);
    stack.addEventListener('click', () => stack.classList.toggle('bare'));
    near.observe(stack); }
  words.append(make('p', 'where', [data.tasks[task], 'document ' + doc, data.models[model],
    value === null ? '' : (phrases.length ? 'IoU ' : 'score ') + value.toFixed(2)].filter(Boolean).join(', ')));
  if (error) words.append(make('p', 'error', error));
  if (phrases.length) {
    const list = make('ul', 'phrases');
    phrases.forEach((phrase, n) => { const item = make('li'), swatch = make('b');
      swatch.style.background = 'rgb(' + COLOURS[n % COLOURS.length].join() + ')';
      item.append(swatch, make('span', '', phrase[0]),
        make('span', '', phrase[3] === null ? 'no mask' : phrase[1] === null ? '' : phrase[1].toFixed(2)));
      list.append(item); });
    words.append(list);
  } else words.append(make('p', '', question));
  if (answer || stock !== null || !phrases.length) {
    const answers = make('div', 'answers');
    [['F-LMM', answer], ['stock', stock]].forEach(([name, text]) => { if (text === null) return;
      const box = make('div'); box.append(make('h4', '', name), make('span', '', text)); answers.append(box); });
    answers.classList.toggle('different', stock !== null && stock !== answer);
    words.append(answers);
    if (!phrases.length) words.append(make('p', 'where', 'expected: ' + target));
  }
  figure.append(words);
  return figure;
}
let shown = [], made = 0;
function more() {
  const cards = byId('cards');
  shown.slice(made, made + PAGE).forEach(sample => cards.append(card(sample)));
  made = Math.min(shown.length, made + PAGE);
}
function select() {
  const words = byId('find').value.toLowerCase().split(' ').filter(Boolean), task = byId('task').value;
  const low = byId('low').value === '' ? -1 : Number(byId('low').value);
  const high = byId('high').value === '' ? 2 : Number(byId('high').value);
  const bounded = low > -1 || high < 2, differ = byId('differ') && byId('differ').checked;
  const holds = s => words.length === 0 || (text => words.every(word => text.includes(word)))(
    [s[3], s[4], s[5], s[6] || '', ...s[9].map(p => p[0])].join(' ').toLowerCase());
  // With words to find, the bounds are those of the phrases that have them, not of their neighbours in the picture.
  const named = s => s[9].filter(p => words.every(word => p[0].toLowerCase().includes(word)));
  const values = s => s[9].length ? (named(s).length ? named(s) : s[9]).map(p => p[1]) : [s[8]];
  const inside = s => !bounded || values(s).some(v => v !== null && v >= low && v <= high);
  shown = data.samples.filter(s => (!task || data.tasks[s[1]] === task) && (!differ || (s[6] !== null && s[6] !== s[5]))
    && holds(s) && inside(s));
  const order = byId('order').value;
  if (order === 'best') shown.reverse();
  if (order === 'document') shown.sort((a, b) => a[1] - b[1] || a[2] - b[2]);
  near.disconnect();
  byId('cards').replaceChildren(); made = 0; more();
  end.disconnect(); end.observe(byId('more'));
  byId('count').textContent = shown.length + ' of ' + data.samples.length + ' samples';
}
const end = new IntersectionObserver(entries => { if (made < shown.length && entries.some(e => e.isIntersecting)) {
  more(); end.unobserve(byId('more')); end.observe(byId('more')); } }, {rootMargin: '400px'});
const FIELDS = ['find', 'low', 'high', 'task', 'order', 'differ', 'predicted', 'target'];
if (byId('controls')) {
  const state = new URLSearchParams(location.hash.slice(1));
  FIELDS.filter(name => byId(name) && state.has(name)).forEach(name => { const field = byId(name);
    if (field.type === 'checkbox') field.checked = state.get(name) !== '0'; else field.value = state.get(name); });
  let wait = 0;
  byId('controls').addEventListener('submit', event => event.preventDefault());
  byId('controls').addEventListener('input', event => { clearTimeout(wait);
    if (event.target.id === 'predicted' || event.target.id === 'target')
      document.querySelectorAll('.stack canvas[data-painted]').forEach(c => paint(c, c.parentElement.sample));
    else wait = setTimeout(select, 120); });
  select();
}
