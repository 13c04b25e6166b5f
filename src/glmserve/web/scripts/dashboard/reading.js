// What the dashboard takes from one scrape of /metrics.  Counters stay counters here; history.js makes rates of them.
// A figure that the server does not report is null.

export const ACTIVITIES = [
  "decode",
  "prefill",
  "sampling",
  "idle_scheduling",
  "idle_tokenizing",
  "idle_http",
  "idle_kv_full",
  "idle_draining",
  "idle_no_work",
];
const P = "glmserve:";

/** A reading of `exposition` at `time` (seconds). */
export function readingOf(exposition, time) {
  const sum = (name) => exposition.sum(P + name);
  const mean = (name) => exposition.mean(P + name);
  return {
    time,
    running: sum("num_requests_running"),
    waiting: sum("num_requests_waiting"),
    kv: mean("kv_cache_usage_perc"),
    mbu: mean("model_bandwidth_utilization_perc"),
    mfu: mean("model_flops_utilization_perc"),
    preemptions: sum("num_preemptions_total"),
    outputTokens: sum("generation_tokens_total"),
    promptTokens: sum("prompt_tokens_total"),
    done: exposition.by(`${P}request_success_total`, "finished_reason"),
    rejected: sum("requests_rejected_total"),
    restarts: sum("engine_restarts_total"),
    activity: exposition.by(`${P}gpu_time_seconds_total`, "activity"),
    firstToken: buckets(exposition, "time_to_first_token_seconds"),
    interToken: buckets(exposition, "inter_token_latency_seconds"),
    gpus: gpusOf(exposition),
  };
}

function buckets(exposition, name) {
  const bounds = Object.entries(exposition.by(`${P}${name}_bucket`, "le"));
  return bounds.map(([bound, count]) => [bound === "+Inf" ? Infinity : Number(bound), count]).sort((a, b) => a[0] - b[0]);
}

function gpusOf(exposition) {
  return exposition.series(`${P}nvml_utilization_perc`).map(({ labels, value }) => {
    const of = (name) => exposition.series(P + name).find((one) => one.labels.gpu === labels.gpu)?.value ?? null;
    const device = exposition.series(`${P}device_info`).find((one) => one.labels.engine === labels.engine);
    return {
      gpu: labels.gpu,
      name: device?.labels.device_name ?? null,
      utilization: value,
      memoryUsed: of("nvml_memory_used_bytes"),
      memoryTotal: of("nvml_memory_total_bytes"),
      power: of("nvml_power_watts"),
      powerLimit: of("nvml_power_limit_watts"),
      clock: of("nvml_sm_clock_hertz"),
      temperature: of("nvml_temperature_celsius"),
      throttles: exposition
        .series(`${P}nvml_throttle`)
        .filter((one) => one.labels.gpu === labels.gpu && one.value > 0)
        .map((one) => one.labels.reason),
    };
  });
}
