// Asking the server: plain requests, writes, and polls that cost nothing while nothing changes.

import { byId, fill } from "./dom.js";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const GONE = "The dashboard does not answer. Is it still running? It is asked again every few seconds.";

async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(GONE, 0);
  }
  if (response.ok || response.status === 304) return response;
  let message = `The dashboard answered ${response.status}.`;
  try {
    message = (await response.json()).error || message;
  } catch { /* no JSON: the status has to do */ }
  throw new ApiError(message, response.status);
}

export const getJSON = async (address) => (await ask(address)).json();
export const getText = async (address) => (await ask(address)).text();

export async function post(address, body) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(address, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

export const setNote = (uuid, text) => post(`/api/runs/${uuid}/note`, { text });
export const setHidden = (uuid, hidden) => post(`/api/runs/${uuid}/hide`, { hidden });

/** Say at the top of the page what is wrong; nothing clears it. */
export function trouble(message = "") {
  const place = byId("trouble");
  if (place.textContent !== message) fill(place, message);
}

/**
 * Ask again and again, `every` milliseconds, but not while the page is hidden. `onData` is called
 * when the answer is another one, `onGone` (with the error) when there is no such thing any more,
 * which ends the poll. Returns {stop, now}.
 */
export function poll(address, onData, { every = 2000, onGone = null } = {}) {
  let tag = null;
  let timer = null;
  let asking = null;
  let ended = false;

  async function turn() {
    timer = null;
    asking = new AbortController();
    try {
      const headers = tag ? { "If-None-Match": tag } : {};
      const response = await ask(address, { headers, signal: asking.signal });
      if (response.status !== 304) {
        const data = await response.json();
        tag = response.headers.get("ETag");
        onData(data);
      }
      trouble();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ApiError)) throw error;
      // 4xx: asking again will not help, but for a server that lost its cookie or its patience
      if (error.status >= 400 && error.status < 500 && onGone) {
        stop();
        onGone(error);
      } else {
        trouble(error.message);
      }
    } finally {
      asking = null;
      if (!ended && timer === null && !document.hidden) timer = setTimeout(turn, every);
    }
  }

  function now() {
    if (ended || asking) return;
    clearTimeout(timer);
    turn();
  }

  function seen() {
    clearTimeout(timer);
    timer = null;
    if (!document.hidden) now();
  }

  function stop() {
    ended = true;
    clearTimeout(timer);
    asking?.abort();
    document.removeEventListener("visibilitychange", seen);
  }

  document.addEventListener("visibilitychange", seen);
  turn();
  return { stop, now };
}
