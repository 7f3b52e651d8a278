// Small helpers: elements from names and text, and numbers for people.
function make(node, attrs, children) {
  for (const [k, v] of Object.entries(attrs)) {
    if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
    else node.setAttribute(k, v);
  }
  node.append(...children.flat().filter((c) => c !== ""));
  return node;
}
export const el = (name, attrs = {}, ...children) => make(document.createElement(name), attrs, children);
export const svg = (name, attrs = {}, ...children) => make(document.createElementNS("http://www.w3.org/2000/svg", name), attrs, children);

// replace puts new children into a node, and the focus back to what stands in the same place, so that the keyboard can be used while all is redrawn.
export function replace(node, children) {
  const focused = node.contains(document.activeElement) && document.activeElement;
  const label = focused && (focused.getAttribute("aria-label") || focused.textContent);
  node.replaceChildren(...children.flat().filter((c) => c !== ""));
  if (label) for (const b of node.querySelectorAll("button, select")) if ((b.getAttribute("aria-label") || b.textContent) === label) { b.focus(); break; }
}

export function bytes(n) {
  if (!n) return "0 B";
  const i = Math.min(5, Math.floor(Math.log2(n) / 10));
  return `${(n / 2 ** (10 * i)).toFixed(i ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][i]}`;
}
export const rate = (n) => bytes(n || 0) + "/s";
export function ms(n) {
  if (!n) return "–";
  return n < 1000 ? `${n.toFixed(n < 10 ? 2 : 1)} ms` : `${(n / 1000).toFixed(1)} s`;
}
export function ago(unixNS) {
  const s = Math.max(0, Date.now() / 1000 - unixNS / 1e9);
  return s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`;
}
export function clock(unixNS) {
  const d = new Date(unixNS / 1e6);
  const t = d.toLocaleTimeString([], { hour12: false });
  return Date.now() - d < 864e5 ? t : `${d.toLocaleDateString()} ${t}`;
}
