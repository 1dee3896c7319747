// The tooltip of an hour.

/** Show a tooltip below a link, or above it if there is no room. */
export function placeTip(tip, link) {
  tip.hidden = false;
  const box = link.getBoundingClientRect();
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(room, box.left + box.width / 2 - tip.offsetWidth / 2))}px`;
  tip.style.top = `${below ? box.bottom + 6 : box.top - tip.offsetHeight - 6}px`;
}

/** Show and hide a tooltip with the pointer and the focus; `show` gets the link of an hour. */
export function withTip(box, tip, show) {
  for (const [on, off] of [["mouseover", "mouseout"], ["focusin", "focusout"]]) {
    box.addEventListener(on, (event) => {
      const link = event.target.closest("a.hour");
      if (!link) return;
      tip.replaceChildren(...show(link));
      placeTip(tip, link);
    });
    box.addEventListener(off, () => (tip.hidden = true));
  }
}
