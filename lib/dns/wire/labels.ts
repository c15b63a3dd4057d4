/**
 * Names as arrays of labels. A label is a string in which each character is one byte (0–255): a label that holds a
 * dot or a NUL stays one label, so `a\.b` can never be mistaken for `a.b`.
 */
import { MAX_LABEL_BYTES, MAX_NAME_BYTES } from "./constants.ts";

export type Labels = readonly string[];

/** Labels of a name in presentation form, with or without its final dot; undefined if it is no valid name. */
export function labelsOf(text: string): Labels | undefined {
  const name = text.endsWith(".") ? text.slice(0, -1) : text;
  if (name === "") return [];
  const labels = name.split(".");
  let bytes = 1;
  for (const label of labels) {
    if (label === "" || label.length > MAX_LABEL_BYTES || !isBytes(label)) return undefined;
    bytes += label.length + 1;
  }
  return bytes > MAX_NAME_BYTES ? undefined : labels;
}

/** Presentation form with the final dot; bytes that are not printable are escaped as RFC 1035 §5.1 says. */
export function nameText(labels: Labels): string {
  return labels.length === 0 ? "." : labels.map(escape).join(".") + ".";
}

/** ASCII lower case of each label: names compare without case (RFC 4343). The same array when it is lower case. */
export function lowerLabels(labels: Labels): Labels {
  for (let i = 0; i < labels.length; i++) if (hasUpper(labels[i]!)) return labels.map(lowerAscii);
  return labels;
}

/** Lower case of A–Z only; `toLowerCase` would change bytes above 127. */
export function lowerAscii(text: string): string {
  return hasUpper(text) ? text.replace(/[A-Z]+/g, (upper) => upper.toLowerCase()) : text;
}

/** Whether `labels` ends with `suffix`; both lower case. Equal names end with each other. */
export function endsWith(labels: Labels, suffix: Labels): boolean {
  const shift = labels.length - suffix.length;
  if (shift < 0) return false;
  for (let i = suffix.length - 1; i >= 0; i--) {
    if (labels[shift + i] !== suffix[i]) return false;
  }
  return true;
}

/** Bytes a name takes on the wire without compression. */
export function wireLength(labels: Labels): number {
  let bytes = 1;
  for (const label of labels) bytes += label.length + 1;
  return bytes;
}

function hasUpper(text: string): boolean {
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c >= 0x41 && c <= 0x5a) return true;
  }
  return false;
}

function isBytes(label: string): boolean {
  for (let i = 0; i < label.length; i++) if (label.charCodeAt(i) > 255) return false;
  return true;
}

function escape(label: string): string {
  if (/^[-_a-zA-Z0-9*]*$/.test(label)) return label;
  let text = "";
  for (let i = 0; i < label.length; i++) {
    const c = label.charCodeAt(i);
    if (c < 0x21 || c > 0x7e) text += "\\" + String(c).padStart(3, "0");
    else if ('."\\();@$'.includes(label[i]!)) text += "\\" + label[i];
    else text += label[i];
  }
  return text;
}
