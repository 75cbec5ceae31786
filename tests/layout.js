// What is wrong with the layout of the page that this runs in, said in the page around it; see test_browser.py.
addEventListener("load", () => {
  const width = document.documentElement.clientWidth;
  const found = [];
  const name = (element) => {
    const kind = element.className.baseVal ?? element.className;
    return `${element.tagName} ${kind} ${element.textContent.trim().slice(0, 60)}`;
  };
  const say = (what, element) => found.push(`${what}: ${name(element)}`);
  const shown = (box) => box.width > 0 && box.height > 0;
  const meet = (a, b) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const pairs = (items, test) =>
    items.forEach((one, i) => items.slice(i + 1).forEach((other) => meet(one[0], other[0]) && test(one[1], other[1])));

  document.querySelectorAll("details").forEach((part) => { part.open = true; });
  if (document.documentElement.scrollWidth > width) say("page wider than the window", document.body);
  for (const element of document.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    if (!shown(box) || (element.closest("svg") && element.tagName !== "svg")) continue;
    if (box.right > width + 1 || box.left < -1) say("outside of the window", element);
    if (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== "inline") say("cut", element);
  }

  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style, title")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    texts.push(...[...range.getClientRects()].filter(shown).map((box) => [box, element]));
  }
  pairs(texts, (one, other) => one !== other && say(`overlaps ${other.textContent.trim().slice(0, 30)}`, one));
  for (const [box, element] of texts) {
    const frame = element.closest("svg")?.getBoundingClientRect();
    const cut = frame && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1);
    if (cut) say("cut by its chart", element);
  }
  const boxes = [...document.querySelectorAll(".tile, .panel, .step, .layer")];
  pairs(boxes.map((element) => [element.getBoundingClientRect(), element]), (one) => say("boxes overlap", one));

  const answer = parent.document.createElement("pre");
  answer.id = "looked";
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const ground = getComputedStyle(document.body).backgroundColor;
  answer.textContent = JSON.stringify({ found, width, dark, ground, texts: texts.length });
  parent.document.body.append(answer);
});
