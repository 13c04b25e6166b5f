// Server-sent events of a response that is still arriving.  EventSource cannot do it: it only sends GET.

/** The `data` of each event, in batches as they arrive together. */
export async function* eventBatches(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      const batch = parts.map(dataOf).filter((data) => data !== "");
      if (batch.length) yield batch;
    }
  } finally {
    reader.cancel().catch(() => {}); // the reader left early, or the connection broke: both are known already
  }
}

function dataOf(event) {
  return event
    .split(/\r?\n/)
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).replace(/^ /, ""))
    .join("\n");
}
