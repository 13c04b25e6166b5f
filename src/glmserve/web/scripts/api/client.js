// Requests to the server that this page came from, as any client makes them: with the user's key, and with errors that have a name.

import { recall, remember } from "../page/preferences.js";

/** The server answered, with an error; `message` is its own. */
export class ApiError extends Error {
  constructor(message, status, code, retryAfter) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter; // seconds, or null
  }
}

/** No answer, or one that broke off: the network, or a server that is not there. */
export class ServerGoneError extends Error {}

/** The user's API key, or "". */
export function apiKey() {
  return recall("api_key", "");
}

/** Keep the key in this browser; "" forgets it. */
export function setApiKey(key) {
  remember("api_key", key || null);
}

/** `path` below the page, so that it also works behind a proxy's prefix. */
export function address(path) {
  return new URL(path, document.baseURI);
}

/** The response to a request.  Throws ApiError, ServerGoneError, and the signal's reason. */
export async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (apiKey()) headers.set("Authorization", `Bearer ${apiKey()}`);
  let response;
  try {
    response = await fetch(address(path), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerGoneError(String(error.message || error));
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const waiting = Number(response.headers.get("Retry-After"));
  const body = await response.json().catch(() => ({}));
  const error = typeof body.error === "object" && body.error ? body.error : { message: body.reason ?? body.error ?? body.detail };
  return new ApiError(String(error.message ?? `HTTP ${response.status}`), response.status, error.code ?? null, waiting || null);
}
