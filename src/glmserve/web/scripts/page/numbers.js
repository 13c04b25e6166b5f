// Numbers as people read them.  A figure that is not known is a dash.

export const UNKNOWN = "–";
const SPACE = "\u00a0"; // between a number and its unit: they stay on one line

/** 0.93 -> "93%", 0.012 -> "1.2%". */
export function percent(share) {
  if (share === null) return UNKNOWN;
  const value = share < 0.0005 ? 0 : share * 100;
  return `${value >= 10 || value === 0 ? value.toFixed(0) : value.toFixed(1)}%`;
}

/** Seconds -> "12 ms", "1.24 s", "2 min". */
export function duration(seconds) {
  if (seconds === null) return UNKNOWN;
  if (seconds === 0) return `0${SPACE}s`;
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)}${SPACE}ms`;
  if (seconds < 0.9995) return `${(seconds * 1000).toFixed(0)}${SPACE}ms`;
  if (seconds < 99.95) return `${seconds.toFixed(seconds < 9.995 ? 2 : 1)}${SPACE}s`;
  return `${(seconds / 60).toFixed(0)}${SPACE}min`;
}

/** 15937.2 -> "15,937", 3.21 -> "3.2". */
export function count(value) {
  if (value === null) return UNKNOWN;
  if (value !== 0 && Math.abs(value) < 10 && !Number.isInteger(value)) return value.toFixed(1);
  return Math.round(value).toLocaleString("en-US");
}

/** Bytes -> "71.2 GB". */
export function bytes(value) {
  if (value === null) return UNKNOWN;
  const power = Math.min(4, Math.floor(Math.log10(Math.max(value, 1)) / 3));
  const scaled = value / 1000 ** power;
  return `${scaled.toFixed(power && scaled < 100 ? 1 : 0)}${SPACE}${["B", "kB", "MB", "GB", "TB"][power]}`;
}
