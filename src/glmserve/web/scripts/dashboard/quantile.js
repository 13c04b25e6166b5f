// Quantiles from a histogram's counts, as Prometheus' histogram_quantile estimates them: evenly spread within a bucket.

/** A bucket is [upper bound, how many were at most that]; `earlier` is taken off, where given.  null where nothing was counted. */
export function quantile(share, buckets, earlier = null) {
  const counts = new Map(earlier ?? []);
  const grown = buckets.map(([bound, count]) => [bound, count - (counts.get(bound) ?? 0)]).sort((a, b) => a[0] - b[0]);
  const total = grown.at(-1)?.[1] ?? 0;
  if (!(total > 0)) return null;
  const rank = share * total;
  const index = grown.findIndex(([, count]) => count >= rank);
  const [upper, count] = grown[index];
  const [lower, below] = index ? grown[index - 1] : [0, 0];
  if (upper === Infinity) return lower; // all that is known is that it was more than that
  return count === below ? upper : lower + ((upper - lower) * (rank - below)) / (count - below);
}
