// Terms, explained where they stand: by mouse, by touch and by keyboard.

function word(term, text = term, meaning = report.words[term]) {
  if (!meaning) return text;
  const element = h("button", { type: "button", class: "word", "aria-describedby": "tip" }, text);
  const show = () => showTip(element, meaning);
  element.addEventListener("mouseenter", show);
  element.addEventListener("focus", show);
  element.addEventListener("click", (event) => {
    event.preventDefault();
    event.stopPropagation();
    show();
  });
  element.addEventListener("mouseleave", hideTip);
  element.addEventListener("blur", hideTip);
  return element;
}

function showTip(element, text) {
  const tip = byId("tip");
  tip.textContent = text;
  tip.hidden = false;
  const place = element.getBoundingClientRect();
  const left = Math.max(8, Math.min(place.left, document.documentElement.clientWidth - tip.offsetWidth - 8));
  const below = place.bottom + 6;
  const isBelow = below + tip.offsetHeight < innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${isBelow ? below : Math.max(8, place.top - tip.offsetHeight - 6)}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}
