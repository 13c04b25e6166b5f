// One streamed answer of /v1/chat/completions.

import { ApiError, ServerGoneError, call } from "./client.js";
import { eventBatches } from "./event_stream.js";

/**
 * Ask for an answer; `onText` gets what is new.  Gives {finishReason, usage}.
 * `parameters` holds what the user set of temperature, top_p and max_tokens.  Throws as `call` does.
 */
export async function streamChat({ model, messages, parameters, signal, onText }) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true }, ...parameters };
  const headers = { "Content-Type": "application/json" };
  const response = await call("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  const end = { finishReason: null, usage: null };
  try {
    for await (const batch of eventBatches(response.body)) {
      let text = "";
      for (const data of batch) {
        if (data === "[DONE]") {
          if (text) onText(text);
          return end;
        }
        text += take(JSON.parse(data), end);
      }
      if (text) onText(text);
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new ServerGoneError(String(error.message || error));
  }
  throw new ServerGoneError("the answer broke off");
}

function take(chunk, end) {
  if (chunk.error) throw new ApiError(chunk.error.message, chunk.error.code === "engine_unavailable" ? 503 : 500, chunk.error.code ?? null, null);
  if (chunk.usage) end.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (choice?.finish_reason) end.finishReason = choice.finish_reason;
  return choice?.delta?.content ?? "";
}
